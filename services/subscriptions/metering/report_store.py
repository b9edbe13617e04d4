"""Owns the SQL of reports to meters: what is due, committed to be sent, sent. Runs in the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

from services.subscriptions.metering.model import MeterEvent

_MAX_ERROR_CHARS = 500

# (account, metric, start of the minute)
MinuteKey = tuple[str, str, datetime]
BEFORE_ALL: MinuteKey = ("", "", datetime(1, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class PlanRef:
    """A version of a plan."""

    plan_id: str
    version: int


@dataclass(frozen=True, slots=True)
class DueMinute:
    """A minute whose sum has changed since it was last reported; `plan` is the one in force when it ended, if any.

    `moved_to` is the plan that Stripe said next, if any; `anchor` is what the account's cycles are counted from now.
    """

    account_id: str
    metric: str
    minute: datetime
    total: int
    reported: int
    sequence: int
    plan: PlanRef | None
    moved_to: PlanRef | None
    anchor: datetime | None

    @property
    def key(self) -> MinuteKey:
        """Its place in the order of minutes."""
        return (self.account_id, self.metric, self.minute)


# By `usage_minutes_due`; what an aggregator or another reporter has locked is left for the next time.
_DUE = text(
    """
    SELECT due.account_id, due.metric, due.minute, due.emitted + due.proxied AS total,
           reports.reported, reports.sequence,
           coalesce(moved.from_plan_id, accounts.plan_id) AS plan_id,
           coalesce(moved.from_plan_version, accounts.plan_version) AS plan_version,
           moved.plan_id AS moved_to_id, moved.plan_version AS moved_to_version, moved.by_stripe,
           accounts.cycle_anchor
    FROM usage_minutes AS due
    LEFT JOIN accounts ON accounts.account_id = due.account_id
    LEFT JOIN LATERAL (
        SELECT from_plan_id, from_plan_version, plan_id, plan_version, request_id LIKE 'stripe:%' AS by_stripe
        FROM plan_changes
        WHERE plan_changes.account_id = due.account_id
          AND plan_changes.created_at >= due.minute + interval '1 minute'
        ORDER BY plan_changes.created_at LIMIT 1) AS moved ON true
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(value), 0) AS reported, coalesce(max(sequence), 0) AS sequence FROM meter_reports
        WHERE meter_reports.account_id = due.account_id AND meter_reports.metric = due.metric
          AND meter_reports.window_start = due.minute) AS reports
    WHERE due.due_since IS NOT NULL AND due.minute < :closed_before
      AND (due.account_id, due.metric, due.minute) > (:account_id, :metric, :minute)
    ORDER BY due.account_id, due.metric, due.minute LIMIT :limit
    FOR UPDATE OF due SKIP LOCKED
    """
)


def due_minutes(connection: Connection, *, after: MinuteKey, closed_before: datetime, limit: int) -> list[DueMinute]:
    """Minutes to report, in order from beyond `after` on, locked until the transaction ends."""
    arguments = {
        "account_id": after[0],
        "metric": after[1],
        "minute": after[2],
        "closed_before": closed_before,
        "limit": limit,
    }
    return [
        DueMinute(
            account_id=row.account_id,
            metric=row.metric,
            minute=row.minute,
            total=int(row.total),
            reported=int(row.reported),
            sequence=row.sequence,
            plan=PlanRef(row.plan_id, row.plan_version) if row.plan_id is not None else None,
            moved_to=PlanRef(row.moved_to_id, row.moved_to_version) if row.by_stripe else None,
            anchor=row.cycle_anchor,
        )
        for row in connection.execute(_DUE, arguments)
    ]


def settle_minutes(connection: Connection, keys: Iterable[MinuteKey]) -> None:
    """Note that these minutes, locked, have nothing more to report. By primary key."""
    rows = [{"account_id": account_id, "metric": metric, "minute": at.isoformat()} for account_id, metric, at in keys]
    if rows:
        statement = text(
            """
            UPDATE usage_minutes AS kept SET due_since = NULL
            FROM json_to_recordset(CAST(:settled AS json)) AS s(account_id text, metric text, minute timestamptz)
            WHERE kept.account_id = s.account_id AND kept.metric = s.metric AND kept.minute = s.minute
            """
        )
        connection.execute(statement, {"settled": json.dumps(rows)})


def expire_minutes(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Give up minutes that a meter would not take any more, at most `limit`; how many. By `usage_minutes_due`."""
    statement = text(
        """
        UPDATE usage_minutes SET due_since = NULL WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM usage_minutes
            WHERE due_since IS NOT NULL AND minute < now() - make_interval(secs => :seconds)
            LIMIT :limit FOR UPDATE SKIP LOCKED))
        """
    )
    return connection.execute(statement, {"seconds": older_than.total_seconds(), "limit": limit}).rowcount


# Gauges


@dataclass(frozen=True, slots=True)
class DueGauge:
    """A gauge that is to be looked at, of an account that subscriptions knows."""

    account_id: str
    metric: str
    plan: PlanRef


def due_gauges(connection: Connection, *, limit: int) -> list[DueGauge]:
    """Gauges longest due, locked until the transaction ends. By `usage_gauges_by_look`."""
    statement = text(
        """
        SELECT due.account_id, due.metric, accounts.plan_id, accounts.plan_version FROM usage_gauges AS due
        JOIN accounts ON accounts.account_id = due.account_id
        WHERE due.look_at <= now() ORDER BY due.look_at LIMIT :limit FOR UPDATE OF due SKIP LOCKED
        """
    )
    return [
        DueGauge(row.account_id, row.metric, PlanRef(row.plan_id, row.plan_version))
        for row in connection.execute(statement, {"limit": limit})
    ]


def look_again(connection: Connection, gauge: DueGauge, *, after: timedelta) -> None:
    """Look at a gauge, locked, again when so much time has gone by."""
    connection.execute(
        text(
            "UPDATE usage_gauges SET look_at = now() + make_interval(secs => :seconds)"
            " WHERE account_id = :account_id AND metric = :metric"
        ),
        {"seconds": after.total_seconds(), "account_id": gauge.account_id, "metric": gauge.metric},
    )


@dataclass(frozen=True, slots=True)
class Told:
    """What a window's last report said, sent or not; sequence 0 where there is none."""

    sequence: int = 0
    value: int = 0
    stamped_at: datetime | None = None


def last_told(connection: Connection, account_id: str, metric: str, window_start: datetime) -> Told:
    """The last report of a window. By primary key."""
    statement = text(
        """
        SELECT sequence, value, stamped_at FROM meter_reports
        WHERE account_id = :account_id AND metric = :metric AND window_start = :window_start
        ORDER BY sequence DESC LIMIT 1
        """
    )
    row = connection.execute(
        statement, {"account_id": account_id, "metric": metric, "window_start": window_start}
    ).first()
    return Told(row.sequence, int(row.value), row.stamped_at) if row is not None else Told()


# Reports


def insert_reports(connection: Connection, events: Sequence[MeterEvent]) -> None:
    """Commit what meters are to be told, before anything of it is sent."""
    if not events:
        return
    rows = [
        {
            "account_id": event.account_id,
            "metric": event.metric,
            "window_start": event.window_start,
            "sequence": event.sequence,
            "value": event.value,
            "stamped_at": event.stamped_at,
            "customer_id": event.customer_id,
        }
        for event in events
    ]
    columns = ", ".join(rows[0])
    named = ", ".join(f":{name}" for name in rows[0])
    connection.execute(text(f"INSERT INTO meter_reports ({columns}) VALUES ({named})"), rows)  # noqa: S608 (our own names)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A report taken to be sent; `attempts` counts this one too, `first_attempt_at` is the first one's moment."""

    event: MeterEvent
    attempts: int
    first_attempt_at: datetime


# Locks what it claims, skips what another is claiming; a claim lapses by itself. By `meter_reports_unsent`.
_CLAIM = text(
    """
    UPDATE meter_reports SET attempts = attempts + 1, first_attempt_at = coalesce(first_attempt_at, now()),
        next_attempt_at = now() + make_interval(secs => :lease_seconds)
    WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM meter_reports WHERE sent_at IS NULL AND next_attempt_at <= now()
        ORDER BY next_attempt_at LIMIT :limit FOR UPDATE SKIP LOCKED))
    RETURNING account_id, metric, window_start, sequence, value, stamped_at, customer_id, attempts, first_attempt_at
    """
)


def claim_reports(connection: Connection, *, limit: int, lease_seconds: float) -> list[Claimed]:
    """Claim the reports longest due for `lease_seconds`, each account's in order."""
    rows = connection.execute(_CLAIM, {"limit": limit, "lease_seconds": lease_seconds})
    found = [
        Claimed(
            MeterEvent(
                account_id=row.account_id,
                metric=row.metric,
                window_start=row.window_start,
                sequence=row.sequence,
                value=int(row.value),
                stamped_at=row.stamped_at,
                customer_id=row.customer_id,
            ),
            row.attempts,
            row.first_attempt_at,
        )
        for row in rows
    ]
    return sorted(found, key=lambda claimed: (claimed.event.account_id, claimed.event.metric, claimed.event.stamped_at))


_THIS_REPORT = """
    WHERE account_id = :account_id AND metric = :metric AND window_start = :window_start AND sequence = :sequence
      AND sent_at IS NULL
"""


def _key(event: MeterEvent) -> dict[str, object]:
    return {
        "account_id": event.account_id,
        "metric": event.metric,
        "window_start": event.window_start,
        "sequence": event.sequence,
    }


def mark_sent(connection: Connection, event: MeterEvent) -> None:
    """Note that a report has arrived."""
    connection.execute(text(f"UPDATE meter_reports SET sent_at = now(), last_error = '' {_THIS_REPORT}"), _key(event))  # noqa: S608 (our own words)


def mark_unsent(connection: Connection, claimed: Claimed, *, error: str, delay_seconds: float) -> None:
    """Note that an attempt failed, and when to try again; nothing where somebody else has claimed it since."""
    connection.execute(
        text(
            "UPDATE meter_reports SET last_error = :error, next_attempt_at = now() + make_interval(secs => :delay)"  # noqa: S608 (our own words)
            f"{_THIS_REPORT} AND attempts = :attempts"
        ),
        {
            **_key(claimed.event),
            "error": error[:_MAX_ERROR_CHARS],
            "delay": delay_seconds,
            "attempts": claimed.attempts,
        },
    )


def sent_total(connection: Connection, event: MeterEvent) -> int:
    """What has been sent of a report's window so far. By primary key."""
    statement = text(
        """
        SELECT coalesce(sum(value), 0) FROM meter_reports
        WHERE account_id = :account_id AND metric = :metric AND window_start = :window_start AND sent_at IS NOT NULL
        """
    )
    arguments = {"account_id": event.account_id, "metric": event.metric, "window_start": event.window_start}
    return int(connection.execute(statement, arguments).scalar_one())


def oldest_unreported_seconds(connection: Connection) -> float:
    """Age of the oldest change of a minute, or report, that no meter has been told of; 0 where there is none."""
    statement = text(
        """
        SELECT coalesce(extract(epoch FROM now() - least(
            (SELECT min(due_since) FROM usage_minutes WHERE due_since IS NOT NULL),
            (SELECT min(created_at) FROM meter_reports WHERE sent_at IS NULL))), 0)
        """
    )
    return float(connection.execute(statement).scalar_one())


def has_unreported(connection: Connection, account_id: str, *, within: timedelta) -> bool:
    """Whether an account has used something, so lately, that its meter has not been told of yet.

    By `usage_events_waiting_of_account`, `usage_minutes_due`, `meter_reports_unsent`.
    """
    statement = text(
        """
        SELECT EXISTS (SELECT FROM usage_events
                       WHERE account_id = :account_id AND NOT aggregated AND received_at > now() - :within)
            OR EXISTS (SELECT FROM usage_minutes WHERE account_id = :account_id AND due_since > now() - :within)
            OR EXISTS (SELECT FROM meter_reports
                       WHERE account_id = :account_id AND sent_at IS NULL AND created_at > now() - :within)
        """
    )
    return bool(connection.execute(statement, {"account_id": account_id, "within": within}).scalar_one())


def delete_reports(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Delete reports sent long ago, at most `limit`; how many. By `meter_reports_sent`."""
    statement = text(
        """
        DELETE FROM meter_reports WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM meter_reports WHERE sent_at < now() - make_interval(secs => :seconds)
            LIMIT :limit FOR UPDATE SKIP LOCKED))
        """
    )
    return connection.execute(statement, {"seconds": older_than.total_seconds(), "limit": limit}).rowcount


def give_up_reports(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Delete reports that no meter took and none would take any more, at most `limit`; how many."""
    statement = text(
        """
        DELETE FROM meter_reports WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM meter_reports
            WHERE sent_at IS NULL AND stamped_at < now() - make_interval(secs => :seconds)
            LIMIT :limit FOR UPDATE SKIP LOCKED))
        """
    )
    return connection.execute(statement, {"seconds": older_than.total_seconds(), "limit": limit}).rowcount
