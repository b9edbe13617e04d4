"""Owns how the ledger's objects lie in rows: each table's columns, and the way back from a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
from psycopg.rows import TupleRow

from services.ledger.model.book import Book, Entry, Hold
from services.ledger.model.operations import Usage, UsageRow
from services.ledger.store.documents import grants_json, grants_of, limits_json, limits_of, uses_json, uses_of

# Name, SQL type of the array that its values are sent as, value from the row's object.
Column = tuple[str, str, Callable[[Any], Any]]

ACCOUNT: tuple[Column, ...] = (
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
    ("cycle_start", "timestamptz", lambda b: b.cycle_start),
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
# What is said of an account changes seldom, and is written apart; two of these never change.
_WORDS = {
    "account_id", "display_name", "status", "status_reason", "overdraft_kind", "overdraft_limit", "cycle_anchor",
    "created_at", "open_hash",
}  # fmt: skip
ACCOUNT_CHANGES = (ACCOUNT[0], *(column for column in ACCOUNT if column[0] not in _WORDS))
ACCOUNT_WORDS = tuple(c for c in ACCOUNT if c[0] in _WORDS - {"created_at", "open_hash"})

HOLD: tuple[Column, ...] = (
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

ENTRY: tuple[Column, ...] = (
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
    ("original_id", "text", lambda e: e.original_id),
)

USAGE: tuple[Column, ...] = (
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
    ("tokens", "bigint", lambda r: r.tokens),
    ("requests", "bigint", lambda r: r.requests),
    ("counted_at", "timestamptz", lambda r: r.counted_at),
    ("units", "jsonb", lambda r: orjson.dumps(r.usage.units).decode() if r.usage.units else "{}"),
)

GRANT: tuple[Column, ...] = (
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

# Rows of a key and one number: what expired of a grant, what was undone of an entry.
EXPIRED: tuple[Column, ...] = (
    ("account_id", "text", lambda x: x[0][0]),
    ("grant_id", "text", lambda x: x[0][1]),
    ("expired", "bigint", lambda x: x[1]),
)
UNDONE: tuple[Column, ...] = (
    ("account_id", "text", lambda x: x[0][0]),
    ("sequence", "bigint", lambda x: x[0][1]),
    ("amount", "bigint", lambda x: x[1]),
)

SUBJECT: tuple[Column, ...] = (
    ("account_id", "text", lambda s: s[0][0]),
    ("scope", "text", lambda s: s[0][1]),
    ("subject", "text", lambda s: s[0][2]),
    ("limits", "jsonb", lambda s: limits_json(s[1])),
)

REQUEST: tuple[Column, ...] = (
    ("account_id", "text", lambda r: r[0][0]),
    ("request_id", "text", lambda r: r[0][1]),
    ("body_hash", "bytea", lambda r: r[1].body_hash),
    ("sequence", "bigint", lambda r: r[1].sequence),
    ("created_at", "timestamptz", lambda r: r[2]),
)


def names(columns: Iterable[Column]) -> str:
    """The columns' names, with commas."""
    return ", ".join(name for name, _, _ in columns)


def unnest(columns: Iterable[Column]) -> str:
    """The arguments of `unnest`: a placeholder for each column, with its type."""
    # JSON goes as text: an array of jsonb would be escaped twice.
    return ", ".join(f"%s::{'text' if kind == 'jsonb' else kind}[]" for _, kind, _ in columns)


def selected(columns: Iterable[Column]) -> str:
    """The columns of rows `c` that came by `unnest`."""
    return ", ".join(f"c.{name}::jsonb" if kind == "jsonb" else f"c.{name}" for name, kind, _ in columns)


def book_of(row: TupleRow) -> Book:
    """An account's row as a book."""
    values: dict[str, Any] = {name: value for (name, _, _), value in zip(ACCOUNT, row, strict=True)}
    values["grants"] = grants_of(values["grants"])
    values["limits"] = limits_of(values["limits"])
    return Book(**values)


def hold_of(row: TupleRow) -> Hold:
    """A hold's row as a hold."""
    values: dict[str, Any] = {name: value for (name, _, _), value in zip(HOLD, row, strict=True)}
    values["reservations"] = uses_of(values["reservations"])
    return Hold(**values)


def entry_of(row: Sequence[Any]) -> Entry:
    """A journal row as an entry."""
    values: dict[str, Any] = {name: value for (name, _, _), value in zip(ENTRY, row, strict=True)}
    values["grant_uses"] = uses_of(values["grant_uses"])
    return Entry(**values)


def usage_of(row: Sequence[Any]) -> UsageRow:
    """A usage row, its columns as in USAGE."""
    values: dict[str, Any] = {name: value for (name, _, _), value in zip(USAGE, row, strict=True)}
    values["number"] = values.pop("usage_number")
    usage = Usage(**{name: values.pop(name) for name in Usage.__slots__})
    return UsageRow(**values, usage=usage)
