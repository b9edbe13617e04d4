"""Owns the rows that a batch is given and those that it writes."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from services.ledger.model.book import Book, Grant, Hold, Limit
from services.ledger.model.entry import Entry
from services.ledger.model.operations import UsageRow

HoldKey = tuple[str, str]
SubjectKey = tuple[str, str, str]
RequestKey = tuple[str, str]
GrantKey = tuple[str, str]
EntryKey = tuple[str, int]


class PastRequest(NamedTuple):
    """A request that was done before: what it was, and the entry it wrote (0: none)."""

    body_hash: bytes
    sequence: int


@dataclass(slots=True)
class GrantRow:
    """What stays known of a grant when nothing is left of it. `expired`: what of it ran out unspent."""

    grant: Grant
    created_at: datetime
    expired: int = 0


@dataclass(slots=True)
class Loaded:
    """What was read for a batch, under the accounts' locks."""

    books: dict[str, Book] = field(default_factory=dict)
    # Of those that were read, which transaction had written them.
    versions: dict[str, int] = field(default_factory=dict)
    # The versions of those books that were remembered, and are not locked yet; else nothing.
    unconfirmed: dict[str, int] = field(default_factory=dict)
    # Of those: the names that holds are to be made by, which were not looked for.
    unread: set[HoldKey] = field(default_factory=set)
    # Whether something that was remembered had changed since.
    outdated: bool = False
    # The holds that operations name, and those that have lapsed.
    holds: dict[HoldKey, Hold] = field(default_factory=dict)
    # Of accounts where something is due: open holds that have lapsed, the same objects as in `holds`.
    lapsed: dict[str, list[Hold]] = field(default_factory=dict)
    # The limits of the keys and workspaces that operations name, by (account, scope, subject).
    subjects: dict[SubjectKey, list[Limit]] = field(default_factory=dict)
    requests: dict[RequestKey, PastRequest] = field(default_factory=dict)
    # The entries that replayed requests wrote and those to be undone.
    entries: dict[EntryKey, Entry] = field(default_factory=dict)
    # How much of those to be undone was undone before, and the grants they name.
    undone: dict[EntryKey, int] = field(default_factory=dict)
    grants: dict[GrantKey, GrantRow] = field(default_factory=dict)
    # Holds asked for by a name that one had which ended long ago.
    ended: set[HoldKey] = field(default_factory=set)
    # Of accounts that get a new limit: usage records newer than what was counted before the lock.
    usage: dict[str, list[UsageRow]] = field(default_factory=dict)
    # When the next open hold that has not lapsed yet will, of accounts where something is due.
    next_lapse: dict[str, datetime | None] = field(default_factory=dict)

    def forget(self, accounts: Collection[str]) -> None:
        """Leave out the holds and limits of these accounts: they are to be read anew."""
        self.holds = {key: hold for key, hold in self.holds.items() if key[0] not in accounts}
        self.subjects = {key: limits for key, limits in self.subjects.items() if key[0] not in accounts}


@dataclass(slots=True)
class Changes:
    """The rows that a batch writes."""

    opened: dict[str, Book] = field(default_factory=dict)
    books: dict[str, Book] = field(default_factory=dict)
    # New holds, and those of before that changed.
    made: dict[HoldKey, Hold] = field(default_factory=dict)
    holds: dict[HoldKey, Hold] = field(default_factory=dict)
    # Of those the ones that were made larger or longer: what else happens to a hold ends it.
    extended: set[HoldKey] = field(default_factory=set)
    subjects: dict[SubjectKey, list[Limit]] = field(default_factory=dict)
    # Of those the ones whose limits were made, changed or ended: their rows may not be there yet.
    limited: set[SubjectKey] = field(default_factory=set)
    grants: dict[GrantKey, GrantRow] = field(default_factory=dict)
    # What expired of which grant, less what reversals took back of that.
    expired: dict[GrantKey, int] = field(default_factory=dict)
    # Accounts of which more is changed than balances, grants and limits.
    reworded: set[str] = field(default_factory=set)
    undone: dict[EntryKey, int] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    usage: list[UsageRow] = field(default_factory=list)
    requests: dict[RequestKey, PastRequest] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.books or self.opened or self.subjects)


def transaction_id(created_at: datetime, sequence: int) -> str:
    """`txn-{yyyymm}-{sequence}`: readable, unique within the account, and says which partition it is in."""
    return f"txn-{_month(created_at.year, created_at.month)}-{sequence}"


# As many as 64 bits hold for certain.
_MAX_SEQUENCE_DIGITS = 18


def sequence_of(transaction: str) -> int:
    """The number in a transaction's id; 0, which no transaction has, where there is none."""
    digits = transaction.rpartition("-")[2]
    return int(digits) if digits.isdecimal() and digits.isascii() and len(digits) <= _MAX_SEQUENCE_DIGITS else 0


def usage_id(created_at: datetime, number: int) -> str:
    """`use-{yyyymm}-{number}`, likewise."""
    return f"use-{_month(created_at.year, created_at.month)}-{number}"


@functools.lru_cache(1024)
def _month(year: int, month: int) -> str:
    return f"{year:04}{month:02}"
