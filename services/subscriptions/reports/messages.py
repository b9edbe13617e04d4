"""Owns the writing of reports: model → proto."""

from __future__ import annotations

from datetime import datetime

from tollkeeper.subscriptions.v1 import billing_service_pb2 as billing_pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from services.subscriptions.reports.model import AccountFigures, AccountUse, Overview, OverviewReport, Use
from services.subscriptions.servicer.messages import customer_account


def billing_stats(use: AccountUse) -> billing_pb.BillingStats:
    """An account's use."""
    return billing_pb.BillingStats(
        account_id=use.account_id, today=_period(use.today), month=_period(use.month), cycle=_period(use.cycle)
    )


def _period(use: Use) -> billing_pb.PeriodStats:
    return billing_pb.PeriodStats(
        requests=use.requests, tokens=use.tokens, cost_nanos=use.cost_nanos, billed_nanos=use.billed_nanos
    )


def account_stats(figures: AccountFigures, now: datetime) -> pb.AccountStats:
    """An account's use and balance."""
    return pb.AccountStats(
        account=customer_account(figures.account, now),
        available_nanos=figures.available_nanos,
        spent_nanos=figures.spent_nanos,
        stats=billing_stats(figures.use),
    )


def overview_report(report: OverviewReport) -> pb.OverviewReport:
    """The overview of all accounts."""
    return pb.OverviewReport(today=_overview(report.today), month=_overview(report.month), plan_mix=report.plan_mix)


def _overview(found: Overview) -> pb.OverviewPeriod:
    return pb.OverviewPeriod(
        signups=found.signups,
        tier_changes=found.tier_changes,
        requests=found.use.requests,
        tokens=found.use.tokens,
        revenue_nanos=found.revenue.nanos,
        api_cost_nanos=found.use.cost_nanos,
        profit_nanos=found.profit_nanos,
        margin_basis_points=found.margin_basis_points,
        arpu_nanos=found.arpu_nanos,
        churn_basis_points=found.churn.basis_points,
        models=[
            pb.ModelUse(
                provider=model.provider,
                model=model.model,
                requests=model.use.requests,
                tokens=model.use.tokens,
                cost_nanos=model.use.cost_nanos,
            )
            for model in found.models
        ],
    )
