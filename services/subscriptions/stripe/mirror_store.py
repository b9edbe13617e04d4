"""Owns the SQL of customers, subscriptions, payments and the credit they give. Runs in the caller's transaction.

What is written here is written with the account's row locked (`store.lock_account`), except customers.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from services.subscriptions.model.delivery import GrantCredit, ReverseGrant
from services.subscriptions.stripe.model import CreditPart, Mirror, Payment
from services.subscriptions.stripe.tables import stripe_customers, stripe_grants, stripe_payments, subscriptions
from services.subscriptions.tables import accounts

_PART_COLUMNS = [column for column in stripe_grants.columns if column.name != "transaction_id"]
_MAX_KNOWN = 1000
_MIRROR_COLUMNS = [column for column in subscriptions.columns if column.name != "updated_at"]


# Customers


def insert_customer(connection: Connection, customer_id: str, account_id: str) -> bool:
    """Note whose customer it is; False where the account has another one, or the customer is known already."""
    statement = insert(stripe_customers).values(customer_id=customer_id, account_id=account_id)
    statement = statement.on_conflict_do_nothing()
    return connection.execute(statement.returning(stripe_customers.c.customer_id)).first() is not None


def customer_of(connection: Connection, account_id: str) -> str:
    """The account's customer; empty without one. By `stripe_customers_of_account`."""
    statement = select(stripe_customers.c.customer_id).where(
        stripe_customers.c.account_id == account_id, stripe_customers.c.deleted_at.is_(None)
    )
    return connection.execute(statement).scalar() or ""


def account_of(connection: Connection, customer_id: str) -> str:
    """Whose customer it is or, deleted at Stripe, was; empty where nobody's. By primary key."""
    statement = select(stripe_customers.c.account_id).where(stripe_customers.c.customer_id == customer_id)
    return connection.execute(statement).scalar() or ""


def accounts_with_customers(connection: Connection, *, after: str, limit: int) -> list[str]:
    """Accounts that have a customer, by id from beyond `after` on. By `stripe_customers_of_account`."""
    statement = (
        select(stripe_customers.c.account_id)
        .where(stripe_customers.c.deleted_at.is_(None), stripe_customers.c.account_id > after)
        .order_by(stripe_customers.c.account_id)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def end_customer(connection: Connection, customer_id: str) -> None:
    """Note that Stripe has deleted a customer: the account may have another one."""
    connection.execute(
        update(stripe_customers)
        .where(stripe_customers.c.customer_id == customer_id, stripe_customers.c.deleted_at.is_(None))
        .values(deleted_at=func.now())
    )


# Subscriptions


def find_mirror(connection: Connection, account_id: str) -> Mirror | None:
    """What is kept of an account's subscription. By primary key."""
    row = connection.execute(select(*_MIRROR_COLUMNS).where(subscriptions.c.account_id == account_id)).first()
    return Mirror(**row._mapping) if row is not None else None  # noqa: SLF001 (the documented way to a row's names)


def write_mirror(connection: Connection, mirror: Mirror) -> None:
    """Keep a subscription in place of what was kept of the account's."""
    values = {column.name: getattr(mirror, column.name) for column in _MIRROR_COLUMNS}
    changed = {name: value for name, value in values.items() if name != "account_id"} | {"updated_at": func.now()}
    statement = insert(subscriptions).values(**values)
    connection.execute(statement.on_conflict_do_update(index_elements=["account_id"], set_=changed))


def accounts_to_look_at(connection: Connection, now: datetime, *, limit: int) -> list[str]:
    """Accounts whose subscription the clock may have changed, longest due first. By `subscriptions_to_look_at`."""
    statement = (
        select(subscriptions.c.account_id)
        .where(subscriptions.c.look_at <= now)
        .order_by(subscriptions.c.look_at)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def closed_and_subscribed(connection: Connection, *, after: str, limit: int) -> list[str]:
    """Closed accounts that Stripe has a subscription of, by id from beyond `after` on. Reads one row an account."""
    kept, account = subscriptions.c, accounts.c
    statement = (
        select(kept.account_id)
        .join(accounts, account.account_id == kept.account_id)
        .where(account.status == "closed", kept.status.not_in(("canceled", "incomplete")), kept.account_id > after)
        .order_by(kept.account_id)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def put_off(connection: Connection, account_id: str, until: datetime) -> None:
    """Look at an account's subscription again at `until`, not before."""
    connection.execute(
        update(subscriptions)
        .where(subscriptions.c.account_id == account_id, subscriptions.c.look_at < until)
        .values(look_at=until)
    )


def look_by(connection: Connection, account_id: str, at: datetime) -> None:
    """Look at an account's subscription again at `at`, not later. By primary key."""
    connection.execute(
        update(subscriptions)
        .where(subscriptions.c.account_id == account_id, subscriptions.c.look_at > at)
        .values(look_at=at)
    )


# Payments and their grants


def find_payment(connection: Connection, source_id: str) -> Payment | None:
    """One payment. By primary key."""
    row = connection.execute(select(stripe_payments).where(stripe_payments.c.source_id == source_id)).first()
    return Payment(**row._mapping) if row is not None else None  # noqa: SLF001


def known_payments(connection: Connection, account_id: str) -> set[str]:
    """The account's newest payments, at most 1000. By `stripe_payments_of_account`."""
    statement = (
        select(stripe_payments.c.source_id)
        .where(stripe_payments.c.account_id == account_id)
        .order_by(stripe_payments.c.paid_at.desc())
        .limit(_MAX_KNOWN)
    )
    return set(connection.execute(statement).scalars())


def insert_payment(connection: Connection, payment: Payment) -> bool:
    """Keep a payment; False where it is kept already."""
    values = {column.name: getattr(payment, column.name) for column in stripe_payments.columns}
    statement = insert(stripe_payments).values(**values).on_conflict_do_nothing()
    return connection.execute(statement.returning(stripe_payments.c.source_id)).first() is not None


def update_payment(connection: Connection, payment: Payment) -> None:
    """Write what may change of a payment."""
    connection.execute(
        update(stripe_payments)
        .where(stripe_payments.c.source_id == payment.source_id)
        .values(credit_nanos=payment.credit_nanos, returned=dict(payment.returned))
    )


def parts_of(connection: Connection, source_id: str) -> list[CreditPart]:
    """The grants of a payment. By `stripe_grants_of_source`."""
    statement = select(*_PART_COLUMNS).where(stripe_grants.c.source_id == source_id)
    return [_part(row) for row in connection.execute(statement.order_by(stripe_grants.c.part))]


def parts_to_come(connection: Connection, account_id: str) -> list[CreditPart]:
    """The grants still to be given to an account. By primary key."""
    statement = select(*_PART_COLUMNS).where(
        stripe_grants.c.account_id == account_id, stripe_grants.c.granted_at.is_(None)
    )
    return [_part(row) for row in connection.execute(statement.order_by(stripe_grants.c.due_at))]


def lasting_parts(connection: Connection, account_id: str, now: datetime) -> list[CreditPart]:
    """The grants that an account's subscriptions gave or will give and that have not expired. By primary key."""
    statement = select(*_PART_COLUMNS).where(
        stripe_grants.c.account_id == account_id,
        stripe_grants.c.source == "subscription",
        stripe_grants.c.expires_at > now,
    )
    return [_part(row) for row in connection.execute(statement)]


def accounts_with_due_parts(connection: Connection, now: datetime, *, limit: int) -> list[str]:
    """Accounts that a grant is due to, longest due first. By `stripe_grants_due`."""
    statement = (
        select(stripe_grants.c.account_id)
        .where(stripe_grants.c.granted_at.is_(None), stripe_grants.c.due_at <= now)
        .group_by(stripe_grants.c.account_id)
        .order_by(func.min(stripe_grants.c.due_at))
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def write_parts(connection: Connection, parts: Iterable[CreditPart]) -> None:
    """Add grants, or write what may change of them."""
    for part in parts:
        values = {column.name: getattr(part, column.name) for column in _PART_COLUMNS}
        changing = (
            "amount_nanos", "taken_back_nanos", "times_taken_back", "expires_at", "granted_at", "taken_elsewhere_nanos"
        )  # fmt: skip
        connection.execute(
            insert(stripe_grants)
            .values(**values)
            .on_conflict_do_update(
                index_elements=["account_id", "request_id"], set_={name: values[name] for name in changing}
            )
        )


def note_transaction(connection: Connection, grant: GrantCredit, transaction_id: str) -> None:
    """Keep which of the ledger's transactions gave a grant, where a payment paid for it."""
    connection.execute(
        update(stripe_grants)
        .where(stripe_grants.c.account_id == grant.account_id, stripe_grants.c.request_id == grant.request_id)
        .values(transaction_id=transaction_id)
    )


def note_taken_elsewhere(connection: Connection, reversal: ReverseGrant, nanos: int) -> None:
    """Keep how much of what was taken back of a grant came from other credit. By primary key."""
    grants = stripe_grants.c
    connection.execute(
        update(stripe_grants)
        .where(grants.account_id == reversal.account_id, grants.request_id == reversal.grant_request_id)
        .values(taken_elsewhere_nanos=func.least(grants.taken_back_nanos, grants.taken_elsewhere_nanos + nanos))
    )


def find_transaction(connection: Connection, account_id: str, request_id: str) -> str:
    """The ledger's transaction that gave a grant; empty where none has. By primary key."""
    statement = select(stripe_grants.c.transaction_id).where(
        stripe_grants.c.account_id == account_id, stripe_grants.c.request_id == request_id
    )
    return connection.execute(statement).scalar() or ""


def _part(row: Any) -> CreditPart:
    return CreditPart(**row._mapping)  # noqa: SLF001
