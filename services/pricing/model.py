"""Owns prices as published, the book of all of them, and plans: frozen values and the rules that hold for them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from services.rating import Fault, PriceCard, half_even

ANY = "*"

SUBSCRIPTION, METERED, PREPAID = "subscription", "metered", "prepaid"
PLAN_KINDS = (SUBSCRIPTION, METERED, PREPAID)
METRICS = ("llm_tokens", "api_calls", "agent_executions", "storage_gb", "user_seats")
HARD, SOFT = "hard", "soft"
CAPS = (HARD, SOFT)

BASIS_POINTS = 10_000
MILLION = 1_000_000
NANOS_PER_CENT = 10_000_000
MAX_INT64 = 2**63 - 1
MAX_INT32 = 2**31 - 1
MAX_NAME_CHARS = 200
MAX_PLAN_NAMES = 1000
MAX_PRICE_NANOS = 10**17  # $100 million a month: twelve of them still fit 64 bits

_PLAN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True, slots=True)
class PublishedPrice:
    """The price of one model as one catalogue version published it. `card` is None where that withdrew the model."""

    provider: str
    model: str
    version: int
    effective_from: datetime
    card: PriceCard | None
    display_name: str = ""
    mode: str = ""

    @property
    def withdrawn(self) -> bool:
        """Whether the model has no price from `effective_from` on."""
        return self.card is None

    def published_by(self, version: CatalogueVersion) -> PublishedPrice:
        """This price, as that version publishes it."""
        card = self.card and replace(self.card, version=version.version, effective_from=version.effective_from)
        return replace(self, version=version.version, effective_from=version.effective_from, card=card)


@dataclass(frozen=True, slots=True)
class CatalogueVersion:
    """One publication of prices, or one account's override set or ended: who, when, why, how many models it prices."""

    version: int
    effective_from: datetime
    created_at: datetime
    author: str
    reason: str
    prices_changed: int
    account_id: str = ""


class PriceBook:
    """All prices ever published, by model and moment. Never changed once made."""

    def __init__(self, prices: Iterable[PublishedPrice], latest_version: int) -> None:
        found: dict[tuple[str, str], list[PublishedPrice]] = {}
        for price in prices:
            found.setdefault((price.provider, price.model), []).append(price)
        # Of two versions in force from the same moment the later one holds.
        self._by_moment = {
            key: tuple(sorted(history, key=lambda price: (price.effective_from, price.version)))
            for key, history in sorted(found.items())
        }
        self._moments = {key: [price.effective_from for price in found] for key, found in self._by_moment.items()}
        self.latest_version = latest_version

    def __contains__(self, named: tuple[str, str]) -> bool:
        """Whether a price of this provider's model, or with ANY of any of its models, was ever published."""
        provider, model = named
        if model == ANY:
            return any(known == provider for known, _ in self._by_moment)
        return named in self._by_moment

    def in_force(self, provider: str, model: str, at: datetime, known_by: int = MAX_INT64) -> PublishedPrice | None:
        """A model's price at a moment, of those known by a version; None where it has none, or was withdrawn."""
        found = self._said(provider, model, at, known_by)
        return None if found is None or found.withdrawn else found

    def is_withdrawn(self, provider: str, model: str, at: datetime) -> bool:
        """Whether a model had a price and has none at a moment, since it was taken from sale."""
        found = self._said(provider, model, at, MAX_INT64)
        return found is not None and found.withdrawn

    def _said(self, provider: str, model: str, at: datetime, known_by: int) -> PublishedPrice | None:
        history = self._by_moment.get((provider, model))
        if history is None:
            return None
        number = bisect_right(self._moments[provider, model], at)
        while number and history[number - 1].version > known_by:
            number -= 1
        return history[number - 1] if number else None

    def of_version(self, provider: str, model: str, version: int) -> PublishedPrice | None:
        """A model's price as the catalogue stood with `version`: the last one published by then, whenever in force."""
        history = self._by_moment.get((provider, model), ())
        known = [price for price in history if price.version <= version]
        found = max(known, key=lambda price: price.version, default=None)
        return None if found is None or found.withdrawn else found

    def all_in_force(self, at: datetime) -> Iterator[PublishedPrice]:
        """Every model's price at a moment, by provider and model."""
        for provider, model in self._by_moment:
            price = self.in_force(provider, model, at)
            if price is not None:
                yield price

    def from_now_on(self, now: datetime) -> Iterator[PublishedPrice]:
        """Every price in force now or to come, withdrawals too; by provider, model and moment."""
        for key, history in self._by_moment.items():
            yield from history[max(0, bisect_right(self._moments[key], now) - 1) :]

    def published_after(self, version: int) -> Iterator[PublishedPrice]:
        """Every price of the versions after `version`."""
        for history in self._by_moment.values():
            yield from (price for price in history if price.version > version)


@dataclass(frozen=True, slots=True)
class PlanMetric:
    """One metric of a metered plan: what a cycle includes, and what happens above it."""

    metric: str
    included: int
    cap: str
    overage_nanos_per_million: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a customer may buy, in one version. Amounts are nanos, shares basis points; a limit of 0 does not hold."""

    plan_id: str
    display_name: str
    kind: str
    price_nanos: int = 0
    annual_discount_basis_points: int = 0
    margin_basis_points: int = 0
    promotional_grant_nanos: int = 0
    tokens_per_cycle: int = 0
    requests_per_cycle: int = 0
    max_tokens_per_request: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    providers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    multiplier_millionths: int = MILLION
    overage_nanos_per_million_tokens: int = 0
    metrics: tuple[PlanMetric, ...] = ()
    rollover_cap_nanos: int = 0
    grace_days: int = 0
    warn_percent: int = 80
    version: int = 1
    retired: bool = False
    created_at: datetime | None = field(default=None, compare=False)

    @property
    def credit_nanos(self) -> int:
        """Credit granted in each cycle: price less margin for plans by credits, and any promotional grant."""
        share = BASIS_POINTS - self.margin_basis_points
        budget = half_even(self.price_nanos * share, BASIS_POINTS) if self.kind == SUBSCRIPTION else 0
        return budget + self.promotional_grant_nanos


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """One version of a plan with who made it, and why."""

    plan: Plan
    author: str
    reason: str


def plan_faults(plan: Plan) -> list[Fault]:
    """Everything that is wrong with a plan, by field; empty where it is sound."""
    if len(plan.metrics) > len(METRICS):
        return [Fault("metrics", f"must hold at most {len(METRICS)} metrics")]
    faults = [*_plan_wording_faults(plan), *_plan_number_faults(plan)]
    seen: set[str] = set()
    for number, metric in enumerate(plan.metrics):
        at = f"metrics[{number}]"
        faults += _metric_faults(metric, at)
        if metric.metric in seen:
            faults.append(Fault(f"{at}.metric", "is named twice"))
        seen.add(metric.metric)
    if plan.metrics and plan.kind != METERED:
        faults.append(Fault("metrics", "only a metered plan has metrics"))
    if plan.kind == METERED and not plan.metrics:
        faults.append(Fault("metrics", "a metered plan must have at least one metric"))
    return faults


def _plan_wording_faults(plan: Plan) -> Iterator[Fault]:
    if not _PLAN_ID.fullmatch(plan.plan_id):
        yield Fault("plan_id", "must be 1 to 64 lower-case letters, digits and hyphens")
    if not plan.display_name.strip() or not _is_name(plan.display_name):
        yield Fault("display_name", f"must have 1 to {MAX_NAME_CHARS} printable characters")
    if plan.kind not in PLAN_KINDS:
        yield Fault("kind", f"must be one of {', '.join(PLAN_KINDS)}")
    for name in ("providers", "models"):
        values = getattr(plan, name)
        if not values or not all(values) or len(set(values)) != len(values):
            yield Fault(name, "must hold at least one name, none of them twice or empty")
        elif ANY in values and len(values) > 1:
            yield Fault(name, f"must hold nothing beside {ANY}")
        elif len(values) > MAX_PLAN_NAMES or not all(map(_is_name, values)):
            most = f"at most {MAX_PLAN_NAMES} names of at most {MAX_NAME_CHARS} printable characters"
            yield Fault(name, f"must hold {most}")


def _is_name(text: str) -> bool:
    return len(text) <= MAX_NAME_CHARS and text.isprintable()


_RANGES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "price_nanos": (0, MAX_PRICE_NANOS),
        "annual_discount_basis_points": (0, BASIS_POINTS),
        "margin_basis_points": (0, BASIS_POINTS - 1),
        "promotional_grant_nanos": (0, MAX_PRICE_NANOS),
        "tokens_per_cycle": (0, MAX_INT64),
        "requests_per_cycle": (0, MAX_INT64),
        "max_tokens_per_request": (0, MAX_INT64),
        "requests_per_minute": (0, MAX_INT32),
        "tokens_per_minute": (0, MAX_INT64),
        "multiplier_millionths": (1, 1000 * MILLION),
        "overage_nanos_per_million_tokens": (0, MAX_INT64),
        "rollover_cap_nanos": (0, MAX_PRICE_NANOS),
        "grace_days": (0, 365),
        "warn_percent": (1, 100),
    }
)


def _plan_number_faults(plan: Plan) -> Iterator[Fault]:
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(plan, name) <= high:
            yield Fault(name, f"must be from {low} to {high}")
    # A card is charged whole cents, and one plan that is not would keep all others from being set up at Stripe.
    if plan.price_nanos > 0 and plan.price_nanos % NANOS_PER_CENT:
        yield Fault("price_nanos", f"must be whole cents of {NANOS_PER_CENT} nanos")


def _metric_faults(metric: PlanMetric, at: str) -> Iterator[Fault]:
    if metric.metric not in METRICS:
        yield Fault(f"{at}.metric", f"must be one of {', '.join(METRICS)}")
    if metric.cap not in CAPS:
        yield Fault(f"{at}.cap", f"must be one of {', '.join(CAPS)}")
    for name in ("included", "overage_nanos_per_million"):
        if not 0 <= getattr(metric, name) <= MAX_INT64:
            yield Fault(f"{at}.{name}", "must not be negative")
    if metric.overage_nanos_per_million % 10:
        # A unit would cost a part of 10^-12 cents, which is as fine as Stripe's meters charge.
        yield Fault(f"{at}.overage_nanos_per_million", "must be a multiple of 10 nanos")
    if metric.cap == HARD and metric.overage_nanos_per_million:
        yield Fault(f"{at}.overage_nanos_per_million", "must be 0 with a hard cap: nothing is sold above it")
