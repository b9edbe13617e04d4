"""Owns the ledger's tables. Every account's key begins with `account_id`, so that a shard can hold whole accounts."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB

metadata = MetaData()


def _time(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


# One row per account with everything each operation needs: balances, grants with something left, its own limits.
# fillfactor: the row is updated with every batch; room on its page keeps those updates off the indexes.
accounts = Table(
    "accounts",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("status_reason", Text, nullable=False),
    Column("overdraft_kind", Text, nullable=False),
    Column("overdraft_limit", BigInteger, nullable=False),
    _time("cycle_anchor"),
    _time("created_at"),
    Column("open_hash", LargeBinary, nullable=False),
    _time("touched_at"),
    Column("cycle_start", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    _time("cycle_end"),
    Column("sequence", BigInteger, nullable=False),
    Column("usage_sequence", BigInteger, nullable=False),
    Column("last_hash", LargeBinary, nullable=False),
    Column("available", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("funded", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("expired", BigInteger, nullable=False),
    Column("overdrawn", BigInteger, nullable=False),
    Column("unbacked", BigInteger, nullable=False),
    Column("cycle_spent", BigInteger, nullable=False),
    Column("grants", JSON, nullable=False),
    Column("limits", JSON, nullable=False),
    _time("next_event_at", nullable=True),
    CheckConstraint("funded = available + held + spent + expired", name="accounts_balance"),
    CheckConstraint("least(held, spent, expired, overdrawn, unbacked) >= 0", name="accounts_not_negative"),
    Index("accounts_due", "next_event_at", postgresql_where=text("next_event_at IS NOT NULL")),
    Index("accounts_stopped", "status", "account_id", postgresql_where=text("status <> 'open'")),
    postgresql_with={"fillfactor": 60},
)

# The limits of one key or workspace of an account.
subject_limits = Table(
    "subject_limits",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("limits", JSON, nullable=False),
    postgresql_with={"fillfactor": 60},
)

grants = Table(
    "grants",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("grant_id", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    _time("created_at"),
    _time("expires_at", nullable=True),
    Column("rollover_cap", BigInteger, nullable=False, server_default=text("0")),
    # What of it expired unspent, less what reversals took back of that.
    Column("expired", BigInteger, nullable=False, server_default=text("0")),
)

holds = Table(
    "holds",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("hold_id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("workspace", Text, nullable=False),
    Column("billable", Boolean, nullable=False),
    _time("created_at"),
    _time("expires_at"),
    Column("sequence", BigInteger, nullable=False),
    Column("reservations", JSONB, nullable=False),
    Column("unbacked", BigInteger, nullable=False),
    Column("settled", BigInteger, nullable=False),
    _time("ended_at", nullable=True),
    Column("body_hash", LargeBinary, nullable=False),
    Column("end_body_hash", LargeBinary, nullable=False),
    Column("end_sequence", BigInteger, nullable=False),
    Column("end_available", BigInteger, nullable=False, server_default=text("0")),
    Column("was_expired", Boolean, nullable=False, server_default=text("false")),
    Column("usage_id", Text, nullable=False),
    Index("holds_open", "account_id", "expires_at", postgresql_where=text("status = 'open'")),
)

requests = Table(
    "requests",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("body_hash", LargeBinary, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    _time("created_at"),
)

# Partitioned by month of `created_at`; see partitions.py.
journal = Table(
    "journal",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("created_at", DateTime(timezone=True), primary_key=True),
    Column("type", Text, nullable=False),
    Column("funding", BigInteger, nullable=False),
    Column("available", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("expired", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("grant_uses", JSONB, nullable=False),
    Column("description", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("hold_id", Text, nullable=False),
    Column("usage_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("workspace", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("original_id", Text, nullable=False, server_default=text("''")),
    CheckConstraint("funding + available + held + spent + expired = 0", name="journal_sums_to_zero"),
    postgresql_partition_by="RANGE (created_at)",
)

usage = Table(
    "usage",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("usage_number", BigInteger, primary_key=True),
    Column("created_at", DateTime(timezone=True), primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("workspace", Text, nullable=False),
    Column("hold_id", Text, nullable=False),
    Column("transaction_id", Text, nullable=False),
    Column("billed", BigInteger, nullable=False),
    Column("billable", Boolean, nullable=False),
    Column("session", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("input_cost", BigInteger, nullable=False),
    Column("output_cost", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("price_version", BigInteger, nullable=False),
    Column("duration_milliseconds", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("estimated", Boolean, nullable=False),
    _time("started_at", nullable=True),
    Column("provider_request_id", Text, nullable=False),
    Column("service_tier", Text, nullable=False),
    # What limits count, and when the hold was made that counted it.
    Column("tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("requests", BigInteger, nullable=False, server_default=text("1")),
    Column("counted_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("units", JSONB, nullable=False, server_default=text("'{}'")),
    Column("internal", Boolean, nullable=False, server_default=text("false")),
    # Its place in the usage feed: which writer committed it, and after how many others of that writer.
    Column("feed_slot", SmallInteger, nullable=False, server_default=text("0")),
    Column("feed_position", BigInteger, nullable=False, server_default=text("0")),
    Column("fed_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Index("usage_feed", "feed_slot", "feed_position"),
    postgresql_partition_by="RANGE (created_at)",
)

# How much of an entry refunds and reversals have undone.
undone = Table(
    "undone",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("amount", BigInteger, nullable=False),
    CheckConstraint("amount > 0", name="undone_amount_check"),
)

# The names of holds that ended long ago, whose rows are gone.
ended_holds = Table(
    "ended_holds",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("hold_id", Text, primary_key=True),
)

# How far each writer's records have got in the usage feed. No account's.
feed_slots = Table(
    "feed_slots",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    _time("fed_at"),
    postgresql_with={"fillfactor": 20},
)

# Sums of all accounts' usage by UTC day, for operators (store/day_sums.py). No account's either.
day_sums = Table(
    "day_sums",
    metadata,
    Column("day", Date, primary_key=True),
    Column("provider", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", Numeric, nullable=False),
    Column("output_tokens", Numeric, nullable=False),
    Column("cached_tokens", Numeric, nullable=False),
    Column("reasoning_tokens", Numeric, nullable=False),
    Column("cost", Numeric, nullable=False),
    Column("billed", Numeric, nullable=False),
    Column("estimated_requests", BigInteger, nullable=False),
    Column("unbilled_requests", BigInteger, nullable=False),
    Column("internal_requests", BigInteger, nullable=False),
    Column("internal_tokens", Numeric, nullable=False),
)

# On which UTC days an account used anything.
active_days = Table(
    "active_days",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("day", Date, primary_key=True),
    Index("active_days_by_day", "day"),
)

# Through which position of each slot of the feed the records are in these sums.
summed_slots = Table(
    "summed_slots",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
)

# What an account's archived months add up to: where its journal and its usage records begin.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("funding", BigInteger, nullable=False),
    Column("available", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("expired", BigInteger, nullable=False),
    Column("grant_uses", JSONB, nullable=False),
    Column("usage_number", BigInteger, nullable=False),
    _time("archived_before"),
)

# What the usage records of detached months come to, for lifetime limits that are made later.
archived_use = Table(
    "archived_use",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("workspace", Text, primary_key=True),
    Column("billed", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
)

# Which months (`2026-11`) were detached, in order. No account's either.
archived_months = Table(
    "archived_months",
    metadata,
    Column("month", Text, primary_key=True),
    Column("journal_rows", BigInteger, nullable=False),
    Column("usage_rows", BigInteger, nullable=False),
    _time("detached_at"),
    _time("archived_at", nullable=True),
    _time("dropped_at", nullable=True),
)

# When a server was last there, in one row (presence.py).
presence = Table(
    "presence",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    _time("seen_at"),
)
