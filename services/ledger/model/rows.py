"""Owns the rows that a batch is given and those that it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from services.ledger.model.book import Book, Entry, Grant, Hold, Limit
from services.ledger.model.operations import UsageRow

HoldKey = tuple[str, str]
SubjectKey = tuple[str, str, str]
RequestKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class PastRequest:
    """A request that was done before: what it was, and the entry it wrote (0: none)."""

    body_hash: bytes
    sequence: int


@dataclass(slots=True)
class Loaded:
    """What was read for a batch, under the accounts' locks."""

    books: dict[str, Book] = field(default_factory=dict)
    # The holds that operations name, and those that have lapsed.
    holds: dict[HoldKey, Hold] = field(default_factory=dict)
    # Of accounts where something is due: open holds that have lapsed, the same objects as in `holds`.
    lapsed: dict[str, list[Hold]] = field(default_factory=dict)
    # The limits of the keys and workspaces that operations name, by (account, scope, subject).
    subjects: dict[SubjectKey, list[Limit]] = field(default_factory=dict)
    requests: dict[RequestKey, PastRequest] = field(default_factory=dict)
    # The entries that replayed requests wrote, by (account, sequence).
    entries: dict[tuple[str, int], Entry] = field(default_factory=dict)
    # When the next open hold that has not lapsed yet will, of accounts where something is due.
    next_lapse: dict[str, datetime | None] = field(default_factory=dict)


@dataclass(slots=True)
class Changes:
    """The rows that a batch writes."""

    opened: dict[str, Book] = field(default_factory=dict)
    books: dict[str, Book] = field(default_factory=dict)
    holds: dict[HoldKey, Hold] = field(default_factory=dict)
    subjects: dict[SubjectKey, list[Limit]] = field(default_factory=dict)
    grants: list[tuple[str, Grant, datetime]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    usage: list[UsageRow] = field(default_factory=list)
    requests: dict[RequestKey, PastRequest] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.books or self.opened or self.subjects)


def transaction_id(created_at: datetime, sequence: int) -> str:
    """`txn-{yyyymm}-{sequence}`: readable, unique within the account, and says which partition it is in."""
    return f"txn-{created_at:%Y%m}-{sequence}"


def usage_id(created_at: datetime, number: int) -> str:
    """`use-{yyyymm}-{number}`, likewise."""
    return f"use-{created_at:%Y%m}-{number}"
