"""Owns the columns of exported files, the same in every format: their order, names and types.

They are read by customers' programs: new ones go at the end, none is renamed or taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from services.ledger.model.rows import transaction_id, usage_id

TEXT, INTEGER, BOOLEAN, TIME = "text", "integer", "boolean", "time"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its kind (text, integer, boolean, time in UTC), and its value in a row of the store."""

    name: str
    kind: str
    value: Callable[[Any], Any]


def _plain(kind: str, name: str, of: str = "") -> Column:
    return Column(name, kind, attrgetter(of or name))


USAGE: tuple[Column, ...] = (
    Column("usage_id", TEXT, lambda r: usage_id(r.created_at, r.usage_number)),
    _plain(TEXT, "account_id"),
    _plain(TIME, "created_at"),
    _plain(TIME, "started_at"),
    _plain(TEXT, "key_id"),
    _plain(TEXT, "workspace"),
    _plain(TEXT, "session"),
    _plain(TEXT, "provider"),
    _plain(TEXT, "model"),
    _plain(TEXT, "endpoint"),
    _plain(TEXT, "service_tier"),
    _plain(TEXT, "status"),
    _plain(INTEGER, "input_tokens"),
    _plain(INTEGER, "output_tokens"),
    Column("total_tokens", INTEGER, lambda r: r.input_tokens + r.output_tokens),
    _plain(INTEGER, "cached_tokens"),
    _plain(INTEGER, "cache_write_tokens"),
    _plain(INTEGER, "reasoning_tokens"),
    # A JSON object of counts.
    _plain(TEXT, "units", "units_json"),
    _plain(INTEGER, "input_cost_nanos", "input_cost"),
    _plain(INTEGER, "output_cost_nanos", "output_cost"),
    _plain(INTEGER, "cost_nanos", "cost"),
    _plain(INTEGER, "billed_nanos", "billed"),
    _plain(BOOLEAN, "billable"),
    _plain(BOOLEAN, "internal"),
    _plain(BOOLEAN, "estimated"),
    _plain(INTEGER, "price_version"),
    _plain(INTEGER, "duration_milliseconds"),
    _plain(TEXT, "hold_id"),
    _plain(TEXT, "transaction_id"),
    _plain(TEXT, "provider_request_id"),
)

TRANSACTIONS: tuple[Column, ...] = (
    Column("transaction_id", TEXT, lambda r: transaction_id(r.created_at, r.sequence)),
    _plain(TEXT, "account_id"),
    _plain(INTEGER, "sequence"),
    _plain(TIME, "created_at"),
    _plain(TEXT, "type"),
    # What the account is worth more or less by it; the double entry follows.
    Column("amount_nanos", INTEGER, lambda r: r.available + r.held),
    _plain(INTEGER, "funding_nanos", "funding"),
    _plain(INTEGER, "available_nanos", "available"),
    _plain(INTEGER, "held_nanos", "held"),
    _plain(INTEGER, "spent_nanos", "spent"),
    _plain(INTEGER, "expired_nanos", "expired"),
    _plain(INTEGER, "balance_after_nanos", "balance_after"),
    # A JSON list of pairs: grant, nanos taken from it (given to it, where negative).
    _plain(TEXT, "grant_uses", "grant_uses_json"),
    _plain(TEXT, "description"),
    _plain(TEXT, "request_id"),
    _plain(TEXT, "hold_id"),
    _plain(TEXT, "usage_id"),
    _plain(TEXT, "original_transaction_id", "original_id"),
    _plain(INTEGER, "refunded_nanos", "undone"),
    _plain(TEXT, "key_id"),
    _plain(TEXT, "workspace"),
    _plain(TEXT, "provider"),
    _plain(TEXT, "model"),
    Column("hash", TEXT, lambda r: r.hash.hex()),
)

# By what is exported.
COLUMNS = {"usage": USAGE, "transactions": TRANSACTIONS}
