"""Customers that were deleted at Stripe's dashboard, of which nobody has been told yet."""

import pytest
from subscriptions_peers import USD
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb


@pytest.mark.parametrize(
    "ask",
    [
        lambda acme: acme.subscribe("professional"),
        lambda acme: acme.shop.sandbox.pay(acme.top_up().checkout_url),
        lambda acme: acme.upgrade("professional"),
        lambda acme: acme.preview("professional"),
        lambda acme: acme.ask(acme.billing.CreatePortalSession, pb.CreatePortalSessionRequest()),
    ],
    ids=["checkout", "topup", "upgrade", "preview", "portal"],
)
def test_customer_deleted_at_stripe_is_made_anew_when_one_is_needed(shop, ask):
    acme = shop.customer()
    acme.subscribe()
    deleted = acme.customer_id
    shop.sandbox.v1.customers.delete(deleted)
    ask(acme)
    assert acme.customer_id not in {None, deleted}
    known = shop.database.rows("SELECT count(*) FROM stripe_customers WHERE account_id = :a", a=acme.account_id)
    assert known == [(2,)]


def test_customer_deleted_at_stripe_has_no_subscription_and_no_card(shop, parts):
    acme = shop.customer()
    acme.subscribe()
    told = parts(**shop.sandbox.settings())
    told.stripe_events.application.refresh(acme.account_id)
    shop.sandbox.v1.customers.delete(acme.customer_id)
    rule = pb.AutoRecharge(enabled=True, threshold_nanos=USD, amount_nanos=5 * USD)
    request = pb.SetAutoRechargeRequest(auto_recharge=rule)
    assert acme.refused(acme.billing.SetAutoRecharge, request).reason == "PAYMENT_METHOD_MISSING"
    assert acme.update_refused(plan="professional").reason == "SUBSCRIPTION_NOT_FOUND"
    acme.subscribe("professional")
    assert told.stripe_events.application.refresh_due(limit=100) is False
    told.deliverer.deliver_account(acme.account_id, within_seconds=5)
    assert told.customers.get(acme.account_id).plan_id == "professional", "looked at again without an event"
