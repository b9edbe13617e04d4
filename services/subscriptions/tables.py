"""Owns the tables of subscriptions, as its migrations leave them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Index, Integer, MetaData, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    # In byte order, so that pages are in the same order on every server.
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("plan_id", Text, nullable=False),
    Column("plan_version", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("cycle_anchor", DateTime(timezone=True), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("created_as", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("outbox_sequence", BigInteger, nullable=False),
    Column("renews_grant", Boolean, nullable=False),
    Column("granted_until", DateTime(timezone=True)),
    Index("accounts_by_grant", "granted_until", postgresql_where=text("renews_grant")),
    Index("accounts_by_plan", "plan_id", "account_id"),
    Index("accounts_by_creation", "created_at"),
)

plan_changes = Table(
    "plan_changes",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("request_id", Text(collation="C"), primary_key=True),
    Column("from_plan_id", Text, nullable=False),
    Column("from_plan_version", Integer, nullable=False),
    Column("plan_id", Text, nullable=False),
    Column("plan_version", Integer, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("plan_changes_by_time", "created_at"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_attempt_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("leased_until", DateTime(timezone=True)),
    Column("delivered_at", DateTime(timezone=True)),
    Column("last_error", Text, nullable=False, server_default=text("''")),
    Index("outbox_waiting", "next_attempt_at", postgresql_where=text("delivered_at IS NULL")),
    Index("outbox_waiting_of_account", "account_id", "sequence", postgresql_where=text("delivered_at IS NULL")),
    Index("outbox_delivered", "delivered_at", postgresql_where=text("delivered_at IS NOT NULL")),
)
