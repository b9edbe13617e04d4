"""Owns the SQL of Stripe's events and of the leases under which they are applied. Runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from services.subscriptions.stripe.events import APPLIED, FAILED, IGNORED, PENDING, ReadEvent, StoredEvent
from services.subscriptions.stripe.tables import stripe_events

_MAX_ERROR_CHARS = 500
_STORED = [stripe_events.c[name] for name in StoredEvent.__slots__]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to apply what Stripe says of an account, or to move its subscription.

    Until it lapses, or another one has a higher `number`.
    """

    account_id: str
    number: int


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """An event to be applied; `attempts` counts this one too."""

    event_id: str
    body: str
    attempts: int
    received_at: datetime


def insert_event(connection: Connection, event: ReadEvent, body: str, *, account_id: str) -> bool:
    """Keep an event; False where it is kept already. What is not acted upon is kept as ignored."""
    statement = (
        insert(stripe_events)
        .values(
            event_id=event.event_id,
            type=event.type,
            status=PENDING if event.is_applied else IGNORED,
            account_id=account_id or None,
            body=body,
            created_at=event.created_at,
            next_attempt_at=func.now() if event.is_applied else None,
        )
        .on_conflict_do_nothing()
    )
    return connection.execute(statement.returning(stripe_events.c.event_id)).first() is not None


def known_events(connection: Connection, event_ids: Sequence[str]) -> set[str]:
    """Which of these are kept. By primary key."""
    statement = select(stripe_events.c.event_id).where(stripe_events.c.event_id.in_(list(event_ids)))
    return set(connection.execute(statement).scalars())


def find_event(connection: Connection, event_id: str) -> StoredEvent | None:
    """One event. By primary key."""
    row = connection.execute(select(*_STORED).where(stripe_events.c.event_id == event_id)).first()
    return _stored(row) if row is not None else None


def list_events(
    connection: Connection, *, status: str, event_type: str, before: tuple[datetime, str] | None, limit: int
) -> list[StoredEvent]:
    """Events, newest first, from before a position on; an empty filter is none. By `stripe_events_by_time`."""
    place = tuple_(stripe_events.c.received_at, stripe_events.c.event_id)
    statement = select(*_STORED).order_by(place.desc()).limit(limit)
    if status:
        statement = statement.where(stripe_events.c.status == status)
    if event_type:
        statement = statement.where(stripe_events.c.type == event_type)
    if before is not None:
        statement = statement.where(place < before)
    return [_stored(row) for row in connection.execute(statement)]


def wait_again(connection: Connection, event_id: str) -> bool:
    """Let an event be applied again, now; False where it is not kept."""
    statement = (
        update(stripe_events)
        .where(stripe_events.c.event_id == event_id)
        .values(status=PENDING, next_attempt_at=func.now(), attempts=0)
    )
    return connection.execute(statement).rowcount == 1


# An event of which it is not known yet whose it is. Its next attempt is put off while it is looked for, so that a
# process that dies with it is followed by another one. Rows that another process looks at are skipped.
_CLAIM_UNROUTED = text(
    """
    UPDATE stripe_events SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => :lease_seconds)
    WHERE event_id = (
        SELECT event_id FROM stripe_events
        WHERE status = 'pending' AND account_id IS NULL AND next_attempt_at <= now()
        ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING event_id, body, attempts, received_at
    """
)


def claim_unrouted(connection: Connection, *, lease_seconds: float) -> WaitingEvent | None:
    """Claim the event longest due of which the account is not known; None where there is none."""
    row = connection.execute(_CLAIM_UNROUTED, {"lease_seconds": lease_seconds}).first()
    return WaitingEvent(**row._mapping) if row is not None else None  # noqa: SLF001


def route(connection: Connection, event_id: str, account_id: str) -> None:
    """Note whose an event is: now it can be applied."""
    connection.execute(
        update(stripe_events)
        .where(stripe_events.c.event_id == event_id, stripe_events.c.status == PENDING)
        .values(account_id=account_id, next_attempt_at=func.now(), attempts=0)
    )


# An account of which an event is due, and nobody's lease runs. Two that choose the same one wait for each other at the
# lease's row; the second finds that it runs, and gets nothing.
_TAKE_LEASE = """
    INSERT INTO stripe_leases (account_id, number, leased_until)
    {whose}
    ON CONFLICT (account_id) DO UPDATE SET number = stripe_leases.number + 1, leased_until = excluded.leased_until
    WHERE stripe_leases.leased_until <= now()
    RETURNING account_id, number
"""
_LEASE_DUE = text(
    _TAKE_LEASE.format(
        whose="""
    SELECT account_id, 1, now() + make_interval(secs => :lease_seconds) FROM (
        SELECT due.account_id FROM stripe_events AS due
        WHERE due.status = 'pending' AND due.account_id IS NOT NULL AND due.next_attempt_at <= now()
          AND NOT EXISTS (
              SELECT 1 FROM stripe_leases AS held WHERE held.account_id = due.account_id AND held.leased_until > now())
        ORDER BY due.next_attempt_at LIMIT 1) AS chosen
    """
    )
)
_LEASE_ACCOUNT = text(
    _TAKE_LEASE.format(whose="VALUES (:account_id, 1, now() + make_interval(secs => :lease_seconds))")
)


def lease_due(connection: Connection, *, lease_seconds: float) -> Lease | None:
    """Lease the account whose event is longest due; None where none is, or another one has just taken it."""
    row = connection.execute(_LEASE_DUE, {"lease_seconds": lease_seconds}).first()
    return Lease(row.account_id, row.number) if row is not None else None


def lease_account(connection: Connection, account_id: str, *, lease_seconds: float) -> Lease | None:
    """Lease an account; None while another one has it."""
    row = connection.execute(_LEASE_ACCOUNT, {"lease_seconds": lease_seconds, "account_id": account_id}).first()
    return Lease(row.account_id, row.number) if row is not None else None


def lease_moves(connection: Connection, account_id: str, *, lease_seconds: float) -> Lease | None:
    """Lease the moves of an account's subscription; None while another one has them. No account's id has a space."""
    return lease_account(connection, f"moves of {account_id}", lease_seconds=lease_seconds)


_END_LEASE = text("UPDATE stripe_leases SET leased_until = now() WHERE account_id = :account_id AND number = :number")


def end_lease(connection: Connection, lease: Lease) -> bool:
    """Give a lease back; False where another one has been given since. Locks its row until the transaction ends.

    Done first in the transaction that writes what was read under the lease: who comes too late writes nothing.
    """
    return connection.execute(_END_LEASE, {"account_id": lease.account_id, "number": lease.number}).rowcount == 1


def waiting_events(connection: Connection, account_id: str, *, limit: int) -> list[WaitingEvent]:
    """An account's events that are due, oldest first. By `stripe_events_of_account`; called by who has its lease."""
    statement = (
        select(
            stripe_events.c.event_id,
            stripe_events.c.body,
            (stripe_events.c.attempts + 1).label("attempts"),
            stripe_events.c.received_at,
        )
        .where(stripe_events.c.account_id == account_id, stripe_events.c.status == PENDING)
        .where(stripe_events.c.next_attempt_at <= func.now())
        .order_by(stripe_events.c.received_at, stripe_events.c.event_id)
        .limit(limit)
    )
    return [WaitingEvent(**row._mapping) for row in connection.execute(statement)]  # noqa: SLF001


def mark_applied(connection: Connection, event_ids: Sequence[str], *, ignored: bool = False) -> None:
    """Note that events have been applied or, being nobody's here, are not acted upon."""
    connection.execute(
        update(stripe_events)
        .where(stripe_events.c.event_id.in_(list(event_ids)))
        .values(
            status=IGNORED if ignored else APPLIED,
            applied_at=None if ignored else func.now(),
            attempts=stripe_events.c.attempts + (0 if ignored else 1),
            next_attempt_at=None,
            last_error="",
        )
    )


def mark_failed(
    connection: Connection, event_id: str, *, attempts: int, error: str, delay_seconds: float | None, gives_up: bool
) -> None:
    """Note why an event could not be applied, and when to try again: as failed, or as one that waits."""
    connection.execute(
        update(stripe_events)
        .where(stripe_events.c.event_id == event_id, stripe_events.c.status == PENDING)
        .values(
            status=FAILED if gives_up else PENDING,
            attempts=attempts,
            next_attempt_at=None
            if delay_seconds is None
            else func.now() + func.make_interval(0, 0, 0, 0, 0, 0, delay_seconds),
            last_error=error[:_MAX_ERROR_CHARS],
        )
    )


def retry_failed(connection: Connection, *, limit: int) -> int:
    """Let failed events wait again whose time has come, at most `limit`; how many. By `stripe_events_failed`."""
    statement = text(
        """
        UPDATE stripe_events SET status = 'pending' WHERE event_id IN (
            SELECT event_id FROM stripe_events WHERE status = 'failed' AND next_attempt_at <= now()
            LIMIT :limit FOR UPDATE SKIP LOCKED)
        """
    )
    return connection.execute(statement, {"limit": limit}).rowcount


def oldest_waiting_seconds(connection: Connection) -> float:
    """How long the event that waits longest has waited; 0 where none does. By the indexes of what waits."""
    age = func.extract("epoch", func.now() - func.min(stripe_events.c.received_at))
    statement = select(func.coalesce(age, 0)).where(stripe_events.c.status == PENDING)
    return float(connection.execute(statement).scalar_one())


def count_failed(connection: Connection) -> int:
    """How many events have failed. By `stripe_events_failed`."""
    statement = select(func.count()).where(stripe_events.c.status == FAILED)
    return int(connection.execute(statement).scalar_one())


def delete_settled(connection: Connection, *, older_than_days: float, limit: int) -> int:
    """Delete events that came in long ago and were applied or ignored, at most `limit`; how many."""
    statement = text(
        """
        DELETE FROM stripe_events WHERE event_id IN (
            SELECT event_id FROM stripe_events
            WHERE received_at < now() - make_interval(secs => :seconds) AND status IN ('applied', 'ignored')
            ORDER BY received_at LIMIT :limit FOR UPDATE SKIP LOCKED)
        """
    )
    return connection.execute(statement, {"seconds": older_than_days * 86_400, "limit": limit}).rowcount


def _stored(row: Any) -> StoredEvent:
    return StoredEvent(**row._mapping)  # noqa: SLF001
