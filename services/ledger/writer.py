"""Owns a writer: its connection, and how it commits a batch there, also again after what passes by itself.

Every operation is safe to do again, so a batch whose commit may or may not have happened (the connection broke) is
simply done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import psycopg
from prometheus_client import Counter, Histogram

from services.kit.db import connection_string, connection_words, session_options
from services.ledger.errors import LedgerError
from services.ledger.model.batch import Batch
from services.ledger.model.operations import Operation, Result
from services.ledger.model.rows import Changes
from services.ledger.presence import Presence
from services.ledger.settings import LedgerSettings
from services.ledger.store.loading import load
from services.ledger.store.pipeline import Connection
from services.ledger.store.remembered import Remembered, RememberedAccount
from services.ledger.store.writing import NotAsRememberedError, take_slot, write

_BATCH_SIZE = Histogram(
    "tollkeeper_ledger_batch_operations",
    "Operations committed together.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1000),
)
_BATCHES = Counter(
    "tollkeeper_ledger_batches_total",
    "Batches committed: their accounts as this process remembered them, read, or read since others had changed them.",
    ("accounts",),
)
_LOAD = Histogram("tollkeeper_ledger_load_seconds", "Locking a batch's accounts and reading what it needs.")
_COMMIT = Histogram("tollkeeper_ledger_commit_seconds", "Writing a batch and committing it.")
# For graphs: Prometheus adds in floats. The journal is what is billed by.
_SPENT = Counter("tollkeeper_ledger_spent_nanos_total", "What was spent, without what was given back.")
_REFUSED = Counter("tollkeeper_ledger_refused_total", "Operations refused.", ("reason",))

# A database that restarts is back within seconds; callers give up after that.
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
# The database is restarting or is a standby by now, or another replica opened the same account at the same moment.
_PASSING = (psycopg.OperationalError, psycopg.errors.UniqueViolation, psycopg.errors.ReadOnlySqlTransaction)
# Somebody holds an account's lock for too long: waiting once more would keep every other account waiting too.
BLOCKED = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)
# How long the halves of a batch that met a locked account wait for it: the whole batch has waited for long already.
_HURRIED_LOCK_MILLISECONDS = 200

Group = Sequence[Operation]
# Told each group's results when they are computed and not yet committed. It must not fail.
Computed = Callable[[list[list[Result]]], None]


class Committed(NamedTuple):
    """A batch that is committed: each group's results, and what notes it, to be called once, their callers told first.

    Until then its accounts are not remembered, and no other batch may have them.
    """

    results: list[list[Result]]
    note: Callable[[], None]


class Writer:
    """Commits batches, one at a time, on a connection that is opened when it is needed, and again when it was lost.

    `remembered` is shared with the other writers, which are never given the same accounts at the same time. `presence`
    is a server's. While it is `ending`, what fails is not done again.
    """

    def __init__(self, settings: LedgerSettings, remembered: Remembered, presence: Presence | None = None) -> None:
        self._settings = settings
        self._remembered = remembered
        self._presence = presence
        self._connection: Connection | None = None
        # Its own in the usage feed, so that none waits for another's.
        self._slot = 0
        self.ending = False

    async def commit(self, groups: Sequence[Group], computed: Computed, *, hurried: bool) -> Committed:
        """Do a batch. Does again what failed for a reason that passes.

        `computed` is told them before, while Postgres works, and told others where the batch is done again.
        `hurried`: it is a half of one that met a locked account, and waits but briefly for its own. Raises the error of
        the last attempt.
        """
        for pause in (*_RETRY_SECONDS, None):
            try:
                return await self._tried(groups, computed, hurried=hurried)
            except _PASSING as error:
                if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                    # It was the primary until a fail-over that left its connections standing.
                    await self.close()
                else:
                    await self._roll_back()
                if pause is None or self.ending or isinstance(error, BLOCKED):
                    raise
                await asyncio.sleep(pause)
            except Exception:
                await self._roll_back()
                raise
        raise AssertionError("unreachable")

    async def _tried(self, groups: Sequence[Group], computed: Computed, *, hurried: bool) -> Committed:
        connection = await self._connected()
        if self._presence is not None and self._presence.is_old:
            await self._presence.say(connection)
        operations = [operation for group in groups for operation in group]
        # After the wait for this writer, so that a hold lives as long as was asked for.
        now = datetime.now(UTC)
        remembered = self._remembered.take(operations, now)
        known = {} if hurried else remembered
        try:
            return await self._booked(connection, groups, computed, known, now, hurried=hurried)
        except NotAsRememberedError as error:
            await self._roll_back()
            if error.outdated:
                self._remembered.outdated()
            connection = await self._connected()
            now, outdated = datetime.now(UTC), error.outdated
            return await self._booked(connection, groups, computed, {}, now, hurried=hurried, outdated=outdated)

    async def _booked(
        self,
        connection: Connection,
        groups: Sequence[Group],
        computed: Computed,
        remembered: Mapping[str, RememberedAccount],
        now: datetime,
        *,
        hurried: bool,
        outdated: bool = False,
    ) -> Committed:
        """Do a batch, all of it in one transaction. Raises NotAsRememberedError, only where something is remembered.

        `now`: as of which nothing is due at what is remembered. `outdated`: it was tried with what others had changed.
        """
        operations = [operation for group in groups for operation in group]
        begun = time.perf_counter()
        patience = _HURRIED_LOCK_MILLISECONDS if hurried else None
        loaded = await load(connection, operations, now, remembered, lock_milliseconds=patience)
        read = time.perf_counter()
        batch = Batch(loaded, now)
        results = [batch.run(group) for group in groups]
        version = await write(
            connection,
            batch.changes,
            self._slot,
            loaded.unconfirmed,
            loaded.unread,
            meanwhile=partial(computed, results),
        )
        written = time.perf_counter()
        outdated = outdated or loaded.outdated
        _BATCHES.labels("remembered" if loaded.unconfirmed else "outdated" if outdated else "read").inc()

        def note() -> None:
            self._remembered.put(operations, loaded, batch.changes, version, remembered)
            _LOAD.observe(read - begun)
            _COMMIT.observe(written - read)
            _count(results, batch.changes)

        return Committed(results, note)

    async def _connected(self) -> Connection:
        """The connection, idle. Raises psycopg.OperationalError where the database cannot be reached."""
        if self._connection is None or self._connection.closed:
            url = self._settings.database_url
            words = connection_words(url, "tollkeeper-ledger-writer", session_options(self._settings))
            self._connection = await Connection.opened(connection_string(url), **words)
            self._slot = await take_slot(self._connection)
            # This may be another database, to which not all that was committed has come.
            self._remembered.clear()
        return self._connection

    async def _roll_back(self) -> None:
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


def _count(results: list[list[Result]], changes: Changes) -> None:
    """Count what a batch did."""
    _BATCH_SIZE.observe(sum(map(len, results)))
    _SPENT.inc(sum(entry.spent for entry in changes.entries if entry.spent > 0))
    for group in results:
        for result in group:
            if isinstance(result.outcome, LedgerError):
                _REFUSED.labels(result.outcome.reason).inc()
