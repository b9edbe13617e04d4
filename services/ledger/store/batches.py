"""Owns the SQL of a batch: locks the accounts, reads what the operations need, writes what they changed.

`load` and `write` each send their statements as one pipeline. The locks on account rows, taken in the order of their
ids so that two batches never wait for each other in a circle, guard everything else of an account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import TupleRow

from services.ledger.model.book import Book, Entry, Hold
from services.ledger.model.operations import (
    CreateHold,
    Credit,
    DeleteLimit,
    OpenAccount,
    Operation,
    ReleaseHold,
    SetLimit,
    SetStatus,
    SettleHold,
    Touch,
)
from services.ledger.model.rows import Changes, HoldKey, Loaded, PastRequest, RequestKey, SubjectKey
from services.ledger.store.documents import grants_json, grants_of, limits_json, limits_of, uses_json, uses_of

Connection = AsyncConnection[TupleRow]
Column = tuple[str, str, Callable[[Any], Any]]

# Each table's columns: name, SQL type of the array they are sent as, value from the row's object.
_ACCOUNT: tuple[Column, ...] = (
    ("account_id", "text", lambda b: b.account_id),
    ("display_name", "text", lambda b: b.display_name),
    ("status", "text", lambda b: b.status),
    ("status_reason", "text", lambda b: b.status_reason),
    ("overdraft_kind", "text", lambda b: b.overdraft_kind),
    ("overdraft_limit", "bigint", lambda b: b.overdraft_limit),
    ("cycle_anchor", "timestamptz", lambda b: b.cycle_anchor),
    ("created_at", "timestamptz", lambda b: b.created_at),
    ("open_hash", "bytea", lambda b: b.open_hash),
    ("touched_at", "timestamptz", lambda b: b.touched_at),
    ("cycle_end", "timestamptz", lambda b: b.cycle_end),
    ("sequence", "bigint", lambda b: b.sequence),
    ("usage_sequence", "bigint", lambda b: b.usage_sequence),
    ("last_hash", "bytea", lambda b: b.last_hash),
    ("available", "bigint", lambda b: b.available),
    ("held", "bigint", lambda b: b.held),
    ("funded", "bigint", lambda b: b.funded),
    ("spent", "bigint", lambda b: b.spent),
    ("expired", "bigint", lambda b: b.expired),
    ("overdrawn", "bigint", lambda b: b.overdrawn),
    ("unbacked", "bigint", lambda b: b.unbacked),
    ("cycle_spent", "bigint", lambda b: b.cycle_spent),
    ("grants", "jsonb", lambda b: grants_json(b.grants)),
    ("limits", "jsonb", lambda b: limits_json(b.limits)),
    ("next_event_at", "timestamptz", lambda b: b.next_event_at),
)
# What an operation may change. The rest is written when the account is opened.
_FIXED = {"account_id", "overdraft_kind", "overdraft_limit", "cycle_anchor", "created_at", "open_hash", "display_name"}
_ACCOUNT_CHANGES = (_ACCOUNT[0], *(column for column in _ACCOUNT if column[0] not in _FIXED))

_HOLD: tuple[Column, ...] = (
    ("account_id", "text", lambda h: h.account_id),
    ("hold_id", "text", lambda h: h.hold_id),
    ("status", "text", lambda h: h.status),
    ("amount", "bigint", lambda h: h.amount),
    ("tokens", "bigint", lambda h: h.tokens),
    ("requests", "bigint", lambda h: h.requests),
    ("key_id", "text", lambda h: h.key_id),
    ("workspace", "text", lambda h: h.workspace),
    ("billable", "boolean", lambda h: h.billable),
    ("created_at", "timestamptz", lambda h: h.created_at),
    ("expires_at", "timestamptz", lambda h: h.expires_at),
    ("sequence", "bigint", lambda h: h.sequence),
    ("reservations", "jsonb", lambda h: uses_json(h.reservations)),
    ("unbacked", "bigint", lambda h: h.unbacked),
    ("settled", "bigint", lambda h: h.settled),
    ("ended_at", "timestamptz", lambda h: h.ended_at),
    ("body_hash", "bytea", lambda h: h.body_hash),
    ("end_body_hash", "bytea", lambda h: h.end_body_hash),
    ("end_sequence", "bigint", lambda h: h.end_sequence),
    ("end_available", "bigint", lambda h: h.end_available),
    ("was_expired", "boolean", lambda h: h.was_expired),
    ("usage_id", "text", lambda h: h.usage_id),
)

_ENTRY: tuple[Column, ...] = (
    ("account_id", "text", lambda e: e.account_id),
    ("sequence", "bigint", lambda e: e.sequence),
    ("created_at", "timestamptz", lambda e: e.created_at),
    ("type", "text", lambda e: e.type),
    ("funding", "bigint", lambda e: e.funding),
    ("available", "bigint", lambda e: e.available),
    ("held", "bigint", lambda e: e.held),
    ("spent", "bigint", lambda e: e.spent),
    ("expired", "bigint", lambda e: e.expired),
    ("balance_after", "bigint", lambda e: e.balance_after),
    ("grant_uses", "jsonb", lambda e: uses_json(e.grant_uses)),
    ("description", "text", lambda e: e.description),
    ("request_id", "text", lambda e: e.request_id),
    ("hold_id", "text", lambda e: e.hold_id),
    ("usage_id", "text", lambda e: e.usage_id),
    ("key_id", "text", lambda e: e.key_id),
    ("workspace", "text", lambda e: e.workspace),
    ("provider", "text", lambda e: e.provider),
    ("model", "text", lambda e: e.model),
    ("hash", "bytea", lambda e: e.hash),
)

_USAGE: tuple[Column, ...] = (
    ("account_id", "text", lambda r: r.account_id),
    ("usage_number", "bigint", lambda r: r.number),
    ("created_at", "timestamptz", lambda r: r.created_at),
    ("key_id", "text", lambda r: r.key_id),
    ("workspace", "text", lambda r: r.workspace),
    ("hold_id", "text", lambda r: r.hold_id),
    ("transaction_id", "text", lambda r: r.transaction_id),
    ("billed", "bigint", lambda r: r.billed),
    ("billable", "boolean", lambda r: r.billable),
    ("session", "text", lambda r: r.usage.session),
    ("provider", "text", lambda r: r.usage.provider),
    ("model", "text", lambda r: r.usage.model),
    ("endpoint", "text", lambda r: r.usage.endpoint),
    ("input_tokens", "bigint", lambda r: r.usage.input_tokens),
    ("output_tokens", "bigint", lambda r: r.usage.output_tokens),
    ("cached_tokens", "bigint", lambda r: r.usage.cached_tokens),
    ("cache_write_tokens", "bigint", lambda r: r.usage.cache_write_tokens),
    ("reasoning_tokens", "bigint", lambda r: r.usage.reasoning_tokens),
    ("input_cost", "bigint", lambda r: r.usage.input_cost),
    ("output_cost", "bigint", lambda r: r.usage.output_cost),
    ("cost", "bigint", lambda r: r.usage.cost),
    ("price_version", "bigint", lambda r: r.usage.price_version),
    ("duration_milliseconds", "bigint", lambda r: r.usage.duration_milliseconds),
    ("status", "text", lambda r: r.usage.status),
    ("estimated", "boolean", lambda r: r.usage.estimated),
    ("started_at", "timestamptz", lambda r: r.usage.started_at or r.created_at),
    ("provider_request_id", "text", lambda r: r.usage.provider_request_id),
    ("service_tier", "text", lambda r: r.usage.service_tier),
)

_GRANT: tuple[Column, ...] = (
    ("account_id", "text", lambda g: g[0]),
    ("grant_id", "text", lambda g: g[1].grant_id),
    ("source", "text", lambda g: g[1].source),
    ("priority", "integer", lambda g: g[1].priority),
    ("amount", "bigint", lambda g: g[1].amount),
    ("sequence", "bigint", lambda g: g[1].order),
    ("created_at", "timestamptz", lambda g: g[2]),
    ("expires_at", "timestamptz", lambda g: g[1].expires_at),
)

_SUBJECT: tuple[Column, ...] = (
    ("account_id", "text", lambda s: s[0][0]),
    ("scope", "text", lambda s: s[0][1]),
    ("subject", "text", lambda s: s[0][2]),
    ("limits", "jsonb", lambda s: limits_json(s[1])),
)

_REQUEST: tuple[Column, ...] = (
    ("account_id", "text", lambda r: r[0][0]),
    ("request_id", "text", lambda r: r[0][1]),
    ("body_hash", "bytea", lambda r: r[1].body_hash),
    ("sequence", "bigint", lambda r: r[1].sequence),
    ("created_at", "timestamptz", lambda r: r[2]),
)


def _names(columns: Iterable[Column]) -> str:
    return ", ".join(name for name, _, _ in columns)


def _unnest(columns: Iterable[Column]) -> str:
    # JSON goes as text: an array of jsonb would be escaped twice.
    return ", ".join(f"%s::{'text' if kind == 'jsonb' else kind}[]" for _, kind, _ in columns)


def _selected(columns: Iterable[Column]) -> str:
    return ", ".join(f"c.{name}::jsonb" if kind == "jsonb" else f"c.{name}" for name, kind, _ in columns)


def _insert(table: str, columns: tuple[Column, ...]) -> str:
    return (
        f"INSERT INTO {table} ({_names(columns)}) "  # noqa: S608 (names are this module's own)
        f"SELECT {_selected(columns)} FROM unnest({_unnest(columns)}) AS c({_names(columns)})"
    )


def _update(table: str, columns: tuple[Column, ...], *, key: int) -> str:
    changes = ", ".join(f"{n} = c.{n}::jsonb" if k == "jsonb" else f"{n} = c.{n}" for n, k, _ in columns[key:])
    same = " AND ".join(f"t.{name} = c.{name}" for name, _, _ in columns[:key])
    return (
        f"UPDATE {table} t SET {changes} "  # noqa: S608 (names are this module's own)
        f"FROM unnest({_unnest(columns)}) AS c({_names(columns)}) WHERE {same}"
    )


_INSERT_ACCOUNTS = _insert("accounts", _ACCOUNT)
_UPDATE_ACCOUNTS = _update("accounts", _ACCOUNT_CHANGES, key=1)
_HOLD_END = (
    "status", "settled", "ended_at", "end_body_hash", "end_sequence", "end_available", "was_expired", "usage_id",
)  # fmt: skip
_UPSERT_HOLDS = (
    _insert("holds", _HOLD)
    + " ON CONFLICT (account_id, hold_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _HOLD_END)
)
_INSERT_ENTRIES = _insert("journal", _ENTRY)
_INSERT_USAGE = _insert("usage", _USAGE)
_INSERT_GRANTS = _insert("grants", _GRANT)
_INSERT_REQUESTS = _insert("requests", _REQUEST)
_UPSERT_SUBJECTS = (
    _insert("subject_limits", _SUBJECT)
    + " ON CONFLICT (account_id, scope, subject) DO UPDATE SET limits = excluded.limits"
)

# FOR UPDATE in the order of ids. NO KEY: nothing refers to the key.
_LOCK_ACCOUNTS = (
    f"SELECT {_names(_ACCOUNT)} FROM accounts WHERE account_id = ANY(%s) ORDER BY account_id FOR NO KEY UPDATE"  # noqa: S608
)
_READ_HOLDS = (
    f"SELECT {_names(_HOLD)} FROM holds "  # noqa: S608
    "WHERE (account_id, hold_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
)
_READ_SUBJECTS = (
    "SELECT account_id, scope, subject, limits FROM subject_limits "
    "WHERE (account_id, scope, subject) IN (SELECT * FROM unnest(%s::text[], %s::text[], %s::text[]))"
)
_READ_REQUESTS = (
    "SELECT account_id, request_id, body_hash, sequence FROM requests "
    "WHERE (account_id, request_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
)
_READ_ENTRIES = (
    f"SELECT {_names(_ENTRY)} FROM journal "  # noqa: S608
    "WHERE (account_id, sequence) IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))"
)
# As of each account's own time. Both use the index holds_open.
_READ_LAPSED = (
    f"SELECT {', '.join(f'h.{name}' for name, _, _ in _HOLD)} "  # noqa: S608
    "FROM unnest(%s::text[], %s::timestamptz[]) AS d(account_id, moment) JOIN holds h USING (account_id) "
    "WHERE h.status = 'open' AND h.expires_at <= d.moment ORDER BY h.account_id, h.sequence"
)
_READ_NEXT_LAPSE = (
    "SELECT h.account_id, min(h.expires_at) "
    "FROM unnest(%s::text[], %s::timestamptz[]) AS d(account_id, moment) JOIN holds h USING (account_id) "
    "WHERE h.status = 'open' AND h.expires_at > d.moment GROUP BY h.account_id"
)


def book_of(row: TupleRow) -> Book:
    """An account's row as a book."""
    values: dict[str, Any] = {name: value for (name, _, _), value in zip(_ACCOUNT, row, strict=True)}
    values["grants"] = grants_of(values["grants"])
    values["limits"] = limits_of(values["limits"])
    return Book(**values)


def hold_of(row: TupleRow) -> Hold:
    """A hold's row as a hold."""
    values: dict[str, Any] = {name: value for (name, _, _), value in zip(_HOLD, row, strict=True)}
    values["reservations"] = uses_of(values["reservations"])
    return Hold(**values)


def entry_of(row: Sequence[Any]) -> Entry:
    """A journal row as an entry."""
    values: dict[str, Any] = {name: value for (name, _, _), value in zip(_ENTRY, row, strict=True)}
    values["grant_uses"] = uses_of(values["grant_uses"])
    return Entry(**values)


@dataclass(slots=True)
class _Named:
    """The keys of the rows that operations name."""

    holds: set[HoldKey] = field(default_factory=set)
    created: set[HoldKey] = field(default_factory=set)
    requests: set[RequestKey] = field(default_factory=set)
    subjects: set[SubjectKey] = field(default_factory=set)

    def add(self, operation: Operation) -> None:
        """Note what one operation names."""
        match operation:
            case CreateHold():
                self.created.add((operation.account_id, operation.hold_id))
                self.subjects.update(_subjects(operation.account_id, operation.key_id, operation.workspace))
            case SettleHold() | ReleaseHold():
                self.holds.add((operation.account_id, operation.hold_id))
            case Credit() | SetStatus():
                self.requests.add((operation.account_id, operation.request_id))
            case SetLimit() | DeleteLimit():
                if operation.subject:
                    self.subjects.add((operation.account_id, operation.scope, operation.subject))
                if isinstance(operation, SetLimit) and operation.request_id:
                    self.requests.add((operation.account_id, operation.request_id))
            case OpenAccount() | Touch():
                pass


async def load(connection: Connection, operations: Sequence[Operation], now: datetime) -> Loaded:
    """Begin a transaction, lock the accounts of these operations, and read what they need."""
    accounts = sorted({operation.account_id for operation in operations})
    named = _Named()
    for operation in operations:
        named.add(operation)
    loaded = Loaded()
    async with connection.pipeline():
        await connection.execute("BEGIN")
        locked = await connection.execute(_LOCK_ACCOUNTS, (accounts,), prepare=True)
        held = await _read(connection, _READ_HOLDS, named.holds | named.created, 2)
        asked = await _read(connection, _READ_REQUESTS, named.requests, 2)
        limited = await _read(connection, _READ_SUBJECTS, named.subjects, 3)
    loaded.books = {row[0]: book_of(row) for row in await locked.fetchall()}
    for row in await held.fetchall() if held else ():
        loaded.holds[row[0], row[1]] = hold_of(row)
    for row in await asked.fetchall() if asked else ():
        loaded.requests[row[0], row[1]] = PastRequest(row[2], row[3])
    for row in await limited.fetchall() if limited else ():
        loaded.subjects[row[0], row[1], row[2]] = limits_of(row[3])
    # An account's time never goes back, also where another replica's clock, which touched it last, is ahead of ours.
    moments = {account_id: max(now, book.touched_at) for account_id, book in loaded.books.items()}
    due = {
        account_id: moments[account_id]
        for account_id, book in loaded.books.items()
        if book.next_event_at is not None and book.next_event_at <= moments[account_id]
    }
    if due:
        await _load_lapsed(connection, loaded, due)
    await _load_rest(connection, loaded, named.created)
    return loaded


async def _load_lapsed(connection: Connection, loaded: Loaded, due: dict[str, datetime]) -> None:
    """Of accounts where something is due: the holds that have lapsed, and when the next will."""
    moments = (list(due), list(due.values()))
    async with connection.pipeline():
        lapsed = await connection.execute(_READ_LAPSED, moments)
        upcoming = await connection.execute(_READ_NEXT_LAPSE, moments)
    for row in await lapsed.fetchall():
        hold = loaded.holds.setdefault((row[0], row[1]), hold_of(row))
        loaded.lapsed.setdefault(hold.account_id, []).append(hold)
    loaded.next_lapse.update({account_id: moment for account_id, moment in await upcoming.fetchall()})  # noqa: C416


async def _load_rest(connection: Connection, loaded: Loaded, created: set[HoldKey]) -> None:
    """What is known only from the first reads: limits of the holds' keys, and what replayed requests wrote."""
    subjects = {
        key for hold in loaded.holds.values() for key in _subjects(hold.account_id, hold.key_id, hold.workspace)
    } - loaded.subjects.keys()
    entries = {(key[0], past.sequence) for key, past in loaded.requests.items() if past.sequence}
    entries |= {(h.account_id, h.sequence) for key, h in loaded.holds.items() if key in created}
    entries |= {(h.account_id, h.end_sequence) for h in loaded.holds.values() if h.status == "settled"}
    if not subjects and not entries:
        return
    async with connection.pipeline():
        limited = await _read(connection, _READ_SUBJECTS, subjects, 3)
        written = await _read(connection, _READ_ENTRIES, entries, 2)
    for row in await limited.fetchall() if limited else ():
        loaded.subjects[row[0], row[1], row[2]] = limits_of(row[3])
    for row in await written.fetchall() if written else ():
        loaded.entries[row[0], row[1]] = entry_of(row)


async def write(connection: Connection, changes: Changes) -> None:
    """Write what a batch changed, and commit the transaction that `load` began."""
    books = [book for account_id, book in changes.books.items() if account_id not in changes.opened]
    requests = [(key, past, changes.books[key[0]].touched_at) for key, past in changes.requests.items()]
    async with connection.pipeline():
        # In the order of ids, as the locks are taken.
        await _send(connection, _INSERT_ACCOUNTS, _ACCOUNT, [book for _, book in sorted(changes.opened.items())])
        await _send(connection, _UPDATE_ACCOUNTS, _ACCOUNT_CHANGES, books)
        await _send(connection, _UPSERT_SUBJECTS, _SUBJECT, list(changes.subjects.items()))
        await _send(connection, _UPSERT_HOLDS, _HOLD, list(changes.holds.values()))
        await _send(connection, _INSERT_GRANTS, _GRANT, changes.grants)
        await _send(connection, _INSERT_ENTRIES, _ENTRY, changes.entries)
        await _send(connection, _INSERT_USAGE, _USAGE, changes.usage)
        await _send(connection, _INSERT_REQUESTS, _REQUEST, requests)
        await connection.execute("COMMIT")


def _subjects(account_id: str, key_id: str, workspace: str) -> list[SubjectKey]:
    found = [(account_id, "key", key_id)] if key_id else []
    return [*found, (account_id, "workspace", workspace)] if workspace else found


async def _read(
    connection: Connection, query: str, keys: Iterable[tuple[Any, ...]], width: int
) -> AsyncCursor[TupleRow] | None:
    rows = list(keys)
    if not rows:
        return None
    return await connection.execute(query, [[row[i] for row in rows] for i in range(width)], prepare=True)


async def _send(connection: Connection, query: str, columns: tuple[Column, ...], rows: Sequence[Any]) -> None:
    if rows:
        await connection.execute(query, [[value(row) for row in rows] for _, _, value in columns], prepare=True)
