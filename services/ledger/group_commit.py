"""Owns group commit: concurrent operations wait in a queue, and its writer commits all that wait in one transaction.

A unit is what one call brings to a writer: its operations are done in order, in one batch. A batch that the database
refuses is halved, and each half done again, so that one bad unit fails alone. Every operation is safe to do again, so a
batch whose commit may or may not have happened (the connection broke) is simply done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
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
from services.ledger.store.loading import Connection, load
from services.ledger.store.writing import take_slot, write

_log = get_logger(__name__)

_BATCH_SIZE = Histogram(
    "tollkeeper_ledger_batch_operations",
    "Operations committed together.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1000),
)
_QUEUE_WAIT = Histogram("tollkeeper_ledger_queue_wait_seconds", "How long a unit waited for its batch to begin.")
_LOAD = Histogram("tollkeeper_ledger_load_seconds", "Locking a batch's accounts and reading what it needs.")
_COMMIT = Histogram("tollkeeper_ledger_commit_seconds", "Writing a batch and committing it.")
_REFUSED = Counter("tollkeeper_ledger_refused_total", "Operations refused.", ("reason",))

# A database that restarts is back within seconds; callers give up after that.
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
# The database is restarting, or another replica opened the same account at the same moment.
_PASSING = (psycopg.OperationalError, psycopg.errors.UniqueViolation)
# Somebody holds an account's lock for too long: waiting once more would keep every other account waiting too.
_BLOCKED = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)

Group = Sequence[Operation]


@dataclass(slots=True)
class _Unit:
    groups: Sequence[Group]
    size: int
    answer: asyncio.Future[list[Result]]
    queued_at: float


class _Line:
    """A writer's connection: opened when it is first needed, and again when it was lost."""

    def __init__(self, settings: LedgerSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        # This writer's own in the usage feed, so that none waits for another's.
        self.slot = 0

    async def connected(self) -> Connection:
        """The connection, idle. Raises psycopg.OperationalError where the database cannot be reached."""
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                connection_string(self._settings.database_url),
                autocommit=True,
                application_name="tollkeeper-ledger-writer",
                connect_timeout=5,
                # A database host that vanished is noticed in seconds, not hours.
                tcp_user_timeout=15_000,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                options=session_options(self._settings),
            )
            set_json_loads(orjson.loads, self._connection)
            self.slot = await take_slot(self._connection)
        return self._connection

    async def rolled_back(self) -> None:
        """End what a failed batch began; a connection that does not even do that is given up."""
        if self._connection is not None:
            try:
                await self._connection.rollback()
            except Exception:  # noqa: BLE001 (whatever is wrong with it, a new one is made)
                await self.close()

    async def close(self) -> None:
        """Let go of the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()


class _Writer:
    """One queue of what waits, and the connection over which it is committed, a batch at a time."""

    def __init__(self, settings: LedgerSettings) -> None:
        self._line = _Line(settings)
        self._max_batch = settings.max_batch
        self._waiting: deque[_Unit] = deque()
        self._arrived = asyncio.Event()
        self.waiting_operations = 0
        self.closing = False

    def put(self, groups: Sequence[Group]) -> asyncio.Future[list[Result]]:
        """Let some groups wait for the next batch."""
        size = sum(map(len, groups))
        unit = _Unit(groups, size, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.append(unit)
        self.waiting_operations += size
        self._arrived.set()
        return unit.answer

    def close(self) -> None:
        """Commit what waits, then end."""
        self.closing = True
        self._arrived.set()

    async def write_forever(self) -> None:
        """Commit what waits, until closed and nothing waits."""
        try:
            while True:
                await self._arrived.wait()
                units = self._take()
                if units:
                    try:
                        await self._answer(units)
                    finally:
                        _fail(units, _stopping())  # those that have no answer: this task was cancelled
                elif self.closing:
                    return
                else:
                    self._arrived.clear()
        finally:
            await self._line.close()

    def _take(self) -> list[_Unit]:
        """What waits, up to a batch; at least one unit if any waits."""
        units: list[_Unit] = []
        size = 0
        now = time.perf_counter()
        while self._waiting and (not units or size + self._waiting[0].size <= self._max_batch):
            unit = self._waiting.popleft()
            self.waiting_operations -= unit.size
            if unit.answer.cancelled():
                continue  # its caller has gone; nothing of it was begun
            _QUEUE_WAIT.observe(now - unit.queued_at)
            units.append(unit)
            size += unit.size
        return units

    async def _answer(self, units: list[_Unit]) -> None:
        """Commit a batch and answer each unit, with its results or with why not."""
        try:
            results = await self._committed(units)
        except Exception as error:  # noqa: BLE001 (whatever one unit did wrong, its neighbours go on)
            away = isinstance(error, psycopg.OperationalError)
            if len(units) > 1 and (isinstance(error, _BLOCKED) or not away):
                _log.warning("a batch failed; its halves are done apart", units=len(units), error=str(error))
                middle = len(units) // 2
                await self._answer(units[:middle])
                await self._answer(units[middle:])
                return
            _log.error("a batch failed", units=len(units), exc_info=error)
            if away:
                refusal = StorageUnavailable("the ledger's database does not answer", retry_after_seconds=1)
                refusal.__cause__ = error
                _fail(units, refusal)
            else:
                _fail(units, error)
            return
        for unit, answer in zip(units, results, strict=True):
            if not unit.answer.done():
                unit.answer.set_result(answer)

    async def _committed(self, units: list[_Unit]) -> list[list[Result]]:
        """Each unit's results, once they are committed. Does again what failed for a reason that passes."""
        for pause in (*_RETRY_SECONDS, None):
            try:
                return await self._tried(units)
            except _PASSING as error:
                await self._line.rolled_back()
                if pause is None or self.closing or isinstance(error, _BLOCKED):
                    raise
                await asyncio.sleep(pause)
            except Exception:
                await self._line.rolled_back()
                raise
        raise AssertionError("unreachable")

    async def _tried(self, units: list[_Unit]) -> list[list[Result]]:
        connection = await self._line.connected()
        operations = [operation for unit in units for group in unit.groups for operation in group]
        begun = time.perf_counter()
        # After the wait for this writer, so that a hold lives as long as was asked for.
        now = datetime.now(UTC)
        loaded = await load(connection, operations, now)
        read = time.perf_counter()
        batch = Batch(loaded, now)
        results = [[result for group in unit.groups for result in batch.run(group)] for unit in units]
        if batch.changes:
            await write(connection, batch.changes, self._line.slot)
        else:
            await connection.execute("ROLLBACK")
        _BATCH_SIZE.observe(len(operations))
        _LOAD.observe(read - begun)
        _COMMIT.observe(time.perf_counter() - read)
        for answer in results:
            for result in answer:
                if isinstance(result.outcome, LedgerError):
                    _REFUSED.labels(result.outcome.reason).inc()
        return results


class GroupCommit:
    """The only way to write to the ledger's database.

    Each account has its writer, so that two do not wait for each other's locks, and what is asked for an account is
    done in the order in which it came.
    """

    def __init__(self, settings: LedgerSettings) -> None:
        self._max_queued = settings.max_queued
        self._writers = [_Writer(settings) for _ in range(settings.writers)]
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the writers, in the running loop. They connect when there is something to write."""
        self._tasks = [asyncio.create_task(writer.write_forever()) for writer in self._writers]

    async def stop(self) -> None:
        """Commit what waits, then end the writers."""
        self._closing = True
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def submit(self, groups: Sequence[Group]) -> list[Result]:
        """Do linked groups of operations, in order within each account; the results of all operations, once committed.

        Raises Overloaded where too many wait, StorageUnavailable where the database does not answer: then they may or
        may not have been done, and doing them again is safe. A caller that is cancelled does not take back what a batch
        has begun.
        """
        if self._closing:
            raise _stopping()
        size = sum(map(len, groups))
        if sum(writer.waiting_operations for writer in self._writers) + size > self._max_queued:
            raise Overloaded("too many operations wait for the database", retry_after_seconds=1)
        shares = self._shared_out(groups)
        if len(shares) == 1:
            ((number, places),) = shares.items()
            return await self._writers[number].put(groups)
        answers = [self._writers[number].put([groups[at] for at in places]) for number, places in shares.items()]
        by_group: list[list[Result]] = [[] for _ in groups]
        for places, results in zip(shares.values(), await asyncio.gather(*answers), strict=True):
            found = iter(results)
            for at in places:
                by_group[at] = [next(found) for _ in groups[at]]
        return [result for group in by_group for result in group]

    def _shared_out(self, groups: Sequence[Group]) -> dict[int, list[int]]:
        """Which writer does which groups. A call that links accounts is done by one, since all its order matters."""
        shares: dict[int, list[int]] = {}
        for at, group in enumerate(groups):
            account_id = group[0].account_id
            if any(operation.account_id != account_id for operation in group):
                return {self._writer_of(account_id): list(range(len(groups)))}
            shares.setdefault(self._writer_of(account_id), []).append(at)
        return shares

    def _writer_of(self, account_id: str) -> int:
        return zlib.crc32(account_id.encode()) % len(self._writers)


def _stopping() -> StorageUnavailable:
    return StorageUnavailable("the ledger is stopping", retry_after_seconds=1)


def _fail(units: list[_Unit], error: BaseException) -> None:
    for unit in units:
        if not unit.answer.done():
            unit.answer.set_exception(error)
