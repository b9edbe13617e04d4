"""Owns the SQL of detaching a month, and of the tables that are then no partitions any more.

What is detached is summed up first: per account in `checkpoints`, where its journal begins from then on, and per
account, key and workspace in `archived_use`, for lifetime limits that are made later. No other window reaches so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from services.ledger.model.windows import add_months
from services.ledger.store.day_sums import RECORDS_AT_ONCE, take_in
from services.ledger.store.partitions import (
    LOCK_WAIT,
    PARTITIONED,
    Connection,
    month_start,
    months,
    one,
    partition_of,
    rows,
)

# Of an advisory lock, so that one month is detached or archived at a time. The number has no meaning.
_LOCK_KEY = 7_365_126_400_022
_ATTEMPTS, _PAUSE_SECONDS = 40, 0.5

_DEFAULT_HAS = "SELECT EXISTS (SELECT FROM {} WHERE created_at < %s)"
_DUE = "SELECT account_id FROM accounts WHERE next_event_at < %s ORDER BY next_event_at LIMIT 1"
# Uses the index holds_open: all open holds, of which there are no more than calls under way.
_HELD = "SELECT account_id FROM holds WHERE status = 'open' AND created_at < %s LIMIT 1"
# An account of which the month, with what was archived before, is not all of 1, 2, 3 …
_BROKEN = """
    SELECT m.account_id FROM (
        SELECT account_id, max({number}) AS last, count(*) AS count FROM {partition} GROUP BY account_id
    ) m LEFT JOIN checkpoints c ON c.account_id = m.account_id
    WHERE m.last - coalesce(c.{number_before}, 0) <> m.count LIMIT 1
"""
_CHECKPOINTS = """
    WITH moved AS (
        SELECT account_id, max(sequence) AS sequence, sum(funding) AS funding, sum(available) AS available,
            sum(held) AS held, sum(spent) AS spent, sum(expired) AS expired
        FROM {journal} GROUP BY account_id
    ), used AS (
        SELECT account_id, max(usage_number) AS usage_number FROM {usage} GROUP BY account_id
    ), parts AS (
        SELECT j.account_id, u.use->>0 AS grant_id, (u.use->>1)::bigint AS amount
        FROM {journal} j CROSS JOIN jsonb_array_elements(j.grant_uses) AS u(use)
        UNION ALL
        SELECT c.account_id, u.use->>0, (u.use->>1)::bigint
        FROM checkpoints c CROSS JOIN jsonb_array_elements(c.grant_uses) AS u(use)
        WHERE c.account_id IN (SELECT account_id FROM moved)
    ), uses AS (
        -- What is nothing now is left out: a grant that is spent or has expired altogether.
        SELECT account_id, jsonb_agg(jsonb_build_array(grant_id, amount) ORDER BY grant_id) AS grant_uses
        FROM (
            SELECT account_id, grant_id, sum(amount)::bigint AS amount FROM parts
            GROUP BY account_id, grant_id HAVING sum(amount) <> 0
        ) s GROUP BY account_id
    )
    INSERT INTO checkpoints (account_id, sequence, hash, funding, available, held, spent, expired, grant_uses,
        usage_number, archived_before)
    SELECT coalesce(m.account_id, used.account_id), coalesce(m.sequence, c.sequence, 0), coalesce(j.hash, c.hash, ''),
        coalesce(c.funding, 0) + coalesce(m.funding, 0), coalesce(c.available, 0) + coalesce(m.available, 0),
        coalesce(c.held, 0) + coalesce(m.held, 0), coalesce(c.spent, 0) + coalesce(m.spent, 0),
        coalesce(c.expired, 0) + coalesce(m.expired, 0),
        CASE WHEN m.sequence IS NULL THEN coalesce(c.grant_uses, '[]') ELSE coalesce(uses.grant_uses, '[]') END,
        coalesce(used.usage_number, c.usage_number, 0), %s
    FROM moved m FULL JOIN used USING (account_id) LEFT JOIN checkpoints c USING (account_id)
        LEFT JOIN uses USING (account_id)
        LEFT JOIN {journal} j ON j.account_id = m.account_id AND j.sequence = m.sequence
    ON CONFLICT (account_id) DO UPDATE SET sequence = excluded.sequence, hash = excluded.hash,
        funding = excluded.funding, available = excluded.available, held = excluded.held, spent = excluded.spent,
        expired = excluded.expired, grant_uses = excluded.grant_uses, usage_number = excluded.usage_number,
        archived_before = excluded.archived_before
"""
_ARCHIVED_USE = """
    INSERT INTO archived_use AS a (account_id, key_id, workspace, billed, tokens, requests)
    SELECT account_id, key_id, workspace, least(sum(billed), 9e18)::bigint, least(sum(tokens), 9e18)::bigint,
        least(sum(requests), 9e18)::bigint
    FROM {usage} GROUP BY account_id, key_id, workspace
    ON CONFLICT (account_id, key_id, workspace) DO UPDATE SET
        billed = least(a.billed::numeric + excluded.billed, 9e18)::bigint,
        tokens = least(a.tokens::numeric + excluded.tokens, 9e18)::bigint,
        requests = least(a.requests::numeric + excluded.requests, 9e18)::bigint
"""


class MonthError(Exception):
    """Why a month cannot be detached, archived or dropped: told to the operator in a line."""


@asynccontextmanager
async def alone(connection: Connection) -> AsyncIterator[None]:
    """Be the only one who detaches or archives. Raises MonthError where somebody does already."""
    if not await one(connection, "SELECT pg_try_advisory_lock(%s)", (_LOCK_KEY,)):
        raise MonthError("another `months` command is running on this database")
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK_KEY,))


async def detach(connection: Connection, month: str) -> tuple[int, int]:
    """Sum a month up and detach its partitions, in one transaction; its journal entries and usage records, counted.

    Writers go on: the month's own partitions, which nobody writes to, are locked while it is summed up, and only then,
    for a moment, the tables themselves. Where that lock cannot be had soon, it is tried again; writers wait for half a
    second at most. Raises MonthError.
    """
    while await take_in(connection, RECORDS_AT_ONCE):  # operators' sums keep the month
        pass
    async with connection.transaction():
        await _check_order(connection, month)
        names = {table: sql.Identifier(partition_of(table, month)) for table in PARTITIONED}
        await connection.execute("SELECT set_config('lock_timeout', '5s', true)")
        try:
            await connection.execute(sql.SQL("LOCK TABLE {journal}, {usage} IN SHARE MODE").format(**names))
        except psycopg.errors.LockNotAvailable as error:
            raise MonthError(f"somebody writes to the partitions of {month}") from error
        end = add_months(month_start(month), 1)
        await _check_over(connection, month, end)
        await _check_whole(connection, month)
        await connection.execute(sql.SQL(_CHECKPOINTS).format(**names), (end,))
        await connection.execute(sql.SQL(_ARCHIVED_USE).format(**names))
        counts = [await one(connection, sql.SQL("SELECT count(*) FROM {}").format(names[t])) for t in PARTITIONED]
        await _detach_partitions(connection, names)
        await connection.execute(
            "INSERT INTO archived_months (month, journal_rows, usage_rows, detached_at) VALUES (%s, %s, %s, now())",
            (month, *counts),
        )
    return counts[0], counts[1]


async def _check_order(connection: Connection, month: str) -> None:
    """Raise MonthError where this is not the oldest month, or not old enough."""
    now: datetime = await one(connection, "SELECT now()")
    this_month = datetime(now.astimezone(UTC).year, now.astimezone(UTC).month, 1, tzinfo=UTC)
    if month_start(month) >= add_months(this_month, -1):
        raise MonthError(f"{month} is needed: the present and the previous month are never detached")
    there = await months(connection)
    state = next((known.state for known in there if known.month == month), None)
    if state != "attached":
        raise MonthError(f"{month} is {state} already" if state else f"there is no month {month}")
    oldest = next(known.month for known in there if known.state == "attached")
    if oldest != month:
        raise MonthError(f"months are detached in order: {oldest} is older than {month}")


async def _check_over(connection: Connection, month: str, end: datetime) -> None:
    """Raise MonthError where something may still be written in the month, or may need it."""
    for table in PARTITIONED:
        partition = sql.Identifier(f"{table}_default")
        if await one(connection, sql.SQL(_DEFAULT_HAS).format(partition), (end,)):
            raise MonthError(f"{table}_default has rows of {month} or earlier; see the runbook")
        attached = "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(%s))"
        if not await one(connection, attached, (partition_of(table, month),)):
            raise MonthError(f"{table} has no partition of {month}")
    due = await one(connection, _DUE, (end,))
    if due is not None:
        raise MonthError(f"something is due since {month} at account {due}: is the worker running?")
    held = await one(connection, _HELD, (end,))
    if held is not None:
        raise MonthError(f"account {held} has a hold from {month} or earlier that is still open")


async def _check_whole(connection: Connection, month: str) -> None:
    """Raise MonthError where entries or records are missing in between: then they are still needed, to find out why."""
    for table, number, number_before in (
        ("journal", "sequence", "sequence"),
        ("usage", "usage_number", "usage_number"),
    ):
        query = sql.SQL(_BROKEN).format(
            number=sql.Identifier(number),
            number_before=sql.Identifier(number_before),
            partition=sql.Identifier(partition_of(table, month)),
        )
        broken = await one(connection, query)
        if broken is not None:
            raise MonthError(f"the {table} of account {broken} has a gap in or before {month}; run `verify`")


async def _detach_partitions(connection: Connection, names: dict[str, sql.Identifier]) -> None:
    """Detach in the order in which writers use the tables. Not CONCURRENTLY, which a default partition rules out.

    The wait is shorter than Postgres' deadlock_timeout: where a batch that uses them the other way round has the other
    table already, this gives way and not the batch.
    """
    await connection.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_WAIT,))
    for left in reversed(range(_ATTEMPTS)):
        try:
            async with connection.transaction():  # a savepoint: what was locked is let go
                for table in PARTITIONED:
                    statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {}")
                    await connection.execute(statement.format(sql.Identifier(table), names[table]))
                return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if not left:
                raise MonthError("the journal is in use all the time (a long export?); try again later") from error
        await asyncio.sleep(_PAUSE_SECONDS)


async def detached_tables(connection: Connection, month: str) -> list[str]:
    """The tables of a month that is detached and not dropped. Raises MonthError where it is not."""
    there = next((known.state for known in await months(connection) if known.month == month), None)
    if there != "detached":
        raise MonthError(f"{month} is {there}, not detached" if there else f"there is no month {month}")
    return [partition_of(table, month) for table in PARTITIONED]


async def columns(connection: Connection, table: str) -> list[tuple[str, str]]:
    """A table's columns, in order: name and type."""
    query = (
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    return [(row[0], row[1]) for row in await rows(connection, query, (table,))]


async def contents(connection: Connection, table: str, names: list[str], at_once: int) -> AsyncIterator[list[TupleRow]]:
    """All rows of a detached table by its key, so many at a time; JSON as text. In a transaction of the caller's."""
    key = ("account_id", "sequence" if table.startswith("journal") else "usage_number")
    selected = [
        sql.SQL("{}::text").format(sql.Identifier(name)) if name in {"grant_uses", "units"} else sql.Identifier(name)
        for name in names
    ]
    query = sql.SQL("SELECT {} FROM {} ORDER BY {}").format(
        sql.SQL(", ").join(selected), sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, key))
    )
    async with connection.cursor(name="archive") as cursor:
        await cursor.execute(query)
        while found := await cursor.fetchmany(at_once):
            yield found


async def mark_archived(connection: Connection, month: str, *, drop: bool) -> None:
    """Note that a month's files were verified, and drop its tables if asked to, both or neither."""
    async with connection.transaction():
        await connection.execute(
            "UPDATE archived_months SET archived_at = now(), dropped_at = CASE WHEN %s THEN now() END WHERE month = %s",
            (drop, month),
        )
        if drop:
            tables: list[Any] = [sql.Identifier(name) for name in await detached_tables(connection, month)]
            await connection.execute(sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(tables)))
