"""Owns the use cases of reports: an account's figures, and the overview of all accounts."""

from __future__ import annotations

from sqlalchemy import Connection, Engine

from services.subscriptions.clients import LedgerClient, PlanCatalogue
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.model.credits import LedgerBalance
from services.subscriptions.reports import store
from services.subscriptions.reports.model import (
    AccountFigures,
    AccountUse,
    Churn,
    ModelUse,
    Overview,
    OverviewReport,
    Revenue,
    Span,
    churn,
    dearest_first,
    this_month,
    today,
)
from services.subscriptions.reports.usage import LedgerUsage
from services.subscriptions.service.customers import Customers


class Reports:
    """Figures: usage from the ledger, accounts and payments from the database, prices of plans from pricing."""

    def __init__(
        self,
        engine: Engine,
        customers: Customers,
        plans: PlanCatalogue,
        ledger: LedgerClient,
        usage: LedgerUsage,
        *,
        clock: Clock = utc_now,
    ) -> None:
        self._engine = engine
        self._customers = customers
        self._plans = plans
        self._ledger = ledger
        self._usage = usage
        self._clock = clock

    def account_use(self, account_id: str) -> AccountUse:
        """An account's use. Raises AccountNotFound, AccountNotProvisioned."""
        self._customers.get(account_id)
        return self._use_of(account_id, self._ledger.balance(account_id))

    def account_figures(self, account_id: str) -> AccountFigures:
        """An account's use and balance. Raises AccountNotFound, AccountNotProvisioned."""
        account = self._customers.get(account_id)
        balance = self._ledger.balance(account_id)
        return AccountFigures(account, balance.available_nanos, balance.spent_nanos, self._use_of(account_id, balance))

    def _use_of(self, account_id: str, balance: LedgerBalance) -> AccountUse:
        now = self._clock()
        cycle = Span(min(balance.cycle_start, now), now)
        return AccountUse(
            account_id,
            today=self._usage.of_account(account_id, today(now)),
            month=self._usage.of_account(account_id, this_month(now)),
            cycle=self._usage.of_account(account_id, cycle),
        )

    def overview(self) -> OverviewReport:
        """Today and this month over all accounts, all as of one moment.

        The ledger and pricing are asked while no transaction is open; the database is read in one snapshot.
        """
        now = self._clock()
        spans = (today(now), this_month(now))
        models = [dearest_first(self._usage.by_model(span.start)) for span in spans]
        with (
            self._engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
            connection.begin(),
        ):
            kept = [_Kept(connection, span) for span in spans]
            plan_mix = store.plan_mix(connection)
        of_day, of_month = (
            found.overview(used, churn(found.stays, self._plans.version))
            for found, used in zip(kept, models, strict=True)
        )
        return OverviewReport(of_day, of_month, plan_mix)


class _Kept:
    """What the database says of a period."""

    def __init__(self, connection: Connection, span: Span) -> None:
        self._signups = store.signups(connection, span)
        self._tier_changes = store.tier_changes(connection, span)
        self._revenue: Revenue = store.revenue(connection, span)
        self.stays = store.stays(connection, span)

    def overview(self, models: list[ModelUse], lost: Churn) -> Overview:
        """The period's figures."""
        return Overview(self._signups, self._tier_changes, self._revenue, lost, models)
