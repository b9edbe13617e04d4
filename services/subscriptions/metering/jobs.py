"""Owns the background jobs of metering: how they are put together, and their upkeep."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import grpc
from prometheus_client import Counter
from sqlalchemy import Engine

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.clock import Clock
from services.subscriptions.gauges import leaders_gauge
from services.subscriptions.metering import report_store, store
from services.subscriptions.metering.aggregation import EventAggregator, FeedAggregator
from services.subscriptions.metering.counters import UseCounters
from services.subscriptions.metering.feed import UsageFeed
from services.subscriptions.metering.limits import LimitGuard
from services.subscriptions.metering.model import MAX_EVENT_AGE
from services.subscriptions.metering.reconciliation import Reconciliation
from services.subscriptions.metering.reporting import MeterReporter, ReportPlanner, ReportSender
from services.subscriptions.metering.service import BillingRecords
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.worker import ScheduledJob

_log = get_logger(__name__)

_UPKEEP_SECONDS = 15.0
# For so long into a new cycle a limit that was lowered in the last one still refuses.
_GUARD_SECONDS = 5.0
_DELETED_AT_ONCE = 5000
# An event older than 35 days is refused, so an id need not be known for longer.
_EVENT_RETENTION = timedelta(days=36)
# A gauge's window is a cycle, to which events may still come 35 days after its end. No older cycle is added up.
_REPORT_RETENTION = _MINUTE_RETENTION = timedelta(days=70)

_LAG = leaders_gauge(
    "tollkeeper_metering_lag_seconds",
    "Age of the oldest use not added up yet (emitted, proxied) and of the oldest not told to a meter (reported)",
    ["stage"],
)
_EXPIRED = Counter("tollkeeper_metering_expired_minutes", "Minutes given up, too old for a meter to be told of")


class Upkeep:
    """Says how far behind the pipeline is, and deletes what nothing needs any more, a bounded piece at a time."""

    def __init__(self, engine: Engine, feed: FeedAggregator, *, reports: bool) -> None:
        self._engine = engine
        self._feed = feed
        self._reports = reports

    def __call__(self) -> bool:
        """Do both; whether there may be more to delete."""
        with self._engine.begin() as connection:
            waiting = store.oldest_waiting_seconds(connection)
            unreported = report_store.oldest_unreported_seconds(connection) if self._reports else 0.0
        _LAG.labels("emitted").set(waiting)
        _LAG.labels("proxied").set(self._feed.lag_seconds)
        _LAG.labels("reported").set(unreported)
        pieces = [
            self._piece(lambda c: store.delete_events(c, older_than=_EVENT_RETENTION, limit=_DELETED_AT_ONCE)),
            self._piece(lambda c: store.delete_minutes(c, older_than=_MINUTE_RETENTION, limit=_DELETED_AT_ONCE)),
            self._piece(lambda c: report_store.delete_reports(c, older_than=_REPORT_RETENTION, limit=_DELETED_AT_ONCE)),
            self._expire(),
            self._give_up(),
        ]
        return max(pieces) == _DELETED_AT_ONCE

    def _piece(self, delete: Callable[..., int]) -> int:
        with self._engine.begin() as connection:
            return delete(connection)

    def _expire(self) -> int:
        expired = self._piece(
            lambda c: report_store.expire_minutes(c, older_than=MAX_EVENT_AGE, limit=_DELETED_AT_ONCE)
        )
        if expired:
            _EXPIRED.inc(expired)
            log = _log.error if self._reports else _log.info
            log("minutes too old to be reported", count=expired)
        return expired

    def _give_up(self) -> int:
        """Ends what would be refused for ever: a customer or a meter that is gone at Stripe does not come back."""
        lost = self._piece(lambda c: report_store.give_up_reports(c, older_than=MAX_EVENT_AGE, limit=_DELETED_AT_ONCE))
        if lost:
            _EXPIRED.inc(lost)
            _log.error("reports too old for a meter to take", count=lost)
        return lost


def metering_jobs(
    engine: Engine,
    settings: SubscriptionsSettings,
    *,
    plans: PlanCatalogue,
    feed: UsageFeed,
    counters: UseCounters,
    billing: BillingRecords,
    reporter: MeterReporter | None,
    clock: Clock,
) -> list[ScheduledJob]:
    """The jobs. Without a reporter what is to be reported stays due, to be told once there is one.

    Every job is safe in several processes at once.
    """
    feeding = FeedAggregator(engine, feed, counters)
    poll = settings.poll_seconds
    reconciliation = Reconciliation(
        engine,
        feed,
        reporter,
        clock=clock,
        every=timedelta(hours=settings.reconcile_hours),
        is_caught_up=lambda: feeding.is_caught_up,
    )
    jobs = [
        ScheduledJob("aggregate", EventAggregator(engine), poll),
        ScheduledJob("feed", feeding, poll),
        ScheduledJob("guard-limits", _while_pricing_answers(LimitGuard(engine, plans, clock=clock)), _GUARD_SECONDS),
        ScheduledJob("metering-upkeep", Upkeep(engine, feeding, reports=reporter is not None), _UPKEEP_SECONDS),
        ScheduledJob("reconcile", reconciliation, _UPKEEP_SECONDS),
    ]
    if reporter is not None:
        planner = ReportPlanner(engine, plans, billing, clock=clock)
        sender = ReportSender(engine, reporter, threads=settings.meter_report_threads, clock=clock)
        jobs += [
            ScheduledJob("report", _while_pricing_answers(planner), settings.meter_report_seconds),
            ScheduledJob("send-reports", sender, poll),
        ]
    return jobs


def _while_pricing_answers(job: Callable[[], bool]) -> Callable[[], bool]:
    """A job that asks pricing what a plan means: while that does not answer, it waits, and that is no fault of ours."""

    def run() -> bool:
        try:
            return job()
        except grpc.RpcError as error:
            remote = RemoteError.from_rpc(error)
            _log.warning("pricing did not answer", job=type(job).__name__, code=remote.code.name, error=remote.message)
            return False

    return run
