"""Owns the tables of alerts, as their migration leaves them."""

from __future__ import annotations

from sqlalchemy import ARRAY, Column, DateTime, Index, Integer, Table, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB

from services.subscriptions.tables import metadata

alerts = Table(
    "alerts",
    metadata,
    Column("alert_id", Text(collation="C"), primary_key=True),
    Column("account_id", Text(collation="C"), nullable=False),
    Column("type", Text, nullable=False),
    Column("dedupe_key", Text(collation="C"), nullable=False),
    Column("message", Text, nullable=False),
    Column("facts", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint("account_id", "dedupe_key", name="alerts_once"),
    Index("alerts_of_account", "account_id", text("created_at DESC"), text("alert_id DESC")),
    Index("alerts_by_time", text("created_at DESC"), text("alert_id DESC")),
)

# Empty `account_id`: the operator's, for all accounts. The secret is kept as it is: it is signed with.
alert_endpoints = Table(
    "alert_endpoints",
    metadata,
    Column("endpoint_id", Text(collation="C"), primary_key=True),
    Column("account_id", Text(collation="C"), nullable=False),
    Column("url", Text, nullable=False),
    Column("signing_secret", Text, nullable=False),
    Column("types", ARRAY(Text), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("deleted_at", DateTime(timezone=True)),
    Index("alert_endpoints_of_account", "account_id", postgresql_where=text("deleted_at IS NULL")),
)

# One way of one alert: to an endpoint, or by e-mail where `endpoint_id` is empty.
alert_deliveries = Table(
    "alert_deliveries",
    metadata,
    Column("alert_id", Text(collation="C"), primary_key=True),
    Column("endpoint_id", Text(collation="C"), primary_key=True),
    Column("status", Text, nullable=False, server_default=text("'pending'")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_attempt_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("delivered_at", DateTime(timezone=True)),
    Column("last_error", Text, nullable=False, server_default=text("''")),
    Index("alert_deliveries_due", "next_attempt_at", postgresql_where=text("status = 'pending'")),
)
