"""Owns the SQL that writes what a batch changed, in one pipeline, and commits it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import psycopg

from services.ledger.model.book import Book
from services.ledger.model.rows import Changes, HoldKey
from services.ledger.store.columns import (
    ACCOUNT,
    ACCOUNT_CHANGES,
    ACCOUNT_WORDS,
    ENTRY,
    EXPIRED,
    GRANT,
    HOLD,
    HOLD_CHANGES,
    HOLD_END,
    OPEN_HOLD,
    OPEN_HOLD_REST,
    REQUEST,
    SUBJECT,
    UNDONE,
    USAGE,
    VERSION,
    WRITTEN_VERSION,
    Columns,
    literals,
)
from services.ledger.store.loading import LOCK_WAIT, LOCKED_SECONDS
from services.ledger.store.pipeline import Asked, Connection, Statement


def _rows(columns: Columns) -> str:
    return f"unnest({columns.unnest}) AS c({columns.names})"


def _insert(table: str, columns: Columns) -> str:
    return f"INSERT INTO {table} ({columns.names}) SELECT {columns.selected} FROM {_rows(columns)}"  # noqa: S608 (names are columns.py's own)


def _update(table: str, columns: Columns, *, key: int) -> str:
    same = " AND ".join(f"t.{name} = c.{name}" for name, _, _ in columns.each[:key])
    return f"UPDATE {table} t SET {columns.changes(key)} FROM {_rows(columns)} WHERE {same}"  # noqa: S608 (likewise)


# What nearly every batch writes goes as one statement: a statement's own cost is that of many rows, and that of each of
# these parts is that of some. So a batch's statement has the parts that it needs: most are of holds alone, or of their
# settlements.
_ACCOUNTS = f"accounts_changed AS ({_update('accounts', ACCOUNT_CHANGES, key=1)})"
_ENTRIES = f"entries AS ({_insert('journal', ENTRY)})"
_LIMITS = f"""limits_changed AS (
    {_insert("subject_limits", SUBJECT)} ON CONFLICT (account_id, scope, subject) DO UPDATE SET limits = excluded.limits
)"""
_HOLDS_MADE = f"holds_made AS ({_insert('holds', HOLD)})"
_HOLDS_OPENED = f"""holds_made AS (
    INSERT INTO holds ({OPEN_HOLD.names}, {OPEN_HOLD_REST[0]})
    SELECT {OPEN_HOLD.selected}, {OPEN_HOLD_REST[1]} FROM {_rows(OPEN_HOLD)}
)"""  # noqa: S608 (names are columns.py's own)
_HOLDS_CHANGED = f"holds_changed AS ({_update('holds', HOLD_CHANGES, key=2)})"
_HOLDS_ENDED = f"holds_changed AS ({_update('holds', HOLD_END, key=2)})"
# The usage records take their writer's place in the feed at the statement's end: the slot's row is locked until the
# commit, so that within a slot positions are in commit order, also where two writers share one.
_RECORDS = f"""place AS (
    UPDATE feed_slots SET position = position + n.added, fed_at = greatest(fed_at, clock_timestamp())
    FROM (SELECT %s::integer AS added, %s::smallint AS writer) n WHERE slot = n.writer
    RETURNING slot, position - n.added AS before, fed_at
), records AS (
    INSERT INTO usage ({USAGE.names}, feed_slot, feed_position, fed_at)
    SELECT {USAGE.selected}, place.slot, place.before + c.ordinality, place.fed_at
    FROM place, unnest({USAGE.unnest}) WITH ORDINALITY AS c({USAGE.names}, ordinality)
)"""  # noqa: S608 (names are columns.py's own)
# After the locks, which retention takes, too: fails where a hold that is made has the name of one that ended long ago.
# One that is there still shows when it is written.
_NAMES_ARE_NEW = """, (CASE WHEN EXISTS (
    SELECT FROM ended_holds WHERE (account_id, hold_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
) THEN 'taken' ELSE '1' END)::integer"""


@functools.cache
def _change(parts: tuple[str, ...], end: str) -> Statement:
    """The statement of these parts. It answers with the version of what it wrote."""
    return Statement(f"WITH {', '.join(parts)} SELECT {WRITTEN_VERSION}{end}")


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
_BEGIN = Statement("BEGIN")
_COMMIT = Statement("COMMIT")
_ROLLBACK = Statement("ROLLBACK")
# Locks accounts in the order of ids, as batches that read do, and fails where not all are as they are remembered.
_CONFIRM = Statement(f"""
    SELECT 1 / (count(*) = %s::integer)::integer, {LOCKED_SECONDS} FROM (
        SELECT FROM accounts a JOIN unnest(%s::text[], %s::bigint[]) AS r(account_id, version) USING (account_id)
        WHERE a.{VERSION} = r.version ORDER BY account_id FOR NO KEY UPDATE OF a
    ) AS confirmed
""")  # noqa: S608 (names are columns.py's own)
# After the locks: fails where one of these holds was made before.
_NONE_THERE = Statement("""
    SELECT (CASE WHEN EXISTS (
        SELECT FROM holds WHERE (account_id, hold_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
        UNION ALL
        SELECT FROM ended_holds WHERE (account_id, hold_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
    ) THEN 'taken' ELSE '1' END)::integer
""")
# How `_CONFIRM` fails, and the ways to find that the name of a new hold is taken.
_OUTDATED = psycopg.errors.DivisionByZero
_TAKEN = (psycopg.errors.InvalidTextRepresentation, psycopg.errors.UniqueViolation)

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


class NotAsRememberedError(Exception):
    """Something of a batch's accounts is not as it was taken to be, so nothing is written.

    `outdated`: somebody else has changed an account; else a hold's name is not new.
    """

    def __init__(self, *, outdated: bool) -> None:
        super().__init__()
        self.outdated = outdated


async def write(
    connection: Connection,
    changes: Changes,
    slot: int,
    unconfirmed: Mapping[str, int],
    unread: Collection[HoldKey] = (),
) -> int:
    """Write what a batch changed, and commit the transaction that `load` began; the version of all rows it wrote.

    `unconfirmed`: where `load` began none, the accounts that the batch took as they are remembered, also those that it
    has not changed. `unread`: names that it took to be new. `slot`: the writer's in the feed. Raises
    NotAsRememberedError.
    """
    books = [book for account_id, book in changes.books.items() if account_id not in changes.opened]
    reworded = [book for book in books if book.account_id in changes.reworded]
    requests = [(key, past, changes.books[key[0]].touched_at) for key, past in changes.requests.items()]
    # In the order of ids, as the locks are taken.
    asked = [
        _rows_by(_INSERT_ACCOUNTS, ACCOUNT, [book for _, book in sorted(changes.opened.items())]),
        _rows_by(_UPDATE_WORDS, ACCOUNT_WORDS, reworded),
        _rows_by(_INSERT_GRANTS, GRANT, list(changes.grants.items())),
        _rows_by(_ADD_EXPIRED, EXPIRED, list(changes.expired.items())),
        _rows_by(_UPSERT_UNDONE, UNDONE, list(changes.undone.items())),
        _rows_by(_INSERT_REQUESTS, REQUEST, requests),
        _changed(changes, books, slot) if changes.books else None,
        (_COMMIT, ()) if changes else (_ROLLBACK, ()),
    ]
    if not unconfirmed:
        answers = await connection.ask(*asked)
    else:
        confirming: list[Asked] = [
            (_BEGIN, ()),
            (_CONFIRM, (b"%d" % len(unconfirmed), *literals(list(unconfirmed.items())))),
        ]
        # Of holds that are made, their writing tells. One that was refused, or undone with its group, may be a replay.
        if refused := [key for key in unread if key not in changes.made]:
            confirming.append((_NONE_THERE, literals(refused) * 2))
        try:
            answers = await connection.ask(*confirming, *asked)
        except (_OUTDATED, *_TAKEN) as error:
            raise NotAsRememberedError(outdated=isinstance(error, _OUTDATED)) from error
        LOCK_WAIT.observe(answers[1][0][1])
    return int(answers[-2][0][0]) if changes.books else 0


def _rows_by(statement: Statement, columns: Columns, rows: Sequence[Any]) -> Asked | None:
    """A statement that writes rows, if there are any."""
    return (statement, columns.literals(rows)) if rows else None


def _changed(changes: Changes, books: Sequence[Book], slot: int) -> Asked:
    """The statement of what nearly every batch writes."""
    parts, parameters, end = [_ACCOUNTS], ACCOUNT_CHANGES.literals(books), ""
    if changes.entries:
        parts.append(_ENTRIES)
        parameters += ENTRY.literals(changes.entries)
    if changes.subjects:
        parts.append(_LIMITS)
        parameters += SUBJECT.literals(list(changes.subjects.items()))
    if changes.holds:
        part, columns = (_HOLDS_CHANGED, HOLD_CHANGES) if changes.extended else (_HOLDS_ENDED, HOLD_END)
        parts.append(part)
        parameters += columns.literals(list(changes.holds.values()))
    if changes.usage:
        parts.append(_RECORDS)
        parameters += [b"%d" % len(changes.usage), b"%d" % slot, *USAGE.literals(changes.usage)]
    if changes.made:
        made = list(changes.made.values())
        are_open = all(hold.status == "open" for hold in made)
        part, columns = (_HOLDS_OPENED, OPEN_HOLD) if are_open else (_HOLDS_MADE, HOLD)
        parts.append(part)
        parameters += columns.literals(made) + literals(list(changes.made))
        end = _NAMES_ARE_NEW
    return _change(tuple(parts), end), parameters
