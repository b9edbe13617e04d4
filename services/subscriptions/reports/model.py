"""Owns what the figures of reports mean, and how they follow from each other. Pure; amounts are whole nanos.

What each figure is stands at its field, and in the contract. Shares and averages are worked out last, from exact sums,
and rounded once, half-even.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

from services.subscriptions.model.account import Account
from services.subscriptions.model.plan import BASIS_POINTS, Plan

# What the contract's 32 bits hold; a loss may be any number of times the revenue.
_LEAST_SHARE, _MOST_SHARE = -(2**31), 2**31 - 1


@dataclass(frozen=True, slots=True)
class Span:
    """A period: from `start` (included) until now, `end` (excluded), UTC."""

    start: datetime
    end: datetime


def today(now: datetime) -> Span:
    """The UTC day so far."""
    return Span(now.replace(hour=0, minute=0, second=0, microsecond=0), now)


def this_month(now: datetime) -> Span:
    """The UTC month so far."""
    return Span(today(now).start.replace(day=1), now)


# An account's figures


@dataclass(frozen=True, slots=True)
class Use:
    """Sums of usage records: calls, input and output tokens, the providers' charge, and what the customer paid."""

    requests: int = 0
    tokens: int = 0
    cost_nanos: int = 0
    billed_nanos: int = 0

    def __add__(self, other: Use) -> Use:
        return Use(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.cost_nanos + other.cost_nanos,
            self.billed_nanos + other.billed_nanos,
        )


@dataclass(frozen=True, slots=True)
class AccountUse:
    """An account's use today and this month (UTC) and in its present cycle, each so far."""

    account_id: str
    today: Use
    month: Use
    cycle: Use


@dataclass(frozen=True, slots=True)
class AccountFigures:
    """An account's use, beside what it may spend and has spent in all."""

    account: Account
    available_nanos: int
    spent_nanos: int
    use: AccountUse


# Figures over all accounts


@dataclass(frozen=True, slots=True)
class ModelUse:
    """Use of one provider's model over all accounts."""

    provider: str
    model: str
    use: Use


@dataclass(frozen=True, slots=True)
class Revenue:
    """What was paid, less what was returned of it, and by how many accounts: those for which something is left."""

    nanos: int = 0
    payers: int = 0


@dataclass(frozen=True, slots=True)
class Stay:
    """How many accounts were on one version of a plan when a period began, and are on another, or the same, now."""

    plan_then: tuple[str, int]
    plan_now: tuple[str, int]
    is_closed: bool
    accounts: int


@dataclass(frozen=True, slots=True)
class Churn:
    """Subscribers (accounts on a plan that has a price) when a period began, and how many of them are none any more."""

    subscribers: int = 0
    lost: int = 0

    @property
    def basis_points(self) -> int:
        """Lost ÷ subscribers; 0 where there were none."""
        return share(self.lost, self.subscribers)


def churn(stays: Iterable[Stay], plan_of: Callable[[str, int], Plan]) -> Churn:
    """Who was a subscriber, and who is one no more: on a plan without a price, or closed. Who came back is not lost."""
    subscribers = lost = 0
    for stay in stays:
        if plan_of(*stay.plan_then).price_nanos <= 0:
            continue
        subscribers += stay.accounts
        if stay.is_closed or plan_of(*stay.plan_now).price_nanos <= 0:
            lost += stay.accounts
    return Churn(subscribers, lost)


@dataclass(frozen=True, slots=True)
class Overview:
    """All accounts' figures of a period.

    `signups`: accounts created. `tier_changes`: moves from one plan to another, not between versions of one. `revenue`:
    payments made in the period, less what of them was returned since. `models`: all calls, those of internal keys too,
    the dearest model first.
    """

    signups: int
    tier_changes: int
    revenue: Revenue
    churn: Churn
    models: Sequence[ModelUse]

    @property
    def use(self) -> Use:
        """All models together; its cost is the API cost."""
        return sum((model.use for model in self.models), Use())

    @property
    def profit_nanos(self) -> int:
        """Revenue less API cost; Stripe's fees are not taken off."""
        return self.revenue.nanos - self.use.cost_nanos

    @property
    def margin_basis_points(self) -> int:
        """Profit ÷ revenue; 0 without revenue."""
        return share(self.profit_nanos, self.revenue.nanos)

    @property
    def arpu_nanos(self) -> int:
        """Revenue ÷ accounts that it comes from; 0 without any."""
        return round(Fraction(self.revenue.nanos, self.revenue.payers)) if self.revenue.payers else 0


@dataclass(frozen=True, slots=True)
class OverviewReport:
    """Today and this month (UTC), and how many accounts are on each plan now, closed ones left out."""

    today: Overview
    month: Overview
    plan_mix: dict[str, int]


def share(part: int, whole: int) -> int:
    """Part ÷ whole in basis points, rounded half-even, within 32 bits; 0 of nothing."""
    if whole <= 0:
        return 0
    return max(_LEAST_SHARE, min(_MOST_SHARE, round(Fraction(part * BASIS_POINTS, whole))))


def dearest_first(models: Iterable[ModelUse]) -> list[ModelUse]:
    """By cost, the highest first; of equal cost by name."""
    return sorted(models, key=lambda model: (-model.use.cost_nanos, model.provider, model.model))
