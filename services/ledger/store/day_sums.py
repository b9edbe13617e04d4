"""Owns the SQL of sums over all accounts: kept by day, so that a report does not go through every record.

A job adds records to the sums in the order of the usage feed, whose positions are dense and in commit order in each
slot (feed.py): how far it has got says exactly which records are in, and a report adds those that are not, in the same
statement. So it is right at every moment, also while the job is behind or not running at all; only slower then. Sums
stay when the records of their month are archived.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time
from typing import Any

from sqlalchemy import TextClause, text

from services.ledger.model.book import MAX_COUNTED
from services.ledger.store.partitions import Connection, rows
from services.ledger.store.summaries import MAX_SUMMARIES

RECORDS_AT_ONCE = 2_000
# What usage of all accounts may be summed by.
DIMENSIONS = {
    "day": "to_char(day, 'YYYY-MM-DD')",
    "month": "to_char(day, 'YYYY-MM')",
    "provider": "provider",
    "model": "model",
}
# Each sum, as what a record adds to it.
_OF_RECORD = {
    "requests": "1",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cached_tokens": "cached_tokens",
    "reasoning_tokens": "reasoning_tokens",
    "cost": "cost",
    "billed": "billed",
    "estimated_requests": "estimated::int",
    "unbilled_requests": "(NOT billable)::int",
    "internal_requests": "internal::int",
    "internal_tokens": "CASE WHEN internal THEN input_tokens::numeric + output_tokens ELSE 0 END",
}
_SUMS = ", ".join(_OF_RECORD)
_RECORD = (
    f"account_id, (created_at AT TIME ZONE 'UTC')::date AS day, provider, model, "
    f"{', '.join(f'{term} AS {name}' for name, term in _OF_RECORD.items())}"
)
# The sums' rows of slots are locked, so that of two workers one waits for the other, then goes on after it; writers
# wait for neither. Uses the index usage_feed. The limit, which the positions imply, keeps Postgres from joining all
# of usage.
_TAKE_IN = f"""
    WITH ahead AS (
        SELECT s.slot, s.position AS after, least(f.position, s.position + %(count)s) AS through
        FROM summed_slots s JOIN feed_slots f ON f.slot = s.slot
        WHERE f.position > s.position ORDER BY s.slot FOR UPDATE OF s
    ), records AS MATERIALIZED (
        SELECT u.* FROM ahead a CROSS JOIN LATERAL (
            SELECT {_RECORD} FROM usage
            WHERE feed_slot = a.slot AND feed_position > a.after AND feed_position <= a.through
            ORDER BY feed_position LIMIT %(count)s
        ) u
    ), sums AS (
        INSERT INTO day_sums (day, provider, model, {_SUMS})
        SELECT day, provider, model, {", ".join(f"sum({name})" for name in _OF_RECORD)} FROM records
        GROUP BY day, provider, model ORDER BY day, provider, model
        ON CONFLICT (day, provider, model) DO UPDATE
        SET {", ".join(f"{name} = day_sums.{name} + excluded.{name}" for name in _OF_RECORD)}
    ), active AS (
        INSERT INTO active_days (account_id, day) SELECT DISTINCT account_id, day FROM records ORDER BY account_id, day
        ON CONFLICT DO NOTHING
    )
    UPDATE summed_slots s SET position = a.through FROM ahead a WHERE a.slot = s.slot
    RETURNING a.through - a.after
"""  # noqa: S608 (all of it is our own)
# The records that are not in the sums.
_LATER = f"""
    SELECT u.* FROM feed_slots f JOIN summed_slots s ON s.slot = f.slot AND f.position > s.position
    CROSS JOIN LATERAL (
        SELECT {_RECORD} FROM usage
        WHERE feed_slot = f.slot AND feed_position > s.position AND feed_position <= f.position
          AND created_at >= :start AND created_at < :end
        ORDER BY feed_position LIMIT f.position - s.position
    ) u
"""  # noqa: S608
# How many accounts have used anything.
ACTIVE = text(
    f"""
    SELECT count(DISTINCT account_id) FROM (
        SELECT account_id FROM active_days WHERE day >= :first_day AND day < :end_day
        UNION ALL
        SELECT account_id FROM ({_LATER}) later
    ) both_parts
    """  # noqa: S608
)


def covers(start: datetime, end: datetime) -> bool:
    """Whether whole UTC days are asked for."""
    return all(moment.astimezone(UTC).time() == time() for moment in (start, end))


def bounds(start: datetime, end: datetime) -> dict[str, Any]:
    """The parameters of `sums` and `ACTIVE`: usage booked in `[start, end)`, whole days."""
    first_day, end_day = (moment.astimezone(UTC).date() for moment in (start, end))
    return {"start": start, "end": end, "first_day": first_day, "end_day": end_day}


def sums(group_by: Sequence[str]) -> TextClause:
    """The sums by these dimensions, in their order; one row in all where none is named."""
    keys = [f"by_{name}" for name in group_by]
    columns = [f"{DIMENSIONS[name]} AS by_{name}" for name in group_by]
    columns += [f"least(coalesce(sum({name}), 0), {MAX_COUNTED})::bigint AS {name}" for name in _OF_RECORD]
    grouped = f"GROUP BY {', '.join(keys)} ORDER BY {', '.join(keys)}" if keys else ""
    return text(
        f"""
        SELECT {", ".join(columns)} FROM (
            SELECT day, provider, model, {_SUMS} FROM day_sums WHERE day >= :first_day AND day < :end_day
            UNION ALL
            SELECT day, provider, model, {_SUMS} FROM ({_LATER}) later
        ) both_parts {grouped} LIMIT {MAX_SUMMARIES}
        """  # noqa: S608
    )


async def take_in(connection: Connection, count: int) -> bool:
    """Add to the sums what is next in each slot, at most so many records of it. Whether there is more."""
    return any(taken == count for (taken,) in await rows(connection, _TAKE_IN, {"count": count}))
