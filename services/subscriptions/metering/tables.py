"""Owns the tables of metering, as its migration leaves them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Index, Integer, Numeric, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB

from services.subscriptions.tables import metadata

# Sums of up to 10^12 each have no bound that a bigint would keep.
_SUM = Numeric(30, 0)

usage_events = Table(
    "usage_events",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("event_id", Text(collation="C"), primary_key=True),
    Column("metric", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("occurred_at", DateTime(timezone=True), nullable=False),
    Column("labels", JSONB),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("aggregated", Boolean, nullable=False, server_default=text("false")),
    Index("usage_events_waiting", "received_at", postgresql_where=text("NOT aggregated")),
    Index("usage_events_waiting_of_account", "account_id", "metric", postgresql_where=text("NOT aggregated")),
    Index("usage_events_aggregated", "received_at", postgresql_where=text("aggregated")),
)

usage_minutes = Table(
    "usage_minutes",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("metric", Text(collation="C"), primary_key=True),
    Column("minute", DateTime(timezone=True), primary_key=True),
    Column("emitted", _SUM, nullable=False),
    Column("proxied", _SUM, nullable=False),
    Column("last_quantity", BigInteger),
    Column("last_at", DateTime(timezone=True)),
    Column("due_since", DateTime(timezone=True)),
    Index("usage_minutes_by_time", "minute"),
    Index("usage_minutes_due", "account_id", "metric", "minute", postgresql_where=text("due_since IS NOT NULL")),
)

usage_hours = Table(
    "usage_hours",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("metric", Text(collation="C"), primary_key=True),
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("emitted", _SUM, nullable=False),
    Column("proxied", _SUM, nullable=False),
)

usage_gauges = Table(
    "usage_gauges",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("metric", Text(collation="C"), primary_key=True),
    Column("look_at", DateTime(timezone=True), nullable=False),
    Index("usage_gauges_by_look", "look_at"),
)

# Accounts whose emitted use lowers the ledger's limits: what was pushed last, at which revision of the account.
usage_limits = Table(
    "usage_limits",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("look_at", DateTime(timezone=True), nullable=False),
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    Column("pushed", JSONB, nullable=False, server_default=text("'{}'")),
)

# One row: how far the ledger's usage feed has been taken in.
usage_feed = Table(
    "usage_feed",
    metadata,
    Column("name", Text, primary_key=True),
    Column("cursor", Text, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

meter_reports = Table(
    "meter_reports",
    metadata,
    Column("account_id", Text(collation="C"), primary_key=True),
    Column("metric", Text(collation="C"), primary_key=True),
    Column("window_start", DateTime(timezone=True), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("value", _SUM, nullable=False),
    Column("stamped_at", DateTime(timezone=True), nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("first_attempt_at", DateTime(timezone=True)),
    Column("next_attempt_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("sent_at", DateTime(timezone=True)),
    Column("last_error", Text, nullable=False, server_default=text("''")),
    Index("meter_reports_unsent", "next_attempt_at", postgresql_where=text("sent_at IS NULL")),
    Index("meter_reports_sent", "sent_at", postgresql_where=text("sent_at IS NOT NULL")),
)
