"""Owns the ledger's background jobs: what is due happens on time, months are made ahead, what is old is forgotten.

Nothing depends on it for correctness: every read and write lets what is due at its account happen first. It sees to it
that this shows in the journal also where nobody looks. Several workers are safe: the accounts' locks order them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import psycopg
from prometheus_client import Counter, Gauge
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.db import async_engine, connection_string, connection_words, session_options
from services.kit.logs import get_logger
from services.kit.metrics import JOB_FAILING, serve_metrics
from services.kit.refusals import logged
from services.ledger.group_commit import GroupCommit
from services.ledger.presence import attended
from services.ledger.service import Ledger
from services.ledger.settings import LedgerSettings
from services.ledger.store.day_sums import RECORDS_AT_ONCE, take_in
from services.ledger.store.health import health
from services.ledger.store.partitions import Connection, create_months, one
from services.ledger.store.reads import Reads
from services.ledger.store.retention import BEGINNING, Place, forget_holds, forget_requests

_log = get_logger(__name__)

_ACCOUNTS_AT_ONCE = 200
_PARTITIONS_SECONDS = 3600.0
_RETENTION_SECONDS = 3600.0
_HEALTH_SECONDS = 15.0
_SUMS_SECONDS = 5.0
_FAILED_SECONDS = 60.0
# Of an advisory lock: one worker forgets at a time. The number has no meaning.
_RETENTION_LOCK = 7_365_126_400_023
# After each page it rests four times as long as the page took: it never costs more than a fifth of a connection.
_REST = 4.0
_LEAST_REST_SECONDS = 0.02

_LAG = Gauge(
    "tollkeeper_ledger_due_lag_seconds",
    "How long something has been due at the account that the worker comes to next; 0: at none.",
)
_AHEAD = Gauge("tollkeeper_ledger_months_ahead", "Months after this one whose partitions are there.")
_DEFAULTS = Gauge("tollkeeper_ledger_default_partitions_in_use", "Tables with rows in their default partition.")
_HOLDS = Gauge("tollkeeper_ledger_holds_open", "Holds that are neither settled nor released nor lapsed.")
_FORGOTTEN = Counter("tollkeeper_ledger_forgotten_total", "Rows that were kept long enough.", ("what",))

Job = Callable[[], Awaitable[None]]
Forget = Callable[[Connection, datetime, Place], Awaitable[tuple[Place | None, int]]]


@contextlib.asynccontextmanager
async def _connected(settings: LedgerSettings) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(
        connection_string(settings.database_url),
        autocommit=True,
        **connection_words(settings.database_url, "tollkeeper-ledger-worker", session_options(settings)),
    ) as connection:
        yield connection


async def make_partitions(settings: LedgerSettings) -> None:
    """Make this month's and the next months' partitions, where they are missing."""
    async with _connected(settings) as connection:
        made = await create_months(connection, datetime.now(UTC))
    if made:
        _log.info("partitions made", partitions=made)


async def report(settings: LedgerSettings) -> None:
    """Set the gauges that alerts watch."""
    async with _connected(settings) as connection:
        found = await health(connection)
    _LAG.set(found.due_lag_seconds)
    _AHEAD.set(found.months_ahead)
    _DEFAULTS.set(found.defaults_in_use)
    _HOLDS.set(found.holds_open)


async def add_up(settings: LedgerSettings, stop: asyncio.Event) -> None:
    """Add the records that came to the sums by day, which operators' reports are made of."""
    async with _connected(settings) as connection:
        while not stop.is_set():
            begun = time.monotonic()
            if not await take_in(connection, RECORDS_AT_ONCE):
                return
            await _pause(stop, time.monotonic() - begun)


async def forget(settings: LedgerSettings, stop: asyncio.Event) -> None:
    """Forget what ended more than `retention_days` ago, all tables once, unless another worker is at it."""
    before = datetime.now(UTC) - timedelta(days=settings.retention_days)
    async with _connected(settings) as connection:
        if not await one(connection, "SELECT pg_try_advisory_lock(%s)", (_RETENTION_LOCK,)):
            return
        await _walked(forget_holds, "holds", connection, before, stop)
        await _walked(forget_requests, "requests", connection, before, stop)


async def _walked(
    forget_page: Forget, what: str, connection: Connection, before: datetime, stop: asyncio.Event
) -> None:
    place: Place | None = BEGINNING
    while place is not None and not stop.is_set():
        begun = time.monotonic()
        place, count = await forget_page(connection, before, place)
        _FORGOTTEN.labels(what).inc(count)
        if place is not None:
            await _pause(stop, max(_LEAST_REST_SECONDS, _REST * (time.monotonic() - begun)))


async def sweep(ledger: Ledger, engine: AsyncEngine, stop: asyncio.Event) -> None:
    """Let all that is due happen, also at more accounts than are taken at once, while a server is there."""
    while await attended(engine) and await ledger.sweep(_ACCOUNTS_AT_ONCE) and not stop.is_set():
        pass


async def _repeated(job: Job, name: str, seconds: float, stop: asyncio.Event) -> None:
    """Do a job, and again `seconds` after it is done, until `stop` is set; whatever goes wrong, and then sooner."""
    while not stop.is_set():
        pause = seconds
        try:
            await job()
            JOB_FAILING.labels(name).set(0)
        except Exception as error:  # noqa: BLE001 (a job that stops for ever at one error is worse)
            JOB_FAILING.labels(name).set(1)
            _log.error("a job failed; trying again", job=name, **logged(error))
            pause = min(seconds, _FAILED_SECONDS)
        await _pause(stop, pause)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def work(settings: LedgerSettings, stop: asyncio.Event) -> None:
    """Run the jobs until `stop` is set."""
    stop_metrics = serve_metrics(settings.metrics_listen) if settings.metrics_listen else None
    engine = async_engine(settings)
    commits = GroupCommit(settings)
    commits.start()
    ledger = Ledger(commits, Reads(engine))
    jobs: tuple[tuple[Job, str, float], ...] = (
        (lambda: sweep(ledger, engine, stop), "sweep", settings.sweep_seconds),
        (lambda: make_partitions(settings), "partitions", _PARTITIONS_SECONDS),
        (lambda: forget(settings, stop), "retention", _RETENTION_SECONDS),
        (lambda: report(settings), "report", _HEALTH_SECONDS),
        (lambda: add_up(settings, stop), "sums", _SUMS_SECONDS),
    )
    try:
        await asyncio.gather(*(_repeated(job, name, seconds, stop) for job, name, seconds in jobs))
    finally:
        await commits.stop()
        await engine.dispose()
        if stop_metrics is not None:
            stop_metrics()
