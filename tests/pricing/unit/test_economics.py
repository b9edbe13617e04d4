"""Owns the proof of the arithmetic of selling, by the product's worked examples."""

from datetime import UTC, datetime, timedelta

import pytest

from services.pricing import economics
from services.pricing.economics import CycleUse
from services.pricing.model import Plan, PlanMetric
from services.pricing.shipped import load_shipped

USD = 1_000_000_000
PLANS = {plan.plan_id: plan for plan in load_shipped().plans}
START = datetime(2026, 11, 1, tzinfo=UTC)
END = datetime(2026, 12, 1, tzinfo=UTC)


def test_99_dollars_make_1980_credits():
    tier = economics.tier("professional", 99 * USD, 8_000)
    assert (tier.api_budget_nanos, tier.credits) == (19_800_000_000, 1_980)
    assert PLANS["professional"].credit_nanos == 19_800_000_000


def test_stripe_keeps_3_171_of_99():
    assert economics.stripe_fee_nanos(99 * USD) == 3_171_000_000
    assert 99 * USD - economics.stripe_fee_nanos(99 * USD) == 95_829_000_000
    assert economics.stripe_fee_nanos(0) == 0


def test_tier_of_99_before_and_after_the_fee():
    tier = economics.tier("professional", 99 * USD, 8_000)
    assert (tier.profit_nanos, tier.margin_basis_points) == (79_200_000_000, 8_000)
    assert tier.net_profit_nanos == 99 * USD - 3_171_000_000 - 19_800_000_000
    assert tier.net_margin_basis_points == 7_680  # 76.029 ÷ 99 = 76.797 %
    assert tier.annual_price_nanos == 1_009_800_000_000


def test_year_costs_whole_cents():
    assert economics.annual_price_nanos(29_990_000_000, 1_500) == 305_900_000_000  # 305.898
    assert economics.annual_price_nanos(9_990_000_000, 1_500) == 101_900_000_000  # 101.898


def test_5_dollars_of_cost_sell_for_25():
    assert economics.user_price_nanos(5 * USD, 8_000) == 25 * USD
    assert economics.user_price_nanos(5 * USD, 0) == 5 * USD


def test_tier_from_its_budget_is_the_tier_from_its_price():
    assert economics.tier_of_budget("p", 19_800_000_000, 8_000) == economics.tier("p", 99 * USD, 8_000)


def test_free_tier_earns_nothing_and_pays_no_fee():
    tier = economics.tier("free", 0, 8_000)
    assert (tier.stripe_fee_nanos, tier.net_profit_nanos, tier.margin_basis_points, tier.credits) == (0, 0, 0, 0)


@pytest.mark.parametrize(("plan_id", "granted"), [("free", 500), ("starter", 380), ("enterprise", 9_980)])
def test_shipped_plan_grants_its_credits(plan_id, granted):
    assert PLANS[plan_id].credit_nanos == granted * 10_000_000


@pytest.mark.parametrize("plan_id", ["metered-free", "metered-standard", "metered-enterprise", "payg"])
def test_plans_not_sold_by_credits_grant_none(plan_id):
    assert PLANS[plan_id].credit_nanos == 0


def test_overage_is_a_tenth_of_a_cent_per_thousand_tokens():
    (line,) = economics.overage(PLANS["professional"], {"llm_tokens": 5_001_000})
    assert (line.included, line.used, line.overage, line.cost_nanos) == (5_000_000, 5_001_000, 1_000, 1_000_000)


@pytest.mark.parametrize("used", [0, 4_999_999, 5_000_000])
def test_nothing_is_owed_within_the_plan(used):
    (line,) = economics.overage(PLANS["professional"], {"llm_tokens": used})
    assert (line.overage, line.cost_nanos) == (0, 0)


def test_metered_overage_is_billed_by_metric():
    used = {
        "llm_tokens": 2_000_000,
        "api_calls": 101_000,
        "agent_executions": 5_001,
        "storage_gb": 102,
        "user_seats": 26,
    }
    lines = economics.overage(PLANS["metered-standard"], used)
    assert [line.cost_nanos for line in lines] == [20 * USD, USD, USD // 10, USD, 15 * USD]


def test_what_a_hard_cap_refuses_is_not_billed():
    lines = economics.overage(PLANS["metered-free"], {"llm_tokens": 20_000})
    assert (lines[0].overage, lines[0].cost_nanos) == (10_000, 0)


def test_prepaid_has_no_overage():
    (line,) = economics.overage(PLANS["payg"], {"llm_tokens": 10**12})
    assert (line.included, line.overage, line.cost_nanos) == (0, 0, 0)


def test_projection_divides_by_the_elapsed_share():
    use = economics.projected(CycleUse(USD, 100, 7), START, END, START + timedelta(days=10))
    assert use == CycleUse(3 * USD, 300, 21)


@pytest.mark.parametrize("at", [START - timedelta(days=1), START])
def test_nothing_is_projected_before_the_cycle_began(at):
    assert economics.projected(CycleUse(USD, 1, 1), START, END, at) == CycleUse(USD, 1, 1)


def test_cycle_that_is_over_is_not_projected_down():
    assert economics.projected(CycleUse(USD, 1, 1), START, END, END + timedelta(days=9)) == CycleUse(USD, 1, 1)


@pytest.mark.parametrize(
    ("use", "plan_id", "covers"),
    [
        (CycleUse(0, 0, 0), "free", True),
        (CycleUse(0, 45_454, 0), "free", True),  # 49 999.4 of 50 000 with the 10 % to spare
        (CycleUse(0, 45_455, 0), "starter", True),
        (CycleUse(0, 0, 909), "starter", True),
        (CycleUse(0, 0, 910), "professional", True),
        (CycleUse(18 * USD, 0, 0), "professional", True),  # exactly $19.80 with the 10 % to spare
        (CycleUse(18 * USD + 1, 0, 0), "enterprise", True),
        (CycleUse(10**15, 0, 0), "enterprise", False),
    ],
)
def test_cheapest_plan_that_covers_with_a_tenth_to_spare(use, plan_id, covers):
    assert economics.recommended(PLANS.values(), PLANS["free"], use) == (PLANS[plan_id], covers)


def test_metered_plan_is_compared_with_metered_ones():
    found = economics.recommended(PLANS.values(), PLANS["metered-free"], CycleUse(0, 10_000, 10))
    assert found == (PLANS["metered-standard"], True)


def test_retired_plan_is_not_recommended():
    plans = [Plan("old", "Old", "subscription", retired=True, promotional_grant_nanos=USD)]
    assert economics.recommended(plans, None, CycleUse(0, 0, 0)) is None


def test_metric_without_a_quota_in_the_plan_does_not_limit():
    plan = Plan("m", "M", "metered", metrics=(PlanMetric("user_seats", 1, "hard"),))
    assert economics.recommended([plan], plan, CycleUse(0, 10**9, 10**9)) == (plan, True)
