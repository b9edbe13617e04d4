from dataclasses import replace

import pytest

from services.subscriptions.model.plan import (
    Plan,
    PlanLimit,
    PlanMetric,
    annual_price_nanos,
    billed_nanos,
    limits,
    overage_nanos_per_million_tokens,
    provider_cost_nanos,
)

USD = 1_000_000_000
PLAN = Plan(
    plan_id="starter", version=1, display_name="Starter", kind="subscription", price_nanos=19 * USD,
    annual_discount_basis_points=1500, promotional_grant_nanos=0, credit_nanos=3_800_000_000, tokens_per_cycle=500_000,
    requests_per_cycle=1000, max_tokens_per_request=4000, requests_per_minute=60, tokens_per_minute=0,
    providers=("openai",), models=("*",), multiplier_millionths=1_000_000, overage_nanos_per_million_tokens=USD,
    metrics=(), rollover_cap_nanos=0, warn_percent=90, retired=False,
)  # fmt: skip


def test_subscription_plan_limits_are_hard_and_warn_where_the_plan_says():
    assert limits(PLAN) == (PlanLimit("tokens", 500_000, "hard", 90), PlanLimit("requests", 1000, "hard", 90))


def test_plan_without_limits_has_none():
    assert limits(replace(PLAN, tokens_per_cycle=0, requests_per_cycle=0)) == ()


def test_metered_plan_is_limited_by_its_metrics_as_hard_or_soft_as_they_are():
    metrics = (
        PlanMetric("llm_tokens", 1_000_000, 20 * USD, "soft"),
        PlanMetric("api_calls", 0, 0, "hard"),
        PlanMetric("user_seats", 3, 0, "hard"),
    )
    metered = replace(PLAN, kind="metered", metrics=metrics, warn_percent=0)
    assert limits(metered) == (PlanLimit("tokens", 1_000_000, "soft", 80), PlanLimit("requests", 0, "hard", 80))
    assert overage_nanos_per_million_tokens(metered) == 20 * USD


def test_annual_price_is_twelve_months_less_the_discount():
    assert annual_price_nanos(PLAN) == 193_800_000_000


@pytest.mark.parametrize(("cents", "year_cents"), [(2999, 30_590), (999, 10_190), (1, 10), (5, 51), (25, 255)])
def test_annual_price_is_whole_cents(cents, year_cents):
    assert annual_price_nanos(replace(PLAN, price_nanos=cents * USD // 100)) == year_cents * USD // 100


@pytest.mark.parametrize("cost", [0, 1, 65_000_000, 10**15])
def test_billed_cost_at_cost_is_the_cost(cost):
    assert billed_nanos(PLAN, cost) == provider_cost_nanos(PLAN, cost) == cost


def test_multiplier_bills_and_unbills():
    payg = replace(PLAN, multiplier_millionths=1_500_000)
    assert (billed_nanos(payg, 2 * USD), provider_cost_nanos(payg, 3 * USD)) == (3 * USD, 2 * USD)
