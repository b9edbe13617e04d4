"""Owns the SQL of what reconciliation compares: what meters were told, and the sums that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from services.subscriptions.metering.model import GAUGES


@dataclass(frozen=True, slots=True)
class Reported:
    """What was told of one metric within a period.

    A meter should have counted from `least`, what was noted to have arrived long enough ago, to `most`, what may have
    arrived: an attempt of which nothing is known, too. Of a gauge, the lowest and the highest mark from the last one on
    that is noted.
    """

    metric: str
    customer_id: str
    least: int
    most: int


# By primary key's first column; the reports of one account within the days that reports are kept.
_REPORTED = text(
    """
    SELECT metric, max(customer_id) AS customer_id, sum(value) AS most,
           coalesce(sum(value) FILTER (WHERE is_noted), 0) AS least,
           max(value) FILTER (WHERE is_last) AS most_mark,
           CASE WHEN bool_or(is_noted) THEN min(value) FILTER (WHERE is_last) ELSE 0 END AS least_mark
    FROM (
        SELECT *, stamped_at >= coalesce(max(stamped_at) FILTER (WHERE is_noted) OVER (PARTITION BY metric),
                                         '-infinity') AS is_last
        FROM (
            SELECT metric, customer_id, value, stamped_at,
                   coalesce(sent_at < now() - make_interval(secs => :settle), false) AS is_noted
            FROM meter_reports
            WHERE account_id = :account_id AND stamped_at >= :start AND stamped_at < :end AND attempts > 0) AS told
        ) AS known
    GROUP BY metric
    """
)


def reported_between(
    connection: Connection,
    account_id: str,
    start: datetime,
    end: datetime,
    *,
    settle: timedelta,
) -> list[Reported]:
    """What was told of an account's metrics with stamps in `[start, end)`."""
    arguments = {"account_id": account_id, "start": start, "end": end, "settle": settle.total_seconds()}
    return [
        Reported(row.metric, row.customer_id, int(row.least_mark), int(row.most_mark))
        if row.metric in GAUGES
        else Reported(row.metric, row.customer_id, int(row.least), int(row.most))
        for row in connection.execute(_REPORTED, arguments)
    ]


def unbalanced_minutes(connection: Connection, account_id: str, start: datetime, end: datetime) -> int:
    """By how much sums and their reports differ in minutes that were reported and have not changed since."""
    statement = text(
        """
        SELECT coalesce(sum(abs(kept.emitted + kept.proxied - told.value)), 0) FROM (
            SELECT metric, window_start, sum(value) AS value FROM meter_reports
            WHERE account_id = :account_id AND window_start >= :start AND window_start < :end
            GROUP BY metric, window_start) AS told
        JOIN usage_minutes AS kept ON kept.account_id = :account_id AND kept.metric = told.metric
            AND kept.minute = told.window_start
        WHERE kept.due_since IS NULL AND kept.last_at IS NULL
        """
    )
    return int(connection.execute(statement, {"account_id": account_id, "start": start, "end": end}).scalar_one())


def accounts_with_use(connection: Connection, *, after: str, since: datetime, limit: int) -> list[str]:
    """Accounts of subscriptions with any use since then, by id from beyond `after` on. By primary keys."""
    statement = text(
        """
        SELECT account_id FROM accounts WHERE account_id > :after AND EXISTS (
            SELECT 1 FROM usage_hours WHERE usage_hours.account_id = accounts.account_id AND hour >= :since)
        ORDER BY account_id LIMIT :limit
        """
    )
    return list(connection.execute(statement, {"after": after, "since": since, "limit": limit}).scalars())
