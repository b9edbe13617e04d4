"""Owns the credits view of an account: what the ledger's figures mean to a customer, in nanos."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal

from services.subscriptions.model.account import Account
from services.subscriptions.model.plan import Plan

_HUNDRED = 100
_TWO_DECIMALS = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class LedgerBalance:
    """What the ledger says that an account has, in nanos; negative `available_nanos` is owed."""

    available_nanos: int
    held_nanos: int
    spent_nanos: int
    cycle_spent_nanos: int
    cycle_start: datetime
    cycle_end: datetime


@dataclass(frozen=True, slots=True)
class LimitUse:
    """One limit of the ledger and its use in the present window."""

    scope: str
    unit: str
    window: str
    amount: int
    used: int


@dataclass(frozen=True, slots=True)
class UsageSums:
    """Sums over usage records: calls, tokens, and what the customer paid."""

    requests: int = 0
    tokens: int = 0
    billed_nanos: int = 0

    def __add__(self, other: UsageSums) -> UsageSums:
        return UsageSums(
            self.requests + other.requests, self.tokens + other.tokens, self.billed_nanos + other.billed_nanos
        )


@dataclass(frozen=True, slots=True)
class CycleUse:
    """Tokens and requests of the present cycle."""

    tokens: int
    requests: int


@dataclass(frozen=True, slots=True)
class MonthUse:
    """What an account used in one month, by provider."""

    month: str
    by_provider: dict[str, UsageSums]

    @property
    def total(self) -> UsageSums:
        """All providers together."""
        return sum(self.by_provider.values(), UsageSums())


@dataclass(frozen=True, slots=True)
class CreditsView:
    """Credits of the present cycle: what was used, is held and remains is all there was."""

    account: Account
    balance: LedgerBalance
    use: CycleUse

    @property
    def total_nanos(self) -> int:
        """Used, held and remaining together."""
        return self.balance.cycle_spent_nanos + self.balance.held_nanos + self.balance.available_nanos

    @property
    def percent_used(self) -> Decimal:
        """Used ÷ total in percent, two decimals, half-even. Above 100 where more was used than there was."""
        return percent(self.balance.cycle_spent_nanos, self.total_nanos)


@dataclass(frozen=True, slots=True)
class BillingView:
    """Account, balance, and spending today and this month (UTC) with the account's own caps; a cap of 0 is none."""

    account: Account
    balance: LedgerBalance
    spent_today_nanos: int
    spent_this_month_nanos: int
    daily_limit_nanos: int
    monthly_limit_nanos: int


@dataclass(frozen=True, slots=True)
class OverageQuote:
    """Tokens above what is included, and what they cost."""

    overage_tokens: int
    cost_nanos: int


@dataclass(frozen=True, slots=True)
class OverageView:
    """Use above the plan's tokens; `tokens_included` 0 where the plan does not limit them."""

    account: Account
    tokens_included: int
    tokens_used: int
    quote: OverageQuote
    cycle_end: datetime


@dataclass(frozen=True, slots=True)
class PlanAdvice:
    """pricing's answer: the cheapest plan that covers the projected use; `covers` false where none does."""

    plan: Plan
    projected_cost_nanos: int
    covers: bool


@dataclass(frozen=True, slots=True)
class RecommendationView:
    """The advice beside what the customer spends: both as billed, not as the provider charges."""

    account: Account
    spent_nanos: int
    projected_nanos: int
    advice: PlanAdvice


def percent(part: int, whole: int) -> Decimal:
    """Part ÷ whole in percent with two decimals, half-even; 100 for any part of nothing, 0 for nothing of nothing."""
    if whole <= 0:
        return Decimal(_HUNDRED if part > 0 else 0)
    return (Decimal(part) * _HUNDRED / whole).quantize(_TWO_DECIMALS, ROUND_HALF_EVEN)
