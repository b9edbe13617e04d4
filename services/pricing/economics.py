"""Owns the arithmetic of selling: tiers and margins, Stripe's fee, overage, recommendations; exact, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.kit.amounts import NANOS_PER_CREDIT
from services.pricing.model import BASIS_POINTS, METERED, MILLION, NANOS_PER_CENT, SUBSCRIPTION, Plan
from services.rating import half_even

DEFAULT_MARGIN_BASIS_POINTS = 8_000
ANNUAL_DISCOUNT_BASIS_POINTS = 1_500
MONTHS_PER_YEAR = 12

# Stripe's standard fee for a card payment: 2.9 % + $0.30.
STRIPE_FEE_BASIS_POINTS = 290
STRIPE_FEE_NANOS = 300_000_000

# A plan covers a projection with 10 % to spare.
SPARE_PERCENT = 110

_MICROSECOND = timedelta(microseconds=1)


def stripe_fee_nanos(price_nanos: int) -> int:
    """What Stripe keeps of one payment; nothing of no payment. $99 → $3.171."""
    if price_nanos == 0:
        return 0
    return half_even(price_nanos * STRIPE_FEE_BASIS_POINTS, BASIS_POINTS) + STRIPE_FEE_NANOS


def api_budget_nanos(price_nanos: int, margin_basis_points: int) -> int:
    """The part of a price that may be spent on provider calls: price times (1 - margin). $99 at 80 % → $19.80."""
    return half_even(price_nanos * (BASIS_POINTS - margin_basis_points), BASIS_POINTS)


def user_price_nanos(cost_nanos: int, margin_basis_points: int) -> int:
    """What a customer pays for a provider's cost: cost ÷ (1 - margin). $5 at 80 % → $25. The margin is below 1."""
    return half_even(cost_nanos * BASIS_POINTS, BASIS_POINTS - margin_basis_points)


def annual_price_nanos(price_nanos: int, discount_basis_points: int) -> int:
    """Twelve months less the discount, to a cent: less than one nobody can be charged. $29.99 at 15 % → $305.90."""
    discounted = price_nanos * MONTHS_PER_YEAR * (BASIS_POINTS - discount_basis_points)
    return half_even(discounted, BASIS_POINTS * NANOS_PER_CENT) * NANOS_PER_CENT


def share_basis_points(part: int, whole: int) -> int:
    """part ÷ whole in basis points, half-even; 0 of nothing."""  # noqa: D403 (the names of the arguments)
    return half_even(part * BASIS_POINTS, whole) if whole else 0


@dataclass(frozen=True, slots=True)
class Tier:
    """What a plan at a price earns. Amounts in nanos a month, but for the annual price; margins in basis points."""

    plan_id: str
    price_nanos: int
    api_budget_nanos: int
    credits: int
    profit_nanos: int
    margin_basis_points: int
    stripe_fee_nanos: int
    net_profit_nanos: int
    net_margin_basis_points: int
    annual_price_nanos: int


def tier(
    plan_id: str, price_nanos: int, margin_basis_points: int, discount_basis_points: int = ANNUAL_DISCOUNT_BASIS_POINTS
) -> Tier:
    """A tier worked out from its price."""
    budget = api_budget_nanos(price_nanos, margin_basis_points)
    return _tier(plan_id, price_nanos, budget, discount_basis_points)


def tier_of_budget(
    plan_id: str, budget_nanos: int, margin_basis_points: int, discount_basis_points: int = ANNUAL_DISCOUNT_BASIS_POINTS
) -> Tier:
    """A tier worked out from the provider cost that it is to cover: the price follows from the margin."""
    return _tier(plan_id, user_price_nanos(budget_nanos, margin_basis_points), budget_nanos, discount_basis_points)


def _tier(plan_id: str, price_nanos: int, budget_nanos: int, discount_basis_points: int) -> Tier:
    fee = stripe_fee_nanos(price_nanos)
    profit = price_nanos - budget_nanos
    return Tier(
        plan_id=plan_id,
        price_nanos=price_nanos,
        api_budget_nanos=budget_nanos,
        credits=budget_nanos // NANOS_PER_CREDIT,
        profit_nanos=profit,
        margin_basis_points=share_basis_points(profit, price_nanos),
        stripe_fee_nanos=fee,
        net_profit_nanos=profit - fee,
        net_margin_basis_points=share_basis_points(profit - fee, price_nanos),
        annual_price_nanos=annual_price_nanos(price_nanos, discount_basis_points),
    )


@dataclass(frozen=True, slots=True)
class OverageLine:
    """One metric of a cycle: included in the plan, used, what is above, and what that costs in nanos."""

    metric: str
    included: int
    used: int
    overage: int
    cost_nanos: int


def overage(plan: Plan, used: Mapping[str, int]) -> list[OverageLine]:
    """A cycle's overage, one line for each metric of the plan; plans by credits and prepaid ones have `llm_tokens`.

    What a hard cap refuses is not sold, so it has no rate; where there is no limit, nothing is above it.
    """
    if plan.kind == METERED:
        return [
            _overage_line(
                metric.metric,
                metric.included,
                used.get(metric.metric, 0),
                metric.overage_nanos_per_million,
            )
            for metric in plan.metrics
        ]
    tokens = used.get("llm_tokens", 0)
    if plan.tokens_per_cycle == 0:
        return [OverageLine("llm_tokens", 0, tokens, 0, 0)]
    return [_overage_line("llm_tokens", plan.tokens_per_cycle, tokens, plan.overage_nanos_per_million_tokens)]


def _overage_line(metric: str, included: int, used: int, nanos_per_million: int) -> OverageLine:
    above = max(0, used - included)
    return OverageLine(metric, included, used, above, half_even(above * nanos_per_million, MILLION))


@dataclass(frozen=True, slots=True)
class CycleUse:
    """What an account used in a cycle, so far or projected to its end."""

    spend_nanos: int
    tokens: int
    requests: int


def projected(use: CycleUse, cycle_start: datetime, cycle_end: datetime, at: datetime) -> CycleUse:
    """Use so far ÷ the elapsed share of the cycle. Before the cycle has begun there is nothing to project from."""
    whole = (cycle_end - cycle_start) // _MICROSECOND
    elapsed = min((at - cycle_start) // _MICROSECOND, whole)
    if elapsed <= 0:
        return use
    return CycleUse(
        half_even(use.spend_nanos * whole, elapsed),
        half_even(use.tokens * whole, elapsed),
        half_even(use.requests * whole, elapsed),
    )


def recommended(plans: Iterable[Plan], current: Plan | None, use: CycleUse) -> tuple[Plan, bool] | None:
    """The cheapest plan on sale that covers a projected use with 10 % to spare, and that it does; else the largest.

    A metered plan is compared with metered ones, by quotas; any other with plans by credits, by credit and limits.
    None where no such plan is on sale.
    """
    kind = METERED if current is not None and current.kind == METERED else SUBSCRIPTION
    on_sale = sorted(
        (plan for plan in plans if plan.kind == kind and not plan.retired),
        key=lambda plan: (plan.price_nanos, plan.plan_id),
    )
    if not on_sale:
        return None
    for plan in on_sale:
        if _covers(plan, use):
            return plan, True
    return on_sale[-1], False


def _covers(plan: Plan, use: CycleUse) -> bool:
    if plan.kind == METERED:
        included = {metric.metric: metric.included for metric in plan.metrics}
        limits = [(use.tokens, included.get("llm_tokens")), (use.requests, included.get("api_calls"))]
    else:
        limits = [
            (use.spend_nanos, plan.credit_nanos),
            (use.tokens, plan.tokens_per_cycle or None),
            (use.requests, plan.requests_per_cycle or None),
        ]
    return all(limit is None or used * SPARE_PERCENT <= limit * 100 for used, limit in limits)
