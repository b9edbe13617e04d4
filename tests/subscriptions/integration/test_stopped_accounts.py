"""Accounts that the ledger has stopped: closed, they are charged for nothing more, and Stripe's subscriptions end once.

The sandbox Stripe by a test clock, a real Postgres, faked peers; `told` is in support/subscriptions_events.py.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from subscriptions_events import STARTER, STARTER_CREDIT, moment
from subscriptions_stripe import FAILS, PAYS

from services.subscriptions.model.account import AccountWords


def close(told, account_id="acme"):
    told.ledger.books[account_id]["status"] = "closed"


def look(told):
    """What the jobs do, and what follows from Stripe's events of it."""
    told.parts.following()
    told.parts.stripe_use_cases.closing.look()
    told.settle()


def charged(told):
    return [charge.amount for charge in told.stripe.charges(told.customers["acme"])][::-1]


def at_stripe(told):
    listed = told.stripe.v1.subscriptions.list({"customer": told.customers["acme"], "status": "all"})
    return [found.status for found in listed.data]


def ended(outcome="ended"):
    return REGISTRY.get_sample_value("tollkeeper_subscriptions_of_closed_accounts_total", {"outcome": outcome}) or 0


@pytest.fixture
def starter(told):
    told.start_clock()
    return told.subscribed()


def test_closed_account_is_not_charged_again(told, starter):
    close(told)
    before = ended()
    look(told)
    assert (at_stripe(told), told.account().status, ended() - before) == (["canceled"], "closed", 1)
    told.later(days=62)
    told.settle()
    assert charged(told) == [1900]
    assert told.account().status == "closed"


def test_subscription_of_a_closed_account_ends_once_however_many_look(told, starter):
    close(told)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: told.parts.following(), range(4)))
        list(pool.map(lambda _: told.parts.stripe_use_cases.closing.look(), range(4)))
    asked = len(told.stripe.events(type="customer.subscription.deleted"))
    look(told)
    assert len(told.stripe.events(type="customer.subscription.deleted")) == asked
    assert at_stripe(told) == ["canceled"]


def test_all_that_a_closed_account_subscribes_to_ends(told, starter):
    told.subscribe("acme", "professional")
    told.settle()
    close(told)
    look(told)
    look(told)
    assert at_stripe(told) == ["canceled", "canceled"]


def test_subscription_begun_at_a_page_that_was_open_when_the_account_closed_ends(told):
    told.start_clock()
    told.customer()
    close(told)
    look(told)
    told.subscribe()
    told.tell(told.news())
    told.apply()
    look(told)
    assert at_stripe(told) == ["canceled"]


def test_renewal_that_is_drafted_when_the_account_closes_is_not_collected(told, starter):
    told.later(until=moment(told.period_end(starter)) + timedelta(seconds=30))
    (draft,) = told.stripe.v1.invoices.list({"customer": told.customers["acme"], "status": "draft"}).data
    close(told)
    told.settle()  # before the job has looked: nobody else charges it either
    look(told)
    told.later(hours=30)
    told.settle()
    assert (charged(told), told.stripe.v1.invoices.retrieve(draft.id).status) == ([1900], "draft")


def test_key_that_may_not_write_invoices_ends_the_subscription_all_the_same(told, starter):
    told.later(until=moment(told.period_end(starter)) + timedelta(seconds=30))
    close(told)
    told.stripe.fault("status", "/v1/invoices/*", status=403, count=9)
    look(told)
    assert at_stripe(told) == ["canceled"]


def test_payment_that_failed_is_not_tried_again_once_the_account_is_closed(told, starter):
    told.stripe.give_card(told.customers["acme"], FAILS)
    told.later(days=31, hours=2)
    told.settle()
    assert told.account().status == "grace"
    close(told)
    look(told)
    told.stripe.give_card(told.customers["acme"], PAYS)
    told.later(days=20)
    told.settle()
    assert charged(told) == [1900]


def test_stripe_that_is_away_is_asked_again_and_others_are_not_held_up(told, starter):
    told.customer("beta")
    told.subscribe("beta")
    told.settle()
    close(told)
    close(told, "beta")
    told.stripe.fault("status", "/v1/subscriptions/*", method="DELETE", status=500, count=3)
    failed = ended("failed")
    look(told)
    assert ended("failed") == failed + 1
    assert at_stripe(told) == ["active"]
    listed = told.stripe.v1.subscriptions.list({"customer": told.customers["beta"], "status": "all"})
    assert [found.status for found in listed.data] == ["canceled"]
    told.stripe.clear_faults()
    look(told)
    assert at_stripe(told) == ["canceled"]


def test_suspended_account_keeps_its_subscription(told, starter):
    told.ledger.books["acme"]["status"] = "suspended"
    look(told)
    told.later(days=31, hours=2)
    told.settle()
    assert (at_stripe(told), charged(told)) == (["active"], [1900, 1900])
    assert told.credit() == 2 * STARTER_CREDIT


def test_year_that_was_paid_before_the_account_closed_is_no_payment_of_a_closed_account(told):
    told.start_clock()
    told.subscribed(interval="year")
    paid = REGISTRY.get_sample_value("tollkeeper_subscriptions_closed_accounts_paid_total")
    close(told)
    look(told)
    for _ in range(3):
        told.later(days=31)
        told.tick()
    assert (len(told.grants()), charged(told)) == (1, [19_380])
    assert REGISTRY.get_sample_value("tollkeeper_subscriptions_closed_accounts_paid_total") == paid


def test_account_is_suspended_here_while_it_is_at_the_ledger(told, starter):
    told.ledger.books["acme"]["status"] = "suspended"
    look(told)
    assert told.account().status == "suspended"
    told.ledger.books["acme"]["status"] = "open"
    look(told)
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)


def test_ledger_that_is_away_changes_nobodys_status(told, starter):
    told.ledger.books["acme"]["status"] = "suspended"
    look(told)
    told.ledger.down = True
    told.parts.following()
    assert told.account().status == "suspended"


def test_debt_of_an_account_goes_on_while_it_is_suspended(told, starter):
    told.stripe.give_card(told.customers["acme"], FAILS)
    told.later(days=31, hours=2)
    told.settle()
    assert told.account().status == "grace"
    told.ledger.books["acme"]["status"] = "suspended"
    look(told)
    told.later(days=13)
    told.tick()
    account = told.account()
    assert (account.plan_id, account.status, account.renews_grant) == ("free", "suspended", False), "nothing free"
    told.ledger.books["acme"]["status"] = "open"
    look(told)
    told.tick()
    assert told.standing() == ("free", "limited", "free", 50_000)


def test_account_that_is_resumed_calls_at_once_whatever_was_told_while_it_was_suspended(told, starter):
    told.ledger.books["acme"]["status"] = "suspended"
    look(told)
    told.later(hours=1)  # of two subscriptions the later one counts
    told.subscribe("acme", "professional")
    told.settle()
    assert told.proxy.entitlements["acme"].plan_id == "professional"
    told.ledger.books["acme"]["status"] = "open"  # of which nobody else is told at once
    assert told.proxy.entitlements["acme"].active


def test_limits_that_emitted_use_has_lowered_are_looked_at_when_an_account_goes_on(told):
    told.customer()
    revision = told.account().revision
    told.ledger.books["acme"]["status"] = "suspended"
    look(told)
    told.ledger.books["acme"]["status"] = "open"
    look(told)
    assert (told.account().status, told.account().revision > revision) == ("active", True)


def test_more_closed_accounts_than_a_page_holds_are_all_learned_of(told):
    told.ledger.page_size = 3
    names = [f"shop-{number}" for number in range(8)]
    for name in names:
        told.parts.customers.create(AccountWords(name, "", "", "free"))
        close(told, name)
    told.clock.forward(timedelta(minutes=1))
    look(told)
    assert {told.account(name).status for name in names} == {"closed"}
