"""Renewals: paid as soon as Stripe has drafted them, once, and only those for which somebody waits.

The sandbox Stripe by a test clock, a real Postgres, faked peers; `told` is in support/subscriptions_events.py.
"""

import random
from datetime import UTC, timedelta

import pytest
from subscriptions_events import FREE, PROFESSIONAL, STARTER, STARTER_CREDIT, USD, Told, moment, publish_professional
from subscriptions_stripe import DAY, FAILS

from services.subscriptions.commands.setup_stripe import set_up
from services.subscriptions.stripe.recharge_rules import RechargeRule

GRACE = ("starter", "grace", "starter", 500_000)
# So soon after a period's end that Stripe has drafted the renewal, and would leave it a draft for almost an hour.
SOON = timedelta(seconds=30)
HOUR = timedelta(hours=1)


def to_renewal(told, made, after=SOON):
    """To so long after the period's end, nobody having been told; Stripe's newest invoice of the subscription."""
    told.later(until=moment(told.period_end(made)) + after)
    return newest(told, made)


def newest(told, made):
    return told.stripe.v1.subscriptions.retrieve(made.id, {"expand": ["latest_invoice"]}).latest_invoice


def times(told, kind, invoice):
    """How often Stripe has told so of an invoice."""
    return sum(event.data.object.id == invoice.id for event in told.stripe.events(type=kind))


def charged(told):
    """What was charged, in cents, oldest first."""
    return [charge.amount for charge in told.stripe.charges(told.customers["acme"])][::-1]


@pytest.fixture
def starter(told):
    """A subscription that is paid and known, by a clock."""
    told.start_clock()
    return told.subscribed()


# At once, and once


def test_renewal_is_collected_at_once_and_its_credit_granted(told, starter):
    draft = to_renewal(told, starter)
    assert (draft.status, told.credit()) == ("draft", STARTER_CREDIT)
    told.settle()
    paid = newest(told, starter)
    assert (paid.id, paid.status, paid.attempt_count, paid.auto_advance) == (draft.id, "paid", 1, False)
    assert told.grants()[f"invoice:{draft.id}"] == STARTER_CREDIT
    expiries = [g.expires_at.ToDatetime(UTC) for g in told.ledger.books["acme"]["grants"] if g.source == "subscription"]
    assert expiries[-1] == moment(told.period_end(starter))
    told.later(hours=2)
    told.settle()
    assert charged(told) == [1900, 1900], "the hour brings nothing more"
    assert told.standing() == STARTER


@pytest.mark.parametrize("kind", ["invoice.created", "customer.subscription.updated"])
def test_one_event_of_the_renewal_is_enough_and_the_payment_need_not_be_told_of(told, starter, kind):
    to_renewal(told, starter)
    (only,) = [event for event in told.news() if event.type == kind]
    told.tell([only])
    told.apply()
    assert (told.credit(), charged(told)) == (2 * STARTER_CREDIT, [1900, 1900])


@pytest.mark.parametrize("seed", range(3))
def test_renewal_told_of_in_any_order_and_again_is_made_final_and_charged_once(told, starter, seed):
    draft = to_renewal(told, starter)
    told.settle()
    events = [*told.stripe.events(created={"gte": draft.created})] * 2
    random.Random(seed).shuffle(events)
    for event in events:
        told.tell([event])
        told.apply()
    for (event_id,) in told.database.rows("SELECT event_id FROM stripe_events"):
        told.parts.stripe_events.log.replay(event_id)
    told.apply()
    assert [times(told, kind, draft) for kind in ("invoice.finalized", "invoice.paid")] == [1, 1]
    assert (told.credit(), charged(told), len(told.payments())) == (2 * STARTER_CREDIT, [1900, 1900], 2)


def test_draft_told_of_after_stripe_has_collected_it_is_left_as_it_is(told, starter):
    paid = to_renewal(told, starter, after=HOUR + SOON)
    (created,) = [event for event in told.news() if event.type == "invoice.created"]
    assert (paid.status, created.data.object.status) == ("paid", "draft"), "what the event says is of the past"
    told.tell([created])
    told.apply()
    assert times(told, "invoice.finalized", paid) == 1
    assert (told.credit(), charged(told)) == (2 * STARTER_CREDIT, [1900, 1900])


def test_draft_that_was_deleted_since_is_no_failure(told):
    told.customer()
    made = told.stripe.v1.invoices.create({"customer": told.customers["acme"]})
    told.stripe.v1.invoices.delete(made.id)
    told.settle()
    assert "failed" not in told.statuses()


def test_first_payment_after_a_trial_is_collected_at_once(told):
    told.start_clock()
    made = told.subscribed(trial_period_days=14)
    to_renewal(told, made)
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)


def test_annual_renewal_is_collected_at_once(told):
    told.start_clock()
    made = told.subscribed(interval="year")
    told.later(days=360)
    told.settle()
    draft = to_renewal(told, made)
    told.settle()
    assert told.grants()[f"invoice:{draft.id}:1"] == STARTER_CREDIT


def test_plan_that_becomes_a_cheaper_one_with_the_renewal_is_collected_at_once(told):
    told.start_clock()
    made = told.subscribed("professional")
    ends = str(told.period_end(made))
    kept = {"keeps_plan": "professional", "keeps_plan_version": "1", "keeps_until": ends}
    told.move(made, "starter", proration_behavior="none", metadata={"plan": "starter", **kept})
    told.settle()
    assert told.standing() == PROFESSIONAL
    draft = to_renewal(told, made)
    told.settle()
    assert (told.standing(), told.grants()[f"invoice:{draft.id}"]) == (STARTER, STARTER_CREDIT)


# What is paid otherwise, or not


def test_declined_renewal_begins_its_grace_at_once_and_is_stripes_to_try_again(told, starter):
    told.stripe.give_card(told.customers["acme"], FAILS)
    draft = to_renewal(told, starter)
    (created,) = [event for event in told.news() if event.type == "invoice.created"]
    told.tell([created])
    told.apply()
    assert told.standing() == GRACE
    assert [kind for (kind,) in told.database.rows("SELECT type FROM alerts")] == ["payment_failed"]
    for _ in range(2):
        told.parts.stripe_events.log.replay(created.id)
        told.tick()
    told.settle()
    owed = newest(told, starter)
    assert (owed.id, owed.status, owed.attempt_count) == (draft.id, "open", 1)
    assert owed.next_payment_attempt == owed.status_transitions.finalized_at + 3 * DAY, "as if Stripe had tried first"
    assert (told.credit(), charged(told)) == (STARTER_CREDIT, [1900])
    told.later(days=3, hours=1)
    told.settle()
    assert newest(told, starter).attempt_count == 2
    told.stripe.give_card(told.customers["acme"], "pm_card_visa")
    told.stripe.v1.invoices.pay(draft.id)
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, 2 * STARTER_CREDIT)


def test_renewal_without_a_card_is_made_final_and_fails_by_stripes_own_attempt(told, starter):
    told.stripe.v1.payment_methods.detach(
        told.stripe.v1.payment_methods.list({"customer": told.customers["acme"]}).data[0].id
    )
    to_renewal(told, starter)
    told.settle()
    assert newest(told, starter).status == "open"
    told.later(hours=2)
    told.settle()
    assert (told.standing(), told.credit()) == (GRACE, STARTER_CREDIT)


def test_renewal_that_the_customers_balance_pays_is_charged_nothing(told, starter):
    told.stripe.v1.customers.update(told.customers["acme"], {"balance": -5000})
    to_renewal(told, starter)
    told.settle()
    assert (newest(told, starter).status, charged(told), told.credit()) == ("paid", [1900], 2 * STARTER_CREDIT)


def test_renewal_that_is_sent_is_made_final_at_once_and_charged_to_no_card(told):
    told.start_clock()
    made = told.subscribed(collection_method="send_invoice", days_until_due=30)
    told.later(hours=2)
    told.stripe.v1.invoices.pay(newest(told, made).id)
    told.settle()
    before = charged(told)
    draft = to_renewal(told, made)
    told.settle()
    sent = newest(told, made)
    assert (sent.id, sent.status, sent.attempted) == (draft.id, "open", False)
    assert (charged(told), told.standing(), told.credit()) == (before, STARTER, STARTER_CREDIT)
    told.stripe.v1.invoices.pay(draft.id)
    told.settle()
    assert told.credit() == 2 * STARTER_CREDIT


# Events that are missed, and Stripe away


def test_reconciliation_finds_a_draft_of_which_nobody_was_told(told, starter):
    to_renewal(told, starter)
    compared = told.parts.stripe_events.reconciliation.objects(told.clock() - timedelta(days=1))
    told.deliver()
    assert (compared.done, compared.failed) == (1, 0)
    assert (newest(told, starter).status, told.credit()) == ("paid", 2 * STARTER_CREDIT)


def test_clock_finds_a_draft_of_which_nobody_was_told(told, starter):
    to_renewal(told, starter, after=timedelta(seconds=59))
    told.tick()
    assert newest(told, starter).status == "draft", "an event may be on its way"
    told.later(seconds=2)
    told.tick()
    assert (newest(told, starter).status, told.credit()) == ("paid", 2 * STARTER_CREDIT)


@pytest.mark.parametrize("asked", ["finalize", "pay"])
def test_renewal_that_stripe_does_not_answer_holds_up_nothing_and_is_tried_again(told, starter, asked):
    draft = to_renewal(told, starter)
    told.stripe.fault("status", f"/v1/invoices/*/{asked}", status=503, count=3)  # as often as the library tries
    told.settle()
    assert set(told.statuses()) == {"applied", "ignored"}
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)
    told.later(seconds=61)
    told.tick()
    assert (times(told, "invoice.finalized", draft), told.credit()) == (1, 2 * STARTER_CREDIT)
    assert charged(told) == [1900, 1900]


@pytest.mark.parametrize("asked", ["finalize", "pay"])
def test_answer_that_is_lost_charges_no_second_time(told, starter, asked):
    draft = to_renewal(told, starter)
    told.stripe.fault("cut", f"/v1/invoices/*/{asked}", count=1)
    told.settle()
    assert (charged(told), told.credit()) == ([1900, 1900], 2 * STARTER_CREDIT)
    assert times(told, "invoice.paid", draft) == 1


def test_key_that_may_not_write_invoices_leaves_renewals_to_stripe(told, starter):
    to_renewal(told, starter)
    told.stripe.fault("status", "/v1/invoices/*/finalize", status=403, count=50)
    told.settle()
    assert "failed" not in told.statuses()
    told.stripe.clear_faults()
    told.later(hours=2)
    told.settle()
    assert told.credit() == 2 * STARTER_CREDIT


# Auto-recharge


def test_auto_recharge_buys_nothing_for_the_seconds_of_a_renewal(told, starter):
    recharges, book = told.parts.stripe_use_cases.recharges, told.ledger.books["acme"]
    recharges.set(RechargeRule("acme", True, USD, 20 * USD, 0, True))
    book["grants"].clear()  # with the cycle its credit has ended
    to_renewal(told, starter)
    look(told)
    assert told.database.rows("SELECT * FROM recharges") == []
    told.tell(told.news())
    while told.parts.stripe_events.application.advance():
        pass
    look(told)
    assert told.database.rows("SELECT * FROM recharges") == [], "paid, and not in the ledger yet"
    told.deliver()
    look(told)
    assert told.database.rows("SELECT * FROM recharges") == []
    book["grants"].clear()
    look(told)
    assert told.database.rows("SELECT status FROM recharges") == [("paid",)]


def test_auto_recharge_does_not_wait_for_a_renewal_that_does_not_come(told, starter):
    told.parts.stripe_use_cases.recharges.set(RechargeRule("acme", True, USD, 20 * USD, 0, True))
    told.ledger.books["acme"]["grants"].clear()
    to_renewal(told, starter, after=timedelta(minutes=11))
    look(told)
    assert told.database.rows("SELECT status FROM recharges") == [("paid",)]


def look(told):
    """Auto-recharge looks at the balance."""
    told.database.rows("UPDATE auto_recharges SET look_at = now()")
    assert told.parts.stripe_use_cases.recharges.look_next()


# What is left to Stripe


def stays_a_draft(told, made, *, then):
    """What is told leaves the renewal's draft alone; an hour later Stripe does with it what it does."""
    draft = to_renewal(told, made)
    told.settle()
    told.parts.stripe_events.reconciliation.objects(told.clock() - timedelta(days=1))
    told.later(minutes=5)
    told.tick()
    assert newest(told, made).status == "draft"
    told.later(hours=2)
    told.settle()
    told.tick()
    after = newest(told, made)
    assert (after.id, after.status) == (draft.id, then)


@pytest.fixture
def leaving(module_stripe, parts, pricing, clock, ledger, proxy, database):  # noqa: PLR0917 (fixtures)
    """As `told`, with the collecting of renewals turned off."""
    publish_professional(pricing)
    module_stripe.outage(0)
    module_stripe.clear_faults()
    made = parts(**module_stripe.settings(stripe_collect_renewals=False))
    return Told(module_stripe, made, clock, ledger=ledger, proxy=proxy, database=database)


def test_switched_off_leaves_drafts_alone(leaving):
    leaving.start_clock()
    made = leaving.subscribed()
    stays_a_draft(leaving, made, then="paid")
    assert leaving.credit() == 2 * STARTER_CREDIT


@pytest.mark.parametrize(
    ("behavior", "then"), [("void", "void"), ("mark_uncollectible", "uncollectible"), ("keep_as_draft", "draft")]
)
def test_paused_collection_is_not_collected(told, starter, behavior, then):
    told.stripe.v1.subscriptions.update(starter.id, {"pause_collection": {"behavior": behavior}})
    stays_a_draft(told, starter, then=then)
    assert (charged(told), told.credit()) == ([1900], STARTER_CREDIT)


def test_draft_that_somebody_has_taken_in_hand_is_left(told, starter):
    draft = to_renewal(told, starter)
    told.stripe.v1.invoices.update(draft.id, {"auto_advance": False})
    told.settle()
    told.later(hours=2)
    told.settle()
    assert (newest(told, starter).status, charged(told)) == ("draft", [1900])


def test_suspended_account_is_not_charged_before_its_time(told, starter):
    told.database.rows("UPDATE accounts SET status = 'suspended' WHERE account_id = 'acme'")
    stays_a_draft(told, starter, then="paid")


def test_subscription_to_something_else_is_left(told, starter):
    product = told.stripe.v1.products.create({"name": "Socks"})
    socks = told.stripe.v1.prices.create(
        {"product": product.id, "currency": "usd", "unit_amount": 500, "recurring": {"interval": "month"}}
    )
    other = told.stripe.v1.subscriptions.create({"customer": told.customers["acme"], "items": [{"price": socks.id}]})
    to_renewal(told, starter)
    told.settle()
    assert (newest(told, starter).status, newest(told, other).status) == ("paid", "draft")


# Metered plans


@pytest.fixture
def metered(told, pricing):
    """A subscription to a metered plan, by a clock."""
    pricing.publish_metered()
    set_up(told.parts, dry_run=False)
    told.start_clock()
    told.customer()
    prices = [
        price
        for price in told.stripe.v1.prices.list({"limit": 100}).data
        if (price.lookup_key or "").startswith("tk:metered-standard:1:") and not price.lookup_key.endswith(":year")
    ]
    made = told.subscribe("acme", "metered-standard", items=[{"price": price.id} for price in prices])
    told.settle()
    return made


def use(told, agents, at):
    """So many agents above what is included, at a moment: ten cents each."""
    told.stripe.v1.billing.meter_events.create({
        "event_name": "tollkeeper_agent_executions", "timestamp": int(at.timestamp()),
        "payload": {"stripe_customer_id": told.customers["acme"], "value": str(5000 + agents)},
    })  # fmt: skip


def test_metered_renewal_stays_open_for_the_use_of_its_period(told, metered):
    ends = moment(told.period_end(metered))
    draft = to_renewal(told, metered)
    told.settle()
    use(told, 10, ends - timedelta(seconds=1))  # the last minutes of a period are reported when it is over
    told.later(hours=2)
    told.settle()
    paid = newest(told, metered)
    assert (paid.id, paid.status, paid.amount_paid) == (draft.id, "paid", 9900 + 100)


def test_renewal_that_bills_use_of_the_plan_before_stays_open_though_the_new_plan_is_not_metered(told, metered):
    ends = moment(told.period_end(metered))
    held = metered["items"].data
    (own,) = [item for item in held if item.price.unit_amount]
    told.stripe.v1.subscriptions.update(metered.id, {
        "items": [{"id": own.id, "price": told.price("starter")}], "proration_behavior": "none",
        "metadata": {"plan": "starter", "plan_version": "1"},
    })  # fmt: skip
    told.settle()
    draft = to_renewal(told, metered)
    gone = [{"id": item.id, "deleted": True} for item in held if item.id != own.id]
    told.stripe.v1.subscriptions.update(metered.id, {"items": gone, "proration_behavior": "none"})
    told.settle()
    assert newest(told, metered).status == "draft"
    use(told, 10, ends - timedelta(seconds=1))
    told.later(hours=2)
    told.settle()
    paid = newest(told, metered)
    assert (paid.id, paid.status, paid.amount_paid) == (draft.id, "paid", 1900 + 100)
    assert told.grants()[f"invoice:{draft.id}"] == STARTER_CREDIT


def test_metered_plans_customer_is_not_kept_waiting_meanwhile(told, metered):
    before = told.standing()
    to_renewal(told, metered)
    told.settle()
    assert told.standing() == before
    assert before[0] == "metered-standard"
    assert before != FREE
