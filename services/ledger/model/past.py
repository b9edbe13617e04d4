"""Owns what an account had at a past time: its book now, less what its journal moved since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from services.ledger.model.book import Book, Grant
from services.ledger.model.windows import cycle_containing


@dataclass(frozen=True, slots=True)
class Moved:
    """What entries since some moment add up to, nanos; `uses` by grant, under the empty name what was overdrawn."""

    entries: int
    uses: Mapping[str, int]
    funding: int
    available: int
    held: int
    spent: int
    expired: int


def cycle_at(book: Book, moment: datetime) -> tuple[datetime, datetime]:
    """Start and end of the cycle that a moment until now was in; `book` is in its present cycle.

    A changed anchor leaves no trace: for times before the change, cycles are those of the present anchor.
    """
    if moment >= book.cycle_start:
        return book.cycle_start, book.cycle_end
    start, end = cycle_containing(book.cycle_anchor, moment)
    return start, min(end, book.cycle_start)


def left_then(book: Book, moved: Moved) -> dict[str, int]:
    """What was left of each grant, where anything was; nanos."""
    left = {grant.grant_id: grant.remaining for grant in book.grants}
    for grant_id, amount in moved.uses.items():
        if grant_id:
            left[grant_id] = left.get(grant_id, 0) + amount
    assert all(amount >= 0 for amount in left.values()), book.account_id
    return {grant_id: amount for grant_id, amount in left.items() if amount}


def book_at(
    book: Book, moment: datetime, moved: Moved, grants: Iterable[Grant], *, cycle_start: datetime, cycle_spent: int
) -> Book:
    """The balances of `book` as of a moment; everything else of it is as it is now, but limits, which are left out.

    `moved` by entries dated after that moment. `grants`: those that had something left, as they were given.
    """
    left = left_then(book, moved)
    past = replace(
        book,
        touched_at=moment,
        cycle_start=cycle_start,
        cycle_end=cycle_at(book, moment)[1],
        sequence=book.sequence - moved.entries,
        available=book.available - moved.available,
        held=book.held - moved.held,
        funded=book.funded + moved.funding,
        spent=book.spent - moved.spent,
        expired=book.expired - moved.expired,
        overdrawn=book.overdrawn - moved.uses.get("", 0),
        unbacked=0,
        cycle_spent=cycle_spent,
        grants=[],
        limits=[],
        next_event_at=None,
    )
    for grant in grants:
        past.add_grant(replace(grant, remaining=left.pop(grant.grant_id), reserved=0))
    assert not left, book.account_id
    return past
