"""Owns the SQL that writes what a batch changed, in one pipeline, and commits it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from services.ledger.model.rows import Changes
from services.ledger.store.columns import (
    ACCOUNT,
    ACCOUNT_CHANGES,
    ACCOUNT_WORDS,
    ENTRY,
    EXPIRED,
    GRANT,
    HOLD,
    REQUEST,
    SUBJECT,
    UNDONE,
    USAGE,
    Column,
    names,
    selected,
    unnest,
)
from services.ledger.store.loading import Connection


def _insert(table: str, columns: tuple[Column, ...]) -> str:
    return (
        f"INSERT INTO {table} ({names(columns)}) "  # noqa: S608 (names are this module's own)
        f"SELECT {selected(columns)} FROM unnest({unnest(columns)}) AS c({names(columns)})"
    )


def _update(table: str, columns: tuple[Column, ...], *, key: int) -> str:
    changes = ", ".join(f"{n} = c.{n}::jsonb" if k == "jsonb" else f"{n} = c.{n}" for n, k, _ in columns[key:])
    same = " AND ".join(f"t.{name} = c.{name}" for name, _, _ in columns[:key])
    return (
        f"UPDATE {table} t SET {changes} "  # noqa: S608 (names are this module's own)
        f"FROM unnest({unnest(columns)}) AS c({names(columns)}) WHERE {same}"
    )


_INSERT_ACCOUNTS = _insert("accounts", ACCOUNT)
_UPDATE_ACCOUNTS = _update("accounts", ACCOUNT_CHANGES, key=1)
_HOLD_CHANGES = (
    "amount", "tokens", "expires_at", "reservations", "unbacked", "status", "settled", "ended_at", "end_body_hash",
    "end_sequence", "end_available", "was_expired", "usage_id",
)  # fmt: skip
_UPSERT_HOLDS = (
    _insert("holds", HOLD)
    + " ON CONFLICT (account_id, hold_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _HOLD_CHANGES)
)
_INSERT_ENTRIES = _insert("journal", ENTRY)
# Its writer's place in the feed is taken in the same statement, the last of the batch: the slot's row is locked until
# the commit, so that within a slot positions are in commit order, also where two writers share one.
_INSERT_USAGE = f"""
    WITH slot AS (
        UPDATE feed_slots SET position = position + %s, fed_at = greatest(fed_at, clock_timestamp())
        WHERE slot = %s RETURNING slot, position - %s AS before, fed_at
    )
    INSERT INTO usage ({names(USAGE)}, feed_slot, feed_position, fed_at)
    SELECT {selected(USAGE)}, slot.slot, slot.before + c.ordinality, slot.fed_at
    FROM slot, unnest({unnest(USAGE)}) WITH ORDINALITY AS c({names(USAGE)}, ordinality)
"""  # noqa: S608 (names are this module's own)
_INSERT_GRANTS = _insert("grants", GRANT)
_ADD_EXPIRED = f"""
    UPDATE grants t SET expired = t.expired + c.expired FROM unnest({unnest(EXPIRED)}) AS c({names(EXPIRED)})
    WHERE t.account_id = c.account_id AND t.grant_id = c.grant_id
"""  # noqa: S608 (names are this module's own)
_UPSERT_UNDONE = (
    _insert("undone", UNDONE) + " ON CONFLICT (account_id, sequence) DO UPDATE SET amount = excluded.amount"
)
_UPDATE_WORDS = _update("accounts", ACCOUNT_WORDS, key=1)
_INSERT_REQUESTS = _insert("requests", REQUEST)
_UPSERT_SUBJECTS = (
    _insert("subject_limits", SUBJECT)
    + " ON CONFLICT (account_id, scope, subject) DO UPDATE SET limits = excluded.limits"
)


FEED_SLOTS = 64

# Of the advisory locks by which writers share out the slots. The number has no meaning.
_SLOT_LOCKS = 736_512_640
_TAKE_SLOT = "SELECT slot FROM generate_series(0, %s) AS slot WHERE pg_try_advisory_lock(%s, slot) LIMIT 1"


async def take_slot(connection: Connection) -> int:
    """A slot of the usage feed that no other writer has, for as long as the connection lasts; any where all are taken.

    Writers that share one wait for each other's commits, no more.
    """
    row = await (await connection.execute(_TAKE_SLOT, (FEED_SLOTS - 1, _SLOT_LOCKS))).fetchone()
    return int(row[0]) if row else secrets.randbelow(FEED_SLOTS)


async def write(connection: Connection, changes: Changes, slot: int) -> None:
    """Write what a batch changed, and commit the transaction that `load` began. `slot`: the writer's in the feed."""
    books = [book for account_id, book in changes.books.items() if account_id not in changes.opened]
    reworded = [book for book in books if book.account_id in changes.reworded]
    requests = [(key, past, changes.books[key[0]].touched_at) for key, past in changes.requests.items()]
    count = len(changes.usage)
    async with connection.pipeline():
        # In the order of ids, as the locks are taken.
        await _send(connection, _INSERT_ACCOUNTS, ACCOUNT, [book for _, book in sorted(changes.opened.items())])
        await _send(connection, _UPDATE_ACCOUNTS, ACCOUNT_CHANGES, books)
        await _send(connection, _UPDATE_WORDS, ACCOUNT_WORDS, reworded)
        await _send(connection, _UPSERT_SUBJECTS, SUBJECT, list(changes.subjects.items()))
        await _send(connection, _UPSERT_HOLDS, HOLD, list(changes.holds.values()))
        await _send(connection, _INSERT_GRANTS, GRANT, list(changes.grants.items()))
        await _send(connection, _ADD_EXPIRED, EXPIRED, list(changes.expired.items()))
        await _send(connection, _INSERT_ENTRIES, ENTRY, changes.entries)
        await _send(connection, _UPSERT_UNDONE, UNDONE, list(changes.undone.items()))
        await _send(connection, _INSERT_REQUESTS, REQUEST, requests)
        await _send(connection, _INSERT_USAGE, USAGE, changes.usage, first=(count, slot, count))
        await connection.execute("COMMIT")


async def _send(
    connection: Connection, query: str, columns: tuple[Column, ...], rows: Sequence[Any], first: tuple[int, ...] = ()
) -> None:
    if rows:
        arrays = [[value(row) for row in rows] for _, _, value in columns]
        await connection.execute(query, [*first, *arrays], prepare=True)
