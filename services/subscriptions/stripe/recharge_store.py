"""Owns the SQL of auto-recharge: rules and purchases. Runs in the caller's transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, case, exists, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from services.subscriptions.stripe.recharge_rules import Recharge, RechargeRule
from services.subscriptions.stripe.request_tables import auto_recharges, recharges
from services.subscriptions.stripe.tables import stripe_grants

_OPEN = ("pending", "paid")
_COUNTED = ("pending", "paid", "granted")

_rule_columns = [auto_recharges.c[name] for name in RechargeRule.__dataclass_fields__]
_recharge_columns = [recharges.c[name] for name in Recharge.__dataclass_fields__]


def _rule(row: Any) -> RechargeRule:
    return RechargeRule(**row._mapping)  # noqa: SLF001 (the documented way to a row's names)


def set_rule(connection: Connection, rule: RechargeRule) -> None:
    """Keep an account's rule, armed unless a purchase is under way, to be looked at at once.

    The same rule set again stays as it is, so that it buys nothing more for the same fall.
    """
    kept = auto_recharges.c
    said = {
        "enabled": rule.enabled,
        "threshold_nanos": rule.threshold_nanos,
        "amount_nanos": rule.amount_nanos,
        "monthly_cap_nanos": rule.monthly_cap_nanos,
    }
    under_way = exists().where(recharges.c.account_id == rule.account_id, recharges.c.status.in_(_OPEN))
    anew = select(~under_way).scalar_subquery()
    is_same = and_(kept.enabled, *(kept[name] == value for name, value in said.items()))
    values = {**said, "updated_at": func.now(), "look_at": func.now()}
    statement = upsert(auto_recharges).values(account_id=rule.account_id, armed=anew, **values)
    changed = {**values, "armed": case((is_same, kept.armed), else_=anew)}
    connection.execute(statement.on_conflict_do_update(index_elements=["account_id"], set_=changed))


def find_rule(connection: Connection, account_id: str) -> RechargeRule | None:
    """An account's rule. By primary key."""
    row = connection.execute(select(*_rule_columns).where(auto_recharges.c.account_id == account_id)).first()
    return _rule(row) if row is not None else None


def lock_rule(connection: Connection, account_id: str) -> RechargeRule | None:
    """An account's rule, its row locked until the transaction ends: guards its purchases."""
    statement = select(*_rule_columns).where(auto_recharges.c.account_id == account_id).with_for_update()
    row = connection.execute(statement).first()
    return _rule(row) if row is not None else None


def claim_due(connection: Connection, *, pause_seconds: float) -> RechargeRule | None:
    """The rule longest due, put off by the pause; None where none is due. By `auto_recharges_by_look`.

    Locks the row it claims for the statement only; rows that another process is claiming right now are skipped.
    """
    kept = auto_recharges.c
    due = (
        select(kept.account_id)
        .where(or_(kept.enabled, ~kept.armed), kept.look_at <= func.now())
        .order_by(kept.look_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    statement = (
        update(auto_recharges)
        .where(kept.account_id == due)
        .values(look_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause_seconds))
        .returning(*_rule_columns)
    )
    row = connection.execute(statement).first()
    return _rule(row) if row is not None else None


def update_rule(connection: Connection, account_id: str, **values: bool) -> None:
    """Write `armed` or `enabled`."""
    connection.execute(update(auto_recharges).where(auto_recharges.c.account_id == account_id).values(**values))


def find_open(connection: Connection, account_id: str) -> Recharge | None:
    """The account's purchase under way; there is one at most. By `recharges_open`."""
    statement = select(*_recharge_columns).where(recharges.c.account_id == account_id, recharges.c.status.in_(_OPEN))
    row = connection.execute(statement).first()
    return Recharge(**row._mapping) if row is not None else None  # noqa: SLF001


def bought_since(connection: Connection, account_id: str, since: datetime) -> int:
    """What was bought, or is being bought, since a moment, in nanos. By `recharges_by_age`."""
    statement = select(func.coalesce(func.sum(recharges.c.amount_nanos), 0)).where(
        recharges.c.account_id == account_id, recharges.c.created_at >= since, recharges.c.status.in_(_COUNTED)
    )
    return int(connection.execute(statement).scalar_one())


def insert_recharge(connection: Connection, recharge: Recharge) -> None:
    """Keep a purchase before it is made. The rule's row is locked."""
    connection.execute(insert(recharges).values(**{c.name: getattr(recharge, c.name) for c in _recharge_columns}))


def update_recharge(connection: Connection, recharge: Recharge, **values: str) -> bool:
    """Write what became of a purchase under way; False where somebody else has written it already."""
    kept = recharges.c
    statement = update(recharges).where(
        and_(
            kept.account_id == recharge.account_id,
            kept.request_id == recharge.request_id,
            kept.status == recharge.status,
        )
    )
    return connection.execute(statement.values(**values)).rowcount == 1


def has_arrived(connection: Connection, payment_intent_id: str) -> bool:
    """Whether the credit that a payment gives has been granted. By `stripe_grants_of_source`."""
    arrived = exists().where(stripe_grants.c.source_id == payment_intent_id, stripe_grants.c.granted_at.is_not(None))
    return bool(connection.execute(select(arrived)).scalar_one())
