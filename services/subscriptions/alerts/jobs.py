"""Owns the background jobs of alerts. Each is safe in several processes at once."""

from __future__ import annotations

from sqlalchemy import Engine

from services.subscriptions.alerts.sending import AlertUpkeep, Sender
from services.subscriptions.alerts.watching import LedgerView, Watcher
from services.subscriptions.clock import Clock
from services.subscriptions.settings import Settings
from services.subscriptions.worker import ScheduledJob

_UPKEEP_SECONDS = 60.0


def alert_jobs(engine: Engine, settings: Settings, *, ledger: LedgerView, clock: Clock) -> list[ScheduledJob]:
    """Look for what is worth an alert, send it, delete it long afterwards."""
    watcher = Watcher(engine, ledger, low_balance_nanos=settings.low_balance_nanos, clock=clock)
    return [
        ScheduledJob("watch-limits", watcher, settings.alert_seconds),
        ScheduledJob("send-alerts", Sender(engine, settings), settings.poll_seconds),
        ScheduledJob("alert-upkeep", AlertUpkeep(engine), _UPKEEP_SECONDS),
    ]
