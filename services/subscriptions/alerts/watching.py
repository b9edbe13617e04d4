"""Owns the looking for what is worth an alert: limits and balances of the accounts that are in use."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import grpc
from sqlalchemy import Engine

from services.kit.errors import RemoteError, ServiceError
from services.kit.logs import get_logger
from services.subscriptions.alerts import store
from services.subscriptions.alerts.model import Alert, CountedLimit, limit_alerts, low_balance_alert
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.model.credits import LedgerBalance

_log = get_logger(__name__)

_IN_USE = timedelta(minutes=3)
_MAX_ACCOUNTS = 2000


class LedgerView(Protocol):
    """What is asked of the ledger."""

    def counted_limits(self, account_id: str) -> list[CountedLimit]:
        """Every limit of the account and its use."""

    def balance(self, account_id: str) -> LedgerBalance:
        """What the account has."""


class Watcher:
    """The job that looks at each account that has used something within three minutes, and raises its alerts.

    So an alert comes within a look's pause, and metering's, of the call that crossed the threshold. Looking again, in
    this process or another, raises nothing twice.
    """

    def __init__(self, engine: Engine, ledger: LedgerView, *, low_balance_nanos: int, clock: Clock = utc_now) -> None:
        self._engine = engine
        self._ledger = ledger
        self._low_balance_nanos = low_balance_nanos
        self._clock = clock

    def __call__(self) -> bool:
        """Look once at all of them."""
        with self._engine.connect() as connection:
            active = store.accounts_in_use(connection, self._clock() - _IN_USE, limit=_MAX_ACCOUNTS)
        for account_id in active:
            self.look_at(account_id)
        return False

    def look_at(self, account_id: str) -> int:
        """Raise what one account has to be told; how many alerts are new."""
        try:
            found = self._found(account_id)
        except (grpc.RpcError, ServiceError) as error:
            refusal = RemoteError.from_rpc(error) if isinstance(error, grpc.RpcError) else error
            _log.warning("an account was not looked at for alerts", account_id=account_id, reason=refusal.reason)
            return 0
        if not found:
            return 0
        with self._engine.begin() as connection:
            return sum(store.raise_alert(connection, alert) for alert in found)

    def _found(self, account_id: str) -> list[Alert]:
        found = list(limit_alerts(account_id, self._ledger.counted_limits(account_id)))
        available = self._ledger.balance(account_id).available_nanos
        low = low_balance_alert(account_id, available, self._low_balance_nanos, self._clock())
        return [*found, low] if low is not None else found
