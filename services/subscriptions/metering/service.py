"""Owns the use cases of metering: emit usage, show quotas, check one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Protocol

import grpc
from prometheus_client import Counter
from sqlalchemy import Engine

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.errors import AccountStopped, QuotaExceeded
from services.subscriptions.metering import store
from services.subscriptions.metering.counters import UseCounters
from services.subscriptions.metering.model import (
    HARD,
    METRICS,
    Quota,
    QuotaTerms,
    UsageEvent,
    Use,
    cap_in_force,
    in_minutes,
    quota_terms,
)
from services.subscriptions.metering.standing import LedgerStandings
from services.subscriptions.model.account import Account, is_stopped
from services.subscriptions.model.cycle import Cycle
from services.subscriptions.service.customers import Customers

_log = get_logger(__name__)

_EVENTS = Counter("tollkeeper_metering_events", "Usage events received, by what became of them", ["outcome"])
_CHECKS = Counter(
    "tollkeeper_metering_quota_checks", "Quota checks, by answer and by where it came from", ["answer", "source"]
)


class BillingRecords(Protocol):
    """What Stripe's side of an account says: whom its use is reported for, and how long a failed payment's grace is."""

    def customer_ids(self, account_ids: Collection[str]) -> Mapping[str, str]:
        """Stripe's customer of each account that has one."""
        ...

    def grace_until(self, account_id: str) -> datetime | None:
        """When the grace after a failed payment ends; None where none runs."""
        ...


@dataclass(frozen=True, slots=True)
class Emitted:
    """What became of emitted events."""

    accepted: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether more of a metric may be used. `quota` is None where the plan says nothing of the metric."""

    account: Account
    metric: str
    quantity: int
    quota: Quota | None
    cap: str

    @property
    def allowed(self) -> bool:
        """Whether it may."""
        if not self.account.may_call:
            return False
        return self.quota is None or self.cap != HARD or self.quota.covers(self.quantity)

    def raise_if_refused(self, now: datetime) -> None:
        """Raise AccountStopped or QuotaExceeded where it may not."""
        if self.allowed:
            return
        if not self.account.may_call:
            raise AccountStopped(
                f"the account is {self.account.status}", account_id=self.account.account_id, status=self.account.status
            )
        assert self.quota is not None
        raise QuotaExceeded(
            f"{self.quantity} more of {self.metric} is above the {self.quota.terms.limit} of this cycle,"
            f" of which {self.quota.use.used} are used",
            retry_after_seconds=max(1.0, (self.quota.resets_at - now).total_seconds()),
            account_id=self.account.account_id,
            metric=self.metric,
            limit=self.quota.terms.limit,
            used=self.quota.use.used,
            requested=self.quantity,
            resetsAt=self.quota.resets_at.isoformat(),
        )


class Metering:
    """Usage and quotas. Emitting writes events and nothing else: adding them up is a job of its own."""

    def __init__(
        self,
        engine: Engine,
        customers: Customers,
        plans: PlanCatalogue,
        counters: UseCounters,
        *,
        billing: BillingRecords,
        standings: LedgerStandings,
        clock: Clock = utc_now,
    ) -> None:
        self._engine = engine
        self._customers = customers
        self._plans = plans
        self._counters = counters
        self._billing = billing
        self._standings = standings
        self._clock = clock

    def emit(self, account_id: str, events: Sequence[UsageEvent]) -> Emitted:
        """Take events in, each id once, however much of the quota is used: what happened is a fact.

        Raises AccountNotFound.
        """
        self._customers.get(account_id)
        with self._engine.begin() as connection:
            accepted = store.insert_events(connection, account_id, events)
        if accepted:
            self._counters.changed([account_id])
        duplicates = len(events) - accepted
        _EVENTS.labels("accepted").inc(accepted)
        _EVENTS.labels("duplicate").inc(duplicates)
        return Emitted(accepted, duplicates)

    def quotas(self, account_id: str) -> list[Quota]:
        """The account's quotas with their use in the present cycle. Raises AccountNotFound."""
        account = self._customers.get(account_id)
        found = [terms for metric in METRICS if (terms := self._terms(account, metric)) is not None]
        if not found:
            return []
        cycle = account.cycle_at(self._clock())
        use, _ = self._use(account_id, in_minutes(cycle))
        return [Quota(terms, use[terms.metric], cycle.end) for terms in found]

    def counted(self, account_id: str) -> dict[str, int]:
        """What is used of each metric in the present cycle, as meters are told. Raises AccountNotFound."""
        cycle = self._customers.get(account_id).cycle_at(self._clock())
        use, _ = self._use(account_id, in_minutes(cycle))
        return {metric: found.used for metric, found in use.items()}

    def emitted(self, account_id: str) -> dict[str, int]:
        """What was emitted in the present cycle of the metrics that the ledger counts, beside what it has counted.

        Raises AccountNotFound.
        """
        cycle = self._customers.get(account_id).cycle_at(self._clock())
        with self._engine.connect() as connection:
            return store.cycle_emitted(connection, account_id, in_minutes(cycle))

    def nearest(self, account_id: str, metrics: Collection[str]) -> Quota | None:
        """Of the account's quotas for these metrics the one that is used up most.

        None where the plan has none, or pricing does not say: what was emitted is counted all the same.
        """
        try:
            quotas = [quota for quota in self.quotas(account_id) if quota.terms.metric in metrics]
        except grpc.RpcError as error:
            _log.warning("a quota is not told: pricing did not answer", code=RemoteError.from_rpc(error).code.name)
            return None
        return max(quotas, key=lambda quota: Fraction(quota.use.used, max(quota.terms.limit, 1)), default=None)

    def check(self, account_id: str, metric: str, quantity: int) -> Verdict:
        """Whether so much more of a metric may be used. Raises AccountNotFound."""
        account = self._customers.get(account_id)
        stopped = self._standings.of(account_id)
        if is_stopped(stopped):
            account = replace(account, status=stopped)
        terms = self._terms(account, metric)
        quota, cap, source = None, "", "plan"
        if terms is not None:
            now = self._clock()
            cycle = account.cycle_at(now)
            use, source = self._use(account_id, in_minutes(cycle))
            quota = Quota(terms, use[metric], cycle.end)
            grace_until = self._billing.grace_until(account_id) if account.status == "grace" else None
            cap = cap_in_force(terms.cap, account.status, grace_until, now)
        verdict = Verdict(account, metric, quantity, quota, cap)
        _CHECKS.labels("allowed" if verdict.allowed else "refused", source).inc()
        return verdict

    def _terms(self, account: Account, metric: str) -> QuotaTerms | None:
        return quota_terms(self._plans.version(account.plan_id, account.plan_version), metric)

    def _use(self, account_id: str, cycle: Cycle) -> tuple[dict[str, Use], str]:
        """Use of all metrics in a cycle, and whether the cache or the database said so."""
        version, counted = self._counters.read(account_id, cycle)
        if counted is not None:
            return counted, "cache"
        with self._engine.connect() as connection:
            use = store.cycle_use(connection, account_id, cycle)
        self._counters.keep(account_id, version, cycle, use)
        return use, "database"
