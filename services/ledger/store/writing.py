"""Owns the SQL that writes what a batch changed, in one pipeline, and commits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.ledger.model.book import Book
from services.ledger.model.rows import Changes
from services.ledger.store.columns import (
    ACCOUNT,
    ACCOUNT_CHANGES,
    ACCOUNT_WORDS,
    ENTRY,
    EXPIRED,
    GRANT,
    HOLD,
    HOLD_CHANGES,
    REQUEST,
    SUBJECT,
    UNDONE,
    USAGE,
    Columns,
)
from services.ledger.store.pipeline import Asked, Connection, Statement


def _rows(columns: Columns) -> str:
    return f"unnest({columns.unnest}) AS c({columns.names})"


def _insert(table: str, columns: Columns) -> str:
    return f"INSERT INTO {table} ({columns.names}) SELECT {columns.selected} FROM {_rows(columns)}"  # noqa: S608 (names are columns.py's own)


def _update(table: str, columns: Columns, *, key: int) -> str:
    same = " AND ".join(f"t.{name} = c.{name}" for name, _, _ in columns.each[:key])
    return f"UPDATE {table} t SET {columns.changes(key)} FROM {_rows(columns)} WHERE {same}"  # noqa: S608 (likewise)


# What nearly every batch writes, as one statement: a statement's own cost is that of many rows. The usage records take
# their writer's place in the feed there too, at its end: the slot's row is locked until the commit, so that within a
# slot positions are in commit order, also where two writers share one.
_CHANGE = Statement(f"""
    WITH changed_accounts AS ({_update("accounts", ACCOUNT_CHANGES, key=1)}),
    changed_limits AS (
        {_insert("subject_limits", SUBJECT)}
        ON CONFLICT (account_id, scope, subject) DO UPDATE SET limits = excluded.limits
    ),
    new_holds AS ({_insert("holds", HOLD)}),
    changed_holds AS ({_update("holds", HOLD_CHANGES, key=2)}),
    entries AS ({_insert("journal", ENTRY)}),
    place AS (
        UPDATE feed_slots SET position = position + n.added, fed_at = greatest(fed_at, clock_timestamp())
        FROM (SELECT %s::integer AS added, %s::smallint AS writer) n WHERE slot = n.writer AND n.added > 0
        RETURNING slot, position - n.added AS before, fed_at
    )
    INSERT INTO usage ({USAGE.names}, feed_slot, feed_position, fed_at)
    SELECT {USAGE.selected}, place.slot, place.before + c.ordinality, place.fed_at
    FROM place, unnest({USAGE.unnest}) WITH ORDINALITY AS c({USAGE.names}, ordinality)
""")  # noqa: S608 (names are columns.py's own)

_INSERT_ACCOUNTS = Statement(_insert("accounts", ACCOUNT))
_UPDATE_WORDS = Statement(_update("accounts", ACCOUNT_WORDS, key=1))
_INSERT_GRANTS = Statement(_insert("grants", GRANT))
_ADD_EXPIRED = Statement(f"""
    UPDATE grants t SET expired = t.expired + c.expired FROM {_rows(EXPIRED)}
    WHERE t.account_id = c.account_id AND t.grant_id = c.grant_id
""")  # noqa: S608 (names are columns.py's own)
_UPSERT_UNDONE = Statement(
    _insert("undone", UNDONE) + " ON CONFLICT (account_id, sequence) DO UPDATE SET amount = excluded.amount"
)
_INSERT_REQUESTS = Statement(_insert("requests", REQUEST))
_COMMIT = Statement("COMMIT")

FEED_SLOTS = 64

# Of the advisory locks by which writers share out the slots. The number has no meaning.
_SLOT_LOCKS = 736_512_640
_TAKE_SLOT = "SELECT slot FROM feed_slots WHERE pg_try_advisory_lock(%s, slot) LIMIT 1"
_ANY_SLOT = "SELECT slot FROM feed_slots ORDER BY random() LIMIT 1"


async def take_slot(connection: Connection) -> int:
    """A slot of the usage feed that no other writer has, for as long as the connection lasts; any where all are taken.

    Writers that share one wait for each other's commits, no more. Raises LookupError where there is none: a batch
    would leave its usage records out.
    """
    row = await (await connection.execute(_TAKE_SLOT, (_SLOT_LOCKS,))).fetchone()
    row = row or await (await connection.execute(_ANY_SLOT)).fetchone()
    if row is None:
        raise LookupError("feed_slots is empty: restore it")
    return int(row[0])


async def write(connection: Connection, changes: Changes, slot: int) -> None:
    """Write what a batch changed, and commit the transaction that `load` began. `slot`: the writer's in the feed."""
    books = [book for account_id, book in changes.books.items() if account_id not in changes.opened]
    reworded = [book for book in books if book.account_id in changes.reworded]
    requests = [(key, past, changes.books[key[0]].touched_at) for key, past in changes.requests.items()]
    # In the order of ids, as the locks are taken.
    await connection.ask(
        _rows_by(_INSERT_ACCOUNTS, ACCOUNT, [book for _, book in sorted(changes.opened.items())]),
        _rows_by(_UPDATE_WORDS, ACCOUNT_WORDS, reworded),
        _rows_by(_INSERT_GRANTS, GRANT, list(changes.grants.items())),
        _rows_by(_ADD_EXPIRED, EXPIRED, list(changes.expired.items())),
        _rows_by(_UPSERT_UNDONE, UNDONE, list(changes.undone.items())),
        _rows_by(_INSERT_REQUESTS, REQUEST, requests),
        (_CHANGE, _changed(changes, books, slot)) if changes.books else None,
        (_COMMIT, ()),
    )


def _rows_by(statement: Statement, columns: Columns, rows: Sequence[Any]) -> Asked | None:
    """A statement that writes rows, if there are any."""
    return (statement, columns.literals(rows)) if rows else None


def _changed(changes: Changes, books: Sequence[Book], slot: int) -> list[bytes]:
    """The parameters of `_CHANGE`."""
    return [
        *ACCOUNT_CHANGES.literals(books),
        *SUBJECT.literals(list(changes.subjects.items())),
        *HOLD.literals(list(changes.made.values())),
        *HOLD_CHANGES.literals(list(changes.holds.values())),
        *ENTRY.literals(changes.entries),
        b"%d" % len(changes.usage),
        b"%d" % slot,
        *USAGE.literals(changes.usage),
    ]
