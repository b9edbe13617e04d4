"""Meters: each event once, by its identifier; usage billed in arrears, exactly, late events included."""

from __future__ import annotations

import secrets
import time

import pytest
import stripe
from sandbox_stripe_process import DAY, NEW_YEAR


def _use(shop, meter, customer, value, at=None, *, identifier=None):
    event = {"event_name": meter.event_name, "payload": {"stripe_customer_id": customer.id, "value": str(value)}}
    event |= {"timestamp": at} if at is not None else {}
    return shop.v1.billing.meter_events.create({**event, "identifier": identifier or secrets.token_hex(8)})


def _sum(shop, meter, customer, start, end, **more):
    found = shop.v1.billing.meters.event_summaries.list(
        meter.id, {"customer": customer.id, "start_time": start, "end_time": end, **more}
    )
    return [summary.aggregated_value for summary in found.data]


def test_an_identifier_counts_once(shop):
    clock, meter = shop.clock(), shop.meter()
    customer = shop.customer(clock, card=None)
    identifier = secrets.token_hex(8)
    _use(shop, meter, customer, 10, NEW_YEAR, identifier=identifier)
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier") as refused:
        _use(shop, meter, customer, 10, NEW_YEAR, identifier=identifier)
    assert refused.value.code == "duplicate_meter_event"
    assert _sum(shop, meter, customer, NEW_YEAR, NEW_YEAR + 3600) == [10]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"event_name": "nobody_counts_this"}, "no_meter"),
        ({"timestamp": NEW_YEAR - 36 * DAY}, "timestamp_too_far_in_past"),
        ({"timestamp": NEW_YEAR + 3600}, "timestamp_in_future"),
        ({"payload": {"stripe_customer_id": "cus_none", "value": "1"}}, "meter_event_customer_not_found"),
        ({"payload": {"value": "1"}}, "meter_event_no_customer_defined"),
        ({"value": None}, "meter_event_value_not_found"),
        ({"value": "many"}, "meter_event_invalid_value"),
    ],
)
def test_events_that_cannot_be_counted_are_refused(shop, change, code):
    meter = shop.meter()
    customer = shop.customer(shop.clock(), card=None)
    payload = {"stripe_customer_id": customer.id, "value": change.pop("value", "1")}
    event = {"event_name": meter.event_name, "payload": {k: v for k, v in payload.items() if v is not None}}
    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.v1.billing.meter_events.create({**event, "timestamp": NEW_YEAR, **change})
    assert refused.value.code == code


def test_sums_go_by_the_hour_and_keep_decimals(shop):
    meter = shop.meter()
    clock = shop.clock(NEW_YEAR + 3 * 3600)
    customer = shop.customer(clock, card=None)
    for value, at in ((1, 0), (2, 3599), (4, 3600), ("0.5", 2 * 3600)):
        _use(shop, meter, customer, value, NEW_YEAR + at)
    end = NEW_YEAR + 3 * 3600
    assert _sum(shop, meter, customer, NEW_YEAR, end) == [7.5]
    assert _sum(shop, meter, customer, NEW_YEAR, end, value_grouping_window="hour") == [0.5, 4, 3]


def test_usage_above_the_quota_is_billed_at_the_periods_end(shop):
    clock, meter = shop.clock(), shop.meter()
    customer = shop.customer(clock)
    price = shop.metered_price(meter, 1_000_000, "0.002")
    subscription = shop.subscribe(customer, shop.price(9900), price, expand=["latest_invoice"])
    assert subscription.latest_invoice.total == 9900
    end = NEW_YEAR + 31 * DAY
    shop.advance(clock, end - 60)
    _use(shop, meter, customer, 1_250_000, end - 120)
    shop.advance(clock, end + 60)
    # The invoice is a draft still: what comes late for its period is on it, what is of the next is not.
    _use(shop, meter, customer, 250_001, end - 1)
    _use(shop, meter, customer, 77, end)
    shop.advance(clock, end + 3600)
    invoice = shop.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]}).latest_invoice
    lines = [(line.quantity, str(line.pricing.unit_amount_decimal), line.amount) for line in invoice.lines.data]
    assert lines == [(1_000_000, "0", 0), (500_001, "0.002", 1000), (1, "9900", 9900)]
    assert (invoice.status, invoice.amount_paid) == ("paid", 10900)
    preview = shop.v1.invoices.create_preview({"subscription": subscription.id})
    assert [line.quantity for line in preview.lines.data] == [77, 1]


def test_usage_is_billed_when_a_subscription_ends(shop):
    clock, meter = shop.clock(), shop.meter()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.metered_price(meter, 10, "100"))
    shop.advance(clock, NEW_YEAR + DAY)
    _use(shop, meter, customer, 15, NEW_YEAR + DAY - 10)
    shop.v1.subscriptions.cancel(subscription.id, {"invoice_now": True})
    assert shop.v1.invoices.list({"subscription": subscription.id}).data[0].amount_paid == 500


def test_an_event_can_be_taken_back(shop):
    clock, meter = shop.clock(), shop.meter()
    customer = shop.customer(clock, card=None)
    identifier = secrets.token_hex(8)
    _use(shop, meter, customer, 5, NEW_YEAR, identifier=identifier)
    shop.v1.billing.meter_event_adjustments.create(
        {"event_name": meter.event_name, "type": "cancel", "cancel": {"identifier": identifier}}
    )
    assert _sum(shop, meter, customer, NEW_YEAR, NEW_YEAR + 60) == [0]


def test_a_deactivated_meter_counts_no_more(shop):
    meter = shop.meter()
    customer = shop.customer(card=None)
    shop.v1.billing.meters.deactivate(meter.id)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        _use(shop, meter, customer, 1)
    assert refused.value.code == "archived_meter"
    assert shop.v1.billing.meters.reactivate(meter.id).status == "active"
    _use(shop, meter, customer, 1)


def test_a_metered_price_needs_a_meter(shop):
    product = shop.v1.products.create({"name": "x"})
    recurring = {"interval": "month", "usage_type": "metered"}
    with pytest.raises(stripe.InvalidRequestError, match="backed by a meter"):
        shop.v1.prices.create({"product": product.id, "currency": "usd", "unit_amount": 1, "recurring": recurring})


def test_the_stream_takes_events_with_a_sessions_token(sandbox, shop):
    meter = shop.meter()
    customer = shop.customer(card=None)
    token = sandbox.client().v2.billing.meter_event_session.create().authentication_token
    payload = {"stripe_customer_id": customer.id, "value": "3"}
    event = {"event_name": meter.event_name, "payload": payload, "identifier": secrets.token_hex(8)}
    for _ in range(2):  # a duplicate is dropped without a word, as at Stripe
        sandbox.client(token).v2.billing.meter_event_stream.create({"events": [event]})
    sandbox.client().v2.billing.meter_events.create({**event, "identifier": secrets.token_hex(8)})
    minute = int(time.time()) // 60 * 60
    assert _sum(shop, meter, customer, minute - 3600, minute + 3600) == [6]
    with pytest.raises(stripe.AuthenticationError):
        sandbox.client("mes_sandbox_none").v2.billing.meter_event_stream.create({"events": [event]})
