"""After a restore of one of them, subscriptions, ledger and proxy agree again; nothing is given twice."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text
from subscriptions_events import STARTER_CREDIT
from subscriptions_peers import USD

from services.subscriptions import store
from services.subscriptions.__main__ import main
from services.subscriptions.commands import COMMANDS
from services.subscriptions.model.account import AccountWords
from services.subscriptions.service.redelivery import Redelivered, Redelivery
from services.subscriptions.settings import SubscriptionsSettings


@pytest.fixture
def made(parts):
    return parts()


@pytest.fixture
def redeliver(made, clock):
    """Tell ledger and proxy again, as some time after what was done before."""

    def run():
        clock.forward(timedelta(minutes=5))
        return Redelivery(made.engine, made.plans, made.deliverer, clock=clock).run()

    return run


def create(made, plan_id="free", account_id="acme"):
    return made.customers.create(AccountWords(account_id, "", "", plan_id)).account


def limits_of(ledger, account_id="acme"):
    return {limit_id: limit.amount for limit_id, limit in ledger.books[account_id]["limits"].items()}


def credit_of(ledger, account_id="acme"):
    return [(grant.request_id, grant.amount_nanos) for grant in ledger.books[account_id]["grants"]]


def test_ledger_and_proxy_of_an_earlier_moment_are_told_what_they_lack(made, redeliver, ledger, proxy):
    create(made, "payg")
    books, entitlements = copy.deepcopy(ledger.books), dict(proxy.entitlements)
    applied = list(ledger.applied)
    made.customers.set_plan("acme", "starter", "m1")
    made.customers.set_plan("acme", "free", "m2")
    create(made, account_id="newcomer")
    expected = [
        (limits_of(ledger, name), credit_of(ledger, name), proxy.entitlements[name].plan_id)
        for name in ("acme", "newcomer")
    ]
    ledger.books, ledger.applied, proxy.entitlements = books, applied, entitlements
    assert redeliver() == Redelivered(accounts=2, without_plan=0, waiting=0)
    assert [
        (limits_of(ledger, name), credit_of(ledger, name), proxy.entitlements[name].plan_id)
        for name in ("acme", "newcomer")
    ] == expected


def test_ledger_and_proxy_of_a_later_moment_take_back_a_move_that_is_lost(made, redeliver, ledger, proxy, database):
    first = create(made, "starter")
    starter = limits_of(ledger)
    made.customers.set_plan("acme", "free", "m1")
    undo = "UPDATE accounts SET plan_id = 'starter', revision = :revision, outbox_sequence = 3"
    database.rows(undo + ", renews_grant = false, granted_until = NULL", revision=first.revision)
    database.rows("DELETE FROM plan_changes")
    database.rows("DELETE FROM outbox WHERE sequence > 3")
    assert redeliver().waiting == 0
    assert (proxy.entitlements["acme"].plan_id, limits_of(ledger)) == ("starter", starter)
    # What is done from now on takes effect, and the cycle's promotion is not given again.
    assert made.customers.set_plan("acme", "free", "m1").account.provisioned
    assert proxy.entitlements["acme"].plan_id == "free"
    assert [nanos for _, nanos in credit_of(ledger)] == [5 * USD]


def test_what_is_told_again_waits_since_then_and_what_waited_before_since_it_did(made, database):
    create(made, "free")
    database.rows("UPDATE outbox SET created_at = now() - interval '3 days'")
    with made.engine.begin() as connection:
        assert store.tell_again(connection, "acme", ("grant_credit",)) == 1
        assert store.waiting_summary(connection)[1] < 60  # the alert on what waits would fire at once
        connection.execute(text("UPDATE outbox SET created_at = now() - interval '1 hour' WHERE delivered_at IS NULL"))
        assert store.tell_again(connection, "acme", ("grant_credit",)) == 1
        assert store.waiting_summary(connection)[1] >= 3600


def test_account_that_is_lost_is_made_again_on_the_book_that_the_ledger_has(made, clock, ledger, proxy, database):
    clock.forward(timedelta(days=1) - timedelta(hours=clock().hour, minutes=clock().minute))  # a day's promotion is one
    create(made, "free")
    for table in ("outbox", "accounts"):
        database.rows(f"DELETE FROM {table}")
    clock.forward(timedelta(minutes=5))
    again = create(made, "free")
    assert again.provisioned
    assert ledger.books["acme"]["anchor"] == again.cycle_anchor
    assert [nanos for _, nanos in credit_of(ledger)] == [5 * USD]
    for table in ("outbox", "accounts"):
        database.rows(f"DELETE FROM {table}")
    clock.forward(timedelta(minutes=5))
    assert create(made, "starter").provisioned
    assert proxy.entitlements["acme"].plan_id == "starter"


def test_account_made_again_on_a_plan_without_limits_is_not_held_to_those_of_the_lost_one(
    made, clock, ledger, database
):
    create(made, "starter")
    for table in ("outbox", "accounts"):
        database.rows(f"DELETE FROM {table}")
    clock.forward(timedelta(minutes=5))
    assert create(made, "payg").provisioned
    assert limits_of(ledger) == {}


def test_terms_that_the_ledger_knows_otherwise_from_a_lost_move_hold_nothing_up(
    made, redeliver, ledger, proxy, database
):
    """As when reconciliation finds, at the revision of a move that is lost, what the subscription has become since."""
    first = create(made, "payg")
    made.customers.set_plan("acme", "starter", "m1")
    database.rows("UPDATE accounts SET plan_id = 'payg', revision = :before", before=first.revision)
    database.rows("DELETE FROM plan_changes")
    database.rows("DELETE FROM outbox WHERE sequence > 3")
    ledger.down = True
    made.customers.set_plan("acme", "free", "m2")
    ledger.down = False
    assert redeliver().waiting == 0
    assert proxy.entitlements["acme"].plan_id == "free"
    assert limits_of(ledger)["plan::tokens:cycle"] == 50_000
    assert [nanos for _, nanos in credit_of(ledger)] == [5 * USD]


def test_told_again_any_number_of_times_changes_nothing(made, redeliver, ledger, proxy):
    create(made, "free")
    made.customers.set_plan("acme", "starter", "m1")

    def standing():
        return limits_of(ledger), credit_of(ledger), ledger.books["acme"]["anchor"], proxy.entitlements["acme"].plan_id

    before = standing()
    for _ in range(3):
        assert redeliver().waiting == 0
    assert standing() == before


def test_credit_that_was_taken_back_stays_so(told):
    told.start_clock()
    told.subscribed()
    told.refund(told.charge(), 950)
    told.settle()
    told.buy()
    told.settle()
    told.refund(told.charge())
    told.settle()
    book = told.ledger.books["acme"]

    def standing():
        return told.grants(), book["anchor"], len(book["reversals"]), told.standing()

    before = standing()
    assert sum(told.grants().values()) == STARTER_CREDIT // 2
    for _ in range(2):
        done = Redelivery(told.parts.engine, told.parts.plans, told.parts.deliverer, clock=told.clock).run()
        assert (done.waiting, standing()) == (0, before)


def test_later_entitlement_of_the_proxys_is_not_passed_over_in_silence(made, proxy, capsys):
    first = create(made, "free")
    proxy.entitlements["acme"].revision = first.revision + 10
    made.customers.set_plan("acme", "payg", "m1")
    assert proxy.entitlements["acme"].plan_id == "free"
    assert "the proxy keeps a later entitlement" in capsys.readouterr().out


def test_run_by_mistake_beside_workers_and_moves_leaves_everything_as_it_would_be(made, ledger, proxy):
    names = [f"acme-{number}" for number in range(5)]
    for name in names:
        create(made, "free", name)
    over = threading.Event()

    def deliver():
        while not over.is_set():
            made.deliverer.deliver_next()

    def move(name):
        for number in range(6):
            made.customers.set_plan(name, ("payg", "starter")[number % 2], f"m{number}")

    def tell_again(_):
        for _ in range(4):
            Redelivery(made.engine, made.plans, made.deliverer).run()

    with ThreadPoolExecutor(10) as pool:
        worker = pool.submit(deliver)
        try:
            told, moved = pool.map(tell_again, range(2)), pool.map(move, names)
            assert len([*told, *moved]) == 7
        finally:
            over.set()
        worker.result(20)
    assert all(made.deliverer.deliver_account(name, within_seconds=20) for name in names)
    for name in names:
        assert proxy.entitlements[name].plan_id == "starter"
        assert limits_of(ledger, name) == {"plan::tokens:cycle": 500_000, "plan::requests:cycle": 1000}
        assert [nanos for _, nanos in credit_of(ledger, name)] == [5 * USD]


def test_account_on_a_plan_that_is_lost_is_named_and_holds_up_no_other(made, peers, parts, clock):
    create(made, "payg", "stuck")
    create(made, "starter", "fine")
    revision = peers.proxy.entitlements["fine"].revision
    del peers.pricing.versions["payg"]
    fresh = parts()  # a process that has not seen the plan
    clock.forward(timedelta(minutes=5))
    done = Redelivery(fresh.engine, fresh.plans, fresh.deliverer, clock=clock).run()
    assert done == Redelivered(accounts=2, without_plan=1, waiting=0)
    assert peers.proxy.entitlements["fine"].revision > revision


def test_it_ends_while_the_ledger_is_away_however_soon_what_failed_is_due_again(made, ledger, clock, monkeypatch):
    monkeypatch.setattr("services.subscriptions.deliverer.retry_delay_seconds", lambda *_, **__: 0.0)
    for number in range(3):
        create(made, "free", f"acme-{number}")
    ledger.down = True
    seconds = iter(range(0, 600, 10))
    redelivery = Redelivery(made.engine, made.plans, made.deliverer, clock=clock, monotonic=lambda: next(seconds))
    done = redelivery.run()
    assert (done.accounts, done.gave_up, next(seconds)) == (3, True, 70)
    assert done.waiting > 0
    ledger.down = False
    assert Redelivery(made.engine, made.plans, made.deliverer, clock=clock).run() == Redelivered(3, 0, 0)


def test_command_says_what_waits_and_exits_with_1_until_nothing_does(made, settings, ledger, monkeypatch, capsys):
    create(made)
    told = settings()
    for name in ("database_url", "identity_jwks_file", "service_token", "ledger_addr", "pricing_addr", "proxy_addr"):
        monkeypatch.setenv(f"TOLLKEEPER_SUBSCRIPTIONS_{name.upper()}", str(getattr(told, name)))

    def run():
        return main(
            SubscriptionsSettings, serve=lambda _: None, own=COMMANDS, arguments=["redeliver"]
        ), capsys.readouterr().out

    ledger.down = True
    status, printed = run()
    assert status == 1
    assert printed.startswith("1 accounts told of again, ")
    ledger.down = False
    assert run() == (0, "1 accounts told of again, 0 deliveries wait\n")
