"""Owns the shape of the proxy's tables."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

metadata = sa.MetaData()

_TIME = sa.DateTime(timezone=True)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Text, nullable=False),  # empty: an operator's key of no account
    sa.Column("key_sha256", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("key_type", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("last_four", sa.Text, nullable=False),
    sa.Column("workspace", sa.Text, nullable=False),
    sa.Column("allowed_models", pg.ARRAY(sa.Text), nullable=False),
    sa.Column("daily_limit_nanos", sa.BigInteger, nullable=False),
    sa.Column("monthly_limit_nanos", sa.BigInteger, nullable=False),
    sa.Column("requests_per_minute", sa.Integer, nullable=False),
    sa.Column("tokens_per_minute", sa.BigInteger, nullable=False),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("expires_at", _TIME),
    sa.Column("revoked_at", _TIME),
    sa.Column("replaced_by_key_id", sa.Text, nullable=False, server_default=""),
    sa.Column("first_key_id", sa.Text, nullable=False, server_default=""),  # of a rotated one's line; empty: itself
    sa.Column("request_id", sa.Text),
    sa.Column("request_sha256", sa.LargeBinary),
    sa.CheckConstraint("key_type IN ('standard', 'internal', 'admin')", name="keys_type_known"),
    sa.CheckConstraint("account_id <> '' OR key_type = 'admin'", name="keys_account_named"),
    sa.UniqueConstraint("account_id", "request_id", name="keys_request_once"),
    sa.Index("keys_newest", sa.text("created_at DESC"), sa.text("key_id DESC")),
    sa.Index("keys_newest_of_account", "account_id", sa.text("created_at DESC"), sa.text("key_id DESC")),
)

entitlements = sa.Table(
    "entitlements",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("plan_id", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("providers", pg.ARRAY(sa.Text), nullable=False),
    sa.Column("models", pg.ARRAY(sa.Text), nullable=False),
    sa.Column("max_tokens_per_request", sa.BigInteger, nullable=False),
    sa.Column("requests_per_minute", sa.Integer, nullable=False),
    sa.Column("tokens_per_minute", sa.BigInteger, nullable=False),
    sa.Column("multiplier_millionths", sa.BigInteger, nullable=False),
    sa.Column("metered", sa.Boolean, nullable=False),
    sa.Column("updated_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("multiplier_millionths > 0", name="entitlements_never_free"),
)

# What the ledger has not taken yet: settlements and releases, as it will be sent them.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("hold_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("operation", sa.LargeBinary, nullable=False),  # tollkeeper.ledger.v1.Operation
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("due_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("refused", sa.Text),  # why the ledger will never take it; kept for an operator
    sa.CheckConstraint("kind IN ('settle', 'release')", name="outbox_kind_known"),
    sa.Index("outbox_due", "due_at", postgresql_where=sa.text("refused IS NULL")),
)

# Calls with an idempotency key, and their answers, which nobody reads without the client's API key (answers/model.py).
answers = sa.Table(
    "answers",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("idempotency_sha256", sa.LargeBinary, primary_key=True),
    sa.Column("request_mac", sa.LargeBinary, nullable=False),
    sa.Column("call_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("lease_until", _TIME, nullable=False),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("expires_at", _TIME, nullable=False),
    sa.Column("http_status", sa.Integer),
    sa.Column("content_type", sa.Text),
    sa.Column("head", pg.JSONB),  # response headers, a list of pairs
    sa.Column("nonce", sa.LargeBinary),
    sa.Column("ciphertext", sa.LargeBinary),
    sa.CheckConstraint("state IN ('running', 'done', 'unkept')", name="answers_state_known"),
    sa.CheckConstraint("(state = 'done') = (ciphertext IS NOT NULL)", name="answers_done_whole"),
    sa.Index("answers_expired", "expires_at"),
)
