"""Owns the background jobs of what Stripe tells. Each is safe in several processes at once."""

from __future__ import annotations

from sqlalchemy import Engine

from services.subscriptions import store
from services.subscriptions.clock import Clock
from services.subscriptions.gauges import leaders_gauge
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.stripe import events_store, mirror_store
from services.subscriptions.stripe.application import Application
from services.subscriptions.stripe.effects import granted_now
from services.subscriptions.stripe.reconcile import Reconciliation
from services.subscriptions.worker import ScheduledJob

_UPKEEP_SECONDS = 15.0
_AT_ONCE = 100
_DELETED_AT_ONCE = 1000

_LAG = leaders_gauge(
    "tollkeeper_subscriptions_webhook_lag_seconds", "Age of the oldest Stripe event that is not applied yet"
)
_FAILED = leaders_gauge("tollkeeper_subscriptions_stripe_events_failed", "Stripe events that could not be applied")


class DueGrants:
    """Grants what was paid for a year, at each cycle's start."""

    def __init__(self, engine: Engine, *, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def __call__(self) -> bool:
        """Grant what is due; whether there may be more."""
        now = self._clock()
        with self._engine.connect() as connection:
            accounts = mirror_store.accounts_with_due_parts(connection, now, limit=_AT_ONCE)
        for account_id in accounts:
            with self._engine.begin() as connection:
                account = store.lock_account(connection, account_id)
                assert account is not None
                grants = granted_now(connection, account, now)
                if grants:
                    store.enqueue(connection, account_id, grants)
        return len(accounts) == _AT_ONCE


class EventUpkeep:
    """Says how far behind the applying is, lets failed events try again, deletes what was applied long ago."""

    def __init__(self, engine: Engine, *, retention_days: float) -> None:
        self._engine = engine
        self._retention_days = retention_days

    def __call__(self) -> bool:
        """Do all three; whether there may be more to delete."""
        with self._engine.begin() as connection:
            _LAG.set(events_store.oldest_waiting_seconds(connection))
            _FAILED.set(events_store.count_failed(connection))
            events_store.retry_failed(connection, limit=_AT_ONCE)
            deleted = events_store.delete_settled(
                connection, older_than_days=self._retention_days, limit=_DELETED_AT_ONCE
            )
        return deleted == _DELETED_AT_ONCE


def stripe_jobs(
    engine: Engine,
    settings: SubscriptionsSettings,
    *,
    configured: bool,
    application: Application,
    reconciliation: Reconciliation,
    clock: Clock,
) -> list[ScheduledJob]:
    """The jobs. Without a key of Stripe's nothing can be read there: events wait, grants that are due are given."""
    poll = settings.poll_seconds
    jobs = [
        ScheduledJob("paid-grants", DueGrants(engine, clock=clock), poll),
        ScheduledJob(
            "stripe-upkeep", EventUpkeep(engine, retention_days=settings.stripe_event_retention_days), _UPKEEP_SECONDS
        ),
    ]
    if configured:
        jobs += [
            ScheduledJob("route-events", application.route_next, poll),
            *(ScheduledJob("apply-events", application.apply_next, poll) for _ in range(settings.stripe_threads)),
            ScheduledJob("look-again", lambda: application.refresh_due(limit=_AT_ONCE), poll),
            ScheduledJob("reconcile-stripe", reconciliation, settings.stripe_reconcile_hours * 3600),
        ]
    return jobs
