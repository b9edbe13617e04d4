# ruff: noqa: S608 (statements are put together from our own words only)
"""Owns the SQL of usage: events, aggregates, the feed's cursor, use in a cycle. Runs in the caller's transaction.

Rows go in as one JSON argument: a statement with an argument for each value took longer to write than to execute.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, text

from services.subscriptions.metering.model import (
    GAUGES,
    LIMITED,
    METRICS,
    Tallies,
    UsageEvent,
    Use,
    by_hour,
    ceil_hour,
    floor_hour,
)
from services.subscriptions.model.cycle import Cycle

_GAUGES = list(GAUGES)


# Events

# By primary key: an id that is there, or twice in the request, is left out. Rows go in by id, so that two requests with
# the same ids in different order do not wait for each other.
_INSERT_EVENTS = text(
    """
    INSERT INTO usage_events (account_id, event_id, metric, quantity, occurred_at, labels)
    SELECT :account_id, e.id, e.metric, e.quantity, e.at, e.labels
    FROM json_to_recordset(CAST(:events AS json))
      AS e(id text, metric text, quantity bigint, at timestamptz, labels jsonb)
    ORDER BY e.id COLLATE "C"
    ON CONFLICT DO NOTHING
    """
)


def insert_events(connection: Connection, account_id: str, events: Sequence[UsageEvent]) -> int:
    """Take events in, each id once; how many were new."""
    rows = [
        {
            "id": event.event_id,
            "metric": event.metric,
            "quantity": event.quantity,
            "at": event.occurred_at.isoformat(),
            "labels": dict(event.labels) or None,
        }
        for event in events
    ]
    return connection.execute(_INSERT_EVENTS, {"account_id": account_id, "events": json.dumps(rows)}).rowcount


# Locks what it takes; what another aggregator is taking right now is skipped. By `usage_events_waiting`, then by row
# address, which a locked row keeps.
_CLAIM_EVENTS = text(
    """
    UPDATE usage_events SET aggregated = true
    WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM usage_events WHERE NOT aggregated ORDER BY received_at LIMIT :limit FOR UPDATE SKIP LOCKED))
    RETURNING account_id, metric, quantity, occurred_at
    """
)


def claim_events(connection: Connection, *, limit: int) -> list[tuple[str, str, int, datetime]]:
    """Mark the events longest waiting as aggregated and give them: (account, metric, quantity, moment)."""
    rows = connection.execute(_CLAIM_EVENTS, {"limit": limit})
    return [(row.account_id, row.metric, row.quantity, row.occurred_at) for row in rows]


def oldest_waiting_seconds(connection: Connection) -> float:
    """Age of the event that has waited longest for its aggregation; 0 where none waits. By `usage_events_waiting`."""
    statement = text(
        "SELECT extract(epoch FROM now() - received_at) FROM usage_events WHERE NOT aggregated"
        " ORDER BY received_at LIMIT 1"
    )
    return float(connection.execute(statement).scalar() or 0)


# By `usage_events_aggregated`. An event that is not aggregated is kept however old it is.
_DELETE_EVENTS = text(
    """
    DELETE FROM usage_events WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM usage_events WHERE aggregated AND received_at < now() - make_interval(secs => :seconds)
        ORDER BY received_at LIMIT :limit FOR UPDATE SKIP LOCKED))
    """
)


def delete_events(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Delete events taken in long ago, at most `limit`; how many."""
    arguments = {"seconds": older_than.total_seconds(), "limit": limit}
    return connection.execute(_DELETE_EVENTS, arguments).rowcount


# Aggregates

# Each locks its rows in the order of their keys, minutes before hours before gauges, as everyone does who locks them.
_ADD_MINUTES = text(
    """
    INSERT INTO usage_minutes AS kept
        (account_id, metric, minute, emitted, proxied, last_quantity, last_at, due_since)
    SELECT a.account_id, a.metric, a.start, a.emitted, a.proxied, a.last_quantity, a.last_at,
           CASE WHEN a.last_at IS NULL THEN now() END
    FROM json_to_recordset(CAST(:added AS json)) AS a(account_id text, metric text, start timestamptz,
         emitted numeric, proxied numeric, last_quantity bigint, last_at timestamptz)
    ORDER BY a.account_id COLLATE "C", a.metric COLLATE "C", a.start
    ON CONFLICT (account_id, metric, minute) DO UPDATE SET
        emitted = CASE WHEN excluded.last_at IS NULL THEN kept.emitted + excluded.emitted
                       ELSE greatest(kept.emitted, excluded.emitted) END,
        proxied = kept.proxied + excluded.proxied,
        last_quantity = CASE WHEN (excluded.last_at, excluded.last_quantity) > (kept.last_at, kept.last_quantity)
                             THEN excluded.last_quantity ELSE kept.last_quantity END,
        last_at = greatest(kept.last_at, excluded.last_at),
        due_since = coalesce(kept.due_since, excluded.due_since)
    """
)
_ADD_HOURS = text(
    """
    INSERT INTO usage_hours AS kept (account_id, metric, hour, emitted, proxied)
    SELECT a.account_id, a.metric, a.start, a.emitted, a.proxied
    FROM json_to_recordset(CAST(:added AS json))
      AS a(account_id text, metric text, start timestamptz, emitted numeric, proxied numeric)
    ORDER BY a.account_id COLLATE "C", a.metric COLLATE "C", a.start
    ON CONFLICT (account_id, metric, hour) DO UPDATE SET
        emitted = CASE WHEN excluded.metric = ANY(:gauges) THEN greatest(kept.emitted, excluded.emitted)
                       ELSE kept.emitted + excluded.emitted END,
        proxied = kept.proxied + excluded.proxied
    """
)
_LOOK_AT_GAUGES = text(
    """
    INSERT INTO usage_gauges AS kept (account_id, metric, look_at)
    SELECT DISTINCT a.account_id, a.metric, now()
    FROM json_to_recordset(CAST(:added AS json)) AS a(account_id text, metric text)
    ORDER BY 1, 2
    ON CONFLICT (account_id, metric) DO UPDATE SET look_at = least(kept.look_at, excluded.look_at)
    """
)


_LOOK_AT_LIMITS = text(
    """
    INSERT INTO usage_limits AS kept (account_id, look_at)
    SELECT DISTINCT account_id, now() FROM unnest(CAST(:account_ids AS text[])) AS account_id ORDER BY 1
    ON CONFLICT (account_id) DO UPDATE SET look_at = least(kept.look_at, excluded.look_at)
    """
)


def _rows(tallies: Tallies) -> list[dict[str, Any]]:
    return [
        {
            "account_id": account_id,
            "metric": metric,
            "start": start.isoformat(),
            # As text: JSON's numbers are anybody's floats, these may have thirty digits.
            "emitted": str(added.emitted),
            "proxied": str(added.proxied),
            "last_at": added.last[0].isoformat() if added.last else None,
            "last_quantity": added.last[1] if added.last else None,
        }
        for (account_id, metric, start), added in tallies.items()
    ]


def add_tallies(connection: Connection, tallies: Tallies) -> None:
    """Add to minutes and hours, and let the gauges that changed be looked at, and limits that are used up elsewhere."""
    if not tallies:
        return
    connection.execute(_ADD_MINUTES, {"added": json.dumps(_rows(tallies))})
    connection.execute(_ADD_HOURS, {"added": json.dumps(_rows(by_hour(tallies))), "gauges": _GAUGES})
    gauges = [{"account_id": account_id, "metric": metric} for account_id, metric, _ in tallies if metric in GAUGES]
    if gauges:
        connection.execute(_LOOK_AT_GAUGES, {"added": json.dumps(gauges)})
    limited = {account_id for (account_id, metric, _), added in tallies.items() if metric in LIMITED and added.emitted}
    if limited:
        connection.execute(_LOOK_AT_LIMITS, {"account_ids": sorted(limited)})


# A level goes on until another is told, so the last one is kept however old it is. Hours go with their first minute,
# being over as a whole. By `usage_minutes_by_time` and primary keys.
_DELETE_MINUTES = text(
    """
    WITH gone AS (
        DELETE FROM usage_minutes WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM usage_minutes AS old
            WHERE minute < date_trunc('hour', now() - make_interval(secs => :seconds), 'UTC')
              AND (last_at IS NULL OR EXISTS (
                  SELECT 1 FROM usage_minutes AS later
                  WHERE later.account_id = old.account_id AND later.metric = old.metric AND later.minute > old.minute
                    AND later.minute < date_trunc('hour', now() - make_interval(secs => :seconds), 'UTC')))
            ORDER BY minute LIMIT :limit FOR UPDATE SKIP LOCKED))
        RETURNING account_id, metric, date_trunc('hour', minute, 'UTC') AS hour),
    hours AS (
        DELETE FROM usage_hours USING (SELECT DISTINCT account_id, metric, hour FROM gone) AS ended
        WHERE usage_hours.account_id = ended.account_id AND usage_hours.metric = ended.metric
          AND usage_hours.hour = ended.hour)
    SELECT count(*) FROM gone
    """
)


def delete_minutes(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Delete sums, and levels that others have followed, of long ago, at most `limit` minutes; how many."""
    arguments = {"seconds": older_than.total_seconds(), "limit": limit}
    return int(connection.execute(_DELETE_MINUTES, arguments).scalar_one())


# The ledger's feed


_CURSOR = text("SELECT cursor FROM usage_feed WHERE name = 'ledger'")
_LOCKED_CURSOR = text("SELECT cursor FROM usage_feed WHERE name = 'ledger' FOR UPDATE")


def feed_cursor(connection: Connection, *, lock: bool = False) -> str:
    """How far the ledger's feed has been taken in; with `lock`, nobody else takes any in until the transaction ends."""
    return str(connection.execute(_LOCKED_CURSOR if lock else _CURSOR).scalar_one())


def move_feed_cursor(connection: Connection, cursor: str) -> None:
    """Note how far the feed has been taken in."""
    connection.execute(
        text("UPDATE usage_feed SET cursor = :cursor, updated_at = now() WHERE name = 'ledger'"), {"cursor": cursor}
    )


# Use in a cycle

# A gauge's level before a moment: its latest, be it aggregated or not, however long ago it was told.
_LEVEL_BEFORE = """
    SELECT level FROM (
        (SELECT last_at AS at, last_quantity AS level FROM usage_minutes
         WHERE account_id = :account_id AND metric = wanted.metric AND minute < {moment} ORDER BY minute DESC LIMIT 1)
        UNION ALL
        (SELECT occurred_at, quantity FROM usage_events
         WHERE NOT aggregated AND account_id = :account_id AND metric = wanted.metric AND occurred_at < {moment}
         ORDER BY occurred_at DESC, quantity DESC LIMIT 1)) AS levels
    ORDER BY at DESC, level DESC LIMIT 1
"""
# Whole hours by `usage_hours`, the rest of the first and last one by `usage_minutes`, and what waits to be aggregated:
# one statement, so one moment; an event is seen once, be it aggregated or not. And what a move at once has carried into
# the cycle that it began: Stripe was told of it as of then, and bills it there. By primary keys and
# `usage_events_waiting_of_account`; at most some 870 rows a metric, a day's reports, and what waits.
_USE = text(
    """
    WITH wanted AS (SELECT metric, metric = ANY(:gauges) AS is_gauge FROM unnest(CAST(:metrics AS text[])) AS metric),
    parts AS (
        SELECT metric, emitted, proxied FROM usage_hours
        WHERE account_id = :account_id AND metric = ANY(:metrics) AND hour >= :first_hour AND hour < :last_hour
        UNION ALL
        SELECT metric, emitted, proxied FROM usage_minutes
        WHERE account_id = :account_id AND metric = ANY(:metrics) AND minute >= :start AND minute < :first_hour
        UNION ALL
        SELECT metric, emitted, proxied FROM usage_minutes
        WHERE account_id = :account_id AND metric = ANY(:metrics) AND minute >= :last_hour AND minute < :end
        UNION ALL
        SELECT metric, quantity, 0 FROM usage_events
        WHERE NOT aggregated AND account_id = :account_id AND metric = ANY(:metrics)
          AND occurred_at >= :start AND occurred_at < :end
        UNION ALL
        SELECT metric, 0, value FROM meter_reports
        WHERE account_id = :account_id AND metric = ANY(:metrics) AND metric <> ALL(:gauges)
          AND window_start >= CAST(:start AS timestamptz) - interval '1 day' AND window_start < :start
          AND stamped_at >= :start),
    sums AS (
        SELECT metric, sum(emitted) AS emitted, sum(proxied) AS proxied, max(emitted) AS peak
        FROM parts GROUP BY metric)
    SELECT wanted.metric, is_gauge, coalesce(emitted, 0) AS emitted, coalesce(proxied, 0) AS proxied,
           greatest(peak, opening.level, 0) AS peak, coalesce(latest.level, 0) AS latest
    FROM wanted LEFT JOIN sums ON sums.metric = wanted.metric
    LEFT JOIN LATERAL ("""
    + _LEVEL_BEFORE.format(moment=":start")
    + """) AS opening ON is_gauge
    LEFT JOIN LATERAL ("""
    + _LEVEL_BEFORE.format(moment=":end")
    + """) AS latest ON is_gauge
    """
)


def _use_rows(connection: Connection, account_id: str, cycle: Cycle, metrics: Collection[str]) -> Sequence[Row[Any]]:
    arguments = {
        "account_id": account_id,
        "metrics": list(metrics),
        "gauges": _GAUGES,
        "start": cycle.start,
        "end": cycle.end,
        "first_hour": ceil_hour(cycle.start),
        "last_hour": floor_hour(cycle.end),
    }
    return connection.execute(_USE, arguments).all()


def cycle_use(
    connection: Connection, account_id: str, cycle: Cycle, metrics: Collection[str] = METRICS
) -> dict[str, Use]:
    """Use of each metric in a cycle of whole minutes."""
    found: dict[str, Use] = {}
    for row in _use_rows(connection, account_id, cycle, metrics):
        if row.is_gauge:
            found[row.metric] = Use(int(row.peak), int(row.latest))
        else:
            used = int(row.emitted) + int(row.proxied)
            found[row.metric] = Use(used, used)
    return found


def cycle_emitted(connection: Connection, account_id: str, cycle: Cycle) -> dict[str, int]:
    """What of the metrics that the ledger limits was emitted beside it in a cycle of whole minutes."""
    return {row.metric: int(row.emitted) for row in _use_rows(connection, account_id, cycle, LIMITED)}


def proxied_between(connection: Connection, account_id: str, start: datetime, end: datetime) -> dict[str, int]:
    """What came from the ledger in whole minutes, by metric. By primary key."""
    statement = text(
        """
        SELECT metric, sum(proxied) AS proxied FROM usage_minutes
        WHERE account_id = :account_id AND metric = ANY(:metrics) AND minute >= :start AND minute < :end GROUP BY metric
        """
    )
    arguments: Mapping[str, object] = {"account_id": account_id, "metrics": list(METRICS), "start": start, "end": end}
    return {row.metric: int(row.proxied) for row in connection.execute(statement, arguments)}


# The ledger's limits


@dataclass(frozen=True, slots=True)
class PushedLimits:
    """What the ledger's limits were set to last, by unit, at which revision of the account."""

    revision: int
    amounts: dict[str, int]


def limits_due(connection: Connection, *, limit: int) -> list[str]:
    """Accounts whose limits are to be looked at: changed, a new cycle, or pushed by somebody else. Takes no lock.

    Goes through `usage_limits`, which has the accounts that emit what the ledger limits.
    """
    statement = text(
        """
        SELECT due.account_id FROM usage_limits AS due JOIN accounts ON accounts.account_id = due.account_id
        WHERE due.look_at <= now() OR due.revision <> accounts.revision ORDER BY due.look_at LIMIT :limit
        """
    )
    return list(connection.execute(statement, {"limit": limit}).scalars())


def lock_pushed_limits(connection: Connection, account_id: str) -> PushedLimits:
    """What was pushed last, locked until the transaction ends. By primary key."""
    statement = text("SELECT revision, pushed FROM usage_limits WHERE account_id = :account_id FOR UPDATE")
    row = connection.execute(statement, {"account_id": account_id}).one()
    return PushedLimits(row.revision, row.pushed)


def keep_pushed_limits(connection: Connection, account_id: str, pushed: PushedLimits, *, look_at: datetime) -> None:
    """Note what was pushed, and when to look again."""
    connection.execute(
        text(
            "UPDATE usage_limits SET revision = :revision, pushed = CAST(:pushed AS jsonb), look_at = :look_at"
            " WHERE account_id = :account_id"
        ),
        {
            "account_id": account_id,
            "revision": pushed.revision,
            "pushed": json.dumps(pushed.amounts),
            "look_at": look_at,
        },
    )
