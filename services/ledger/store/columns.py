"""Owns how the ledger's objects lie in rows: each table's columns, in their order, and the way there and back.

A batch's rows go as one array a column, a single row as its values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from psycopg.rows import TupleRow

from services.ledger.model.book import Book, Hold
from services.ledger.model.entry import Entry
from services.ledger.model.operations import Usage, UsageRow
from services.ledger.store.documents import grants_json, grants_of, limits_json, limits_of, uses_of
from services.ledger.store.values import ARRAYS, BINARY, HOLDS_NUL, VALUES

# Name, SQL type, and where a row's object has the value: an attribute, or what finds it. Of `json` it is the text.
Column = tuple[str, str, str | Callable[[Any], Any]]


class Columns:
    """Some columns of a table."""

    __slots__ = ("_attributes", "_values", "each")

    def __init__(self, each: tuple[Column, ...]) -> None:
        self.each = each
        names = [of for _, _, of in each if isinstance(of, str)]
        self._attributes = attrgetter(*names) if names else None
        # How a row's value is found, and written.
        self._values = [(attrgetter(of) if isinstance(of, str) else of, VALUES[kind]) for _, kind, of in each]

    @property
    def names(self) -> str:
        """The columns' names, with commas."""
        return ", ".join(name for name, _, _ in self.each)

    @property
    def unnest(self) -> str:
        """The arguments of `unnest`: a placeholder for each column, with its type. JSON goes as text, unread."""
        return ", ".join(
            f"{'%b' if kind in BINARY else '%s'}::{'text' if kind in _DOCUMENTS else kind}[]"
            for _, kind, _ in self.each
        )

    @property
    def single(self) -> str:
        """One row of `VALUES`: a placeholder for each column, with its type."""
        return ", ".join(f"%s::{kind}" for _, kind, _ in self.each)

    @property
    def selected(self) -> str:
        """The columns of rows `c` that came by `unnest` or `VALUES`."""
        return ", ".join(_typed(name, kind) for name, kind, _ in self.each)

    def changes(self, key: int) -> str:
        """`SET` of all but the first `key` columns to those of rows `c`."""
        return ", ".join(f"{name} = {_typed(name, kind)}" for name, kind, _ in self.each[key:])

    def without(self, *names: str) -> Columns:
        """All but these."""
        return Columns(tuple(column for column in self.each if column[0] not in names))

    def only(self, *names: str) -> Columns:
        """These."""
        return Columns(tuple(column for column in self.each if column[0] in names))

    def arrays(self, rows: Sequence[Any]) -> list[bytes]:
        """An array for each column, of all rows' values, as `unnest` takes them; of at least one row."""
        # Of one attribute alone `attrgetter` gives no tuple: every table has more.
        attributes = zip(*map(self._attributes, rows), strict=True) if self._attributes else iter(())
        return [
            ARRAYS[kind](next(attributes) if isinstance(of, str) else list(map(of, rows))) for _, kind, of in self.each
        ]

    def values(self, row: Any) -> list[bytes | None]:
        """Each column's value of one row. Raises ValueError where a text holds a NUL, where libpq would end it."""
        written = [write(find(row)) for find, write in self._values]
        if b"\0" in b"".join(filter(None, written)):
            raise ValueError(HOLDS_NUL)
        return written


_DOCUMENTS = {"json", "jsonb"}


def _typed(name: str, kind: str) -> str:
    return f"c.{name}::{kind}" if kind in _DOCUMENTS else f"c.{name}"


# Which transaction wrote an account's row last: it is another one after every change of anything of the account.
VERSION = "xmin::text::bigint"
# The version of what this transaction writes: its number's lower 32 bits.
WRITTEN_VERSION = "pg_current_xact_id()::text::bigint & 4294967295"

# In the order of their objects' fields.
ACCOUNT = Columns(
    (
        ("account_id", "text", "account_id"),
        ("display_name", "text", "display_name"),
        ("status", "text", "status"),
        ("status_reason", "text", "status_reason"),
        ("overdraft_kind", "text", "overdraft_kind"),
        ("overdraft_limit", "bigint", "overdraft_limit"),
        ("cycle_anchor", "timestamptz", "cycle_anchor"),
        ("created_at", "timestamptz", "created_at"),
        ("open_hash", "bytea", "open_hash"),
        ("touched_at", "timestamptz", "touched_at"),
        ("cycle_start", "timestamptz", "cycle_start"),
        ("cycle_end", "timestamptz", "cycle_end"),
        ("sequence", "bigint", "sequence"),
        ("usage_sequence", "bigint", "usage_sequence"),
        ("last_hash", "bytea", "last_hash"),
        ("available", "bigint", "available"),
        ("held", "bigint", "held"),
        ("funded", "bigint", "funded"),
        ("spent", "bigint", "spent"),
        ("expired", "bigint", "expired"),
        ("overdrawn", "bigint", "overdrawn"),
        ("unbacked", "bigint", "unbacked"),
        ("cycle_spent", "bigint", "cycle_spent"),
        ("grants", "json", lambda b: grants_json(b.grants)),
        ("limits", "json", lambda b: limits_json(b.limits)),
        ("next_event_at", "timestamptz", "next_event_at"),
    )
)
# What is said of an account changes seldom, and is written apart; two of these never change.
_WORDS = ("display_name", "status", "status_reason", "overdraft_kind", "overdraft_limit", "cycle_anchor")
ACCOUNT_CHANGES = ACCOUNT.without(*_WORDS, "created_at", "open_hash")
ACCOUNT_WORDS = ACCOUNT.only("account_id", *_WORDS)

HOLD = Columns(
    (
        ("account_id", "text", "account_id"),
        ("hold_id", "text", "hold_id"),
        ("status", "text", "status"),
        ("amount", "bigint", "amount"),
        ("tokens", "bigint", "tokens"),
        ("requests", "bigint", "requests"),
        ("key_id", "text", "key_id"),
        ("workspace", "text", "workspace"),
        ("billable", "boolean", "billable"),
        ("created_at", "timestamptz", "created_at"),
        ("expires_at", "timestamptz", "expires_at"),
        ("sequence", "bigint", "sequence"),
        ("reservations", "jsonb", "reservations"),
        ("unbacked", "bigint", "unbacked"),
        ("settled", "bigint", "settled"),
        ("ended_at", "timestamptz", "ended_at"),
        ("body_hash", "bytea", "body_hash"),
        ("end_body_hash", "bytea", "end_body_hash"),
        ("end_sequence", "bigint", "end_sequence"),
        ("end_available", "bigint", "end_available"),
        ("was_expired", "boolean", "was_expired"),
        ("usage_id", "text", "usage_id"),
    )
)
# What a hold has only when it has ended, with what it is until then.
_UNTIL_ITS_END = {
    "settled": "0",
    "ended_at": "NULL::timestamptz",
    "end_body_hash": "''::bytea",
    "end_sequence": "0",
    "end_available": "0",
    "was_expired": "false",
    "usage_id": "''",
}
OPEN_HOLD = HOLD.without(*_UNTIL_ITS_END)
OPEN_HOLD_REST = ", ".join(_UNTIL_ITS_END), ", ".join(_UNTIL_ITS_END.values())
HOLD_END = HOLD.only("account_id", "hold_id", "status", *_UNTIL_ITS_END)
HOLD_CHANGES = HOLD.without(
    "requests", "key_id", "workspace", "billable", "created_at", "sequence", "body_hash"
)  # fmt: skip

ENTRY = Columns(
    (
        ("account_id", "text", "account_id"),
        ("sequence", "bigint", "sequence"),
        ("created_at", "timestamptz", "created_at"),
        ("type", "text", "type"),
        ("funding", "bigint", "funding"),
        ("available", "bigint", "available"),
        ("held", "bigint", "held"),
        ("spent", "bigint", "spent"),
        ("expired", "bigint", "expired"),
        ("balance_after", "bigint", "balance_after"),
        ("grant_uses", "jsonb", "grant_uses"),
        ("description", "text", "description"),
        ("request_id", "text", "request_id"),
        ("hold_id", "text", "hold_id"),
        ("usage_id", "text", "usage_id"),
        ("key_id", "text", "key_id"),
        ("workspace", "text", "workspace"),
        ("provider", "text", "provider"),
        ("model", "text", "model"),
        ("hash", "bytea", "hash"),
        ("original_id", "text", "original_id"),
    )
)

USAGE = Columns(
    (
        ("account_id", "text", "account_id"),
        ("usage_number", "bigint", "number"),
        ("created_at", "timestamptz", "created_at"),
        ("key_id", "text", "key_id"),
        ("workspace", "text", "workspace"),
        ("hold_id", "text", "hold_id"),
        ("transaction_id", "text", "transaction_id"),
        ("billed", "bigint", "billed"),
        ("billable", "boolean", "billable"),
        ("session", "text", "usage.session"),
        ("provider", "text", "usage.provider"),
        ("model", "text", "usage.model"),
        ("endpoint", "text", "usage.endpoint"),
        ("input_tokens", "bigint", "usage.input_tokens"),
        ("output_tokens", "bigint", "usage.output_tokens"),
        ("cached_tokens", "bigint", "usage.cached_tokens"),
        ("cache_write_tokens", "bigint", "usage.cache_write_tokens"),
        ("reasoning_tokens", "bigint", "usage.reasoning_tokens"),
        ("input_cost", "bigint", "usage.input_cost"),
        ("output_cost", "bigint", "usage.output_cost"),
        ("cost", "bigint", "usage.cost"),
        ("price_version", "bigint", "usage.price_version"),
        ("duration_milliseconds", "bigint", "usage.duration_milliseconds"),
        ("status", "text", "usage.status"),
        ("estimated", "boolean", "usage.estimated"),
        ("started_at", "timestamptz", lambda r: r.usage.started_at or r.created_at),
        ("provider_request_id", "text", "usage.provider_request_id"),
        ("service_tier", "text", "usage.service_tier"),
        ("tokens", "bigint", "tokens"),
        ("requests", "bigint", "requests"),
        ("counted_at", "timestamptz", "counted_at"),
        ("units", "jsonb", "usage.units"),
        ("internal", "boolean", "usage.internal"),
    )
)

# A key and its row.
GRANT = Columns(
    (
        ("account_id", "text", lambda g: g[0][0]),
        ("grant_id", "text", lambda g: g[0][1]),
        ("source", "text", lambda g: g[1].grant.source),
        ("priority", "integer", lambda g: g[1].grant.priority),
        ("amount", "bigint", lambda g: g[1].grant.amount),
        ("sequence", "bigint", lambda g: g[1].grant.order),
        ("created_at", "timestamptz", lambda g: g[1].created_at),
        ("expires_at", "timestamptz", lambda g: g[1].grant.expires_at),
        ("rollover_cap", "bigint", lambda g: g[1].grant.rollover_cap),
    )
)
SUBJECT = Columns(
    (
        ("account_id", "text", lambda s: s[0][0]),
        ("scope", "text", lambda s: s[0][1]),
        ("subject", "text", lambda s: s[0][2]),
        ("limits", "json", lambda s: limits_json(s[1])),
    )
)
REQUEST = Columns(
    (
        ("account_id", "text", lambda r: r[0][0]),
        ("request_id", "text", lambda r: r[0][1]),
        ("body_hash", "bytea", lambda r: r[1].body_hash),
        ("sequence", "bigint", lambda r: r[1].sequence),
        ("created_at", "timestamptz", lambda r: r[2]),
    )
)
# A key and a number: what expired of a grant, what was undone of an entry.
EXPIRED = Columns(
    (
        ("account_id", "text", lambda x: x[0][0]),
        ("grant_id", "text", lambda x: x[0][1]),
        ("expired", "bigint", lambda x: x[1]),
    )
)
UNDONE = Columns(
    (
        ("account_id", "text", lambda x: x[0][0]),
        ("sequence", "bigint", lambda x: x[0][1]),
        ("amount", "bigint", lambda x: x[1]),
    )
)

for _columns, _type in ((ACCOUNT, Book), (HOLD, Hold), (ENTRY, Entry)):
    assert tuple(name for name, _, _ in _columns.each) == _type.__slots__, _type  # rows are read by position


def book_of(row: Sequence[Any]) -> Book:
    """An account's row as a book."""
    values = list(row)
    values[23], values[24] = grants_of(values[23]), limits_of(values[24])
    return Book(*values)


def hold_of(row: Sequence[Any]) -> Hold:
    """A hold's row as a hold."""
    values = list(row)
    values[12] = uses_of(values[12])
    return Hold(*values)


def entry_of(row: Sequence[Any]) -> Entry:
    """A journal row as an entry."""
    values = list(row)
    values[10] = uses_of(values[10])
    return Entry(*values)


def usage_of(row: TupleRow) -> UsageRow:
    """A usage row, its columns as in USAGE."""
    values: dict[str, Any] = {name: value for (name, _, _), value in zip(USAGE.each, row, strict=True)}
    values["number"] = values.pop("usage_number")
    usage = Usage(**{name: values.pop(name) for name in Usage._fields})
    return UsageRow(**values, usage=usage)
