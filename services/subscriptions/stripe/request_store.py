"""Owns the SQL of what was asked of Stripe: customers, requests, previews. Runs in the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from services.subscriptions.stripe.request_tables import stripe_previews, stripe_requests
from services.subscriptions.stripe.tables import stripe_customers

# Customers


def count_customers(connection: Connection, account_id: str) -> int:
    """How many customers an account has been, deleted ones too."""
    counted = select(func.count()).where(stripe_customers.c.account_id == account_id)
    return int(connection.execute(counted).scalar_one())


# Requests


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What a request is known by: ids are unique within an account and a use case."""

    account_id: str
    use_case: str
    request_id: str


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """A request as first made; `answer` is None until Stripe has answered, `age` is how long ago that was."""

    fingerprint: str
    asked: dict[str, Any]
    answer: dict[str, Any] | None
    age: timedelta


def find_request(connection: Connection, key: RequestKey) -> KeptRequest | None:
    """A request by its id. By primary key."""
    kept = stripe_requests.c
    age = (func.now() - kept.created_at).label("age")
    row = connection.execute(select(kept.fingerprint, kept.asked, kept.answer, age).where(*_is_request(key))).first()
    return KeptRequest(row.fingerprint, row.asked, row.answer, row.age) if row is not None else None


def insert_request(connection: Connection, key: RequestKey, fingerprint: str, asked: dict[str, Any]) -> None:
    """Keep a request before Stripe is asked; changes nothing where the same id is kept already."""
    values = {"account_id": key.account_id, "use_case": key.use_case, "request_id": key.request_id}
    statement = insert(stripe_requests).values(**values, fingerprint=fingerprint, asked=asked)
    connection.execute(statement.on_conflict_do_nothing())


def answer_request(connection: Connection, key: RequestKey, answer: dict[str, Any]) -> None:
    """Keep the first answer to a request."""
    connection.execute(
        update(stripe_requests).where(*_is_request(key), stripe_requests.c.answer.is_(None)).values(answer=answer)
    )


def delete_old_requests(connection: Connection, *, older_than_days: float, limit: int) -> int:
    """Delete requests made long ago, at most `limit`; how many. By `stripe_requests_by_age`."""
    statement = text(
        """
        DELETE FROM stripe_requests WHERE (account_id, use_case, request_id) IN (
            SELECT account_id, use_case, request_id FROM stripe_requests
            WHERE created_at < now() - make_interval(secs => :seconds) LIMIT :limit FOR UPDATE SKIP LOCKED)
        """
    )
    return connection.execute(statement, {"seconds": older_than_days * 86_400, "limit": limit}).rowcount


def moved_and_renewed(connection: Connection, *, since: datetime, limit: int) -> list[tuple[str, str, datetime]]:
    """Account, subscription and period's start of those by the month that asked for a move and began a period since.

    Reads one row an account, and for each whose period began lately its requests, by primary key.
    """
    statement = text(
        """
        SELECT account_id, subscription_id, period_start FROM subscriptions s
        WHERE in_force AND interval = 'month' AND period_start > :since
            AND EXISTS (SELECT FROM stripe_requests r WHERE r.account_id = s.account_id AND r.use_case = 'subscription')
        ORDER BY period_start DESC LIMIT :limit
        """
    )
    rows = connection.execute(statement, {"since": since, "limit": limit})
    return [(row.account_id, row.subscription_id, row.period_start) for row in rows]


def _is_request(key: RequestKey) -> tuple[Any, ...]:
    kept = stripe_requests.c
    return (
        kept.account_id == key.account_id,
        kept.use_case == key.use_case,
        kept.request_id == key.request_id,
    )


# Previews


def keep_preview(
    connection: Connection, account_id: str, *, subscription_id: str, target: str, proration_date: int, now: datetime
) -> None:
    """Keep what an account was last shown; takes the place of what it was shown before."""
    values = {
        "subscription_id": subscription_id,
        "target": target,
        "proration_date": proration_date,
        "created_at": now,
    }
    statement = insert(stripe_previews).values(account_id=account_id, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["account_id"], set_=values))


def shown_proration_date(
    connection: Connection, account_id: str, *, subscription_id: str, target: str, since: datetime
) -> int | None:
    """The second for which an account was shown what this change costs, if it was since then. By primary key."""
    shown = stripe_previews.c
    row = connection.execute(
        select(shown.proration_date).where(
            shown.account_id == account_id,
            shown.subscription_id == subscription_id,
            shown.target == target,
            shown.created_at >= since,
        )
    ).first()
    return int(row.proration_date) if row is not None else None
