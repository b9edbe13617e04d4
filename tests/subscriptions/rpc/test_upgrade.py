"""UpgradeTier: where a customer goes on, with a subscription and without, and that it pays once."""

import grpc
import pytest
from subscriptions_shop import own_price
from subscriptions_stripe import FAILS_LATER
from tollkeeper.subscriptions.v1 import credits_service_pb2 as pb


def test_upgrade_from_free_is_a_page_to_subscribe_at(shop):
    acme = shop.customer()
    url = acme.upgrade("professional")
    assert acme.charged() == []
    shop.sandbox.pay(url)
    assert (own_price(acme.subscription), acme.charged()) == ("tk:professional:1:month", [9900])


def test_upgrade_by_the_year_is_a_page_of_the_years_price(shop):
    acme = shop.customer()
    shop.sandbox.pay(acme.upgrade("starter", interval="year", success_url="https://a.example/"))
    assert acme.charged() == [19_380]


def test_upgrade_of_a_subscription_is_made_at_once_and_leads_to_its_invoice(shop):
    acme = shop.customer()
    acme.subscribe("starter")
    url = acme.upgrade("professional")
    invoice = acme.invoices()[0]
    assert (url, invoice.status) == (invoice.hosted_invoice_url, "paid")
    assert own_price(acme.subscription) == "tk:professional:1:month"
    assert len(acme.charged()) == 2
    assert shop.sandbox.get(url)[0] == 200


def test_upgrade_asked_for_again_is_charged_once(shop):
    acme = shop.customer()
    acme.subscribe("starter")
    assert acme.upgrade("professional") == acme.upgrade("professional")
    assert (len(acme.charged()), len(acme.subscriptions())) == (2, 1)


def test_page_of_an_upgrade_asked_for_again_leaves_one_to_pay(shop):
    acme = shop.customer()
    acme.upgrade("professional")
    second = acme.upgrade("starter")
    assert len(acme.open_pages()) == 1
    shop.sandbox.pay(second)
    assert (len(acme.subscriptions()), acme.charged()) == (1, [1900])


def test_upgrade_whose_answer_was_lost_is_charged_once(shop):
    acme = shop.customer()
    acme.subscribe("starter")
    shop.sandbox.fault("cut", "/v1/subscriptions/*", count=3)
    error = acme.refused(acme.credits.UpgradeTier, pb.UpgradeTierRequest(tier="professional"))
    assert error.reason == "STRIPE_UNAVAILABLE"
    acme.upgrade("professional")
    assert len(acme.charged()) == 2


def test_declined_upgrade_changes_nothing(shop):
    acme = shop.customer()
    acme.subscribe("starter", card=FAILS_LATER)
    error = acme.refused(acme.credits.UpgradeTier, pb.UpgradeTierRequest(tier="professional"))
    assert (error.reason, error.message) == ("PAYMENT_FAILED", "Your card was declined.")
    assert (own_price(acme.subscription), acme.charged()) == ("tk:starter:1:month", [1900])


@pytest.mark.parametrize("tier", ["starter", "free"])
def test_cheaper_tier_is_no_upgrade(shop, tier):
    acme = shop.customer()
    acme.subscribe("professional")
    error = acme.refused(acme.credits.UpgradeTier, pb.UpgradeTierRequest(tier=tier))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SUBSCRIPTION_UNMOVABLE")
    assert not acme.subscription.cancel_at_period_end


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tier": ""}, "tier"),
        ({"tier": "a b"}, "tier"),
        ({"tier": "starter", "interval": "week"}, "interval"),
        ({"tier": "starter", "success_url": "/here"}, "success_url"),
        ({"tier": "starter", "cancel_url": "data:text/html,x"}, "cancel_url"),
    ],
)
def test_bad_upgrade_is_named_and_asks_stripe_nothing(shop, fields, field):
    acme = shop.customer()
    shop.sandbox.outage(60)
    error = acme.refused(acme.credits.UpgradeTier, pb.UpgradeTierRequest(**fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]


@pytest.mark.parametrize(
    ("tier", "reason"), [("nothing", "TIER_NOT_FOUND"), ("payg", "PLAN_NOT_SUBSCRIBABLE"), ("legacy", "PLAN_RETIRED")]
)
def test_tier_that_is_not_sold_is_refused(shop, tier, reason):
    acme = shop.customer()
    assert acme.refused(acme.credits.UpgradeTier, pb.UpgradeTierRequest(tier=tier)).reason == reason


def test_nobody_upgrades_another_account(shop):
    acme, other = shop.customer(), shop.customer("other")
    request = pb.UpgradeTierRequest(account_id=acme.account_id, tier="starter")
    assert other.refused(other.credits.UpgradeTier, request).code is grpc.StatusCode.PERMISSION_DENIED
