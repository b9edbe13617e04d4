"""Owns the writing of answers: model → proto. Doubles are made here, for display only, from exact decimals."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from tollkeeper.subscriptions.v1 import billing_service_pb2 as billing_pb
from tollkeeper.subscriptions.v1 import credits_service_pb2 as credits_pb
from tollkeeper.subscriptions.v1 import resources_pb2 as pb

from services.kit import amounts
from services.kit.amounts import NANOS_PER_USD
from services.kit.times import timestamp
from services.subscriptions.model.account import Account
from services.subscriptions.model.credits import BillingView, CreditsView, MonthUse, OverageView, RecommendationView
from services.subscriptions.model.plan import (
    Plan,
    allowance,
    annual_price_nanos,
    overage_nanos_per_million_tokens,
)

_THOUSANDS_PER_MILLION = 1000


def _usd(nanos: int) -> float:
    return float(Decimal(nanos) / NANOS_PER_USD)


def _credits(nanos: int) -> float:
    return float(amounts.credits(nanos))


def customer_account(account: Account, now: datetime) -> pb.CustomerAccount:
    """An account with its cycle at `now`."""
    cycle = account.cycle_at(now)
    return pb.CustomerAccount(
        account_id=account.account_id,
        display_name=account.display_name,
        plan=account.plan_id,
        plan_version=account.plan_version,
        status=account.status,
        provisioned=account.provisioned,
        created_at=timestamp(account.created_at),
        cycle_start=timestamp(cycle.start),
        cycle_end=timestamp(cycle.end),
        email=account.email,
        stripe_customer_id=account.stripe_customer_id,
    )


def tier(plan: Plan, *, current: bool) -> pb.Tier:
    """A plan as customers see it."""
    overage_per_thousand = Decimal(overage_nanos_per_million_tokens(plan)) / _THOUSANDS_PER_MILLION / NANOS_PER_USD
    return pb.Tier(
        tier=plan.plan_id,
        display_name=plan.display_name,
        monthly_price_usd=_usd(plan.price_nanos),
        annual_price_usd=_usd(annual_price_nanos(plan)),
        price_nanos=plan.price_nanos,
        credits=_credits(plan.credit_nanos),
        credit_nanos=plan.credit_nanos,
        tokens_per_cycle=allowance(plan, "tokens") or 0,
        requests_per_cycle=allowance(plan, "requests") or 0,
        max_tokens_per_request=plan.max_tokens_per_request,
        requests_per_minute=plan.requests_per_minute,
        providers=plan.providers,
        models=plan.models,
        overage_usd_per_thousand_tokens=float(overage_per_thousand),
        kind=plan.kind,
        current=current,
    )


def credits_balance(view: CreditsView) -> credits_pb.CreditsBalance:
    """Credits and use of the present cycle."""
    return credits_pb.CreditsBalance(
        total_credits=_credits(view.total_nanos),
        used_credits=_credits(view.balance.cycle_spent_nanos),
        remaining_credits=_credits(view.balance.available_nanos),
        held_credits=_credits(view.balance.held_nanos),
        available_nanos=view.balance.available_nanos,
        tier=view.account.plan_id,
        monthly_tokens_used=view.use.tokens,
        monthly_requests_used=view.use.requests,
        percent_used=float(view.percent_used),
        cycle_end=timestamp(view.balance.cycle_end),
        account_id=view.account.account_id,
    )


def credits_usage(use: MonthUse) -> credits_pb.CreditsUsage:
    """Use of a month."""
    total = use.total
    return credits_pb.CreditsUsage(
        month=use.month,
        total_tokens=total.tokens,
        total_requests=total.requests,
        total_cost=_usd(total.billed_nanos),
        total_cost_nanos=total.billed_nanos,
        by_provider={
            provider: credits_pb.ProviderUse(
                tokens=sums.tokens,
                requests=sums.requests,
                cost=_usd(sums.billed_nanos),
                cost_nanos=sums.billed_nanos,
            )
            for provider, sums in use.by_provider.items()
        },
    )


def billing_account(view: BillingView, now: datetime) -> billing_pb.BillingAccount:
    """Account, balance, spending and caps."""
    return billing_pb.BillingAccount(
        account=customer_account(view.account, now),
        available_nanos=view.balance.available_nanos,
        held_nanos=view.balance.held_nanos,
        spent_nanos=view.balance.spent_nanos,
        balance_usd=_usd(view.balance.available_nanos),
        spent_today_nanos=view.spent_today_nanos,
        spent_this_month_nanos=view.spent_this_month_nanos,
        daily_limit_nanos=view.daily_limit_nanos,
        monthly_limit_nanos=view.monthly_limit_nanos,
    )


def overage(view: OverageView) -> credits_pb.Overage:
    """Use above the tier's tokens."""
    return credits_pb.Overage(
        tier=view.account.plan_id,
        tokens_included=view.tokens_included,
        tokens_used=view.tokens_used,
        overage_tokens=view.quote.overage_tokens,
        overage_cost=_usd(view.quote.cost_nanos),
        overage_cost_nanos=view.quote.cost_nanos,
        cycle_end=timestamp(view.cycle_end),
    )


def recommendation(view: RecommendationView) -> credits_pb.Recommendation:
    """The tier that fits."""
    return credits_pb.Recommendation(
        current_tier=view.account.plan_id,
        current_spend=_usd(view.spent_nanos),
        projected_monthly_spend=_usd(view.projected_nanos),
        recommended_tier=tier(view.advice.plan, current=view.advice.plan.plan_id == view.account.plan_id),
        covers=view.advice.covers,
        current_spend_nanos=view.spent_nanos,
        projected_monthly_spend_nanos=view.projected_nanos,
    )
