"""Owns the background jobs: deliver the outbox, grant each cycle's promotion, delete what was delivered long ago.

Jobs of other parts (metering) are handed in.

Each job is safe in several processes at once: rows are locked or leased. `serve` runs them beside its calls; `work`
runs them alone, in one process at a time, the leader.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from services.kit.logs import get_logger
from services.kit.metrics import JOB_FAILING
from services.kit.refusals import logged
from services.subscriptions import gauges, store
from services.subscriptions.deliverer import Deliverer
from services.subscriptions.gauges import leaders_gauge
from services.subscriptions.service.customers import Customers
from services.subscriptions.settings import SubscriptionsSettings

_log = get_logger(__name__)

# Advisory locks are a database's own; this number only has to differ from those of other jobs in it.
_LEADER_KEY = 7_365_126_400_021
_GRANTS_AT_ONCE = 100
_DELETED_AT_ONCE = 1000
_UPKEEP_SECONDS = 60.0
_STOP_SECONDS = 20.0
_FAILURE_PAUSE_SECONDS = 5.0

_WAITING = leaders_gauge("tollkeeper_subscriptions_outbox_waiting", "Deliveries that wait")
_WAITING_AGE = leaders_gauge("tollkeeper_subscriptions_outbox_oldest_seconds", "Age of the oldest delivery that waits")

# A job does a piece of work and says whether there may be more of it right away.
Job = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class ScheduledJob:
    """A job of a part that is put together elsewhere, with its pause where it found nothing more to do."""

    name: str
    job: Job
    pause_seconds: float


class BackgroundJobs:
    """Threads that run the jobs until stopped. A job that fails is logged and goes on after a pause."""

    def __init__(
        self,
        engine: Engine,
        deliverer: Deliverer,
        customers: Customers,
        settings: SubscriptionsSettings,
        further: Sequence[ScheduledJob] = (),
    ) -> None:
        self._engine = engine
        self._deliverer = deliverer
        self._customers = customers
        self._settings = settings
        self._further = further
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        poll = self._settings.poll_seconds
        self._run("deliver", self._deliverer.deliver_next, poll, count=self._settings.delivery_threads)
        self._run("grant", self._grant, poll)
        self._run("upkeep", self._upkeep, _UPKEEP_SECONDS)
        for further in self._further:
            self._run(further.name, further.job, further.pause_seconds)

    def stop(self) -> None:
        """End the threads after the piece of work each is at."""
        self._stopping.set()
        ends = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _run(self, name: str, job: Job, pause_seconds: float, *, count: int = 1) -> None:
        for number in range(count):
            # Daemons: a peer that never answers must not keep the process from ending.
            thread = threading.Thread(
                target=self._repeat, args=(name, job, pause_seconds), name=f"{name}-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _repeat(self, name: str, job: Job, pause_seconds: float) -> None:
        while not self._stopping.is_set():
            pause = pause_seconds
            try:
                more = job()
                JOB_FAILING.labels(name).set(0)
                if more:
                    continue
            except Exception as error:  # noqa: BLE001 (whatever it is, the job has to go on)
                JOB_FAILING.labels(name).set(1)
                _log.error("a background job failed", job=name, **logged(error))
                pause = _FAILURE_PAUSE_SECONDS
            self._stopping.wait(pause)

    def _grant(self) -> bool:
        return self._customers.grant_due_promotions(limit=_GRANTS_AT_ONCE) == _GRANTS_AT_ONCE

    def _upkeep(self) -> bool:
        with self._engine.begin() as connection:
            waiting, age_seconds = store.waiting_summary(connection)
            deleted = store.delete_delivered(
                connection, older_than_days=self._settings.outbox_retention_days, limit=_DELETED_AT_ONCE
            )
        _WAITING.set(waiting)
        _WAITING_AGE.set(age_seconds)
        return deleted == _DELETED_AT_ONCE


def work_as_leader(engine: Engine, make_jobs: Callable[[], BackgroundJobs], stop: threading.Event) -> None:
    """Run the jobs whenever this process is the leader, until `stop` is set.

    The leader is whoever holds the advisory lock of one database session; losing the session ends the leadership.
    """
    pause_seconds = 1.0
    while not stop.is_set():
        try:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                leads = store.try_lead(connection, _LEADER_KEY)
                JOB_FAILING.labels("lead").set(0)
                if leads:
                    _lead(connection, make_jobs(), stop, pause_seconds)
                    connection.invalidate()  # ends the session, and the lock with it
        except SQLAlchemyError as error:
            JOB_FAILING.labels("lead").set(1)
            _log.warning("the database did not answer, trying again", error=type(error).__name__)
        stop.wait(pause_seconds)


def _lead(connection: Connection, jobs: BackgroundJobs, stop: threading.Event, pause_seconds: float) -> None:
    _log.info("leading")
    jobs.start()
    try:
        while not stop.wait(pause_seconds):
            store.still_connected(connection)
    finally:
        jobs.stop()
        gauges.forget()
        JOB_FAILING.clear()
        _log.info("no longer leading")
