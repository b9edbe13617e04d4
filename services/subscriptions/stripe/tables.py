"""Owns the tables of what Stripe tells: events, customers, subscriptions, payments, and the credit each gives."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Index, Integer, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB

from services.subscriptions.tables import metadata


def _moment(name: str, *, required: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not required)


# `body` is the text that was signed: JSON of Postgres's own would not take every string that Stripe may send.
# `account_id` is empty until it is known whose the event is.
stripe_events = Table(
    "stripe_events",
    metadata,
    Column("event_id", Text(collation="C"), primary_key=True),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("account_id", Text(collation="C")),
    Column("body", Text, nullable=False),
    _moment("created_at", required=True),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    _moment("applied_at"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_attempt_at", DateTime(timezone=True), server_default=func.now()),
    Column("last_error", Text, nullable=False, server_default=text("''")),
    Index(
        "stripe_events_unrouted", "next_attempt_at", postgresql_where=text("status = 'pending' AND account_id IS NULL")
    ),
    Index(
        "stripe_events_due", "next_attempt_at", postgresql_where=text("status = 'pending' AND account_id IS NOT NULL")
    ),
    Index("stripe_events_of_account", "account_id", "received_at", postgresql_where=text("status = 'pending'")),
    Index("stripe_events_failed", "next_attempt_at", postgresql_where=text("status = 'failed'")),
    Index("stripe_events_by_time", "received_at", "event_id"),
)

# One at a time applies what Stripe says of an account, and one at a time moves its subscription (`moves of …`).
# `number` rises with each lease: who comes late finds another.
stripe_leases = Table(
    "stripe_leases",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("number", BigInteger, nullable=False),
    _moment("leased_until", required=True),
)

# An account has one customer at a time; one that was deleted at Stripe is kept for its late events.
stripe_customers = Table(
    "stripe_customers",
    metadata,
    Column("customer_id", Text(collation="C"), primary_key=True),
    Column("account_id", Text(collation="C"), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    _moment("deleted_at"),
    Index("stripe_customers_of_account", "account_id", unique=True, postgresql_where=text("deleted_at IS NULL")),
)

# The newest subscription of each account, as Stripe last said. `in_force`: it, and nobody else, says which plan the
# account is on. `look_at`: when the clock alone may change what follows from it.
subscriptions = Table(
    "subscriptions",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("subscription_id", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("in_force", Boolean, nullable=False),
    Column("plan_id", Text, nullable=False),
    Column("plan_version", Integer, nullable=False),
    Column("interval", Text, nullable=False),
    Column("price_nanos", BigInteger, nullable=False),
    _moment("period_start", required=True),
    _moment("period_end", required=True),
    Column("cancel_at_period_end", Boolean, nullable=False),
    _moment("trial_end"),
    _moment("failing_since"),
    _moment("grace_until"),
    Column("pending_plan_id", Text, nullable=False, server_default=text("''")),
    _moment("look_at"),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("subscriptions_to_look_at", "look_at", postgresql_where=text("look_at IS NOT NULL")),
)

# What was paid and gave, or may give, credit. `source_id` is an invoice's or a payment intent's. `returned` is what of
# each of its charges was refunded or is disputed, in cents by charge id.
stripe_payments = Table(
    "stripe_payments",
    metadata,
    Column("source_id", Text(collation="C"), primary_key=True),
    Column("account_id", Text(collation="C"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount_nanos", BigInteger, nullable=False),
    Column("credit_nanos", BigInteger, nullable=False),
    Column("returned", JSONB, nullable=False, server_default=text("'{}'")),
    _moment("paid_at", required=True),
    Index("stripe_payments_of_account", "account_id", "paid_at"),
    Index("stripe_payments_by_time", "paid_at"),
)

# The grants that a payment gives, one row for each of the ledger's. `amount_nanos` less `taken_back_nanos` is what is
# left of it; `granted_at` empty: still to be given, at `due_at`. `taken_elsewhere_nanos`: what was taken back of it and
# came from other credit, since it had been spent, and has not been given again.
stripe_grants = Table(
    "stripe_grants",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("request_id", Text(collation="C"), primary_key=True),
    Column("source_id", Text(collation="C"), nullable=False),
    Column("part", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("amount_nanos", BigInteger, nullable=False),
    Column("taken_back_nanos", BigInteger, nullable=False, server_default=text("0")),
    Column("times_taken_back", Integer, nullable=False, server_default=text("0")),
    _moment("due_at", required=True),
    _moment("expires_at"),
    Column("rollover_cap_nanos", BigInteger, nullable=False),
    _moment("granted_at"),
    Column("transaction_id", Text, nullable=False, server_default=text("''")),
    Column("taken_elsewhere_nanos", BigInteger, nullable=False, server_default=text("0")),
    Index("stripe_grants_due", "due_at", postgresql_where=text("granted_at IS NULL")),
    Index("stripe_grants_of_source", "source_id", "part"),
)
