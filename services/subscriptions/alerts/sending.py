"""Owns the sending of what is due: who sends what when, what becomes of it, and how long any of it is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from prometheus_client import Counter
from sqlalchemy import Engine

from services.kit.logs import get_logger
from services.subscriptions.alerts import store
from services.subscriptions.alerts.mail import EmailSender
from services.subscriptions.alerts.model import retry_delay_seconds
from services.subscriptions.alerts.store import Due
from services.subscriptions.alerts.webhooks import NotSentError, WebhookSender
from services.subscriptions.gauges import leaders_gauge
from services.subscriptions.settings import SubscriptionsSettings

_log = get_logger(__name__)

# Nobody else takes a delivery for so many times its timeout: resolving a name comes before it, and of an e-mail each
# step may last as long.
_LEASE_TIMEOUTS = 12
_RETENTION = timedelta(days=90)
_DELETED_AT_ONCE = 1000

_SENT = Counter("tollkeeper_alert_deliveries_total", "Attempts to deliver alerts", ["way", "outcome"])
_OVERDUE = leaders_gauge(
    "tollkeeper_alert_overdue_seconds", "How long the longest overdue delivery of an alert has waited"
)

Send = Callable[[Due], None]


class Sender:
    """The job that sends what is due, one delivery at a time; run by several threads.

    No two threads of a process send to the same endpoint: one that is slow, or dead, with however much waiting for it,
    holds up one thread and nobody else.
    """

    def __init__(self, engine: Engine, settings: SubscriptionsSettings, *, webhook: Send | None = None) -> None:
        self._engine = engine
        self._webhook: Send = webhook or WebhookSender(
            timeout_seconds=settings.alert_timeout_seconds, private_addresses=settings.alert_private_addresses
        )
        self._email: Send | None = EmailSender(settings) if settings.smtp_host else None
        self._lease = timedelta(seconds=_LEASE_TIMEOUTS * settings.alert_timeout_seconds)
        self._claiming = threading.Lock()
        self._busy: set[str] = set()

    def __call__(self) -> bool:
        """Make one delivery; whether there was one, so that there may be more."""
        with self._claimed() as due:
            if due is not None:
                self._deliver(due)
        return due is not None

    @contextmanager
    def _claimed(self) -> Iterator[Due | None]:
        """What is due longest, with its endpoint busy meanwhile."""
        with self._claiming:
            with self._engine.begin() as connection:
                due = store.claim_delivery(connection, lease=self._lease, busy=self._busy)
            if due is not None:
                self._busy.add(due.endpoint_id)
        try:
            yield due
        finally:
            if due is not None:
                self._busy.discard(due.endpoint_id)

    def _deliver(self, due: Due) -> None:
        if due.endpoint_id == store.EMAIL:
            way, send = "email", self._email
        else:
            way, send = "webhook", self._webhook if due.url else None
        if send is None:
            with self._engine.begin() as connection:
                store.note_skipped(connection, due)
            return
        try:
            send(due)
        except NotSentError as error:
            self._failed(due, way, str(error))
        except Exception as error:  # noqa: BLE001 (whatever a stranger's endpoint brings about, it counts as an attempt)
            self._failed(due, way, f"unexpected {type(error).__name__}")
        else:
            _SENT.labels(way, "delivered").inc()
            with self._engine.begin() as connection:
                store.note_delivered(connection, due)

    def _failed(self, due: Due, way: str, why: str) -> None:
        _SENT.labels(way, "failed").inc()
        seconds = retry_delay_seconds(due.attempts)
        log = _log.warning if seconds is not None else _log.error
        log("an alert was not delivered", alert_id=due.alert_id, way=way, attempts=due.attempts, error=why)
        with self._engine.begin() as connection:
            store.note_failed(connection, due, why, timedelta(seconds=seconds) if seconds is not None else None)


class AlertUpkeep:
    """The job that says how late deliveries are, and deletes alerts of 90 days ago."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self) -> bool:
        """Do both; whether there may be more to delete."""
        with self._engine.begin() as connection:
            _OVERDUE.set(store.oldest_due_seconds(connection))
            deleted = store.delete_old(connection, older_than=_RETENTION, limit=_DELETED_AT_ONCE)
        return deleted == _DELETED_AT_ONCE
