"""Moves of metered plans: what is used under a plan is billed by that plan, whenever the move is asked for."""

import secrets
from datetime import UTC, datetime

import pytest
from subscriptions_peers import USD
from subscriptions_shop import CENT
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb

from services.subscriptions.metering.aggregation import EventAggregator
from services.subscriptions.metering.reporting import ReportPlanner, ReportSender

AGENTS = 10_000_000 * 10  # nanos: $0.10 for each above 5 000 on metered-standard; half of it above 50 000 on enterprise


@pytest.fixture
def acme(shop):
    shop.start_clock()
    return shop.customer()


@pytest.fixture
def follow(parts, shop, database, acme):
    """`follow()`: the job of a process that has just started, which has been told of what Stripe has now."""

    def make():
        found = acme.subscription
        own = next(item for item in found["items"].data if item.price.unit_amount)
        database.rows(
            "INSERT INTO subscriptions (account_id, subscription_id, status, in_force, plan_id, plan_version, interval,"
            " price_nanos, period_start, period_end, cancel_at_period_end) VALUES (:a, :s, 'active', true, 'x', 1,"
            " 'month', 0, :start, :end, false) ON CONFLICT (account_id) DO UPDATE SET period_start = :start",
            a=acme.account_id, s=found.id, start=datetime.fromtimestamp(own.current_period_start, UTC),
            end=datetime.fromtimestamp(own.current_period_end, UTC),
        )  # fmt: skip
        parts(**shop.sandbox.settings()).stripe_use_cases.metered_items.look()

    return make


@pytest.fixture
def report(parts, shop):
    """`report()`: what was emitted is added up, and Stripe told of it."""
    told = parts(**shop.sandbox.settings())
    planner = ReportPlanner(told.engine, told.plans, told.billing_records, clock=shop.clock)
    sender = ReportSender(told.engine, told.meter_reporter, threads=1, clock=shop.clock)

    def make():
        while EventAggregator(told.engine)():
            pass
        planner()
        while sender():
            pass

    return make


@pytest.fixture
def known(parts, shop):
    """`known(acme)`: what Stripe has of an account is applied, as a worker does that an event wakes."""
    application = parts(**shop.sandbox.settings()).stripe_events.application
    return lambda acme: application.refresh(acme.account_id, within_seconds=5)


def emit(acme, agents):
    """Agents run now, as the application tells of them: Stripe is told by `report`."""
    run = pb.UsageEvent(id=f"run-{secrets.token_hex(4)}", metric="agent_executions", quantity=agents)
    acme.ask(acme.caller.metering.EmitEvents, pb.EmitEventsRequest(events=[run]))


def use(acme, agents):
    """Agents run now, by the test clock."""
    acme.shop.sandbox.v1.billing.meter_events.create(
        {
            "event_name": "tollkeeper_agent_executions",
            "payload": {"stripe_customer_id": acme.customer_id, "value": str(agents)},
            "timestamp": int(acme.shop.clock().timestamp()),
        }
    )


def keys(acme):
    """The lookup keys that the subscription is made of, by plan."""
    return {item.price.lookup_key.split(":")[1] for item in acme.subscription["items"].data}


def test_use_until_the_periods_end_is_billed_by_the_plan_that_is_kept(shop, acme, follow):
    acme.subscribe("metered-enterprise")
    shop.later(days=10)
    use(acme, 20_000)
    acme.update(plan="metered-standard")
    follow()
    use(acme, 20_000)  # 40 000 in all: within the 50 000 of enterprise, which is paid
    shop.later(days=22)
    assert acme.charged() == [49_900, 9900]
    follow()
    assert keys(acme) == {"metered-standard"}
    use(acme, 5010)
    shop.later(days=31)
    assert acme.charged()[2:] == [9900 + 10 * AGENTS // CENT]


def test_downgrade_from_metered_to_a_plan_without_leaves_what_was_used_to_pay(shop, acme, follow):
    acme.subscribe("metered-standard")
    acme.update(plan="starter")
    shop.later(days=10)
    use(acme, 5010)
    shop.later(days=22)
    follow()
    assert acme.charged() == [9900, 1900 + 10 * AGENTS // CENT]
    assert keys(acme) == {"starter"}


def test_downgrade_to_metered_counts_from_the_next_period_on(shop, acme, follow):
    acme.subscribe("business")
    acme.update(plan="metered-standard")
    use(acme, 9000)
    shop.later(days=32)
    assert acme.charged() == [49_900, 9900]
    follow()
    assert keys(acme) == {"metered-standard"}
    assert len(acme.subscription["items"].data) == 6


def test_downgrade_taken_back_leaves_the_items_as_they_were(shop, acme, follow):
    acme.subscribe("metered-enterprise")
    before = sorted(item.id for item in acme.subscription["items"].data)
    acme.update(plan="metered-standard")
    acme.update(plan="metered-enterprise")
    shop.later(days=32)
    follow()
    assert sorted(item.id for item in acme.subscription["items"].data) == before
    assert keys(acme) == {"metered-enterprise"}


def test_upgrade_bills_at_once_what_was_used_under_the_old_plan(shop, acme, follow):
    acme.subscribe("metered-standard")
    shop.later(days=10)
    use(acme, 5010)
    shop.later(minutes=1)
    shown = acme.preview("metered-enterprise")
    acme.update(plan="metered-enterprise")
    assert acme.charged()[1] * CENT == shown.amount_due_nanos
    assert keys(acme) == {"metered-enterprise"}
    assert any(line.amount == 10 * AGENTS // CENT for line in acme.invoices()[0].lines.data)


@pytest.mark.parametrize(("plan", "of_the_same_price"), [
    ("metered-standard", "professional"), ("metered-enterprise", "business")
])  # fmt: skip
def test_what_a_plan_includes_is_not_had_again_by_moving_to_and_fro(shop, acme, plan, of_the_same_price):
    acme.subscribe(of_the_same_price)
    shop.later(hours=1)
    acme.update(plan=plan)
    assert keys(acme) == {plan}
    error = acme.update_refused(plan=of_the_same_price)
    assert (error.reason, keys(acme)) == ("SUBSCRIPTION_UNMOVABLE", {plan})


@pytest.mark.parametrize(("start", "dollars"), [("starter", 19), ("metered-standard", 99)])
def test_move_to_a_metered_plan_pays_for_the_whole_of_what_it_includes(shop, acme, start, dollars):
    acme.subscribe(start)
    shop.later(days=27)
    shown = acme.preview("metered-enterprise")
    moved = acme.update(plan="metered-enterprise")
    assert moved.current_period_start.seconds == pytest.approx(shop.clock().timestamp(), abs=60)
    assert moved.current_period_end.seconds - moved.current_period_start.seconds >= 28 * 86_400
    assert acme.charged()[1] * CENT == shown.amount_due_nanos
    assert 499 - dollars * 4 / 28 - 1 < acme.charged()[1] / 100 < 499
    use(acme, 50_000)
    shop.later(days=32)
    assert acme.charged()[2:] == [49_900], "what was used is what was paid for"


def test_use_that_stripe_is_told_after_a_move_at_once_is_billed_by_the_period_it_began(shop, acme, report, known):
    acme.subscribe("metered-standard")
    known(acme)
    shop.later(days=10)
    emit(acme, 60_000)
    shop.later(minutes=1)
    acme.update(plan="metered-enterprise")
    shop.later(minutes=5)
    report()
    emit(acme, 1000)
    shop.later(minutes=5)
    report()
    shop.later(days=32)
    assert acme.charged()[2:] == [49_900 + 11_000 * AGENTS // 2 // CENT]


def test_quota_shows_what_a_move_carries_into_the_period_that_bills_it(shop, acme, report, known):
    acme.subscribe("metered-standard")
    known(acme)
    shop.later(days=10)
    emit(acme, 60_000)
    shop.later(minutes=1)
    acme.update(plan="metered-enterprise")
    shop.later(minutes=5)
    emit(acme, 1000)
    shop.later(minutes=5)
    report()
    quotas = acme.ask(acme.caller.metering.ListQuotas, pb.ListQuotasRequest()).quotas
    (agents,) = [quota for quota in quotas if quota.metric == "agent_executions"]
    assert (agents.used, agents.overage, agents.overage_nanos) == (61_000, 11_000, 11_000 * AGENTS // 2)
    shop.later(days=32)
    assert acme.charged()[2:] == [49_900 + agents.overage_nanos // CENT]
    quotas = acme.ask(acme.caller.metering.ListQuotas, pb.ListQuotasRequest()).quotas
    assert not any(quota.used for quota in quotas), "carried into one period, and no further"


def test_use_before_a_metered_plan_was_paid_is_not_billed_by_it(shop, acme, report, known):
    """The same minutes, on a plan that nobody pays for: what it includes is free."""
    acme = shop.customer("free", plan="metered-free")
    emit(acme, 60_000)
    shop.later(minutes=2)  # so that its minute has ended: our clock goes on between two moves of Stripe's
    acme.subscribe("metered-enterprise")
    known(acme)
    shop.later(minutes=5)
    report()
    shop.later(days=32)
    assert acme.charged() == [49_900, 49_900]


def test_move_at_once_to_a_plan_without_meters_waits_until_stripe_was_told_what_is_to_be_billed(
    shop, acme, report, known
):
    acme.subscribe("metered-standard")
    known(acme)
    shop.later(days=10)
    emit(acme, 5010)
    shop.later(minutes=2)
    error = acme.update_refused(plan="business")
    assert (error.reason, acme.charged()) == ("SUBSCRIPTION_UNMOVABLE", [9900])
    report()
    acme.update(plan="business")
    assert any(line.amount == 10 * AGENTS // CENT for line in acme.invoices()[0].lines.data)


def test_move_at_once_does_not_wait_for_use_that_is_included(shop, acme, known):
    acme.subscribe("metered-standard")
    known(acme)
    emit(acme, 100)
    shop.later(minutes=2)
    assert acme.update(plan="business").plan == "business"


@pytest.mark.parametrize("to", ["metered-enterprise", "business"])
@pytest.mark.parametrize(("agents", "credited"), [(5000, 0), (495, 4950)])
def test_move_at_once_credits_no_more_than_what_was_not_used(shop, acme, known, report, to, agents, credited):  # noqa: PLR0917 (fixtures)
    """495 agents above would cost $49.50, half of the price: half is credited, a day after it was paid."""
    acme.subscribe("metered-standard")
    known(acme)
    emit(acme, agents)
    shop.later(days=1)
    report()
    shown = acme.preview(to)
    moved = acme.update(plan=to)
    assert acme.charged()[1] * CENT == shown.amount_due_nanos
    assert acme.charged()[1] == pytest.approx(49_900 - credited, abs=2)
    assert moved.current_period_start.seconds == pytest.approx(shop.clock().timestamp(), abs=60)


def test_what_was_used_after_the_preview_is_not_credited_either(shop, acme, known):
    acme.subscribe("metered-standard")
    known(acme)
    shop.later(days=1)
    assert acme.preview("metered-enterprise").amount_due_nanos // CENT < 41_000
    emit(acme, 5000)
    acme.update(plan="metered-enterprise")
    assert acme.charged()[1] == 49_900


def test_end_now_waits_until_stripe_has_been_told_what_was_used(shop, acme, parts, database):
    acme.subscribe("metered-standard")
    run = pb.UsageEvent(id="run-1", metric="agent_executions", quantity=15_000)
    acme.ask(acme.caller.metering.EmitEvents, pb.EmitEventsRequest(events=[run]))
    told = parts(**shop.sandbox.settings())
    not_added_up, not_reported, not_sent = (
        lambda: None,
        EventAggregator(told.engine),
        lambda: database.rows(
            "WITH due AS (UPDATE usage_minutes SET due_since = NULL RETURNING *) INSERT INTO meter_reports (account_id,"
            " metric, window_start, sequence, value, stamped_at, customer_id)"
            " SELECT account_id, metric, minute, 1, emitted, minute, 'cus_x' FROM due"
        ),
    )
    for advance in (not_added_up, not_reported, not_sent):
        advance()
        error = acme.refused(acme.billing.CancelSubscription, pb.CancelSubscriptionRequest(now=True))
        assert (error.reason, acme.subscription.status) == ("SUBSCRIPTION_UNMOVABLE", "active")
    assert acme.cancel().cancel_at_period_end
    database.rows("UPDATE meter_reports SET sent_at = now()")
    assert acme.cancel(now=True).status == "canceled"


def test_end_now_waits_no_longer_than_an_hour_for_what_cannot_be_told(acme, database):
    acme.subscribe("metered-standard")
    database.rows(
        "INSERT INTO meter_reports (account_id, metric, window_start, sequence, value, stamped_at, customer_id,"
        " created_at) VALUES (:a, 'api_calls', now(), 1, 1, now(), 'cus_x', now() - interval '61 minutes')",
        a=acme.account_id,
    )
    assert acme.cancel(now=True).status == "canceled"


def test_items_are_exchanged_once_however_often_they_are_looked_at(shop, acme, follow):
    acme.subscribe("metered-enterprise")
    acme.update(plan="metered-standard")
    shop.later(days=32)
    shop.sandbox.fault("cut", "/v1/subscriptions/*", count=3)
    follow()
    follow()
    items = sorted(item.id for item in acme.subscription["items"].data)
    follow()
    assert sorted(item.id for item in acme.subscription["items"].data) == items
    assert (keys(acme), len(items)) == ({"metered-standard"}, 6)


def test_item_that_somebody_else_put_there_is_left(shop, acme, follow):
    acme.subscribe("metered-enterprise")
    v1 = shop.sandbox.v1
    product = v1.products.create({"name": "Not ours"})
    foreign = v1.prices.create(
        {"product": product.id, "currency": "usd", "unit_amount": 1, "recurring": {
            "interval": "month", "usage_type": "metered", "meter": v1.billing.meters.list().data[0].id}}
    )  # fmt: skip
    v1.subscription_items.create({"subscription": acme.subscription.id, "price": foreign.id})
    acme.update(plan="metered-standard")
    shop.later(days=32)
    follow()
    assert foreign.id in {item.price.id for item in acme.subscription["items"].data}


def test_preview_of_a_metered_downgrade_is_what_the_next_period_begins_with(shop, acme, follow):
    acme.subscribe("metered-enterprise")
    use(acme, 20_000)
    shown = acme.ask(acme.billing.PreviewSubscription, pb.PreviewSubscriptionRequest(plan="metered-standard"))
    assert shown.total_nanos == 99 * USD
