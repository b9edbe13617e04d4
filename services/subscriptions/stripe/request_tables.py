"""Owns the tables of what was asked of Stripe, and of auto-recharge, as their migration leaves them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Index, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB

from services.subscriptions.tables import metadata

_NOW = func.now()


def _account(*, primary_key: bool = True) -> Column[str]:
    return Column("account_id", Text(collation="C"), primary_key=primary_key, nullable=False)


def _moment(name: str, **options: Any) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=False, **options)


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, Text, nullable=False, **options)


def _nanos(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


# A request: `asked` is what Stripe is asked, settled before it is asked, so that a repeat asks for the same.
stripe_requests = Table(
    "stripe_requests",
    metadata,
    _account(),
    Column("use_case", Text(collation="C"), primary_key=True),
    Column("request_id", Text(collation="C"), primary_key=True),
    _text("fingerprint"),
    Column("asked", JSONB, nullable=False),
    Column("answer", JSONB),
    _moment("created_at", server_default=_NOW),
    Index("stripe_requests_by_age", "created_at"),
)

# The last change of plan that each account was shown a price for, and the second that the price holds for.
stripe_previews = Table(
    "stripe_previews",
    metadata,
    _account(),
    _text("subscription_id"),
    _text("target"),
    Column("proration_date", BigInteger, nullable=False),
    _moment("created_at"),
)

auto_recharges = Table(
    "auto_recharges",
    metadata,
    _account(),
    Column("enabled", Boolean, nullable=False),
    _nanos("threshold_nanos"),
    _nanos("amount_nanos"),
    _nanos("monthly_cap_nanos"),
    Column("armed", Boolean, nullable=False),
    _moment("updated_at", server_default=_NOW),
    _moment("look_at", server_default=_NOW),
    Index("auto_recharges_by_look", "look_at", postgresql_where=text("enabled OR NOT armed")),
)

recharges = Table(
    "recharges",
    metadata,
    _account(),
    Column("request_id", Text(collation="C"), primary_key=True),
    _nanos("amount_nanos"),
    _text("status"),
    Column("lifts", Boolean, nullable=False),
    _text("customer_id"),
    _text("payment_method_id"),
    _text("payment_intent_id", server_default=text("''")),
    _text("error", server_default=text("''")),
    _moment("created_at"),
    Index("recharges_by_age", "account_id", "created_at"),
    Index("recharges_open", "account_id", unique=True, postgresql_where=text("status IN ('pending', 'paid')")),
)
