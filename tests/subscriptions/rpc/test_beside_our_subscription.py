"""Customers who subscribe to something else too, at Stripe: what they ask of us is asked of our subscription."""

import pytest


@pytest.fixture
def with_socks(shop):
    """Subscribes a customer to something that is no plan of ours."""

    def subscribe(acme):
        product = shop.sandbox.v1.products.create({"name": "Socks"})
        price = {"product": product.id, "currency": "usd", "unit_amount": 500, "recurring": {"interval": "month"}}
        items = [{"price": shop.sandbox.v1.prices.create(price).id}]
        shop.sandbox.give_card(acme.customer_id, "pm_card_visa")
        return shop.sandbox.v1.subscriptions.create({"customer": acme.customer_id, "items": items}).id

    return subscribe


@pytest.fixture
def acme(shop):
    made = shop.customer()
    shop.sandbox.pay(made.top_up("5.00").checkout_url)
    return made


def statuses(acme):
    return {found.id: (found.status, found.cancel_at_period_end) for found in acme.subscriptions()}


def test_customer_of_something_else_can_subscribe(acme, with_socks):
    socks = with_socks(acme)
    ours = acme.subscribe("starter")
    assert statuses(acme) == {socks: ("active", False), ours: ("active", False)}


def test_end_is_that_of_our_subscription(acme, with_socks):
    ours = acme.subscribe("starter")
    socks = with_socks(acme)
    assert acme.cancel().plan == "starter"
    assert statuses(acme) == {ours: ("active", True), socks: ("active", False)}
    assert acme.cancel(now=True).status == "canceled"
    assert statuses(acme)[socks] == ("active", False)


def test_move_is_that_of_our_subscription(acme, with_socks):
    acme.subscribe("starter")
    with_socks(acme)
    assert acme.update(plan="professional").plan == "professional"
