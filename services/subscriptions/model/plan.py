"""Owns what subscriptions reads from a plan: limits in the ledger's terms, prices, allowances. Plans are pricing's."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

BASIS_POINTS = 10_000
MILLION = 1_000_000
_NANOS_PER_CENT = 10_000_000
_MONTHS_PER_YEAR = 12
_DEFAULT_WARN_PERCENT = 80

# The kind of plan that is billed by what is used.
METERED = "metered"

TOKENS_METRIC = "llm_tokens"
REQUESTS_METRIC = "api_calls"

# The units a plan may limit per cycle, with the metric of a metered plan that counts them.
METRIC_OF_UNIT = {"tokens": TOKENS_METRIC, "requests": REQUESTS_METRIC}
LIMITED_UNITS = tuple(METRIC_OF_UNIT)


@dataclass(frozen=True, slots=True)
class PlanMetric:
    """A metric of a metered plan: `included` units a cycle, then `overage_nanos_per_million`; cap hard or soft."""

    metric: str
    included: int
    overage_nanos_per_million: int
    cap: str


@dataclass(frozen=True, slots=True)
class Plan:
    """One version of a plan, as pricing publishes it; immutable. Zero means no such limit, as in the contract."""

    plan_id: str
    version: int
    display_name: str
    kind: str
    price_nanos: int
    annual_discount_basis_points: int
    promotional_grant_nanos: int
    credit_nanos: int
    tokens_per_cycle: int
    requests_per_cycle: int
    max_tokens_per_request: int
    requests_per_minute: int
    tokens_per_minute: int
    providers: tuple[str, ...]
    models: tuple[str, ...]
    multiplier_millionths: int
    overage_nanos_per_million_tokens: int
    metrics: tuple[PlanMetric, ...]
    rollover_cap_nanos: int
    warn_percent: int
    retired: bool
    grace_days: int = 0

    @property
    def gives_promotion(self) -> bool:
        """Whether each cycle brings credit that nobody pays for."""
        return self.promotional_grant_nanos > 0

    @property
    def paid_credit_nanos(self) -> int:
        """The credit that a month's price pays for: the promotion is given besides, and costs nothing."""
        return max(0, self.credit_nanos - self.promotional_grant_nanos)

    def metric(self, name: str) -> PlanMetric | None:
        """The metric of that name, where the plan is metered by it."""
        return next((metric for metric in self.metrics if metric.metric == name), None)


@dataclass(frozen=True, slots=True)
class PlanLimit:
    """A limit of ledger scope `plan`: at most `amount` of `unit` in a cycle."""

    unit: str
    amount: int
    mode: str
    warn_percent: int


def limit_id(unit: str) -> str:
    """The ledger's name of a plan's limit on a unit: `{scope}:{subject}:{unit}:{window}`, a plan having no subject."""
    return f"plan::{unit}:cycle"


def allowance(plan: Plan, unit: str) -> int | None:
    """What the plan includes of a unit (`tokens`, `requests`) in each cycle; None where it does not limit it."""
    metric = plan.metric(METRIC_OF_UNIT[unit])
    if metric is not None:
        return metric.included
    per_cycle = {"tokens": plan.tokens_per_cycle, "requests": plan.requests_per_cycle}[unit]
    return per_cycle or None


def limits(plan: Plan) -> tuple[PlanLimit, ...]:
    """The plan's limits per cycle. Hard, unless a metered plan says that a metric's cap is soft."""
    found = []
    for unit in LIMITED_UNITS:
        amount = allowance(plan, unit)
        if amount is not None:
            metric = plan.metric(METRIC_OF_UNIT[unit])
            mode = metric.cap if metric is not None else "hard"
            found.append(PlanLimit(unit, amount, mode, plan.warn_percent or _DEFAULT_WARN_PERCENT))
    return tuple(found)


def annual_price_nanos(plan: Plan) -> int:
    """Twelve months less the annual discount, rounded half-even to a cent: less than one nobody can be charged.

    15 % off twelve times $29.99 are $305.898.
    """
    discounted = BASIS_POINTS - plan.annual_discount_basis_points
    cents = Fraction(plan.price_nanos * _MONTHS_PER_YEAR * discounted, BASIS_POINTS * _NANOS_PER_CENT)
    return round(cents) * _NANOS_PER_CENT


def overage_nanos_per_million_tokens(plan: Plan) -> int:
    """What a million tokens above the allowance cost; 0 where they are not sold."""
    metric = plan.metric(TOKENS_METRIC)
    return metric.overage_nanos_per_million if metric is not None else plan.overage_nanos_per_million_tokens


def provider_cost_nanos(plan: Plan, billed_nanos: int) -> int:
    """The provider cost behind what a customer was billed under this plan, rounded half-even."""
    return round(Fraction(billed_nanos * MILLION, plan.multiplier_millionths or MILLION))


def billed_nanos(plan: Plan, cost_nanos: int) -> int:
    """What a customer is billed for a provider cost under this plan, rounded half-even."""
    return round(Fraction(cost_nanos * (plan.multiplier_millionths or MILLION), MILLION))
