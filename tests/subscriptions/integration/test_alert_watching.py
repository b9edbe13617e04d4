"""How alerts come to be raised: each threshold once in a window, low balance once a day, and by the jobs to the end."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from subscriptions_alerts import add_endpoint, deliveries
from subscriptions_peers import USD, eventually
from subscriptions_receivers import Receiver
from tollkeeper.subscriptions.v1 import billing_service_pb2 as billing_pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from services.subscriptions.alerts.watching import Views, Watcher
from services.subscriptions.metering.aggregation import EventAggregator, FeedAggregator
from services.subscriptions.metering.limits import LimitGuard


@pytest.fixture
def account(operator):
    operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id="acme"))


@pytest.fixture
def watch(parts):
    """`watch()`: take in what was used, and look once; a watcher of a process that has been looking for a while."""
    made = parts()
    feed = FeedAggregator(made.engine, made.feed, made.counters)
    views = Views(made.ledger, made.metering, made.plans)

    def look(watcher=None, **options):
        EventAggregator(made.engine)()
        feed()
        values = {"low_balance_nanos": USD, "clock": made._clock}
        (watcher or Watcher(made.engine, views, **(values | options)))()

    look.views, look.engine, look.parts = views, made.engine, made
    return look


def alerts(database):
    return database.rows("SELECT account_id, type FROM alerts ORDER BY created_at, type")


def emit(operator, event_id, metric, quantity, time=None):
    event = billing_pb.UsageEvent(id=event_id, metric=metric, quantity=quantity)
    if time is not None:
        event.time.FromDatetime(time)
    request = billing_pb.EmitEventsRequest(account_id="acme", events=[event])
    assert operator(operator.metering.EmitEvents, request).accepted == 1


def used(ledger, tokens, limit_id="plan::tokens:cycle"):
    ledger.books["acme"]["used"][limit_id] = tokens
    ledger.use("acme", 1, datetime.now(UTC))


def test_watcher_raises_each_threshold_once_in_a_window(database, account, ledger, watch):
    used(ledger, 20_000)
    watch()
    assert alerts(database) == []
    for tokens in (40_000, 41_000, 49_999):  # of 50 000
        used(ledger, tokens)
        watch()
        watch()
        assert alerts(database) == [("acme", "limit_80")]
    used(ledger, 50_000)
    watch()
    used(ledger, 26_000)
    watch()
    assert alerts(database) == [("acme", "limit_80"), ("acme", "limit_100")]
    ledger.books["acme"]["cycle_start"] = datetime.now(UTC) + timedelta(days=31)
    used(ledger, 40_000)
    watch()
    assert alerts(database)[2:] == [("acme", "limit_80")], "another window"


def test_watchers_of_several_processes_raise_it_once(database, account, ledger, watch):
    used(ledger, 40_000)
    watch()
    database.rows("DELETE FROM alerts")
    with ThreadPoolExecutor(4) as pool:
        views = [Watcher(watch.engine, watch.views, low_balance_nanos=USD) for _ in range(4)]
        list(pool.map(lambda watcher: watcher.look_at("acme"), views))
    assert alerts(database) == [("acme", "limit_80")]


def test_low_balance_is_told_once_a_day(database, account, ledger, watch, clock):
    book = ledger.books["acme"]
    book["cycle_spent"] = 3 * USD
    used(ledger, 1)
    watch()
    assert alerts(database) == []
    book["cycle_spent"] = 4 * USD  # of 5
    watch()
    watch()
    assert alerts(database) == [("acme", "balance_low")]
    clock.forward(timedelta(days=1))
    ledger.use("acme", 1, clock())
    watch()
    watch()
    assert alerts(database) == [("acme", "balance_low")] * 2


def test_metered_plan_is_told_of_its_quotas_and_of_no_balance(database, operator, pricing, ledger, watch):
    """What is emitted beside the ledger counts too, and such a plan needs no balance."""
    pricing.publish_metered()
    operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id="acme", plan="metered-free"))
    events = [
        billing_pb.UsageEvent(id="1", metric="agent_executions", quantity=80),
        billing_pb.UsageEvent(id="2", metric="llm_tokens", quantity=5000),
        billing_pb.UsageEvent(id="3", metric="user_seats", quantity=1),
    ]
    request = billing_pb.EmitEventsRequest(account_id="acme", events=events)
    operator(operator.metering.EmitEvents, request)
    watch()
    watch()
    assert alerts(database) == [("acme", "limit_50"), ("acme", "limit_80")]


def test_emitted_use_of_a_hard_limit_is_told_once_for_each_threshold(  # noqa: PLR0917 (fixtures)
    database, account, operator, ledger, watch, clock
):
    """The ledger's limit is lowered by what is emitted beside it, over and over; what the plan includes stays."""
    guard = LimitGuard(watch.engine, watch.parts.plans, clock=clock)
    ledger.use("acme", 20_000, datetime.now(UTC))  # of 50 000
    ledger.books["acme"]["used"]["plan::tokens:cycle"] = 20_000
    for thousand in range(1, 31):
        emit(operator, f"e{thousand}", "llm_tokens", 1000)
        watch()
        guard()
        watch.parts.deliverer.deliver_account("acme", within_seconds=5)
        watch()
        told = ["limit_50"] * (thousand >= 5) + ["limit_80"] * (thousand >= 20) + ["limit_100"] * (thousand >= 30)
        assert [type_ for _, type_ in alerts(database)] == told, f"20 and {thousand} of 50 thousand are used"


def test_use_of_days_ago_that_is_emitted_now_is_looked_at(database, operator, pricing, watch, clock):
    """Who emits once a week is told, too: what counts is when use was taken in, not when it happened."""
    pricing.publish_metered()
    operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id="acme", plan="metered-free"))
    database.rows("UPDATE accounts SET cycle_anchor = cycle_anchor - interval '10 days'")
    watcher = Watcher(watch.engine, watch.views, low_balance_nanos=USD, clock=clock)
    watch(watcher)
    emit(operator, "e1", "agent_executions", 80, clock() - timedelta(days=3))
    watch(watcher)
    assert alerts(database) == [("acme", "limit_80")]


def test_account_in_use_while_a_look_takes_long_is_looked_at_next(  # noqa: PLR0917 (fixtures)
    database, account, ledger, watch, clock, monkeypatch
):
    watcher = Watcher(watch.engine, watch.views, low_balance_nanos=USD, clock=clock)
    used(ledger, 1)
    watch(watcher)
    quotas = watch.views.metering.quotas

    def slowly(account_id):
        """Of ten minutes, in the third of which the account used more, and nothing since."""
        found = quotas(account_id)
        ledger.books["acme"]["used"]["plan::tokens:cycle"] = 40_000
        ledger.use("acme", 1, clock() + timedelta(minutes=3))
        clock.forward(timedelta(minutes=10))
        return found

    monkeypatch.setattr(watch.views.metering, "quotas", slowly)
    watch(watcher)
    monkeypatch.undo()
    watch(watcher)
    assert alerts(database) == [("acme", "limit_80")]


def test_use_that_was_taken_in_late_is_looked_at(database, account, ledger, watch, clock):
    """After a pause of everything: a watcher that begins looks back a day, one that goes on does so every hour."""
    book = ledger.books["acme"]
    watcher = Watcher(watch.engine, watch.views, low_balance_nanos=USD, clock=clock)
    watch(watcher)
    book["used"]["plan::tokens:cycle"] = 40_000
    ledger.use("acme", 1, clock() - timedelta(minutes=30))
    watch(watcher)
    assert alerts(database) == []
    clock.forward(timedelta(hours=1))
    watch(watcher)
    assert alerts(database) == [("acme", "limit_80")]
    book["used"]["plan::tokens:cycle"] = 50_000
    watch()
    assert alerts(database) == [("acme", "limit_80"), ("acme", "limit_100")]


def test_ledger_that_does_not_answer_for_one_account_is_no_obstacle(database, operator, ledger, watch):
    for account_id in ("acme", "beta"):
        operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id=account_id))
    ledger.books["acme"]["used"]["plan::tokens:cycle"] = 40_000
    for account_id in ("beta", "acme", "nobody"):
        ledger.use(account_id, 1, datetime.now(UTC))
    del ledger.books["beta"]
    watch()
    assert alerts(database) == [("acme", "limit_80")]


def test_alert_is_raised_and_sent_by_the_background_jobs(database, account, ledger, served):
    used(ledger, 40_000)
    with Receiver().serve() as receiver:
        add_endpoint(database, receiver.url)
        with served(jobs=True, alert_private_addresses=True, alert_seconds=0.1):
            eventually(lambda: deliveries(database) == [("delivered", 1, "")])
    assert json.loads(receiver.requests[0].body)["type"] == "alert.limit_80"


def test_ledgers_answers_are_read_as_they_are(account, ledger, parts):
    """The view of the ledger that the watcher has: amounts, windows and their ends."""
    (tokens, requests) = sorted(parts().ledger.counted_limits("acme"), key=lambda limit: -limit.amount)
    assert (tokens.limit_id, tokens.unit, tokens.window, tokens.amount) == (
        "plan::tokens:cycle", "tokens", "cycle", 50_000,
    )  # fmt: skip
    assert tokens.resets_at == requests.resets_at > datetime.now(UTC)
