"""Commands that follow one another at once: each finds the account where the one before it has left it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from subscriptions_peers import eventually
from subscriptions_shop import own_price
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as operator_pb


@pytest.fixture
def told(parts, shop):
    """`told(acme)`: what Stripe has of an account is applied, as a worker does that an event wakes."""
    application = parts(**shop.sandbox.settings()).stripe_events.application
    return lambda acme: application.refresh(acme.account_id, within_seconds=5)


def put_on(shop, acme, plan):
    """The operator's word; the plan that the account is on then."""
    request = operator_pb.SetAccountPlanRequest(account_id=acme.account_id, plan=plan, request_id=f"to-{plan}")
    return shop.operator(shop.operator.customers.SetAccountPlan, request).plan


def plan_of(shop, acme):
    request = operator_pb.GetCustomerRequest(account_id=acme.account_id)
    return shop.operator(shop.operator.customers.GetCustomer, request).plan


def test_account_whose_subscription_was_ended_is_put_on_a_plan_at_once_and_stays_there(shop, told):
    acme = shop.customer()
    acme.subscribe("starter")
    told(acme)
    assert plan_of(shop, acme) == "starter"
    acme.cancel(now=True)
    assert plan_of(shop, acme) == "free"
    assert put_on(shop, acme, "payg") == "payg"
    told(acme)
    assert plan_of(shop, acme) == "payg", "the end that is told of later was before"


def test_move_that_was_paid_is_seen_at_once(shop, told):
    acme = shop.customer()
    acme.subscribe("starter")
    told(acme)
    acme.update(plan="professional")
    assert acme.ask(acme.billing.GetSubscription, pb.GetSubscriptionRequest()).plan == "professional"
    assert plan_of(shop, acme) == "professional"


def test_end_is_answered_while_another_one_applies_something(shop, told, database):
    acme = shop.customer()
    acme.subscribe("starter")
    told(acme)
    database.rows("UPDATE stripe_leases SET leased_until = now() + interval '1 hour'")
    assert acme.cancel(now=True).status == "canceled"
    assert plan_of(shop, acme) == "starter"
    database.rows("UPDATE stripe_leases SET leased_until = now()")
    told(acme)
    assert plan_of(shop, acme) == "free"


@pytest.mark.parametrize("older", ["professional", "starter"])
def test_move_that_is_repeated_takes_back_no_later_one(shop, older):
    """The first attempt never reached Stripe; what was asked for since is paid."""
    acme = shop.customer()
    acme.subscribe("starter" if older == "professional" else "professional")
    shop.sandbox.fault("cut-before", "/v1/subscriptions/*", count=9)
    move = pb.UpdateSubscriptionRequest(plan=older, request_id="r1")
    assert acme.answered(acme.billing.UpdateSubscription, move) is None
    shop.sandbox.clear_faults()
    acme.update(plan="business", request_id="r2")
    paid = acme.charged()
    error = acme.update_refused(plan=older, request_id="r1")
    assert error.reason == "SUBSCRIPTION_UNMOVABLE"
    assert (own_price(acme.subscription), acme.charged(), len(acme.invoices())) == ("tk:business:1:month", paid, 2)


def test_move_asked_for_while_another_is_made_begins_where_that_one_ends(shop):
    """On its way to Stripe is a move down; what is paid for meanwhile is not given up for what was paid before."""
    acme = shop.customer()
    acme.subscribe("professional")
    shop.sandbox.fault("slow", "/v1/subscriptions/*", delay_ms=1500)
    with ThreadPoolExecutor(1) as pool:
        down = pool.submit(acme.update, plan="starter", request_id="down")
        eventually(lambda: not shop.sandbox.call("GET", "/sandbox/faults")["faults"])
        up = acme.update(plan="business", request_id="up")
        assert down.result().pending_plan == "starter"
    assert (up.plan, up.pending_plan) == ("business", "")
    now = acme.ask(acme.billing.GetSubscription, pb.GetSubscriptionRequest())
    assert (now.plan, own_price(acme.subscription)) == ("business", "tk:business:1:month")


def test_move_left_in_the_middle_holds_up_the_next_until_its_lease_has_lapsed(shop, database):
    acme = shop.customer()
    acme.subscribe("starter")
    name = f"moves of {acme.account_id}"
    database.rows("INSERT INTO stripe_leases VALUES (:name, 1, now() + interval '1 hour')", name=name)
    error = acme.update_refused(plan="professional", request_id="r1")
    assert (error.reason, acme.charged()) == ("STRIPE_UNAVAILABLE", [1900])
    database.rows("UPDATE stripe_leases SET leased_until = now() WHERE account_id = :name", name=name)
    assert acme.update(plan="professional", request_id="r1").plan == "professional"
