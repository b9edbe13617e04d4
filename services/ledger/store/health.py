"""Owns the SQL of what the worker reports: what is overdue, and whether the months ahead are there. Takes no lock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg import sql

from services.ledger.model.windows import add_months
from services.ledger.store.due import due_accounts
from services.ledger.store.partitions import PARTITIONED, Connection, month_name, one, partition_of

_LAG = f"""
    SELECT extract(epoch FROM clock_timestamp() - next_event_at)::float8 FROM ({due_accounts("now()")} LIMIT 1) AS due
"""  # noqa: S608 (all of it is our own)
# Reads the index holds_open, which has no others.
_HOLDS = "SELECT count(*) FROM holds WHERE status = 'open'"


@dataclass(frozen=True, slots=True)
class Health:
    """How the housekeeping stands."""

    # How long something has been due at the account that the worker comes to next; 0: at none.
    due_lag_seconds: float
    # Months after this one, in a row, that have all their partitions.
    months_ahead: int
    # Tables with rows in their default partition.
    defaults_in_use: int
    holds_open: int


async def health(connection: Connection) -> Health:
    """The state of the database's housekeeping as of now."""
    lag = await one(connection, _LAG)
    now = datetime.now(UTC)
    this_month = datetime(now.year, now.month, 1, tzinfo=UTC)
    counted = "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relname = ANY(%s)"
    ahead = 0
    while True:
        month = month_name(add_months(this_month, ahead + 1))
        names = [partition_of(table, month) for table in PARTITIONED]
        if await one(connection, counted, (names,)) != len(PARTITIONED):
            break
        ahead += 1
    used = 0
    for table in PARTITIONED:
        query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(f"{table}_default"))
        used += bool(await one(connection, query))
    return Health(max(0.0, lag or 0.0), ahead, used, await one(connection, _HOLDS))
