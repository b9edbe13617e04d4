"""Owns the monthly partitions of the journal and the usage records: making them ahead, and what there is of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from services.kit.logs import get_logger
from services.ledger.model.windows import add_months

_log = get_logger(__name__)

Connection = AsyncConnection[TupleRow]

PARTITIONED = ("journal", "usage")
MONTHS_AHEAD = 3

# Two replicas may start at the same moment. The number has no meaning.
_LOCK_KEY = 7_365_126_400_021
# Whoever waits for a table's lock keeps every writer behind it waiting too: so not for long, and again a moment later.
LOCK_WAIT = "500ms"
_ATTEMPTS, _PAUSE_SECONDS = 10, 0.5

_MONTHS = """
    SELECT c.relname, i.inhrelid IS NOT NULL,
        greatest(pg_stat_get_live_tuples(c.oid), c.reltuples::bigint, 0), pg_total_relation_size(c.oid)
    FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE c.relkind = 'r' AND c.relnamespace = to_regnamespace(current_schema())
        AND c.relname ~ '^(journal|usage)_[0-9]{4}_[0-9]{2}$'
"""


@dataclass(frozen=True, slots=True)
class Month:
    """A month's partitions: `attached`, `detached`, or `dropped`. Rows are about so many while it is attached."""

    month: str
    state: str
    journal_rows: int = 0
    usage_rows: int = 0
    size_bytes: int = 0
    archived: bool = False


def month_name(moment: datetime) -> str:
    """`2026-11`."""
    return f"{moment:%Y-%m}"


def month_start(month: str) -> datetime:
    """When a month named so begins."""
    return datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)


def partition_of(table: str, month: str) -> str:
    """`journal_2026_11`."""
    return f"{table}_{month.replace('-', '_')}"


async def create_months(connection: Connection, now: datetime, ahead: int = MONTHS_AHEAD) -> list[str]:
    """Make the partitions of this month and the next `ahead`, where they are missing; the names of those made.

    Takes a lock on the parent table for a moment, so it is done ahead of time, not when a month begins. What cannot be
    made is told in the log: a month that has rows in the default partition already, since nobody made its own in time,
    stays there; where the lock cannot be had, the next call may do better.
    """
    this_month = datetime(now.year, now.month, 1, tzinfo=UTC)
    wanted = [(table, add_months(this_month, number)) for number in range(ahead + 1) for table in PARTITIONED]
    made = []
    for table, start in wanted:
        name = partition_of(table, month_name(start))
        try:
            if await _made(connection, table, name, start):
                made.append(name)
        except psycopg.errors.CheckViolation:
            _log.warning("a month's rows stay in the default partition", table=table, month=month_name(start))
        except psycopg.errors.LockNotAvailable:
            _log.warning("a month's partition could not be made: its table is in use", partition=name)
    return made


async def _made(connection: Connection, table: str, name: str, start: datetime) -> bool:
    """Make one partition; False where it is there. A transaction of its own, so that no lock is kept for the next."""
    statement = sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
        sql.Identifier(name),
        sql.Identifier(table),
        sql.Literal(start.isoformat()),
        sql.Literal(add_months(start, 1).isoformat()),
    )
    for left in reversed(range(_ATTEMPTS)):
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
                if await one(connection, "SELECT to_regclass(%s)", (name,)) is not None:
                    return False
                await connection.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_WAIT,))
                await connection.execute(statement)
                return True
        except psycopg.errors.LockNotAvailable:
            if not left:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)
    raise AssertionError("unreachable")


async def months(connection: Connection) -> list[Month]:
    """All months there are or were, oldest first."""
    found: dict[str, dict[str, Any]] = {}
    for month, journal_rows, usage_rows, archived_at in await rows(
        connection, "SELECT month, journal_rows, usage_rows, archived_at FROM archived_months"
    ):
        counts = {"journal_rows": journal_rows, "usage_rows": usage_rows}
        found[month] = {"state": "dropped", **counts, "archived": archived_at is not None}
    for name, attached, count, size in await rows(connection, _MONTHS):
        table, month = name.split("_", 1)[0], name.split("_", 1)[1].replace("_", "-")
        known = found.setdefault(month, {})
        known["state"] = "attached" if attached else "detached"
        known["size_bytes"] = known.get("size_bytes", 0) + size
        if attached:
            known[f"{table}_rows"] = count
    return [Month(month, **words) for month, words in sorted(found.items())]


async def rows(connection: Connection, query: Any, arguments: Any = None) -> list[TupleRow]:
    """All rows of a query."""
    return await (await connection.execute(query, arguments)).fetchall()


async def one(connection: Connection, query: Any, arguments: Any = None) -> Any:
    """The first value of a query's first row; None where there is no row."""
    row = await (await connection.execute(query, arguments)).fetchone()
    return row[0] if row else None
