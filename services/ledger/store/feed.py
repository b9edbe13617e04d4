"""Owns the SQL of the usage feed: what each writer's slot has after a position, all slots as of one moment.

Positions are dense within a slot, and in commit order: a writer takes them with its slot's row locked (writing.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.ledger import tables

_COLUMNS = ", ".join(f"u.{column.name}" for column in tables.usage.c)

# One statement, so one snapshot: a record is only seen with all that its account has before it. The slots' own rows say
# which of them have anything new: the others cost no look at the usage table. Takes no lock. Of each partition it uses
# the index usage_feed, between two positions: no plan, however old its statistics, reads much more than it gives. The
# limit, which those imply, keeps Postgres from joining the whole table instead.
_AFTER = text(
    f"""
    SELECT a.slot, a.after, a.until,
        (SELECT max(month) FROM archived_months) AS archived, {_COLUMNS}
    FROM (
        SELECT s.slot, coalesce(c.position, 0) AS after, s.position AS until
        FROM feed_slots s
        LEFT JOIN unnest(CAST(:slots AS int[]), CAST(:positions AS bigint[])) AS c(slot, position) ON c.slot = s.slot
        WHERE s.position <> coalesce(c.position, 0)
    ) a
    LEFT JOIN LATERAL (
        SELECT * FROM usage
        WHERE feed_slot = a.slot AND feed_position > a.after AND feed_position <= a.after + CAST(:count AS bigint)
        ORDER BY feed_position LIMIT :count
    ) u ON true
    ORDER BY a.slot, u.feed_position
    """  # noqa: S608 (the columns are this service's own)
)
# Where each slot's records begin, once the first of them are archived. The same index.
_BEGINNINGS = text(
    """
    SELECT a.month, s.slot, coalesce(
        (SELECT feed_position - 1 FROM usage WHERE feed_slot = s.slot ORDER BY feed_position LIMIT 1), s.position
    ) AS position
    FROM feed_slots s, (SELECT max(month) AS month FROM archived_months) a
    WHERE a.month IS NOT NULL AND s.position > 0
    """
)


@dataclass(frozen=True, slots=True)
class SlotPage:
    """What a slot has after position `after`, through `through`; its last is `until`.

    Of positions without a row, the records are in archived months.
    """

    slot: int
    after: int
    through: int
    until: int
    rows: list[Row[Any]]


@dataclass(frozen=True, slots=True)
class FeedPages:
    """The slots that have something new, as of one moment; and the last month (`2026-11`) detached by then, if any."""

    slots: list[SlotPage]
    archived: str


class FeedReads:
    """Reads of the feed of one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def positions(self) -> dict[int, int]:
        """How far each slot has got."""
        slots = tables.feed_slots.c
        rows = await self._rows(select(slots.slot, slots.position))
        return {row.slot: row.position for row in rows}

    async def beginnings(self) -> tuple[dict[int, int], str]:
        """The position before each slot's first record, and the last month detached. Both empty where none is."""
        rows = await self._rows(_BEGINNINGS)
        return {row.slot: row.position for row in rows if row.position}, rows[0].month if rows else ""

    async def after(self, positions: Mapping[int, int], count: int) -> FeedPages:
        """What is there after these positions (0 for a slot not named), through `count` more of each slot."""
        slots = {"slots": list(positions.keys()), "positions": list(positions.values())}
        rows = await self._rows(_AFTER, slots | {"count": count})
        found: dict[int, list[Any]] = {}
        for row in rows:
            found.setdefault(row.slot, []).append(row)
        pages = []
        for slot, of_slot in found.items():
            after, until = of_slot[0].after, of_slot[0].until
            records = [row for row in of_slot if row.feed_position is not None]
            pages.append(SlotPage(slot, after, min(after + count, until), until, records))
        return FeedPages(pages, (rows[0].archived or "") if rows else "")

    async def _rows(self, query: Any, arguments: Mapping[str, Any] | None = None) -> Sequence[Any]:
        async with self._engine.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query, arguments)).all()
            return rows
