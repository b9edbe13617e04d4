"""Owns the looking for what is worth an alert: limits, quotas and balances of the accounts that are in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import grpc
from sqlalchemy import Engine

from services.kit.errors import RemoteError, ServiceError
from services.kit.logs import get_logger
from services.subscriptions import store as accounts_store
from services.subscriptions.alerts import store
from services.subscriptions.alerts.model import Alert, CountedLimit, limit_alerts, low_balance_alert
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.metering.model import Quota
from services.subscriptions.model.account import Account
from services.subscriptions.model.credits import LedgerBalance
from services.subscriptions.model.plan import METRIC_OF_UNIT

_log = get_logger(__name__)

_IN_USE = timedelta(minutes=3)
# Use that metering took in late, after a pause of its own or of the ledger's, is found by looking back further.
_LOOK_BACK_EVERY, _LOOK_BACK = timedelta(hours=1), timedelta(hours=25)
# Events are looked for by when they came, too, whenever it was that they tell of. Of a day there may be too many.
_EVENTS_LOOK_BACK = timedelta(hours=1)
_MAX_ACCOUNTS = 100_000
_METERED = "metered"
_OF_PLAN = "plan"


class LedgerView(Protocol):
    """What is asked of the ledger."""

    def counted_limits(self, account_id: str) -> list[CountedLimit]:
        """Every limit of the account and its use."""

    def balance(self, account_id: str) -> LedgerBalance:
        """What the account has."""


class QuotaView(Protocol):
    """What is asked of metering."""

    def quotas(self, account_id: str) -> list[Quota]:
        """The quotas of the account's plan and their use."""


class PlanKind(Protocol):
    """A plan, as far as it matters here."""

    @property
    def kind(self) -> str:
        """`subscription`, `metered` or `prepaid`."""


class PlanView(Protocol):
    """What is asked of pricing."""

    def version(self, plan_id: str, version: int) -> PlanKind:
        """A plan in one version."""


@dataclass(frozen=True, slots=True)
class Views:
    """Whom the watcher asks."""

    ledger: LedgerView
    metering: QuotaView
    plans: PlanView


class Watcher:
    """The job that looks at each account that has used something, or told of it, within three minutes.

    What they have to be told is raised within a look's pause, and metering's, of the call that crossed the threshold.
    Once an hour it looks at all accounts of the last day. Looking again, in this process or another, raises nothing
    twice; after a look that took longer than three minutes, the next is at all who used something meanwhile.
    """

    def __init__(self, engine: Engine, views: Views, *, low_balance_nanos: int, clock: Clock = utc_now) -> None:
        self._engine = engine
        self._views = views
        self._low_balance_nanos = low_balance_nanos
        self._clock = clock
        self._looked_back_at: datetime | None = None
        self._looked_at: datetime | None = None

    def __call__(self) -> bool:
        """Look once at all of them."""
        now = self._clock()
        looks_back = self._looked_back_at is None or now - self._looked_back_at >= _LOOK_BACK_EVERY
        with self._engine.connect() as connection:
            since = now - _LOOK_BACK if looks_back else min(self._looked_at or now, now) - _IN_USE
            active = store.accounts_in_use(
                connection, since, told_since=max(since, now - _EVENTS_LOOK_BACK), limit=_MAX_ACCOUNTS
            )
        if len(active) == _MAX_ACCOUNTS:
            _log.error("more accounts are in use than are looked at for alerts", looked_at=_MAX_ACCOUNTS)
        for account_id in active:
            self.look_at(account_id)
        self._looked_at = now
        if looks_back:
            self._looked_back_at = now
        return False

    def look_at(self, account_id: str) -> int:
        """Raise what one account has to be told; how many alerts are new."""
        with self._engine.connect() as connection:
            account = accounts_store.find_account(connection, account_id)
        if account is None:
            return 0
        try:
            found = self._found(account)
        except (grpc.RpcError, ServiceError) as error:
            refusal = RemoteError.from_rpc(error) if isinstance(error, grpc.RpcError) else error
            _log.warning("an account was not looked at for alerts", account_id=account_id, reason=refusal.reason)
            return 0
        if not found:
            return 0
        with self._engine.begin() as connection:
            return sum(store.raise_alert(connection, alert) for alert in found)

    def _found(self, account: Account) -> list[Alert]:
        """A metered plan needs no balance, and has quotas that the ledger knows nothing of."""
        account_id = account.account_id
        limits = self._views.ledger.counted_limits(account_id)
        quotas = self._views.metering.quotas(account_id)
        if self._views.plans.version(account.plan_id, account.plan_version).kind == _METERED:
            own = [limit for limit in limits if limit.scope != _OF_PLAN]
            return list(limit_alerts(account_id, own + quota_limits(quotas)))
        found = list(limit_alerts(account_id, in_full(limits, quotas)))
        available = self._views.ledger.balance(account_id).available_nanos
        low = low_balance_alert(account_id, available, self._low_balance_nanos, self._clock())
        return [*found, low] if low is not None else found


def in_full(limits: Sequence[CountedLimit], quotas: Sequence[Quota]) -> list[CountedLimit]:
    """The plan's limits as the plan says them, with all that is used of them.

    The ledger's own are lowered, again and again, by what is emitted beside it: of such an amount each threshold would
    be told anew, and of one that is lowered to nothing no threshold at all.
    """
    of = {quota.terms.metric: quota for quota in quotas}
    return [
        replace(limit, amount=quota.terms.limit, used=max(limit.used, quota.use.used))
        if limit.scope == _OF_PLAN and (quota := of.get(METRIC_OF_UNIT.get(limit.unit, ""))) is not None
        else limit
        for limit in limits
    ]


def quota_limits(quotas: Sequence[Quota]) -> list[CountedLimit]:
    """Quotas of a metered plan as limits of a cycle."""
    return [
        CountedLimit(
            limit_id=f"quota:{quota.terms.metric}",
            scope=_OF_PLAN,
            subject="",
            unit=quota.terms.metric,
            window="cycle",
            amount=quota.terms.limit,
            used=quota.use.used,
            resets_at=quota.resets_at,
        )
        for quota in quotas
    ]
