"""Owns the use cases that read an account's money and use: credits, billing, overage, recommendation."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from services.subscriptions.clients import LedgerClient, PlanCatalogue, PricingClient
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.errors import PlanNotFound, TierNotFound
from services.subscriptions.model.account import Account
from services.subscriptions.model.credits import (
    BillingView,
    CreditsView,
    CycleUse,
    LimitUse,
    MonthUse,
    OverageQuote,
    OverageView,
    RecommendationView,
    UsageSums,
)
from services.subscriptions.model.plan import (
    METERED,
    METRIC_OF_UNIT,
    REQUESTS_METRIC,
    TOKENS_METRIC,
    Plan,
    allowance,
    billed_nanos,
    provider_cost_nanos,
)
from services.subscriptions.service.customers import Customers


class MeteredUse(Protocol):
    """What is asked of metering, of the present cycle."""

    def counted(self, account_id: str) -> dict[str, int]:
        """What is billed by, by metric: without calls of internal keys."""

    def emitted(self, account_id: str) -> dict[str, int]:
        """What was emitted in the present cycle beside what the ledger has counted, by metric."""


class Billing:
    """What an account has and has used, read from the ledger; what its plan says of that, from pricing."""

    def __init__(
        self,
        customers: Customers,
        plans: PlanCatalogue,
        pricing: PricingClient,
        ledger: LedgerClient,
        metering: MeteredUse,
        *,
        clock: Clock = utc_now,
    ) -> None:
        self._customers = customers
        self._plans = plans
        self._pricing = pricing
        self._ledger = ledger
        self._metering = metering
        self._clock = clock

    def credits(self, account_id: str) -> CreditsView:
        """Credits and use of the present cycle. Raises AccountNotFound, AccountNotProvisioned."""
        account = self._customers.get(account_id)
        balance = self._ledger.balance(account_id)
        return CreditsView(account, balance, self._cycle_use(account_id, balance.cycle_start))

    def billing_account(self, account_id: str) -> BillingView:
        """Account, balance, spending and caps. Raises AccountNotFound, AccountNotProvisioned."""
        account = self._customers.get(account_id)
        balance = self._ledger.balance(account_id)
        caps = {limit.window: limit for limit in self._ledger.limits(account_id, "account") if limit.unit == "nanos"}
        now = self._clock()
        by_day = self._ledger.usage_by_day(account_id, _month_start(now))
        return BillingView(
            account=account,
            balance=balance,
            spent_today_nanos=by_day.get(now.date().isoformat(), UsageSums()).billed_nanos,
            spent_this_month_nanos=sum(sums.billed_nanos for sums in by_day.values()),
            daily_limit_nanos=_amount(caps.get("day")),
            monthly_limit_nanos=_amount(caps.get("month")),
        )

    def month_use(self, account_id: str, start: datetime, end: datetime) -> MonthUse:
        """Use of the month `[start, end)`. Raises AccountNotFound, AccountNotProvisioned."""
        self._customers.get(account_id)
        return MonthUse(f"{start:%Y-%m}", self._ledger.usage_by_provider(account_id, start, end))

    def overage(self, account_id: str) -> OverageView:
        """Tokens above the plan's allowance and their cost. Raises AccountNotFound, AccountNotProvisioned."""
        account = self._customers.get(account_id)
        plan = self.plan_of(account)
        balance = self._ledger.balance(account_id)
        used = self._billed_use(account_id, plan, balance.cycle_start).tokens
        included = allowance(plan, "tokens")
        quote = OverageQuote(0, 0) if included is None else self._pricing.quote_token_overage(plan, used)
        return OverageView(account, included or 0, used, quote, balance.cycle_end)

    def recommendation(self, account_id: str) -> RecommendationView:
        """The plan that fits the cycle as projected. Raises AccountNotFound, AccountNotProvisioned."""
        account = self._customers.get(account_id)
        plan = self.plan_of(account)
        balance = self._ledger.balance(account_id)
        use = self._billed_use(account_id, plan, balance.cycle_start)
        spent = balance.cycle_spent_nanos
        advice = self._pricing.recommend(
            plan, balance, cost_nanos=provider_cost_nanos(plan, spent), tokens=use.tokens, requests=use.requests
        )
        return RecommendationView(account, spent, billed_nanos(plan, advice.projected_cost_nanos), advice)

    def tiers(self) -> tuple[Plan, ...]:
        """The plans on sale, cheapest first."""
        return self._plans.on_sale()

    def tier(self, tier: str) -> Plan:
        """One plan on sale. Raises TierNotFound."""
        try:
            plan = self._plans.newest(tier)
        except PlanNotFound as error:
            raise TierNotFound(f"there is no tier {tier!r}", tier=tier) from error
        if plan.retired:
            raise TierNotFound(f"tier {tier!r} is not on sale", tier=tier)
        return plan

    def plan_of(self, account: Account) -> Plan:
        """The plan an account is on, in its own version."""
        return self._plans.version(account.plan_id, account.plan_version)

    def _billed_use(self, account_id: str, plan: Plan, cycle_start: datetime) -> CycleUse:
        """Tokens and requests of the cycle that a plan's overage counts.

        A metered plan's are those that its meters count; the ledger's limits count calls of internal keys too.
        """
        if plan.kind != METERED:
            return self._cycle_use(account_id, cycle_start)
        counted = self._metering.counted(account_id)
        return CycleUse(counted[TOKENS_METRIC], counted[REQUESTS_METRIC])

    def _cycle_use(self, account_id: str, cycle_start: datetime) -> CycleUse:
        """Tokens and requests of the cycle: as the plan's limits have counted them, else from the usage records.

        What was emitted beside the ledger comes to that.
        """
        counted = {x.unit: x.used for x in self._ledger.limits(account_id, "plan") if x.window == "cycle"}
        if not {"tokens", "requests"} <= counted.keys():
            sums = sum(self._ledger.usage_by_day(account_id, cycle_start).values(), UsageSums())
            counted = {"tokens": sums.tokens, "requests": sums.requests} | counted
        emitted = self._metering.emitted(account_id)
        tokens, requests = (counted[unit] + emitted[METRIC_OF_UNIT[unit]] for unit in ("tokens", "requests"))
        return CycleUse(tokens, requests)


def _month_start(now: datetime) -> datetime:
    return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _amount(limit: LimitUse | None) -> int:
    return limit.amount if limit is not None else 0
