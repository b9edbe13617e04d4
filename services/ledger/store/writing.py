"""Owns the SQL that writes what a batch changed, in one pipeline, and commits it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
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
)
from services.ledger.store.loading import LOCK_WAIT, LOCKED_SECONDS
from services.ledger.store.pipeline import Asked, Connection, Statement
from services.ledger.store.values import literals


def _many(columns: Columns, *, numbered: bool = False) -> str:
    """Any number of rows `c`; an array literal for each column."""
    rows, names = f"unnest({columns.unnest})", columns.names
    return f"{rows} WITH ORDINALITY AS c({names}, ordinality)" if numbered else f"{rows} AS c({names})"


def _single(columns: Columns) -> str:
    """One row `c`, its values the statement's own parameters."""
    return f"(VALUES ({columns.single}, 1)) AS c({columns.names}, ordinality)"


def _insert(table: str, columns: Columns, rows: str) -> str:
    return f"INSERT INTO {table} ({columns.names}) SELECT {columns.selected} FROM {rows}"  # noqa: S608 (names are columns.py's own)


def _update(table: str, columns: Columns, rows: str, *, key: int) -> str:
    same = " AND ".join(f"t.{name} = c.{name}" for name, _, _ in columns.each[:key])
    return f"UPDATE {table} t SET {columns.changes(key)} FROM {rows} WHERE {same}"  # noqa: S608 (likewise)


class _Part:
    """A part of the statement that nearly every batch is: writes some rows, or a single one.

    What nearly every batch writes goes as one statement: a statement's own cost is that of many rows, and that of each
    of its parts is that of some. So it has the parts that a batch needs: most are of holds alone, or of their
    settlements. Where each is of one row, there is no array to read and nothing to join.
    """

    def __init__(
        self, name: str, columns: Columns, sql: Callable[[Columns, str], str], *, numbered: bool = False
    ) -> None:
        self.columns = columns
        self.many = f"{name} AS ({sql(columns, _many(columns, numbered=numbered))})"
        self.single = f"{name} AS ({sql(columns, _single(columns))})"


def _insert_open_holds(columns: Columns, rows: str) -> str:
    names, values = OPEN_HOLD_REST
    return f"INSERT INTO holds ({columns.names}, {names}) SELECT {columns.selected}, {values} FROM {rows}"  # noqa: S608 (likewise)


def _insert_records(columns: Columns, rows: str) -> str:
    return f"""
        INSERT INTO usage ({columns.names}, feed_slot, feed_position, fed_at)
        SELECT {columns.selected}, place.slot, place.before + c.ordinality, place.fed_at FROM place, {rows}
    """  # noqa: S608 (likewise)


_ACCOUNTS = _Part("accounts_changed", ACCOUNT_CHANGES, partial(_update, "accounts", key=1))
_ENTRIES = _Part("entries", ENTRY, partial(_insert, "journal"))
_LIMITS = _Part("limits_changed", SUBJECT, partial(_update, "subject_limits", key=3))
_HOLDS_CHANGED = _Part("holds_changed", HOLD_CHANGES, partial(_update, "holds", key=2))
_HOLDS_ENDED = _Part("holds_changed", HOLD_END, partial(_update, "holds", key=2))
_HOLDS_MADE = _Part("holds_made", HOLD, partial(_insert, "holds"))
_HOLDS_OPENED = _Part("holds_made", OPEN_HOLD, _insert_open_holds)
_RECORDS = _Part("records", USAGE, _insert_records, numbered=True)
# The usage records take their writer's place in the feed at the statement's end: the slot's row is locked until the
# commit, so that within a slot positions are in commit order, also where two writers share one.
_PLACE = """place AS (
    UPDATE feed_slots SET position = position + n.added, fed_at = greatest(fed_at, clock_timestamp())
    FROM (SELECT %s::integer AS added, %s::smallint AS writer) n WHERE slot = n.writer
    RETURNING slot, position - n.added AS before, fed_at
)"""
# Accounts that are remembered are locked by their change, in the order in which they are given. It comes first, as the
# statement's answer is made of it, and that fails where not all of them are as they are remembered.
_CONFIRMED_ACCOUNT, _CONFIRMED_ACCOUNTS = (
    f"accounts_changed AS ({_update('accounts', ACCOUNT_CHANGES, rows, key=1)} AND t.xmin = {version} RETURNING true)"
    for rows, version in (
        (_single(ACCOUNT_CHANGES), "%s::xid"),
        (f"unnest({ACCOUNT_CHANGES.unnest}, %s::xid[]) AS c({ACCOUNT_CHANGES.names}, version)", "c.version"),
    )
)
# The time is taken after that: what stands first is done first.
_CONFIRMED = f", 1 / ((SELECT count(*) FROM accounts_changed) = %s::integer)::integer, {LOCKED_SECONDS}"  # noqa: S608 (likewise)


@functools.cache
def _change(parts: tuple[str, ...], end: str) -> Statement:
    """The statement of these parts. It answers with the version of what it wrote."""
    written = f"WITH {', '.join(parts)} " if parts else ""
    return Statement(f"{written}SELECT {WRITTEN_VERSION}{end}")


_INSERT_ACCOUNTS = Statement(_insert("accounts", ACCOUNT, _many(ACCOUNT)))
_UPDATE_WORDS = Statement(_update("accounts", ACCOUNT_WORDS, _many(ACCOUNT_WORDS), key=1))
_INSERT_GRANTS = Statement(_insert("grants", GRANT, _many(GRANT)))
_ADD_EXPIRED = Statement(f"""
    UPDATE grants t SET expired = t.expired + c.expired FROM {_many(EXPIRED)}
    WHERE t.account_id = c.account_id AND t.grant_id = c.grant_id
""")  # noqa: S608 (names are columns.py's own)
_UPSERT_LIMITS = Statement(
    _insert("subject_limits", SUBJECT, _many(SUBJECT))
    + " ON CONFLICT (account_id, scope, subject) DO UPDATE SET limits = excluded.limits"
)
_UPSERT_UNDONE = Statement(
    _insert("undone", UNDONE, _many(UNDONE))
    + " ON CONFLICT (account_id, sequence) DO UPDATE SET amount = excluded.amount"
)
_INSERT_REQUESTS = Statement(_insert("requests", REQUEST, _many(REQUEST)))
_COMMIT = Statement("COMMIT")
_ROLLBACK = Statement("ROLLBACK")
# Of accounts that are not changed, and so need no lock: fails where not all are as they are remembered.
_CONFIRM = Statement(f"""
    SELECT 1 / (count(*) = %s::integer)::integer
    FROM accounts a JOIN unnest(%s::text[], %s::bigint[]) AS r(account_id, version) USING (account_id)
    WHERE a.{VERSION} = r.version
""")  # noqa: S608 (names are columns.py's own)
# After the locks, which retention takes, too: fail where one of these holds was made before, or ended long ago. Of one
# that is made its writing tells whether it is there still. Of one that is refused first the former is looked for: what
# is forgotten between them is found by the latter.
_NONE_THERE = Statement("""
    SELECT (CASE WHEN EXISTS (
        SELECT FROM holds WHERE (account_id, hold_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
    ) THEN 'taken' ELSE '1' END)::integer
""")
_NONE_ENDED = Statement("""
    SELECT (CASE WHEN EXISTS (
        SELECT FROM ended_holds WHERE (account_id, hold_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
    ) THEN 'taken' ELSE '1' END)::integer
""")
# How `_CONFIRM` and `_CONFIRMED` fail, and the ways to find that the name of a new hold is taken.
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
    *,
    meanwhile: Callable[[], None] | None = None,
) -> int:
    """Write what a batch changed, and commit the transaction that `load` began; the version of all rows it wrote.

    `unconfirmed`: where `load` began none, the accounts that the batch took as they are remembered, also those that it
    has not changed. `unread`: names that it took to be new. `slot`: the writer's in the feed. `meanwhile`: see
    Connection.ask. Raises NotAsRememberedError.
    """
    books = [book for account_id, book in sorted(changes.books.items()) if account_id not in changes.opened]
    written = _written(changes, books)
    others = _seldom_written(changes, books)
    if not unconfirmed:
        change = _changed(written, slot) if changes.books else None
        end = (_COMMIT, ()) if changes else (_ROLLBACK, ())
        answers = await connection.ask(*others, change, end, meanwhile=meanwhile)
        return int(answers[-2][0][0]) if changes.books else 0
    versions = [unconfirmed[book.account_id] for book in books]
    unchanged = [
        (account_id, version) for account_id, version in unconfirmed.items() if account_id not in changes.books
    ]
    asked = (
        _changed(written, slot, versions) if books else None,
        (_CONFIRM, (b"%d" % len(unchanged), *literals(unchanged))) if unchanged else None,
        *_names_are_new(changes, unread),
        *others,
    )
    try:
        # What goes together is one transaction.
        (changed, *_) = await connection.ask(*asked, meanwhile=meanwhile)
    except (_OUTDATED, *_TAKEN) as error:
        raise NotAsRememberedError(outdated=isinstance(error, _OUTDATED)) from error
    if not books:
        return 0
    version, _, waited_seconds = changed[0]
    LOCK_WAIT.observe(waited_seconds)
    return int(version)


def _seldom_written(changes: Changes, books: Sequence[Book]) -> list[Asked | None]:
    """A statement for each kind of rows that few batches write; accounts in the order of ids, as they are locked."""
    reworded = [book for book in books if book.account_id in changes.reworded]
    requests = [(key, past, changes.books[key[0]].touched_at) for key, past in changes.requests.items()]
    return [
        _rows_by(_INSERT_ACCOUNTS, ACCOUNT, [book for _, book in sorted(changes.opened.items())]),
        _rows_by(_UPDATE_WORDS, ACCOUNT_WORDS, reworded),
        _rows_by(_INSERT_GRANTS, GRANT, list(changes.grants.items())),
        _rows_by(_ADD_EXPIRED, EXPIRED, list(changes.expired.items())),
        _rows_by(_UPSERT_LIMITS, SUBJECT, [(key, changes.subjects[key]) for key in changes.limited]),
        _rows_by(_UPSERT_UNDONE, UNDONE, list(changes.undone.items())),
        _rows_by(_INSERT_REQUESTS, REQUEST, requests),
    ]


def _rows_by(statement: Statement, columns: Columns, rows: Sequence[Any]) -> Asked | None:
    """A statement that writes rows, if there are any."""
    return (statement, columns.arrays(rows)) if rows else None


def _names_are_new(changes: Changes, unread: Collection[HoldKey]) -> list[Asked]:
    """What confirms, after the locks, that no hold had one of these names. A refused one may be a replay."""
    asked: list[Asked] = []
    if refused := [key for key in unread if key not in changes.made]:
        asked.append((_NONE_THERE, literals(refused)))
    if unread:
        asked.append((_NONE_ENDED, literals(list(unread))))
    return asked


def _written(changes: Changes, books: Sequence[Book]) -> list[tuple[_Part, Sequence[Any]]]:
    """The parts of the statement that a batch needs, with their rows."""
    are_open = all(hold.status == "open" for hold in changes.made.values())
    parts: list[tuple[_Part, Sequence[Any]]] = [
        (_ACCOUNTS, books),
        (_ENTRIES, changes.entries),
        (_LIMITS, [item for item in changes.subjects.items() if item[0] not in changes.limited]),
        (_HOLDS_CHANGED if changes.extended else _HOLDS_ENDED, list(changes.holds.values())),
        (_HOLDS_OPENED if are_open else _HOLDS_MADE, list(changes.made.values())),
        (_RECORDS, changes.usage),
    ]
    return [(part, rows) for part, rows in parts if rows]


def _is_single(written: Sequence[tuple[_Part, Sequence[Any]]]) -> bool:
    return all(len(rows) == 1 for _, rows in written)


def _changed(written: Sequence[tuple[_Part, Sequence[Any]]], slot: int, versions: Sequence[int] | None = None) -> Asked:
    """The statement of what nearly every batch writes.

    `versions`: those of the accounts, where they are remembered and have to be confirmed.
    """
    single = _is_single(written)
    parts: list[str] = []
    parameters: list[bytes | None] = []
    for part, rows in written:
        if part is _RECORDS:
            parts.append(_PLACE)
            parameters += [b"%d" % len(rows), b"%d" % slot]
        parts.append(part.single if single else part.many)
        parameters += part.columns.values(rows[0]) if single else part.columns.arrays(rows)
        if part is _ACCOUNTS and versions is not None:
            parts[-1] = _CONFIRMED_ACCOUNT if single else _CONFIRMED_ACCOUNTS
            parameters += [b"%d" % versions[0]] if single else literals([(version,) for version in versions])
    if versions is None:
        return _change(tuple(parts), ""), parameters
    return _change(tuple(parts), _CONFIRMED), [*parameters, b"%d" % len(versions)]
