"""Every kind of answer has the shape that the library's own types describe."""

from __future__ import annotations

import json

import pytest
from sandbox_stripe_process import DAY, KEY, NEW_YEAR, Shop, start
from sandbox_stripe_shapes import problems

LISTS = [
    "products",
    "prices?expand[]=data.tiers",
    "customers",
    "setup_intents",
    "payment_intents",
    "charges?expand[]=data.refunds",
    "refunds",
    "disputes",
    "credit_notes",
    "balance_transactions",
    "checkout/sessions?expand[]=data.line_items",
    "billing_portal/configurations",
    "subscriptions?status=all",
    "subscriptions?status=all&test_clock={clock}",
    "invoices?expand[]=data.payments",
    "invoiceitems",
    "invoice_payments",
    "billing/meters",
    "test_helpers/test_clocks",
    "webhook_endpoints",
    "events",
]


@pytest.fixture(scope="module")
def filled(start_sandbox_for_module):
    """A sandbox in which one of everything has happened."""
    sandbox, shop = start_sandbox_for_module
    v1 = shop.v1
    clock = shop.clock()
    customer = shop.customer(clock, name="Jenny", balance=-500)
    small, large = shop.price(1900), shop.price(9900, interval="year")
    meter = shop.meter()
    metered = shop.metered_price(meter, 10, "0.5")
    subscription = shop.subscribe(customer, small, metered, trial_period_days=2)
    shop.advance(clock, NEW_YEAR + 20 * DAY)
    item = subscription["items"].data[0].id
    v1.subscriptions.update(subscription.id, {"items": [{"id": item, "quantity": 3}]})
    yearly = shop.subscribe(shop.customer(), large, cancel_at_period_end=True)
    v1.subscriptions.cancel(yearly.id, {"prorate": True, "invoice_now": True})
    checkout = v1.checkout.sessions.create(
        {"mode": "setup", "currency": "usd", "customer_creation": "always", "success_url": "http://127.0.0.1/"}
    )
    sandbox.form(checkout.url + "/complete", {"card": "4242424242424242"})
    sale = {"currency": "usd", "unit_amount": 1000, "product_data": {"name": "Credit"}}
    v1.checkout.sessions.create(
        {"mode": "payment", "success_url": "http://127.0.0.1/", "line_items": [{"price_data": sale, "quantity": 2}]}
    )
    paid = v1.payment_intents.create(
        {"amount": 2000, "currency": "usd", "payment_method": "pm_card_visa", "confirm": True}
    )
    v1.refunds.create({"payment_intent": paid.id, "amount": 500})
    sandbox.call("POST", "/sandbox/disputes", {"charge": paid.latest_charge})
    first = v1.invoices.list({"customer": customer.id, "status": "paid", "limit": 1}).data[0]
    v1.credit_notes.create({"invoice": first.id, "amount": 100, "refund_amount": 60, "credit_amount": 40})
    v1.billing_portal.sessions.create({"customer": customer.id, "return_url": "http://127.0.0.1/"})
    v1.webhook_endpoints.create({"url": "http://127.0.0.1:9/none", "enabled_events": ["charge.failed"]})
    sandbox.clock = clock.id
    return sandbox


@pytest.fixture(scope="module")
def start_sandbox_for_module():
    running = start()
    yield running, Shop(running, running.client().v1)
    running.stop()


def _read(sandbox, path):
    joint = "&" if "?" in path else "?"
    status, answer = sandbox.call(
        "GET", f"/v1/{path.format(clock=sandbox.clock)}{joint}limit=100", headers={"authorization": f"Bearer {KEY}"}
    )
    assert status == 200, answer
    return answer["data"]


@pytest.mark.parametrize("path", LISTS)
def test_answers_have_the_shape_of_the_librarys_types(filled, path):
    found = _read(filled, path)
    assert found
    assert [problem for answer in found for problem in problems(answer)] == []


def test_snapshots_in_events_have_it_too(filled):
    events = _read(filled, "events")
    assert len({event["type"] for event in events}) >= 30
    assert [problem for event in events for problem in problems(event["data"]["object"])] == []


def test_no_inner_field_leaves_the_sandbox(filled):
    def names(value):
        if isinstance(value, dict):
            return set(value) | {name for below in value.values() for name in names(below)}
        return {name for below in value for name in names(below)} if isinstance(value, list) else set()

    for path in LISTS:
        assert not [name for name in names(_read(filled, path)) if name.startswith("_")]


def test_previews_have_the_shape_of_invoices(filled):
    subscription = _read(filled, "subscriptions?status=active&test_clock={clock}")[0]
    preview = filled.client().v1.invoices.create_preview({"subscription": subscription["id"]})
    assert problems(json.loads(str(preview))) == []
