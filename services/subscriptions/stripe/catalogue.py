"""Owns what Stripe's catalogue should hold: a product, prices and meters for each plan that is sold. Pure.

Every plan on sale that costs money is a product with a price by the month and, where none of its metrics is billed, one
by the year. A metric of a metered plan that is billed above what is included is a price in two tiers (what is included
free, then the overage) that a meter counts. Amounts must be such as Stripe can charge: prices in whole cents, overage
in cents with at most twelve decimals.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from services.subscriptions.metering.model import METRICS, meter_event_name, meter_formula
from services.subscriptions.model.plan import MILLION, Plan, PlanMetric, annual_price_nanos
from services.subscriptions.stripe import names
from services.subscriptions.stripe.names import MONTH, NANOS_PER_CENT, YEAR

# The kinds of plan that Stripe's subscriptions are for; prepaid ones are paid by top-ups.
_SUBSCRIBED = frozenset({"subscription", "metered"})
_MAX_CENTS = 99_999_999  # Stripe's largest amount
_MAX_DECIMALS = 12


class CatalogueError(ValueError):
    """A plan that Stripe cannot charge for; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A unit costs `cents` up to `up_to` units; None: for all that is above."""

    up_to: int | None
    cents: Decimal


@dataclass(frozen=True, slots=True)
class WantedPrice:
    """A price: `cents` in each interval, or `tiers` for what the meter of `metric` counts by the month."""

    lookup_key: str
    product_id: str
    nickname: str
    interval: str
    metadata: dict[str, str]
    cents: int | None = None
    metric: str = ""
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True)
class WantedProduct:
    """A product: a plan."""

    product_id: str
    name: str
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class WantedMeter:
    """A meter: what is counted under an event name, and how it adds up."""

    metric: str
    event_name: str
    display_name: str
    formula: str


@dataclass(frozen=True, slots=True)
class WantedCatalogue:
    """All that should be there."""

    products: tuple[WantedProduct, ...]
    prices: tuple[WantedPrice, ...]
    meters: tuple[WantedMeter, ...]


def is_subscribable(plan: Plan) -> bool:
    """Whether a plan is paid for by a subscription."""
    return plan.kind in _SUBSCRIBED and plan.price_nanos > 0


def billed_metrics(plan: Plan) -> tuple[PlanMetric, ...]:
    """The metrics whose use above what is included is billed."""
    return tuple(m for m in plan.metrics if m.cap == "soft" and m.overage_nanos_per_million > 0)


def intervals(plan: Plan) -> tuple[str, ...]:
    """By what a plan is paid. Quotas are for a month, so a plan whose overage is billed is paid by the month."""
    return (MONTH,) if billed_metrics(plan) else (MONTH, YEAR)


def price_nanos(plan: Plan, interval: str) -> int:
    """What a plan costs in each interval."""
    return plan.price_nanos if interval == MONTH else annual_price_nanos(plan)


def price_keys(plan: Plan, interval: str) -> tuple[str, ...]:
    """The lookup keys of what a subscription to a plan is made of, the plan's own price first."""
    own = names.price_key(plan.plan_id, plan.version, interval)
    return (own, *(names.metric_price_key(plan.plan_id, plan.version, m.metric) for m in billed_metrics(plan)))


def wanted(plans: Iterable[Plan]) -> WantedCatalogue:
    """What Stripe should hold for these plans. Raises CatalogueError."""
    sold = [plan for plan in plans if is_subscribable(plan) and not plan.retired]
    prices = [price for plan in sold for price in _prices(plan)]
    used = {price.metric for price in prices if price.metric}
    return WantedCatalogue(
        products=tuple(_product(plan) for plan in sold),
        prices=tuple(prices),
        meters=tuple(_meter(metric) for metric in METRICS if metric in used),
    )


def whole_cents(nanos: int, what: str) -> int:
    """Nanos as cents. Raises CatalogueError where they are not whole, or more than Stripe charges."""
    cents, rest = divmod(nanos, NANOS_PER_CENT)
    if rest:
        raise CatalogueError(f"{what}: {nanos} nanos are not whole cents")
    if cents > _MAX_CENTS:
        raise CatalogueError(f"{what}: {nanos} nanos are more than Stripe charges at once")
    return cents


def _product(plan: Plan) -> WantedProduct:
    return WantedProduct(
        product_id=names.product_id(plan.plan_id),
        name=plan.display_name or plan.plan_id,
        metadata={**names.OURS, "plan": plan.plan_id},
    )


def _prices(plan: Plan) -> list[WantedPrice]:
    metadata = {**names.OURS, "plan": plan.plan_id, "plan_version": str(plan.version)}
    product_id = names.product_id(plan.plan_id)
    own = [
        WantedPrice(
            lookup_key=names.price_key(plan.plan_id, plan.version, interval),
            product_id=product_id,
            nickname=f"{plan.plan_id} v{plan.version} by the {interval}",
            interval=interval,
            metadata={**metadata, "interval": interval},
            cents=whole_cents(price_nanos(plan, interval), f"plan {plan.plan_id} by the {interval}"),
        )
        for interval in intervals(plan)
    ]
    metered = [
        WantedPrice(
            lookup_key=names.metric_price_key(plan.plan_id, plan.version, metric.metric),
            product_id=product_id,
            nickname=f"{plan.plan_id} v{plan.version} {metric.metric} above {metric.included}",
            interval=MONTH,
            metadata={**metadata, "metric": metric.metric},
            metric=metric.metric,
            tiers=_tiers(plan, metric),
        )
        for metric in billed_metrics(plan)
    ]
    return own + metered


def _tiers(plan: Plan, metric: PlanMetric) -> tuple[Tier, ...]:
    cents = Decimal(metric.overage_nanos_per_million).scaleb(-13)  # ÷ 10^6 units ÷ 10^7 nanos in a cent
    if cents != round(cents, _MAX_DECIMALS):
        raise CatalogueError(
            f"plan {plan.plan_id}: the overage of {metric.metric} has more decimals of a cent than Stripe keeps"
        )
    above = Tier(None, cents.normalize())
    return (Tier(metric.included, Decimal(0)), above) if metric.included else (above,)


def _meter(metric: str) -> WantedMeter:
    return WantedMeter(
        metric=metric,
        event_name=meter_event_name(metric),
        display_name=f"Tollkeeper {metric}",
        formula=meter_formula(metric),
    )


assert MILLION * NANOS_PER_CENT == 10**13  # what `_tiers` divides by
