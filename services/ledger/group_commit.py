"""Owns group commit: concurrent operations wait in a queue, and each writer commits all that wait in one transaction.

A unit is what one call brings: its operations are done in order, in one batch. A batch that the database refuses is done
again unit by unit, so that one bad unit fails alone. Every operation is safe to do again, so a batch whose commit may or may
not have happened (the connection broke) is simply done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import psycopg
from prometheus_client import Counter, Histogram
from psycopg.types.json import set_json_loads

from services.kit.db import connection_string, session_options
from services.kit.logs import get_logger
from services.kit.refusals import Overloaded, StorageUnavailable
from services.ledger.errors import LedgerError
from services.ledger.model.batch import Batch
from services.ledger.model.operations import Operation, Result
from services.ledger.settings import LedgerSettings
from services.ledger.store import batches

_log = get_logger(__name__)

_BATCH_SIZE = Histogram(
    "tollkeeper_ledger_batch_operations",
    "Operations committed together.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1000),
)
_QUEUE_WAIT = Histogram("tollkeeper_ledger_queue_wait_seconds", "How long a unit waited for its batch to begin.")
_LOCK_WAIT = Histogram("tollkeeper_ledger_load_seconds", "Locking a batch's accounts and reading what it needs.")
_COMMIT = Histogram("tollkeeper_ledger_commit_seconds", "Writing a batch and committing it.")
_REFUSED = Counter("tollkeeper_ledger_refused_total", "Operations refused.", ("reason",))

# A database that restarts is back within seconds; callers give up after that.
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)

Group = Sequence[Operation]


@dataclass(slots=True)
class _Unit:
    groups: Sequence[Group]
    size: int
    answer: asyncio.Future[list[Result]]
    queued_at: float


class GroupCommit:
    """The only way to write to the ledger's database."""

    def __init__(self, settings: LedgerSettings) -> None:
        self._settings = settings
        self._waiting: deque[_Unit] = deque()
        self._waiting_operations = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._writers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the writers, in the running loop. They connect when there is something to write."""
        self._writers = [asyncio.create_task(self._write_forever()) for _ in range(self._settings.writers)]

    async def stop(self) -> None:
        """Commit what waits, then end the writers."""
        self._closing = True
        self._arrived.set()
        await asyncio.gather(*self._writers, return_exceptions=True)

    async def submit(self, groups: Sequence[Group]) -> list[Result]:
        """Do linked groups of operations, in order; the results of all operations, in order, once committed.

        Raises Overloaded where too many wait, StorageUnavailable where the database does not answer: then they may or may
        not have been done, and doing them again is safe.
        """
        size = sum(len(group) for group in groups)
        if self._waiting_operations + size > self._settings.max_queued or self._closing:
            raise Overloaded("too many operations wait for the database", retry_after_seconds=1)
        unit = _Unit(groups, size, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.append(unit)
        self._waiting_operations += size
        self._arrived.set()
        return await unit.answer

    async def _write_forever(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            connection: batches.Connection | None = None
            while True:
                await self._arrived.wait()
                units = self._take()
                if not units:
                    if self._closing:
                        return
                    self._arrived.clear()
                    continue
                connection = await self._commit_or_split(connection, units, stack)

    def _take(self) -> list[_Unit]:
        """What waits, up to a batch; at least one unit if any waits."""
        units: list[_Unit] = []
        size = 0
        now = time.perf_counter()
        while self._waiting and (not units or size + self._waiting[0].size <= self._settings.max_batch):
            unit = self._waiting.popleft()
            self._waiting_operations -= unit.size
            if unit.answer.cancelled():
                continue  # its caller has gone; nothing of it was begun
            _QUEUE_WAIT.observe(now - unit.queued_at)
            units.append(unit)
            size += unit.size
        return units

    async def _commit_or_split(
        self, connection: batches.Connection | None, units: list[_Unit], stack: contextlib.AsyncExitStack
    ) -> batches.Connection | None:
        """Commit a batch and answer each unit. Returns the connection to go on with, None where it is lost."""
        for pause in (*_RETRY_SECONDS, None):
            try:
                if connection is None or connection.broken:
                    connection = await self._connected()
                    stack.push_async_callback(connection.close)
                results = await self._commit(connection, units)
            except (psycopg.OperationalError, psycopg.errors.UniqueViolation) as error:
                # The database is restarting, or another replica opened the same account at the same moment.
                await _rolled_back(connection)
                if pause is None:
                    _log.exception("the database does not answer", operations=sum(unit.size for unit in units))
                    refusal = StorageUnavailable("the ledger's database does not answer", retry_after_seconds=1)
                    refusal.__cause__ = error
                    _fail(units, refusal)
                    return connection
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                _fail(units, StorageUnavailable("the ledger is stopping", retry_after_seconds=1))
                raise
            except Exception as error:  # noqa: BLE001 (whatever one unit did wrong, its neighbours go on)
                await _rolled_back(connection)
                if len(units) == 1:
                    _fail(units, error)
                    return connection
                _log.exception("a batch failed; its units are done one by one", units=len(units))
                for unit in units:
                    connection = await self._commit_or_split(connection, [unit], stack)
                return connection
            else:
                for unit, answer in zip(units, results, strict=True):
                    if not unit.answer.done():
                        unit.answer.set_result(answer)
                return connection
        raise AssertionError("unreachable")

    async def _connected(self) -> batches.Connection:
        connection = await psycopg.AsyncConnection.connect(
            connection_string(self._settings.database_url),
            autocommit=True,
            application_name="tollkeeper-ledger-writer",
            connect_timeout=5,
            options=session_options(self._settings),
        )
        set_json_loads(orjson.loads, connection)
        return connection

    async def _commit(self, connection: batches.Connection, units: list[_Unit]) -> list[list[Result]]:
        operations = [operation for unit in units for group in unit.groups for operation in group]
        begun = time.perf_counter()
        # After the wait for this writer, so that a hold lives as long as was asked for.
        now = datetime.now(UTC)
        loaded = await batches.load(connection, operations, now)
        read = time.perf_counter()
        batch = Batch(loaded, now)
        results = [[result for group in unit.groups for result in batch.run(group)] for unit in units]
        if batch.changes:
            await batches.write(connection, batch.changes)
        else:
            await connection.execute("ROLLBACK")
        _BATCH_SIZE.observe(len(operations))
        _LOCK_WAIT.observe(read - begun)
        _COMMIT.observe(time.perf_counter() - read)
        for answer in results:
            for result in answer:
                if isinstance(result.outcome, LedgerError):
                    _REFUSED.labels(result.outcome.reason).inc()
        return results


async def _rolled_back(connection: batches.Connection | None) -> None:
    if connection is not None and not connection.closed:
        with contextlib.suppress(psycopg.Error):
            await connection.rollback()


def _fail(units: list[_Unit], error: BaseException) -> None:
    for unit in units:
        if not unit.answer.done():
            unit.answer.set_exception(error)
