from types import SimpleNamespace

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from subscriptions_peers import USD
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources
from tollkeeper.subscriptions.v1 import billing_service_pb2 as billing_pb
from tollkeeper.subscriptions.v1 import credits_service_pb2 as pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as operator_pb

from services.kit.identity import Role


@pytest.fixture
def customer(operator, connect):
    """A customer on the free plan who spent, tokens and requests counted."""

    def make(plan="free"):
        operator(operator.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme", plan=plan))
        return connect(operator.address, Role.ACCOUNT, "acme")

    return make


def grant(ledger, amount_nanos):
    # A grant as the ledger's fake keeps it: only its amount counts.
    ledger.books["acme"]["grants"] = [SimpleNamespace(amount_nanos=amount_nanos)]


def test_credits_balance_is_shown_as_the_product_says(customer, ledger):
    caller = customer()
    book = ledger.books["acme"]
    grant(ledger, 19_800_000_000)
    book["cycle_spent"] = 4_500_000_000
    book["used"] = {"plan::tokens:cycle": 250_000, "plan::requests:cycle": 450}
    shown = MessageToDict(
        caller(caller.credits.GetCreditsBalance, pb.GetCreditsBalanceRequest()),
        always_print_fields_with_no_presence=True,
    )
    assert shown.pop("cycleEnd")
    assert shown == {
        "totalCredits": 1980,
        "usedCredits": 450,
        "remainingCredits": 1530,
        "heldCredits": 0,
        "availableNanos": "15300000000",
        "tier": "free",
        "monthlyTokensUsed": "250000",
        "monthlyRequestsUsed": "450",
        "percentUsed": 22.73,
        "accountId": "acme",
    }


def test_fractions_of_credits_are_exact(customer, ledger):
    caller = customer()
    ledger.books["acme"]["cycle_spent"] = 65_000_000
    ledger.books["acme"]["held"] = 1
    balance = caller(caller.credits.GetCreditsBalance, pb.GetCreditsBalanceRequest())
    assert (balance.used_credits, balance.held_credits) == (6.5, 1e-7)
    assert (balance.total_credits, balance.available_nanos) == (500, 5 * USD - 65_000_001)


def test_overdrawn_balance_is_shown_as_owed(customer, ledger):
    caller = customer()
    ledger.books["acme"]["cycle_spent"] = 6 * USD
    balance = caller(caller.credits.GetCreditsBalance, pb.GetCreditsBalanceRequest())
    assert (balance.remaining_credits, balance.used_credits, balance.percent_used) == (-100, 600, 120)


def test_use_of_a_plan_without_limits_is_summed_from_usage(customer, ledger):
    caller = customer("payg")
    day = ledger_resources.UsageSummary(day="2026-11-21", requests=3, total_tokens=70)
    ledger.usage = [day, ledger_resources.UsageSummary(day="2026-11-22", requests=4, total_tokens=7)]
    balance = caller(caller.credits.GetCreditsBalance, pb.GetCreditsBalanceRequest())
    assert (balance.monthly_requests_used, balance.monthly_tokens_used) == (7, 77)


def test_balance_before_the_ledger_knows_the_account_says_wait(operator, ledger, connect):
    ledger.down = True
    account = operator(operator.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme"))
    assert not account.provisioned
    ledger.down = False
    caller = connect(operator.address, Role.ACCOUNT, "acme")
    refusal = caller.refused(caller.credits.GetCreditsBalance, pb.GetCreditsBalanceRequest())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "ACCOUNT_NOT_PROVISIONED")
    assert refusal.retry_after_seconds == 5


def test_unknown_account_has_no_balance(operator):
    request = pb.GetCreditsBalanceRequest(account_id="nobody")
    assert operator.refused(operator.credits.GetCreditsBalance, request).reason == "ACCOUNT_NOT_FOUND"


def test_ledger_down_is_unavailable(customer, ledger):
    caller = customer()
    ledger.down = True
    refusal = caller.refused(caller.credits.GetCreditsBalance, pb.GetCreditsBalanceRequest())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "PEER_UNAVAILABLE")


def test_tiers_on_sale_are_listed_by_price_to_anyone(operator, connect):
    anyone = connect(operator.address, Role.PUBLIC)
    tiers = anyone(anyone.credits.ListTiers, pb.ListTiersRequest()).tiers
    assert [tier.tier for tier in tiers] == ["free", "payg", "starter"]
    assert not any(tier.current for tier in tiers)
    starter = tiers[2]
    assert (starter.monthly_price_usd, starter.annual_price_usd, starter.credits) == (19.0, 193.8, 380.0)
    assert (starter.tokens_per_cycle, starter.requests_per_cycle, starter.kind) == (500_000, 1000, "subscription")
    assert tiers[0].overage_usd_per_thousand_tokens == 0.001


def test_customer_sees_which_tier_is_its_own(customer):
    caller = customer("payg")
    tiers = caller(caller.credits.ListTiers, pb.ListTiersRequest()).tiers
    assert [tier.tier for tier in tiers if tier.current] == ["payg"]
    assert caller(caller.credits.GetTier, pb.GetTierRequest(tier="payg")).current
    assert not caller(caller.credits.GetTier, pb.GetTierRequest(tier="free")).current


def test_current_tier_is_the_version_the_account_is_on(customer, pricing):
    caller = customer("payg")
    pricing.publish("payg", kind="prepaid", requests_per_minute=1)
    tier = caller(caller.credits.GetCurrentTier, pb.GetCurrentTierRequest())
    assert (tier.tier, tier.requests_per_minute, tier.current) == ("payg", 600, True)


@pytest.mark.parametrize("name", ["gold", "legacy"])
def test_tier_that_is_not_on_sale_is_not_found(operator, name):
    refusal = operator.refused(operator.credits.GetTier, pb.GetTierRequest(tier=name))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "TIER_NOT_FOUND")


def test_malformed_tier_is_named(operator, pricing):
    asked = len(pricing.calls)
    refusal = operator.refused(operator.credits.GetTier, pb.GetTierRequest(tier="x" * 10_000))
    assert [violation.field for violation in refusal.violations] == ["tier"]
    assert len(pricing.calls) == asked


def test_overage_is_what_pricing_quotes_for_the_cycles_tokens(customer, ledger):
    caller = customer()
    ledger.books["acme"]["used"] = {"plan::tokens:cycle": 62_000}
    overage = caller(caller.credits.GetOverage, pb.GetOverageRequest())
    assert (overage.tier, overage.tokens_included, overage.tokens_used) == ("free", 50_000, 62_000)
    assert (overage.overage_tokens, overage.overage_cost_nanos, overage.overage_cost) == (12_000, 12_000_000, 0.012)


def test_what_is_emitted_beside_the_ledger_counts_in_use_overage_and_advice(customer, ledger, pricing):
    """As in the quotas, and in what Stripe is told: the ledger has counted what passed the proxy alone."""
    caller = customer()
    ledger.books["acme"]["used"] = {"plan::tokens:cycle": 2000, "plan::requests:cycle": 7}
    event = billing_pb.UsageEvent(id="e1", metric="llm_tokens", quantity=60_000)
    caller(caller.metering.EmitEvents, billing_pb.EmitEventsRequest(events=[event]))
    overage = caller(caller.credits.GetOverage, pb.GetOverageRequest())
    assert (overage.tokens_used, overage.overage_tokens, overage.overage_cost_nanos) == (62_000, 12_000, 12_000_000)
    balance = caller(caller.credits.GetCreditsBalance, pb.GetCreditsBalanceRequest())
    assert (balance.monthly_tokens_used, balance.monthly_requests_used) == (62_000, 7)
    caller(caller.credits.GetRecommendation, pb.GetRecommendationRequest())
    asked = pricing.named("RecommendPlan")[0]
    assert (asked.tokens, asked.requests) == (62_000, 7)


def test_plan_without_a_token_limit_has_no_overage(customer, pricing):
    caller = customer("payg")
    overage = caller(caller.credits.GetOverage, pb.GetOverageRequest())
    assert (overage.tokens_included, overage.overage_cost_nanos) == (0, 0)
    assert pricing.named("QuoteOverage") == []


def test_recommendation_projects_provider_cost_and_shows_what_is_billed(customer, ledger, pricing):
    caller = customer("payg")
    ledger.books["acme"]["cycle_spent"] = 3 * USD
    found = caller(caller.credits.GetRecommendation, pb.GetRecommendationRequest())
    assert pricing.named("RecommendPlan")[0].spend_nanos == 2 * USD
    assert (found.current_tier, found.current_spend, found.projected_monthly_spend) == ("payg", 3, 6)
    assert (found.recommended_tier.tier, found.recommended_tier.current, found.covers) == ("starter", False, True)


def test_billing_account_shows_balance_and_spending(customer, ledger, clock):
    caller = customer()
    ledger.books["acme"]["cycle_spent"] = USD
    today = clock().date().isoformat()
    ledger.usage = [ledger_resources.UsageSummary(day=today, billed_nanos=3)]
    if clock().day > 1:
        ledger.usage.append(ledger_resources.UsageSummary(day=today[:-2] + "01", billed_nanos=4))
    shown = caller(caller.billing.GetBillingAccount, billing_pb.GetBillingAccountRequest())
    assert (shown.account.account_id, shown.available_nanos, shown.balance_usd) == ("acme", 4 * USD, 4.0)
    assert shown.spent_today_nanos == 3
    assert shown.spent_this_month_nanos == (7 if clock().day > 1 else 3)
    assert (shown.daily_limit_nanos, shown.monthly_limit_nanos) == (0, 0)


def test_billing_account_shows_its_own_caps_and_not_the_plans(customer, ledger, clock):
    caller = customer()
    for window, amount in (("day", 5 * USD), ("month", 50 * USD)):
        key = f"account::nanos:{window}"
        ledger.books["acme"]["limits"][key] = ledger_resources.Limit(
            scope="account", unit="nanos", window=window, amount=amount
        )
    ledger.usage = [ledger_resources.UsageSummary(day=clock().date().isoformat(), billed_nanos=USD)]
    shown = caller(caller.billing.GetBillingAccount, billing_pb.GetBillingAccountRequest())
    assert (shown.daily_limit_nanos, shown.monthly_limit_nanos) == (5 * USD, 50 * USD)
    assert (shown.spent_today_nanos, shown.spent_this_month_nanos) == (USD, USD)


def test_nobody_subscribes_yet(customer):
    caller = customer("payg")
    found = caller(caller.billing.GetSubscription, billing_pb.GetSubscriptionRequest())
    assert (found.account_id, found.plan, found.status) == ("acme", "payg", "none")
