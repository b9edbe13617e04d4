"""Owns the SQL of accounts, their moves between plans, and the outbox. All of it runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, case, exists, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_or_ignore

from services.subscriptions.model.account import Account, PlanChange
from services.subscriptions.model.delivery import Delivery, OutboxEntry, from_payload, to_payload
from services.subscriptions.stripe.tables import stripe_customers
from services.subscriptions.tables import accounts, outbox, plan_changes

_MAX_ERROR_CHARS = 500

_ACCOUNT_COLUMNS = [column for column in accounts.columns if column.name != "outbox_sequence"]
_WAITING = exists().where(outbox.c.account_id == accounts.c.account_id, outbox.c.delivered_at.is_(None))
# By `stripe_customers_of_account`.
_CUSTOMER = (
    select(stripe_customers.c.customer_id)
    .where(stripe_customers.c.account_id == accounts.c.account_id, stripe_customers.c.deleted_at.is_(None))
    .scalar_subquery()
)
_SELECT_ACCOUNT = select(
    *_ACCOUNT_COLUMNS, (~_WAITING).label("provisioned"), func.coalesce(_CUSTOMER, "").label("stripe_customer_id")
)


def _account(row: Any) -> Account:
    return Account(**row._mapping)  # noqa: SLF001 (the documented way to a row's names)


# Accounts


def insert_account(connection: Connection, account: Account) -> bool:
    """Add an account; False where its id is taken. Waits for another transaction that is adding the same id."""
    values = {column.name: getattr(account, column.name) for column in _ACCOUNT_COLUMNS}
    statement = insert_or_ignore(accounts).values(outbox_sequence=0, **values).on_conflict_do_nothing()
    return connection.execute(statement.returning(accounts.c.account_id)).first() is not None


def find_account(connection: Connection, account_id: str) -> Account | None:
    """One account, by primary key. Takes no lock."""
    row = connection.execute(_SELECT_ACCOUNT.where(accounts.c.account_id == account_id)).first()
    return _account(row) if row is not None else None


def lock_account(connection: Connection, account_id: str) -> Account | None:
    """One account, its row locked until the transaction ends: guards its plan, its grants and its outbox's order."""
    statement = _SELECT_ACCOUNT.where(accounts.c.account_id == account_id).with_for_update(of=accounts)
    row = connection.execute(statement).first()
    return _account(row) if row is not None else None


def update_account(connection: Connection, account: Account) -> None:
    """Write what may change of an account whose row is locked."""
    connection.execute(
        update(accounts)
        .where(accounts.c.account_id == account.account_id)
        .values(
            plan_id=account.plan_id,
            plan_version=account.plan_version,
            status=account.status,
            cycle_anchor=account.cycle_anchor,
            revision=account.revision,
            renews_grant=account.renews_grant,
            granted_until=account.granted_until,
        )
    )


def close_accounts(connection: Connection, account_ids: Sequence[str]) -> list[str]:
    """Note that the ledger has closed these accounts, for good; those of which that was not known. By primary key."""
    rows = accounts.c
    statement = update(accounts).where(rows.account_id.in_(account_ids), rows.status != "closed")
    return list(connection.execute(statement.values(status="closed").returning(rows.account_id)).scalars())


def suspend_accounts(connection: Connection, account_ids: Sequence[str]) -> list[str]:
    """Note that the ledger has suspended these accounts; those of which that was not known. By primary key."""
    rows = accounts.c
    statement = update(accounts).where(rows.account_id.in_(account_ids), rows.status.not_in(("suspended", "closed")))
    return list(connection.execute(statement.values(status="suspended").returning(rows.account_id)).scalars())


def resume_accounts_but(connection: Connection, account_ids: Sequence[str]) -> list[str]:
    """Note that of the suspended accounts only these still are; the others. Goes through all accounts.

    A new revision has the limits of those looked at that emitted something meanwhile.
    """
    statement = text(
        """
        UPDATE accounts SET status = 'active', revision = revision + 1
        WHERE status = 'suspended' AND account_id <> ALL(:account_ids) RETURNING account_id
        """
    )
    return list(connection.execute(statement, {"account_ids": list(account_ids)}).scalars())


def list_accounts(connection: Connection, *, plan_id: str, status: str, after: str, limit: int) -> list[Account]:
    """Accounts by id from beyond `after` on; an empty filter is none. By primary key, or `accounts_by_plan`."""
    statement = _SELECT_ACCOUNT.where(accounts.c.account_id > after).order_by(accounts.c.account_id).limit(limit)
    if plan_id:
        statement = statement.where(accounts.c.plan_id == plan_id)
    if status:
        statement = statement.where(accounts.c.status == status)
    return [_account(row) for row in connection.execute(statement)]


def accounts_owed_grant(connection: Connection, moment: datetime, *, limit: int) -> list[Account]:
    """Accounts whose present cycle has had no promotion yet, longest owed first. By `accounts_by_grant`; no lock."""
    statement = (
        _SELECT_ACCOUNT.where(accounts.c.renews_grant, accounts.c.granted_until <= moment)
        .where(accounts.c.status != "closed")
        .order_by(accounts.c.granted_until)
        .limit(limit)
    )
    return [_account(row) for row in connection.execute(statement)]


# Moves between plans


def find_plan_change(connection: Connection, account_id: str, request_id: str) -> PlanChange | None:
    """The move first asked for under a request id. By primary key."""
    row = connection.execute(
        select(plan_changes).where(plan_changes.c.account_id == account_id, plan_changes.c.request_id == request_id)
    ).first()
    return PlanChange(**row._mapping) if row is not None else None  # noqa: SLF001


def insert_plan_change(connection: Connection, change: PlanChange) -> None:
    """Keep a move. The account's row is locked, so its request id cannot be taken meanwhile."""
    values = {column.name: getattr(change, column.name) for column in plan_changes.columns}
    connection.execute(insert(plan_changes).values(**values))


# Outbox


def enqueue(connection: Connection, account_id: str, deliveries: Sequence[Delivery]) -> None:
    """Add deliveries behind all others of the account. Locks the account's row, so numbers follow commit order."""
    count = len(deliveries)
    last = connection.execute(
        update(accounts)
        .where(accounts.c.account_id == account_id)
        .values(outbox_sequence=accounts.c.outbox_sequence + count)
        .returning(accounts.c.outbox_sequence)
    ).scalar_one()
    rows = [
        {"account_id": account_id, "sequence": last - count + number, "kind": d.kind, "payload": to_payload(d)}
        for number, d in enumerate(deliveries, start=1)
    ]
    connection.execute(insert(outbox), rows)


# The oldest waiting delivery of an account, never a later one: that is what keeps an account's deliveries in order.
# Locks the row it claims; rows that another deliverer is claiming right now are skipped, those it has claimed are
# leased. By `outbox_waiting` (any account) or `outbox_waiting_of_account`.
_CLAIM = """
    UPDATE outbox SET attempts = attempts + 1, leased_until = now() + make_interval(secs => :lease_seconds)
    WHERE (account_id, sequence) = (
        SELECT waiting.account_id, waiting.sequence FROM outbox AS waiting
        WHERE waiting.delivered_at IS NULL
          AND (waiting.leased_until IS NULL OR waiting.leased_until <= now())
          AND {which}
          AND NOT EXISTS (
              SELECT 1 FROM outbox AS earlier
              WHERE earlier.account_id = waiting.account_id AND earlier.sequence < waiting.sequence
                AND earlier.delivered_at IS NULL)
        ORDER BY {order} LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING account_id, sequence, attempts, payload
"""
_CLAIM_DUE = text(_CLAIM.format(which="waiting.next_attempt_at <= now()", order="waiting.next_attempt_at"))
_CLAIM_OF_ACCOUNT = text(_CLAIM.format(which="waiting.account_id = :account_id", order="waiting.sequence"))


def claim_due(connection: Connection, *, lease_seconds: float) -> OutboxEntry | None:
    """Claim the delivery longest due, of any account, for `lease_seconds`; None where nothing is due."""
    return _entry(connection.execute(_CLAIM_DUE, {"lease_seconds": lease_seconds}).first())


def claim_of_account(connection: Connection, account_id: str, *, lease_seconds: float) -> OutboxEntry | None:
    """Claim an account's next delivery, due or not; None where nothing waits or somebody else has claimed it."""
    arguments = {"lease_seconds": lease_seconds, "account_id": account_id}
    return _entry(connection.execute(_CLAIM_OF_ACCOUNT, arguments).first())


def _entry(row: Row[Any] | None) -> OutboxEntry | None:
    if row is None:
        return None
    return OutboxEntry(row.account_id, row.sequence, row.attempts, from_payload(row.payload))


def mark_delivered(connection: Connection, entry: OutboxEntry) -> None:
    """Note that a delivery has arrived, be it after its lease has run out."""
    connection.execute(
        update(outbox)
        .where(outbox.c.account_id == entry.account_id, outbox.c.sequence == entry.sequence)
        .where(outbox.c.delivered_at.is_(None))
        .values(delivered_at=func.now(), leased_until=None, last_error="")
    )


def mark_failed(connection: Connection, entry: OutboxEntry, *, error: str, delay_seconds: float) -> None:
    """Note that an attempt failed, and when to try again. Changes nothing where somebody else has claimed it since."""
    connection.execute(
        update(outbox)
        .where(outbox.c.account_id == entry.account_id, outbox.c.sequence == entry.sequence)
        .where(outbox.c.delivered_at.is_(None), outbox.c.attempts == entry.attempts)
        .values(
            next_attempt_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, delay_seconds),
            leased_until=None,
            last_error=error[:_MAX_ERROR_CHARS],
        )
    )


def has_waiting(connection: Connection, account_id: str) -> bool:
    """Whether anything of an account is still to be delivered. By `outbox_waiting_of_account`."""
    waiting = exists().where(outbox.c.account_id == account_id, outbox.c.delivered_at.is_(None))
    return bool(connection.execute(select(waiting)).scalar_one())


def tell_again(connection: Connection, account_id: str, kinds: Sequence[str]) -> int:
    """Have deliveries of these kinds that were made, and are still kept, made again, and all that wait made now.

    They keep their order; what had arrived counts as waiting from now on. How many wait then. By primary key; the
    account's row is locked.
    """
    statement = (
        update(outbox)
        .where(outbox.c.account_id == account_id, outbox.c.delivered_at.is_(None) | outbox.c.kind.in_(kinds))
        .values(
            created_at=case((outbox.c.delivered_at.is_(None), outbox.c.created_at), else_=func.now()),
            delivered_at=None,
            next_attempt_at=func.now(),
        )
    )
    return connection.execute(statement).rowcount


def withdraw(connection: Connection, account_id: str, kinds: Sequence[str]) -> int:
    """Note deliveries of these kinds that wait as done, since others take their place; how many.

    What a deliverer has claimed stays: it may be on its way, and others come after it. By `outbox_waiting_of_account`;
    the account's row is locked.
    """
    statement = (
        update(outbox)
        .where(outbox.c.account_id == account_id, outbox.c.delivered_at.is_(None), outbox.c.kind.in_(kinds))
        .where(outbox.c.leased_until.is_(None) | (outbox.c.leased_until <= func.now()))
        .values(delivered_at=func.now(), leased_until=None)
    )
    return connection.execute(statement).rowcount


def waiting_summary(connection: Connection) -> tuple[int, float]:
    """How many deliveries wait, and the age of the oldest in seconds. By `outbox_waiting`."""
    statement = select(
        func.count(), func.coalesce(func.extract("epoch", func.now() - func.min(outbox.c.created_at)), 0)
    ).where(outbox.c.delivered_at.is_(None))
    count, age = connection.execute(statement).one()
    return int(count), float(age)


def delete_delivered(connection: Connection, *, older_than_days: float, limit: int) -> int:
    """Delete what was delivered long ago, at most `limit` rows; how many. By `outbox_delivered`."""
    statement = text(
        """
        DELETE FROM outbox WHERE (account_id, sequence) IN (
            SELECT account_id, sequence FROM outbox
            WHERE delivered_at < now() - make_interval(secs => :seconds) LIMIT :limit FOR UPDATE SKIP LOCKED)
        """
    )
    return connection.execute(statement, {"seconds": older_than_days * 86_400, "limit": limit}).rowcount


def try_lead(connection: Connection, key: int) -> bool:
    """Take the session's advisory lock that makes this process the leader; False where another one has it."""
    return bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar_one())


def still_connected(connection: Connection) -> None:
    """Raise where the session, and with it its advisory lock, is lost."""
    connection.execute(text("SELECT 1"))
