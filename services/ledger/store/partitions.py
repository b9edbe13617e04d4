"""Owns the monthly partitions of the journal and the usage records."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from services.kit.logs import get_logger
from services.ledger.model.windows import add_months

_log = get_logger(__name__)

PARTITIONED = ("journal", "usage")
MONTHS_AHEAD = 3

# Two replicas may start at the same moment. The number has no meaning.
_LOCK_KEY = 7_365_126_400_021


async def create_months(connection: AsyncConnection[TupleRow], now: datetime) -> list[str]:
    """Make the partitions of this month and the next three, where they are missing; the names of those made.

    Takes a lock on the parent table for a moment, so it is done ahead of time, not when a month begins. A month that
    has rows in the default partition already, since nobody made its own in time, stays there.
    """
    made = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
        for table in PARTITIONED:
            for ahead in range(MONTHS_AHEAD + 1):
                start = add_months(datetime(now.year, now.month, 1, tzinfo=UTC), ahead)
                name = f"{table}_{start:%Y_%m}"
                found = await (await connection.execute("SELECT to_regclass(%s)", (name,))).fetchone()
                if found is not None and found[0] is not None:
                    continue
                statement = sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
                    sql.Identifier(name),
                    sql.Identifier(table),
                    sql.Literal(start.isoformat()),
                    sql.Literal(add_months(start, 1).isoformat()),
                )
                try:
                    async with connection.transaction():  # a savepoint
                        await connection.execute(statement)
                except psycopg.errors.CheckViolation:
                    _log.warning("a month's rows stay in the default partition", table=table, month=f"{start:%Y-%m}")
                else:
                    made.append(name)
    return made
