"""Owns the usage feed: every account's usage records, each once, in an order that keeps each account's own.

A consumer keeps the cursor of the last answer it took in together with what it made of that answer's records, in one
transaction, and begins there again: then no record is missed and none counts twice, whatever fails on either side. One
that cannot do so gets the records after its last cursor again, and tells them by account and usage id. A record that
has come does not change; refunds of what it cost are transactions, not usage.

Between accounts the order is that of commits, nearly: each writer's own exactly, different writers' by the database's
clock. Records of months that were detached (see docs/operating/ledger.md) are not in the feed any more: a consumer that
had not come so far is told, rather than given what is left.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import heapq
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import Row

from services.kit.refusals import Overloaded, StorageUnavailable
from services.ledger.errors import CursorUnknown
from services.ledger.store.feed import FeedPages, FeedReads, SlotPage
from services.ledger.store.writing import FEED_SLOTS

MAX_READERS = 32

_READERS = Gauge("tollkeeper_ledger_feed_readers", "Streams of the usage feed that are open.")
_GIVEN = Counter("tollkeeper_ledger_feed_records_total", "Records that the usage feed has given.")
_AGE = Histogram(
    "tollkeeper_ledger_feed_age_seconds",
    "How long the oldest record of an answer of the feed had been there.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600, 86400),
)

_VERSION = 1
# A cursor of 64 slots with the largest positions there can be is shorter.
_MAX_CURSOR_CHARS = 4000
_MAX_POSITION = 2**63 - 1
# At least so many rows of each slot are read at once.
_SLOT_ROWS = 32
# Records that come are given ten times a second: to ask costs as much as a dozen of them. An idle feed is asked less.
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.1, 0.25


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a consumer has got: in each slot through a position.

    `archived` is the last month that had been detached when the consumer began; its records were never for it. None:
    it has not begun.
    """

    positions: dict[int, int] = field(default_factory=dict)
    archived: str | None = None

    @classmethod
    def of(cls, text: str) -> Cursor:
        """The cursor that `str` made; empty text is the beginning. Raises CursorUnknown."""
        if not text:
            return cls()
        try:
            padded = text[:_MAX_CURSOR_CHARS] + "=" * (-len(text) % 4)
            content = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        except (binascii.Error, ValueError):
            content = None
        match content:
            case [version, str(archived), [*pairs]] if version == _VERSION and all(map(_is_place, pairs)):
                positions = dict(pairs)
                if len(positions) == len(pairs):
                    return cls(positions, archived)
        raise CursorUnknown("the cursor is not one of this feed's")

    def __str__(self) -> str:
        content = [_VERSION, self.archived or "", sorted(self.positions.items())]
        return base64.urlsafe_b64encode(orjson.dumps(content)).decode().rstrip("=")


def _is_place(pair: object) -> bool:
    match pair:
        case [int(slot), int(position)] if not isinstance(slot, bool) and not isinstance(position, bool):
            return 0 <= slot < FEED_SLOTS and 0 < position <= _MAX_POSITION
    return False


@dataclass(frozen=True, slots=True)
class Answer:
    """The next records, usage rows, and where to go on after them."""

    rows: Sequence[Row[Any]]
    cursor: Cursor


class UsageFeed:
    """The feed of one ledger, to any consumers. `draining` is set when the server begins to stop."""

    def __init__(self, reads: FeedReads, draining: asyncio.Event) -> None:
        self._reads = reads
        self._draining = draining
        self._open = 0

    async def follow(self, text: str, *, batch_size: int, until_now: bool) -> AsyncGenerator[Answer, None]:
        """The records after a cursor, in answers of at most `batch_size`, and then those that come.

        With `until_now` it ends when all has been given that was there when it began (or was written meanwhile, up to
        that). Raises CursorUnknown where the cursor is not this feed's, or what comes after it is archived; Overloaded
        where there are too many readers; StorageUnavailable where the server stops: another one goes on.
        """
        cursor = Cursor.of(text)
        with self._counted_in():
            if cursor.archived is None:
                positions, archived = await self._reads.beginnings()
                cursor = Cursor(positions, archived)
            ends = await self._reads.positions()
            ahead = sum(position > cursor.positions.get(slot, 0) for slot, position in ends.items())
            pause = _FIRST_PAUSE_SECONDS
            while True:
                pages = await self._reads.after(cursor.positions, max(_SLOT_ROWS, 2 * batch_size // max(ahead, 1)))
                ahead = len(pages.slots)
                rows, end = merged(pages, cursor)
                for answer in _answers(rows, cursor, end, batch_size):
                    yield answer
                cursor = end
                if until_now and all(cursor.positions.get(slot, 0) >= position for slot, position in ends.items()):
                    return
                more = any(cursor.positions.get(page.slot, 0) < page.until for page in pages.slots)
                pause = _FIRST_PAUSE_SECONDS if rows else min(2 * pause, _LAST_PAUSE_SECONDS)
                await self._wait(0 if more else pause)

    @contextlib.contextmanager
    def _counted_in(self) -> Iterator[None]:
        """Count a reader while it reads. Raises Overloaded."""
        if self._open >= MAX_READERS:
            raise Overloaded(f"this process serves its {MAX_READERS} feeds already", retry_after_seconds=5)
        self._open += 1
        try:
            with _READERS.track_inprogress():
                yield
        finally:
            self._open -= 1

    async def _wait(self, seconds: float) -> None:
        """Wait a moment. Raises StorageUnavailable as soon as the server stops."""
        if seconds and not self._draining.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), seconds)
        if self._draining.is_set():
            raise StorageUnavailable("the ledger is stopping", retry_after_seconds=1)


def _answers(rows: Sequence[Row[Any]], cursor: Cursor, end: Cursor, batch_size: int) -> Iterator[Answer]:
    """Merged records in answers; the cursors from `cursor` on, the last one `end`."""
    positions = dict(cursor.positions)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for row in batch:
            positions[row.slot] = row.feed_position
        _GIVEN.inc(len(batch))
        _AGE.observe(max(0.0, (datetime.now(UTC) - batch[0].fed_at).total_seconds()))
        yield Answer(batch, end if start + batch_size >= len(rows) else Cursor(dict(positions), cursor.archived))


def merged(pages: FeedPages, cursor: Cursor) -> tuple[list[Row[Any]], Cursor]:
    """The records of all slots by the time they were written, and the cursor after them.

    Whatever an account wrote later was written at a later time, so a record comes after all that its account has before
    it. They end where a slot's page runs out and there is more: what follows there may be earlier than the others'.
    Raises CursorUnknown where records in between are gone.
    """
    positions = dict(cursor.positions)
    found: list[Row[Any]] = []
    heads: list[tuple[datetime, str, int, int, int]] = []

    def come_to(number: int, index: int) -> bool:
        """Go on to the record of this index in the page of this number; whether the page's slot is known so far."""
        page = pages.slots[number]
        _check_between(page, index, pages.archived, cursor.archived)
        if index < len(page.rows):
            row = page.rows[index]
            heapq.heappush(heads, (row.fed_at, row.account_id, row.usage_number, number, index))
            return True
        positions[page.slot] = page.through
        return page.through == page.until

    # A page without records, of a slot that has more, must be gone beyond before anything else can be given.
    if not all(come_to(number, 0) for number in range(len(pages.slots))):
        return [], Cursor(positions, cursor.archived)
    while heads:
        *_, number, index = heapq.heappop(heads)
        page = pages.slots[number]
        found.append(page.rows[index])
        positions[page.slot] = page.rows[index].feed_position
        if not come_to(number, index + 1):
            break
    return found, Cursor(positions, cursor.archived)


def _check_between(page: SlotPage, index: int, archived: str, began: str | None) -> None:
    """Check what lies between a record of a page, or the page's end, and the record before it.

    Nothing may lie there but what was archived before the reader began. Raises CursorUnknown.
    """
    if page.until < page.after:
        raise CursorUnknown("the cursor is ahead of this feed: it is another's, or the ledger was restored")
    before = page.rows[index - 1].feed_position if index else page.after
    position = page.rows[index].feed_position if index < len(page.rows) else page.through + 1
    if position != before + 1 and (not archived or archived != began):
        raise CursorUnknown(
            "records after this cursor are archived; take them from the archive, then begin anew",
            archivedThrough=archived,
        )
