"""Owns pricing's tables. Rows of prices, versions, overrides and plans are written once: triggers refuse any change."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

# One row. Every write locks it and raises the number, so writes take turns and are seen in their order.
catalogue_state = Table(
    "catalogue_state",
    metadata,
    Column("id", SmallInteger, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("latest_version", BigInteger, nullable=False),
)

catalogue_versions = Table(
    "catalogue_versions",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("effective_from", DateTime(timezone=True), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("prices_changed", Integer, nullable=False),
    # Whose price override it set or ended; empty for a publication.
    Column("account_id", Text, nullable=False),
)

prices = Table(
    "prices",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("version", BigInteger, ForeignKey("catalogue_versions.version"), primary_key=True),
    Column("effective_from", DateTime(timezone=True), nullable=False),
    Column("mode", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("max_input_tokens", BigInteger, nullable=False),
    Column("max_output_tokens", BigInteger, nullable=False),
    Column("withdrawn", Boolean, nullable=False),
    # [[component, service_tier, above_tokens, nanos_per_million], …]
    Column("rates", JSONB, nullable=False),
)

# Overrides are never changed: one that is ended before its time stays as it was set, and the end is a row of its own.
price_overrides = Table(
    "price_overrides",
    metadata,
    Column("version", BigInteger, ForeignKey("catalogue_versions.version"), primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("effective_from", DateTime(timezone=True), nullable=False),
    Column("agreed_until", DateTime(timezone=True)),
    Column("multiplier_millionths", BigInteger, nullable=False),
    # As those of prices; empty where there is a multiplier.
    Column("rates", JSONB, nullable=False),
)

price_override_ends = Table(
    "price_override_ends",
    metadata,
    Column("version", BigInteger, ForeignKey("catalogue_versions.version"), primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("ended_at", DateTime(timezone=True), nullable=False),
)

plans = Table(
    "plans",
    metadata,
    Column("plan_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("display_name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("price_nanos", BigInteger, nullable=False),
    Column("annual_discount_basis_points", Integer, nullable=False),
    Column("margin_basis_points", Integer, nullable=False),
    Column("promotional_grant_nanos", BigInteger, nullable=False),
    Column("tokens_per_cycle", BigInteger, nullable=False),
    Column("requests_per_cycle", BigInteger, nullable=False),
    Column("max_tokens_per_request", BigInteger, nullable=False),
    Column("requests_per_minute", Integer, nullable=False),
    Column("tokens_per_minute", BigInteger, nullable=False),
    Column("providers", ARRAY(Text), nullable=False),
    Column("models", ARRAY(Text), nullable=False),
    Column("multiplier_millionths", BigInteger, nullable=False),
    Column("overage_nanos_per_million_tokens", BigInteger, nullable=False),
    # [[metric, included, cap, overage_nanos_per_million], …]
    Column("metrics", JSONB, nullable=False),
    Column("rollover_cap_nanos", BigInteger, nullable=False),
    Column("grace_days", Integer, nullable=False),
    Column("warn_percent", Integer, nullable=False),
    Column("retired", Boolean, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # The revision that wrote it, by which watchers find what is new.
    Column("revision", BigInteger, nullable=False),
)

# What each write answered, by its idempotency key, so that a repeat answers the same.
requests = Table(
    "requests",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("operation", Text, nullable=False),
    Column("body_sha256", LargeBinary, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)
