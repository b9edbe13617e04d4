"""Owns the background jobs of alerts. Each is safe in several processes at once."""

from __future__ import annotations

from sqlalchemy import Engine

from services.subscriptions.alerts.sending import AlertUpkeep, Sender
from services.subscriptions.alerts.watching import Views, Watcher
from services.subscriptions.clock import Clock
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.worker import ScheduledJob

_UPKEEP_SECONDS = 60.0


def alert_jobs(engine: Engine, settings: SubscriptionsSettings, *, views: Views, clock: Clock) -> list[ScheduledJob]:
    """Look for what is worth an alert, send it, delete it long afterwards."""
    watcher = Watcher(engine, views, low_balance_nanos=settings.low_balance_nanos, clock=clock)
    sender = Sender(engine, settings)
    return [
        ScheduledJob("watch-limits", watcher, settings.alert_seconds),
        *(
            ScheduledJob(f"send-alerts-{number}", sender, settings.poll_seconds)
            for number in range(1, settings.alert_threads + 1)
        ),
        ScheduledJob("alert-upkeep", AlertUpkeep(engine), _UPKEEP_SECONDS),
    ]
