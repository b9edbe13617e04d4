"""Stripe's pages: to subscribe at, to buy credit at, the portal; none leads to a second payment."""

import time
from datetime import timedelta

import grpc
import pytest
from subscriptions_peers import USD, eventually
from subscriptions_shop import CENT, at_once
from subscriptions_stripe import VISA
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as operator_pb

from services.kit.errors import RemoteError

PAGES = "/v1/checkout/sessions"


def page_of(shop, checkout):
    return shop.sandbox.v1.checkout.sessions.retrieve(checkout.session_id)


def test_paid_checkout_is_a_subscription_that_names_its_account_and_plan(shop):
    acme = shop.customer()
    checkout = acme.checkout("starter", success_url="https://a.example/ok", cancel_url="https://a.example/no")
    page = page_of(shop, checkout)
    assert (page.client_reference_id, page.metadata["purpose"]) == (acme.account_id, "subscription")
    assert (page.success_url, page.cancel_url) == ("https://a.example/ok", "https://a.example/no")
    assert acme.charged() == []
    shop.sandbox.pay(checkout.checkout_url)
    assert acme.charged() == [1900]
    made = acme.subscription
    named = {"account_id": acme.account_id, "plan": "starter", "plan_version": "1", "interval": "month"}
    assert (made.status, made.metadata.to_dict(), made.billing_mode.type) == ("active", named, "flexible")
    assert shop.sandbox.v1.customers.retrieve(acme.customer_id).metadata["account_id"] == acme.account_id


def test_year_costs_twelve_months_less_the_discount(shop):
    acme = shop.customer()
    acme.subscribe("professional", interval="year")
    assert acme.charged() == [9900 * 12 * 85 // 100]


def test_metered_plan_brings_an_item_for_each_billed_metric(shop):
    acme = shop.customer()
    acme.subscribe("metered-standard")
    keys = sorted(item.price.lookup_key for item in acme.subscription["items"].data)
    assert keys == sorted(
        f"tk:metered-standard:1:{part}"
        for part in ("month", "llm_tokens", "api_calls", "agent_executions", "storage_gb", "user_seats")
    )
    assert acme.charged() == [9900]


def test_declined_card_leaves_the_page_open_and_another_one_pays(shop):
    acme = shop.customer()
    checkout = acme.checkout()
    shop.sandbox.declined(checkout.checkout_url)
    assert (acme.subscriptions(), acme.charged()) == ([], [])
    shop.sandbox.pay(checkout.checkout_url, VISA)
    assert (len(acme.subscriptions()), acme.charged()) == (1, [1900])


# Once


@pytest.mark.parametrize("ask", ["checkout", "top_up"])
def test_repeated_request_gives_the_same_page(shop, ask):
    acme = shop.customer()
    first = getattr(acme, ask)(request_id="r1")
    assert getattr(acme, ask)(request_id="r1") == first
    assert acme.open_pages() == [first.session_id]


def test_repeated_request_is_told_to_be_one(shop):
    acme = shop.customer()
    request = pb.CreateCheckoutRequest(plan="starter", request_id="r1")
    assert "idempotency-replayed" not in acme.caller.trailing(acme.billing.CreateCheckout, request)
    assert acme.caller.trailing(acme.billing.CreateCheckout, request)["idempotency-replayed"] == "true"


def test_request_id_used_with_other_words_is_refused(shop):
    acme = shop.customer()
    acme.checkout(request_id="r1")
    error = acme.refused(acme.billing.CreateCheckout, pb.CreateCheckoutRequest(plan="professional", request_id="r1"))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT")
    acme.top_up("25.00", request_id="r1")  # another use case: ids are its own
    error = acme.refused(acme.billing.CreateTopUp, pb.CreateTopUpRequest(amount_usd="26.00", request_id="r1"))
    assert error.reason == "IDEMPOTENCY_CONFLICT"


def test_request_ids_are_each_accounts_own(shop):
    acme, other = shop.customer(), shop.customer("other")
    assert acme.checkout(request_id="r1").session_id != other.checkout(request_id="r1").session_id


def test_opening_a_page_closes_the_older_ones_but_not_those_for_credit(shop):
    acme = shop.customer()
    first, credit = acme.checkout("starter"), acme.top_up()
    second = acme.checkout("professional")
    assert page_of(shop, first).status == "expired"
    assert sorted(acme.open_pages()) == sorted([second.session_id, credit.session_id])


def test_pages_opened_at_once_leave_one_open(shop):
    acme = shop.customer()
    plans = ["starter", "professional", "business"] * 2
    opened = at_once(*[lambda plan=plan: acme.checkout(plan) for plan in plans])
    pages = acme.open_pages()
    assert len(pages) == 1
    assert pages[0] in {checkout.session_id for checkout in opened}


def test_account_with_a_subscription_gets_no_second_one(shop):
    acme = shop.customer()
    acme.subscribe()
    error = acme.refused(acme.billing.CreateCheckout, pb.CreateCheckoutRequest(plan="professional"))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SUBSCRIPTION_EXISTS")
    assert acme.open_pages() == []


def test_late_repeat_of_an_unanswered_checkout_opens_no_second_subscription(shop):
    acme = shop.customer()
    acme.top_up()  # so that there is a customer
    shop.sandbox.fault("status", PAGES, status=500, count=3)
    lost = pb.CreateCheckoutRequest(plan="starter", request_id="r1")
    assert acme.refused(acme.billing.CreateCheckout, lost).reason == "STRIPE_UNAVAILABLE"
    acme.subscribe("professional")
    assert acme.refused(acme.billing.CreateCheckout, lost).reason == "SUBSCRIPTION_EXISTS"
    assert len(acme.open_pages()) == 1  # the one for credit
    assert len(acme.subscriptions()) == 1


def test_page_paid_while_another_is_opened_leaves_one_subscription(shop):
    acme = shop.customer()
    first = acme.checkout("starter")
    shop.sandbox.fault("slow", PAGES, delay_ms=1000)

    def pay():
        while shop.sandbox.call("GET", "/sandbox/faults")["faults"]:
            time.sleep(0.01)  # until the second one is on its way
        return shop.sandbox.pay(first.checkout_url)

    refused, paid = at_once(lambda: acme.checkout("professional"), pay)
    assert paid["status"] == "complete"
    assert RemoteError.from_rpc(refused).reason == "SUBSCRIPTION_EXISTS"
    assert (len(acme.subscriptions()), acme.open_pages(), acme.charged()) == (1, [], [1900])


def test_first_purchases_made_at_once_share_one_customer(shop):
    acme = shop.customer()
    shop.clock.forward(timedelta(seconds=601 - shop.clock().timestamp() % 600))  # well within one idempotency key
    at_once(*[acme.top_up] * 6)
    found = shop.sandbox.v1.customers.search({"query": f"metadata['account_id']:'{acme.account_id}'"})
    assert [customer.id for customer in found.data] == [acme.customer_id]


# Faults

FAULTS = [("status", {"status": 429}), ("status", {"status": 500}), ("cut", {}), ("cut-before", {})]


def test_account_that_a_fault_of_stripes_kept_from_being_a_customer_is_one_soon_after(shop):
    acme = shop.customer()
    shop.sandbox.fault("broken", "/v1/customers")
    for _ in range(2):  # the fault is Stripe's answer to this key from now on
        error = acme.refused(acme.billing.CreateCheckout, pb.CreateCheckoutRequest(plan="starter"))
        assert error.reason == "STRIPE_UNAVAILABLE"
    shop.clock.forward(timedelta(minutes=10))
    assert acme.subscribe("starter") == acme.subscription.id


@pytest.mark.parametrize(("fault", "more"), FAULTS, ids=["429", "500", "cut", "cut-before"])
def test_page_asked_for_again_after_a_fault_is_the_only_one(shop, fault, more):
    acme = shop.customer()
    shop.sandbox.fault(fault, PAGES, count=3, **more)
    request = pb.CreateTopUpRequest(amount_usd="25.00", request_id="r1")
    error = acme.refused(acme.billing.CreateTopUp, request)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STRIPE_UNAVAILABLE")
    shop.sandbox.clear_faults()
    checkout = acme.ask(acme.billing.CreateTopUp, request)
    assert acme.open_pages() == [checkout.session_id]
    shop.sandbox.pay(checkout.checkout_url)
    assert acme.charged() == [2500]


def test_answer_that_does_not_come_is_not_waited_for_for_ever(served, connect, shop):
    acme = shop.customer()
    with served(**shop.sandbox.settings(stripe_timeout_seconds=0.5, stripe_retries=1)) as address:
        shop.address = address
        acme = type(acme)(shop, acme.account_id)
        shop.sandbox.fault("hang", PAGES, count=2)
        request = pb.CreateTopUpRequest(amount_usd="25.00", request_id="r1")
        assert acme.refused(acme.billing.CreateTopUp, request).reason == "STRIPE_UNAVAILABLE"
        # Stripe keeps a key until it has seen that the client left, and refuses what comes before that.
        checkout = eventually(lambda: acme.answered(acme.billing.CreateTopUp, request))
        assert acme.open_pages() == [checkout.session_id]


def test_outage_is_told_as_one_and_ends(shop):
    acme = shop.customer()
    shop.sandbox.outage(60)
    request = pb.CreateCheckoutRequest(plan="starter", request_id="r1")
    error = acme.refused(acme.billing.CreateCheckout, request)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STRIPE_UNAVAILABLE")
    assert error.retry_after_seconds
    shop.sandbox.outage(0)
    assert acme.ask(acme.billing.CreateCheckout, request).checkout_url


# Credit


def test_paid_top_up_names_account_and_purpose_on_the_payment(shop):
    acme = shop.customer()
    page = shop.sandbox.pay(acme.top_up("25.50", request_id="r1").checkout_url)
    payment = shop.sandbox.v1.payment_intents.retrieve(page["payment_intent"])
    named = {"account_id": acme.account_id, "purpose": "top_up", "request_id": "r1"}
    assert (payment.amount, payment.status, payment.metadata.to_dict()) == (2550, "succeeded", named)


def test_account_on_a_subscription_may_buy_credit_too(shop):
    acme = shop.customer()
    acme.subscribe()
    shop.sandbox.pay(acme.top_up("10.00").checkout_url)
    assert acme.charged() == [1900, 1000]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"amount_usd": "0.99"}, "amount_usd"),
        ({"amount_usd": "10000.01"}, "amount_usd"),
        ({"amount_usd": "5.001"}, "amount_usd"),
        ({"amount_usd": "-5"}, "amount_usd"),
        ({"amount_usd": "1e3"}, "amount_usd"),
        ({"amount_nanos": 5 * USD + 1}, "amount_nanos"),
        ({"amount_nanos": -CENT}, "amount_nanos"),
        ({"amount_nanos": 2**63 - 1}, "amount_nanos"),
        ({"amount_nanos": 5 * USD, "amount_usd": "5.00"}, "amount_usd"),
        ({}, "amount_nanos"),
    ],
)
def test_bad_amount_is_named(shop, fields, field):
    acme = shop.customer()
    error = acme.refused(acme.billing.CreateTopUp, pb.CreateTopUpRequest(**fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in {violation.field for violation in error.violations}
    assert acme.customer_id is None


# Bad input


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"plan": ""}, "plan"),
        ({"plan": "no such plan"}, "plan"),
        ({"plan": "starter", "interval": "week"}, "interval"),
        ({"plan": "metered-standard", "interval": "year"}, "interval"),
        ({"plan": "starter", "success_url": "http://a.example/"}, "success_url"),
        ({"plan": "starter", "success_url": "javascript:alert(1)"}, "success_url"),
        ({"plan": "starter", "cancel_url": "https://user@a.example/"}, "cancel_url"),
        ({"plan": "starter", "cancel_url": "https://a.example/\n"}, "cancel_url"),
        ({"plan": "starter", "cancel_url": "https://a.example/" + "a" * 2000}, "cancel_url"),
        ({"plan": "starter", "request_id": "x" * 65}, "request_id"),
        ({"plan": "starter", "request_id": "a b"}, "request_id"),
    ],
)
def test_bad_checkout_is_named_and_asks_stripe_nothing(shop, fields, field):
    acme = shop.customer()
    shop.sandbox.outage(60)  # whatever asks Stripe fails otherwise
    error = acme.refused(acme.billing.CreateCheckout, pb.CreateCheckoutRequest(**fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("free", "PLAN_NOT_SUBSCRIBABLE"),
        ("payg", "PLAN_NOT_SUBSCRIBABLE"),
        ("metered-free", "PLAN_NOT_SUBSCRIBABLE"),
        ("legacy", "PLAN_RETIRED"),
        ("nothing", "PLAN_NOT_FOUND"),
    ],
)
def test_plan_that_is_not_sold_is_refused_and_asks_stripe_nothing(shop, plan, reason):
    acme = shop.customer()
    shop.sandbox.outage(60)
    assert acme.refused(acme.billing.CreateCheckout, pb.CreateCheckoutRequest(plan=plan)).reason == reason
    assert acme.customer_id is None


def test_plan_version_that_stripe_has_no_price_of_is_refused_until_it_is_set_up(shop, pricing, parts):
    acme = shop.customer()
    pricing.publish("unseen", price_nanos=7 * USD)
    error = acme.refused(acme.billing.CreateCheckout, pb.CreateCheckoutRequest(plan="unseen"))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STRIPE_CATALOGUE_MISSING")


def test_closed_account_buys_nothing(shop):
    acme = shop.customer()
    shop.database.rows("UPDATE accounts SET status = 'closed' WHERE account_id = :a", a=acme.account_id)
    for method, request in (
        (acme.billing.CreateCheckout, pb.CreateCheckoutRequest(plan="starter")),
        (acme.billing.CreateTopUp, pb.CreateTopUpRequest(amount_usd="5.00")),
    ):
        assert acme.refused(method, request).reason == "ACCOUNT_STOPPED"
    assert acme.customer_id is None


def test_account_that_the_ledger_has_closed_buys_nothing(shop, ledger):
    acme = shop.customer()
    acme.subscribe()
    ledger.books[acme.account_id]["status"] = "closed"
    for method, request in (
        (acme.billing.CreateCheckout, pb.CreateCheckoutRequest(plan="starter")),
        (acme.billing.CreateTopUp, pb.CreateTopUpRequest(amount_usd="5.00")),
        (acme.billing.UpdateSubscription, pb.UpdateSubscriptionRequest(plan="professional")),
    ):
        assert acme.refused(method, request).reason == "ACCOUNT_STOPPED"
    assert acme.cancel(now=True).status == "canceled"


def test_account_that_the_ledger_has_suspended_may_pay(shop, ledger):
    acme = shop.customer()
    ledger.books[acme.account_id]["status"] = "suspended"
    assert acme.top_up().checkout_url


def test_ledger_that_is_away_keeps_nobody_from_paying(shop, ledger):
    acme = shop.customer()
    ledger.down = True
    assert acme.top_up().checkout_url


def test_accounts_customer_at_stripe_is_told_once_there_is_one(shop):
    acme = shop.customer()
    operator, billing_account = shop.operator, pb.GetBillingAccountRequest()
    named = operator_pb.GetCustomerRequest(account_id=acme.account_id)
    assert operator(operator.customers.GetCustomer, named).stripe_customer_id == ""
    acme.top_up()
    assert acme.customer_id
    assert operator(operator.customers.GetCustomer, named).stripe_customer_id == acme.customer_id
    assert acme.ask(acme.billing.GetBillingAccount, billing_account).account.stripe_customer_id == acme.customer_id
    listed = operator(operator.customers.ListCustomers, operator_pb.ListCustomersRequest()).accounts
    assert [one.stripe_customer_id for one in listed if one.account_id == acme.account_id] == [acme.customer_id]
    shop.database.rows("UPDATE stripe_customers SET deleted_at = now()")
    assert operator(operator.customers.GetCustomer, named).stripe_customer_id == ""


# Whose


def test_nobody_opens_pages_for_another_account(shop):
    acme, other = shop.customer(), shop.customer("other")
    acme.subscribe()
    for method, request in (
        (other.billing.CreateCheckout, pb.CreateCheckoutRequest(account_id=acme.account_id, plan="starter")),
        (other.billing.CreateTopUp, pb.CreateTopUpRequest(account_id=acme.account_id, amount_usd="5.00")),
        (other.billing.CreatePortalSession, pb.CreatePortalSessionRequest(account_id=acme.account_id)),
    ):
        assert other.refused(method, request).code is grpc.StatusCode.PERMISSION_DENIED


def test_account_that_is_not_there_is_named(shop):
    error = shop.operator.refused(
        shop.operator.billing.CreateCheckout, pb.CreateCheckoutRequest(account_id="nobody", plan="starter")
    )
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND")


# The portal


def test_portal_is_the_customers_own_and_cancels(shop):
    acme = shop.customer()
    acme.subscribe()
    url = acme.ask(acme.billing.CreatePortalSession, pb.CreatePortalSessionRequest()).portal_url
    assert shop.sandbox.get(url)[0] == 200
    shop.sandbox.portal(url, "cancel", subscription=acme.subscription.id)
    assert acme.subscription.cancel_at == acme.subscription["items"].data[0].current_period_end


def test_portal_refuses_an_address_that_no_browser_is_sent_to(shop):
    acme = shop.customer()
    error = acme.refused(acme.billing.CreatePortalSession, pb.CreatePortalSessionRequest(return_url="ftp://a.example/"))
    assert [violation.field for violation in error.violations] == ["return_url"]
