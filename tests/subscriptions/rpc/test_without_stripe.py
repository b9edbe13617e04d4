"""Without Stripe's keys all that needs no Stripe works; with wrong ones it says so at once, and goes on serving."""

import signal

import grpc
import pytest
from subscriptions_peers import USD
from subscriptions_process import logged, running
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1 import credits_service_pb2 as credits_pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as operator_pb

from services.kit.identity import Role

RULE = pb.AutoRecharge(enabled=True, threshold_nanos=USD, amount_nanos=5 * USD)

# Every RPC that has to ask Stripe.
ASKS_STRIPE = [
    ("billing", "CreateCheckout", pb.CreateCheckoutRequest(plan="starter")),
    ("billing", "CreatePortalSession", pb.CreatePortalSessionRequest()),
    ("billing", "CreateTopUp", pb.CreateTopUpRequest(amount_usd="5.00")),
    ("billing", "UpdateSubscription", pb.UpdateSubscriptionRequest(plan="starter")),
    ("billing", "CancelSubscription", pb.CancelSubscriptionRequest()),
    ("billing", "PreviewSubscription", pb.PreviewSubscriptionRequest(plan="starter")),
    ("billing", "ListInvoices", pb.ListInvoicesRequest()),
    ("billing", "GetUpcomingInvoice", pb.GetUpcomingInvoiceRequest()),
    ("billing", "SetAutoRecharge", pb.SetAutoRechargeRequest(auto_recharge=RULE)),
    ("credits", "UpgradeTier", credits_pb.UpgradeTierRequest(tier="starter")),
]
# What a customer asks without Stripe.
ASKS_NOBODY = [
    ("billing", "GetBillingAccount", pb.GetBillingAccountRequest()),
    ("billing", "GetSubscription", pb.GetSubscriptionRequest()),
    ("billing", "GetAutoRecharge", pb.GetAutoRechargeRequest()),
    ("billing", "SetAutoRecharge", pb.SetAutoRechargeRequest(auto_recharge=pb.AutoRecharge())),
    ("credits", "GetCreditsBalance", credits_pb.GetCreditsBalanceRequest()),
    ("credits", "ListTiers", credits_pb.ListTiersRequest()),
    ("credits", "GetTier", credits_pb.GetTierRequest(tier="starter")),
    ("credits", "GetCurrentTier", credits_pb.GetCurrentTierRequest()),
    ("credits", "GetOverage", credits_pb.GetOverageRequest()),
    ("credits", "GetRecommendation", credits_pb.GetRecommendationRequest()),
    ("metering", "ListQuotas", pb.ListQuotasRequest()),
    (
        "metering",
        "EmitEvents",
        pb.EmitEventsRequest(events=[pb.UsageEvent(id="e1", metric="api_calls", quantity=1)]),
    ),
]


def names(cases):
    return [method for _, method, _ in cases]


@pytest.fixture
def acme(operator, connect):
    """A customer of an instance without keys."""
    operator(operator.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme"))
    return connect(operator.address, Role.ACCOUNT, "acme")


@pytest.mark.parametrize(("service", "method", "request_"), ASKS_STRIPE, ids=names(ASKS_STRIPE))
def test_without_a_key_what_needs_stripe_is_refused_as_not_configured(acme, database, service, method, request_):
    error = acme.refused(getattr(getattr(acme, service), method), request_)
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STRIPE_NOT_CONFIGURED")
    assert database.rows("SELECT * FROM stripe_requests") == []


@pytest.mark.parametrize(("service", "method", "request_"), ASKS_NOBODY, ids=names(ASKS_NOBODY))
def test_without_a_key_all_else_works(acme, service, method, request_):
    acme(getattr(getattr(acme, service), method), request_)


def test_without_a_key_accounts_are_made_and_moved(operator, ledger):
    made = operator(operator.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme"))
    assert made.provisioned
    moved = operator(
        operator.customers.SetAccountPlan,
        operator_pb.SetAccountPlanRequest(account_id="acme", plan="payg", request_id="r1"),
    )
    assert (moved.plan, moved.provisioned) == ("payg", True)
    assert operator(operator.customers.GetCustomer, operator_pb.GetCustomerRequest(account_id="acme")).plan == "payg"


def test_without_a_key_the_jobs_run(served, connect, ledger):
    with served(jobs=True) as address:
        caller = connect(address, Role.ADMIN)
        made = caller(caller.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme"))
        assert made.provisioned


def test_without_a_key_bad_input_is_still_named(acme):
    error = acme.refused(acme.billing.CreateCheckout, pb.CreateCheckoutRequest(plan="a b"))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT


def test_without_a_key_the_process_starts_serves_and_stops(settings, connect):
    with running(settings(), "serve") as process:
        address = logged(process, '"address"').split('"address": "')[1].split('"')[0]
        caller = connect(address, Role.ADMIN)
        made = caller(caller.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme"))
        assert made.provisioned
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


# Wrong keys


def test_with_a_wrong_key_serve_says_so_at_once_and_goes_on_serving(settings, connect, shared_stripe):
    told = settings(**shared_stripe.settings(stripe_api_key="sk_test_wrong"))
    with running(told, "serve") as process:
        lines = logged(process, '"address"', "Stripe does not accept the key")
        assert '"level": "error"' in lines[1]
        assert "sk_test_wrong" not in "".join(lines)
        address = lines[0].split('"address": "')[1].split('"')[0]
        caller = connect(address, Role.ADMIN)
        made = caller(caller.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme"))
        assert made.provisioned


@pytest.mark.parametrize("command", ["serve", "work"])
def test_with_a_right_key_it_is_said_that_stripe_accepts_it(settings, shared_stripe, command):
    with running(settings(**shared_stripe.settings()), command) as process:
        assert logged(process, "Stripe accepts the key")


def test_with_a_wrong_key_work_says_so_at_once(settings, shared_stripe):
    with running(settings(**shared_stripe.settings(stripe_api_key="sk_test_wrong")), "work") as process:
        assert logged(process, "Stripe does not accept the key")


def test_with_a_wrong_key_requests_are_told_that_an_operator_has_to_act(served, connect, shared_stripe):
    with served(**shared_stripe.settings(stripe_api_key="sk_test_wrong")) as address:
        operator = connect(address, Role.ADMIN)
        operator(operator.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme"))
        acme = connect(address, Role.ACCOUNT, "acme")
        request = pb.CreateTopUpRequest(amount_usd="5.00", request_id="r1")
        error = acme.refused(acme.billing.CreateTopUp, request)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STRIPE_KEY_INVALID")
        assert "sk_test_wrong" not in error.message
    with served(**shared_stripe.settings()) as address:  # set right, the same request is carried out
        acme = connect(address, Role.ACCOUNT, "acme")
        assert acme(acme.billing.CreateTopUp, request).checkout_url


def test_stripe_that_is_away_at_the_start_does_not_keep_the_service_from_starting(settings, connect, shared_stripe):
    shared_stripe.outage(60)
    with running(settings(**shared_stripe.settings()), "serve") as process:
        address = logged(process, '"address"').split('"address": "')[1].split('"')[0]
        assert logged(process, "Stripe did not answer")
        caller = connect(address, Role.ADMIN)
        assert caller(caller.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme")).provisioned
