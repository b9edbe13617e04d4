"""Owns all SQL of reports. It reads only, and takes no lock; every function runs in the caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection, func, select, text

from services.subscriptions.reports.model import Revenue, Span, Stay
from services.subscriptions.stripe.names import NANOS_PER_CENT
from services.subscriptions.tables import accounts, plan_changes

_CLOSED = "closed"


def signups(connection: Connection, span: Span) -> int:
    """How many accounts were created. By `accounts_by_creation`."""
    created_at = accounts.c.created_at
    statement = select(func.count()).where(created_at >= span.start, created_at < span.end)
    return int(connection.execute(statement).scalar_one())


def tier_changes(connection: Connection, span: Span) -> int:
    """How many moves there were from one plan to another. By `plan_changes_by_time`."""
    c = plan_changes.c
    statement = select(func.count()).where(
        c.created_at >= span.start, c.created_at < span.end, c.plan_id != c.from_plan_id
    )
    return int(connection.execute(statement).scalar_one())


# What is returned of a payment is kept by its charges, in cents; never more than was paid counts as returned.
_REVENUE = text(
    """
    SELECT coalesce(sum(left_nanos), 0) AS nanos, count(*) FILTER (WHERE left_nanos > 0) AS payers FROM (
        SELECT account_id, sum(greatest(amount_nanos - returned_nanos, least(amount_nanos, 0))) AS left_nanos
        FROM stripe_payments
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(CAST(cents AS numeric)), 0) * :nanos_per_cent AS returned_nanos
            FROM jsonb_each_text(returned) AS charge (charge_id, cents)) AS given_back
        WHERE paid_at >= :start AND paid_at < :end
        GROUP BY account_id) AS of_account
    """
)


def revenue(connection: Connection, span: Span) -> Revenue:
    """What was paid, less what was returned of that by now. By `stripe_payments_by_time`."""
    arguments = {"start": span.start, "end": span.end, "nanos_per_cent": NANOS_PER_CENT}
    row = connection.execute(_REVENUE, arguments).one()
    return Revenue(int(row.nanos), int(row.payers))


# The plan that an account was on is the one that its first move since then was from. Goes through all accounts.
_STAYS = text(
    """
    WITH first_moves AS (
        SELECT DISTINCT ON (account_id) account_id, from_plan_id, from_plan_version FROM plan_changes
        WHERE created_at >= :start ORDER BY account_id, created_at)
    SELECT coalesce(from_plan_id, plan_id) AS plan_then, coalesce(from_plan_version, plan_version) AS version_then,
           plan_id AS plan_now, plan_version AS version_now, status = :closed AS is_closed, count(*) AS accounts
    FROM accounts LEFT JOIN first_moves USING (account_id)
    WHERE created_at < :start GROUP BY 1, 2, 3, 4, 5
    """
)


def stays(connection: Connection, span: Span) -> list[Stay]:
    """From which plan to which the accounts came that there were when a period began. By `plan_changes_by_time`."""
    rows = connection.execute(_STAYS, {"start": span.start, "closed": _CLOSED})
    return [
        Stay((row.plan_then, row.version_then), (row.plan_now, row.version_now), row.is_closed, row.accounts)
        for row in rows
    ]


def plan_mix(connection: Connection) -> dict[str, int]:
    """How many accounts are on each plan, closed ones left out. Goes through all accounts."""
    statement = select(accounts.c.plan_id, func.count().label("accounts")).where(accounts.c.status != _CLOSED)
    rows = connection.execute(statement.group_by(accounts.c.plan_id).order_by(accounts.c.plan_id))
    return {row.plan_id: int(row.accounts) for row in rows}
