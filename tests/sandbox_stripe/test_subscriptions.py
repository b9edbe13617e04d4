"""Subscriptions: opened, prorated to the second, renewed, tried, cancelled, paused; money to the cent."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction

import pytest
import stripe
from sandbox_stripe_process import DAY, NEW_YEAR, Shop

JANUARY = 31 * DAY


def _half_up(value):
    return int(value + Fraction(1, 2)) if value >= 0 else -int(-value + Fraction(1, 2))


def _lines(invoice):
    return [(line.amount, line.parent.subscription_item_details.proration) for line in invoice.lines.data]


def _item(subscription):
    return subscription["items"].data[0].id


def _period(subscription):
    item = subscription["items"].data[0]
    return item.current_period_start, item.current_period_end


def test_a_first_payment_makes_it_active_in_stripes_order(shop):
    customer = shop.customer()
    subscription = shop.subscribe(customer, shop.price(1900), expand=["latest_invoice"], metadata={"account": "acme"})
    invoice = subscription.latest_invoice
    assert (subscription.status, invoice.status, invoice.amount_paid) == ("active", "paid", 1900)
    assert (invoice.billing_reason, invoice.number.endswith("-0001")) == ("subscription_create", True)
    assert invoice.parent.subscription_details.metadata.to_dict() == {"account": "acme"}
    assert invoice.lines.data[0].pricing.price_details.price == subscription["items"].data[0].price.id
    kinds = [
        kind for kind in shop.events_of(customer.id) if not kind.startswith(("customer.updated", "payment_method"))
    ]
    assert kinds == [
        "customer.created",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
        "customer.subscription.updated",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
    activated = next(
        e for e in shop.events(type="customer.subscription.updated") if e.data.object.id == subscription.id
    )
    assert activated.data.previous_attributes.to_dict() == {"status": "incomplete"}


def test_without_a_card_nothing_is_opened(shop):
    customer = shop.customer(card=None)
    with pytest.raises(stripe.InvalidRequestError, match="no attached payment source"):
        shop.subscribe(customer, shop.price(1900))
    assert shop.v1.subscriptions.list({"customer": customer.id, "status": "all"}).data == []


def test_a_refused_first_payment_leaves_it_incomplete_until_it_expires(shop):
    clock = shop.clock()
    customer = shop.customer(clock, card="pm_card_chargeCustomerFail")
    price = shop.price(1900)
    with pytest.raises(stripe.CardError):
        shop.subscribe(customer, price, payment_behavior="error_if_incomplete")
    assert shop.v1.subscriptions.list({"customer": customer.id, "status": "all"}).data == []
    subscription = shop.subscribe(customer, price)
    assert subscription.status == "incomplete"
    shop.advance(clock, NEW_YEAR + DAY)
    expired = shop.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    assert (expired.status, expired.latest_invoice.status) == ("incomplete_expired", "void")


def test_paying_the_first_invoice_activates_an_incomplete_one(shop):
    customer = shop.customer()
    subscription = shop.subscribe(customer, shop.price(1900), payment_behavior="default_incomplete")
    assert subscription.status == "incomplete"
    assert shop.v1.invoices.pay(subscription.latest_invoice).status == "paid"
    assert shop.v1.subscriptions.retrieve(subscription.id).status == "active"


# The first two are the plan changes of the shipped catalogue; the moments are a second, a day and a half, and the end.
@pytest.mark.parametrize("elapsed", [1, 12 * 3600, 10 * DAY + 12345, JANUARY - 1])
@pytest.mark.parametrize(("old", "new"), [(1900, 9900), (9900, 1900), (1901, 49900)])
def test_a_change_is_prorated_to_the_second(shop, old, new, elapsed):
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(old, name="Old"))
    shop.advance(clock, NEW_YEAR + elapsed)
    left = Fraction(JANUARY - elapsed, JANUARY)
    expected = [(-_half_up(old * left), True), (_half_up(new * left), True)]
    change = {
        "items": [{"id": _item(subscription), "price": shop.price(new, name="New").id}],
        "proration_behavior": "always_invoice",
    }
    preview = shop.v1.invoices.create_preview({"subscription": subscription.id, "subscription_details": change})
    changed = shop.v1.subscriptions.update(subscription.id, {**change, "expand": ["latest_invoice"]})
    invoice = changed.latest_invoice
    assert _lines(preview) == _lines(invoice) == expected
    total = sum(amount for amount, _ in expected)
    assert (invoice.total, invoice.billing_reason, invoice.status) == (total, "subscription_update", "paid")
    assert (preview.total, preview.amount_due) == (total, max(0, total))
    assert _period(changed) == (NEW_YEAR, NEW_YEAR + JANUARY)
    balance = shop.v1.customers.retrieve(customer.id).balance
    # What is too small to be charged, or owed to the customer, is kept for the next invoice.
    assert balance == (total if total < 50 else 0)
    assert invoice.amount_paid == (total if total >= 50 else 0)


def test_a_preview_changes_nothing(shop):
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(1900))
    shop.advance(clock, NEW_YEAR + 10 * DAY)
    before = shop.events_of(customer.id)
    details = {"items": [{"id": _item(subscription), "price": shop.price(9900).id}]}
    preview = shop.v1.invoices.create_preview({"subscription": subscription.id, "subscription_details": details})
    assert preview.id.startswith("upcoming_in_")
    assert [amount for amount, _ in _lines(preview)] == [-1287, 6706, 9900]
    assert shop.events_of(customer.id) == before
    assert shop.v1.subscriptions.retrieve(subscription.id)["items"].data[0].price.unit_amount == 1900
    assert len(shop.v1.invoices.list({"customer": customer.id}).data) == 1
    assert shop.v1.invoice_items.list({"customer": customer.id}).data == []


def test_prorations_wait_for_the_renewal_unless_told_otherwise(shop):
    clock = shop.clock()
    subscription = shop.subscribe(shop.customer(clock), shop.price(1900))
    shop.advance(clock, NEW_YEAR + 10 * DAY)
    change = {"items": [{"id": _item(subscription), "price": shop.price(9900).id}]}
    updated = shop.v1.subscriptions.update(subscription.id, change)
    assert updated.latest_invoice == subscription.latest_invoice
    shop.advance(clock, NEW_YEAR + JANUARY + 3600)
    renewed = shop.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]}).latest_invoice
    assert [amount for amount, _ in _lines(renewed)] == [-1287, 6706, 9900]
    assert (renewed.status, renewed.amount_paid) == ("paid", 15319)


def test_no_proration_where_none_is_wanted_and_no_credit_for_what_was_not_debited(shop):
    clock = shop.clock()
    small, large = shop.price(1900), shop.price(9900)
    subscription = shop.subscribe(shop.customer(clock), small)
    shop.advance(clock, NEW_YEAR + 10 * DAY)
    up = {"items": [{"id": _item(subscription), "price": large.id}], "proration_behavior": "none"}
    assert shop.v1.subscriptions.update(subscription.id, up).latest_invoice == subscription.latest_invoice
    down = {
        "items": [{"id": _item(subscription), "price": small.id}],
        "proration_behavior": "always_invoice",
        "expand": ["latest_invoice"],
    }
    invoice = shop.v1.subscriptions.update(subscription.id, down).latest_invoice
    # 19 dollars were paid for the month, so that is what is credited, not 99.
    assert [amount for amount, _ in _lines(invoice)] == [-1287, 1287]


def test_a_proration_date_is_kept_and_must_lie_in_the_period(shop):
    clock = shop.clock()
    subscription = shop.subscribe(shop.customer(clock), shop.price(3100))
    shop.advance(clock, NEW_YEAR + 10 * DAY)
    details = {
        "items": [{"id": _item(subscription), "price": shop.price(6200).id}],
        "proration_date": NEW_YEAR + DAY,
        "proration_behavior": "always_invoice",
    }
    preview = shop.v1.invoices.create_preview({"subscription": subscription.id, "subscription_details": details})
    assert [amount for amount, _ in _lines(preview)] == [-3000, 6000]
    assert preview.parent.subscription_details.subscription_proration_date == NEW_YEAR + DAY
    with pytest.raises(stripe.InvalidRequestError, match="proration date"):
        shop.v1.subscriptions.update(subscription.id, {**details, "proration_date": NEW_YEAR - 1})


def test_another_interval_begins_a_new_period_and_is_invoiced_at_once(shop):
    clock = shop.clock()
    subscription = shop.subscribe(shop.customer(clock), shop.price(9900))
    shop.advance(clock, NEW_YEAR + 10 * DAY)
    now = NEW_YEAR + 10 * DAY
    yearly = shop.price(100980, interval="year")
    change = {"items": [{"id": _item(subscription), "price": yearly.id}], "expand": ["latest_invoice"]}
    changed = shop.v1.subscriptions.update(subscription.id, change)
    assert changed.billing_cycle_anchor == now
    assert _period(changed) == (now, now + 365 * DAY)
    assert _lines(changed.latest_invoice) == [(-6706, True), (100980, False)]
    assert (changed.latest_invoice.amount_paid, changed.latest_invoice.status) == (94274, "paid")
    credited = changed.latest_invoice.lines.data[0].parent.subscription_item_details.proration_details.credited_items
    assert credited.invoice == subscription.latest_invoice


def test_month_ends_are_kept(shop):
    at = int(dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC).timestamp())
    clock = shop.clock(at)
    subscription = shop.subscribe(shop.customer(clock), shop.price(1900))
    ends = []
    for _ in range(4):
        _, end = _period(shop.v1.subscriptions.retrieve(subscription.id))
        ends.append(dt.datetime.fromtimestamp(end, dt.UTC).strftime("%m-%d %H"))
        shop.advance(clock, end)
    assert ends == ["02-28 12", "03-31 12", "04-30 12", "05-31 12"]


def test_a_renewal_is_a_draft_for_an_hour_and_then_paid(shop):
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(1900))
    end = NEW_YEAR + JANUARY
    shop.advance(clock, end + 60)
    renewed = shop.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    assert (renewed.latest_invoice.status, renewed.latest_invoice.billing_reason) == ("draft", "subscription_cycle")
    assert _period(renewed) == (end, end + 28 * DAY)
    shop.advance(clock, end + 3600)
    assert shop.v1.invoices.retrieve(renewed.latest_invoice.id).status == "paid"
    kinds = shop.events_of(subscription.id)
    assert kinds[kinds.index("invoice.upcoming") :] == [
        "invoice.upcoming",
        "customer.subscription.updated",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
    upcoming = next(e for e in shop.events(type="invoice.upcoming") if customer.id in str(e.data.object))
    assert upcoming.created == end - 7 * DAY


def test_an_unpaid_renewal_is_tried_four_times_and_then_ends_it(shop):
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(1900))
    shop.give_card(customer.id, "pm_card_chargeCustomerFail")
    end = NEW_YEAR + JANUARY + 3600
    shop.advance(clock, end)
    late = shop.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    assert (late.status, late.latest_invoice.attempt_count) == ("past_due", 1)
    assert late.latest_invoice.next_payment_attempt == end + 3 * DAY
    shop.advance(clock, end + 15 * DAY - 1)
    assert shop.v1.invoices.retrieve(late.latest_invoice.id).attempt_count == 3
    shop.advance(clock, end + 15 * DAY)
    over = shop.v1.subscriptions.retrieve(subscription.id)
    assert (over.status, over.cancellation_details.reason) == ("canceled", "payment_failed")
    kinds = shop.events_of(subscription.id)
    assert kinds.count("invoice.payment_failed") == 4
    assert kinds[-1] == "customer.subscription.deleted"


@pytest.mark.parametrize("after", ["unpaid", "past_due"])
def test_what_follows_the_last_attempt_is_a_setting(start_sandbox, after):
    own = start_sandbox("--after-retries", after, "--retry-days", "1")
    shop = Shop(own, own.client().v1)
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(1900))
    shop.give_card(customer.id, "pm_card_chargeCustomerFail")
    shop.advance(clock, NEW_YEAR + JANUARY + 3600 + DAY)
    assert shop.v1.subscriptions.retrieve(subscription.id).status == after


def test_a_paid_renewal_restores_it(shop):
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(1900))
    shop.give_card(customer.id, "pm_card_chargeCustomerFail")
    shop.advance(clock, NEW_YEAR + JANUARY + 3600)
    assert shop.v1.subscriptions.retrieve(subscription.id).status == "past_due"
    shop.give_card(customer.id, "pm_card_visa")
    shop.advance(clock, NEW_YEAR + JANUARY + 3600 + 3 * DAY)
    restored = shop.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    assert (restored.status, restored.latest_invoice.status, restored.latest_invoice.attempt_count) == (
        "active",
        "paid",
        2,
    )


def test_a_trial_is_announced_three_days_before_it_ends_and_then_billed(shop):
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(1900), trial_period_days=14, expand=["latest_invoice"])
    assert (subscription.status, subscription.latest_invoice.total) == ("trialing", 0)
    assert subscription.trial_end == NEW_YEAR + 14 * DAY
    shop.advance(clock, NEW_YEAR + 14 * DAY + 3600)
    billed = shop.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    assert (billed.status, billed.latest_invoice.amount_paid) == ("active", 1900)
    told = next(
        e for e in shop.events(type="customer.subscription.trial_will_end") if e.data.object.id == subscription.id
    )
    assert told.created == NEW_YEAR + 11 * DAY


def test_a_trial_without_a_card_pauses_and_is_resumed(shop):
    clock = shop.clock()
    customer = shop.customer(clock, card=None)
    subscription = shop.subscribe(
        customer,
        shop.price(1900),
        trial_period_days=5,
        trial_settings={"end_behavior": {"missing_payment_method": "pause"}},
    )
    shop.advance(clock, NEW_YEAR + 6 * DAY)
    assert shop.v1.subscriptions.retrieve(subscription.id).status == "paused"
    shop.give_card(customer.id, "pm_card_visa")
    resumed = shop.v1.subscriptions.resume(subscription.id)
    assert (resumed.status, resumed.billing_cycle_anchor) == ("active", NEW_YEAR + 6 * DAY)
    kinds = shop.events_of(subscription.id)
    assert "customer.subscription.paused" in kinds
    assert "customer.subscription.resumed" in kinds


def test_a_trial_may_be_ended_now(shop):
    clock = shop.clock()
    subscription = shop.subscribe(shop.customer(clock), shop.price(1900), trial_period_days=14)
    shop.advance(clock, NEW_YEAR + DAY)
    ended = shop.v1.subscriptions.update(subscription.id, {"trial_end": "now", "expand": ["latest_invoice"]})
    assert (ended.status, ended.latest_invoice.amount_paid) == ("active", 1900)
    assert _period(ended) == (NEW_YEAR + DAY, NEW_YEAR + DAY + JANUARY)


def test_cancelling_at_the_periods_end_can_be_taken_back(shop):
    clock = shop.clock()
    subscription = shop.subscribe(shop.customer(clock), shop.price(1900))
    ending = shop.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    assert (ending.status, ending.cancel_at) == ("active", NEW_YEAR + JANUARY)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.v1.invoices.create_preview({"subscription": subscription.id})
    assert refused.value.code == "invoice_upcoming_none"
    kept = shop.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": False})
    assert (kept.cancel_at, kept.canceled_at) == (None, None)
    shop.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    shop.advance(clock, NEW_YEAR + JANUARY)
    ended = shop.v1.subscriptions.retrieve(subscription.id)
    assert (ended.status, ended.ended_at) == ("canceled", NEW_YEAR + JANUARY)
    assert shop.events_of(subscription.id)[-1] == "customer.subscription.deleted"


def test_cancelling_now_credits_the_rest_if_asked(shop):
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(3100))
    shop.advance(clock, NEW_YEAR + 11 * DAY)
    ended = shop.v1.subscriptions.cancel(subscription.id, {"prorate": True, "invoice_now": True})
    assert (ended.status, ended.canceled_at) == ("canceled", NEW_YEAR + 11 * DAY)
    assert shop.v1.customers.retrieve(customer.id).balance == -2000
    with pytest.raises(stripe.InvalidRequestError, match="canceled subscription"):
        shop.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})


def test_a_credit_is_taken_off_the_next_invoice(shop):
    customer = shop.customer()
    shop.v1.customers.balance_transactions.create(customer.id, {"amount": -500, "currency": "usd"})
    subscription = shop.subscribe(customer, shop.price(1900), expand=["latest_invoice"])
    invoice = subscription.latest_invoice
    assert (invoice.total, invoice.amount_paid, invoice.starting_balance, invoice.ending_balance) == (
        1900,
        1400,
        -500,
        0,
    )
    assert shop.v1.customers.retrieve(customer.id).balance == 0


@pytest.mark.parametrize(
    ("behavior", "status"), [("void", "void"), ("mark_uncollectible", "uncollectible"), ("keep_as_draft", "draft")]
)
def test_paused_collection_leaves_it_active_and_its_invoices_uncollected(shop, behavior, status):
    clock = shop.clock()
    subscription = shop.subscribe(shop.customer(clock), shop.price(1900))
    shop.v1.subscriptions.update(subscription.id, {"pause_collection": {"behavior": behavior}})
    shop.advance(clock, NEW_YEAR + JANUARY + 7200)
    found = shop.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    assert (found.status, found.latest_invoice.status, found.latest_invoice.amount_paid) == ("active", status, 0)
    assert shop.v1.subscriptions.update(subscription.id, {"pause_collection": ""}).pause_collection is None


def test_going_from_free_to_paid_begins_a_new_period(shop):
    clock = shop.clock()
    subscription = shop.subscribe(shop.customer(clock), shop.price(0))
    assert subscription.status == "active"
    shop.advance(clock, NEW_YEAR + 10 * DAY)
    change = {"items": [{"id": _item(subscription), "price": shop.price(1900).id}], "expand": ["latest_invoice"]}
    changed = shop.v1.subscriptions.update(subscription.id, change)
    assert (changed.latest_invoice.amount_paid, changed.billing_cycle_anchor) == (1900, NEW_YEAR + 10 * DAY)


def test_a_refused_change_can_be_undone_whole(shop):
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(1900))
    shop.advance(clock, NEW_YEAR + DAY)
    shop.give_card(customer.id, "pm_card_chargeCustomerFail")
    change = {
        "items": [{"id": _item(subscription), "price": shop.price(9900).id}],
        "proration_behavior": "always_invoice",
        "payment_behavior": "error_if_incomplete",
    }
    with pytest.raises(stripe.CardError):
        shop.v1.subscriptions.update(subscription.id, change)
    found = shop.v1.subscriptions.retrieve(subscription.id)
    assert (found["items"].data[0].price.unit_amount, found.latest_invoice) == (1900, subscription.latest_invoice)


def test_a_clock_moves_at_most_two_intervals_and_never_back(shop):
    clock = shop.clock()
    shop.subscribe(shop.customer(clock), shop.price(1900))
    for wrong in (NEW_YEAR, NEW_YEAR + 60 * DAY):
        with pytest.raises(stripe.InvalidRequestError, match="frozen time"):
            shop.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": wrong})
    shop.v1.test_helpers.test_clocks.delete(clock.id)
    with pytest.raises(stripe.InvalidRequestError, match="No such test clock"):
        shop.v1.test_helpers.test_clocks.retrieve(clock.id)
