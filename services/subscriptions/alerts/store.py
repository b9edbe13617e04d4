"""Owns all SQL of alerts. Every function runs in the caller's transaction."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, exists, func, insert, literal, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert as insert_or_ignore

from services.subscriptions.alerts.model import Alert
from services.subscriptions.alerts.tables import alert_deliveries, alert_endpoints, alerts
from services.subscriptions.tables import accounts

EMAIL = ""  # stands for the endpoint of what goes by e-mail
_MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where alerts are sent; of empty `account_id` those of all accounts."""

    endpoint_id: str
    account_id: str
    url: str
    signing_secret: str = field(repr=False)
    types: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RaisedAlert:
    """An alert as it stands: `status` is `pending`, `delivered` or `failed`; `attempts` those of its busiest way."""

    alert_id: str
    account_id: str
    type: str
    message: str
    created_at: datetime
    status: str
    attempts: int
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery to be made now; `attempts` counts this one too.

    `endpoint_id` is empty for one by e-mail, which goes to `email`; `url` is empty where the endpoint was deleted.
    """

    alert_id: str
    alert: Alert
    created_at: datetime
    endpoint_id: str
    url: str
    signing_secret: str = field(repr=False)
    email: str
    attempts: int


def raise_alert(connection: Connection, alert: Alert) -> bool:
    """Keep an alert and what is to be sent of it; False where it was raised before, or one that outdoes it."""
    if alert.outdone_by and _is_raised(connection, alert.account_id, alert.outdone_by):
        return False
    alert_id = f"alert-{secrets.token_hex(12)}"
    statement = insert_or_ignore(alerts).values(
        alert_id=alert_id,
        account_id=alert.account_id,
        type=alert.type,
        dedupe_key=alert.dedupe_key,
        message=alert.message,
        facts=alert.facts,
    )
    if connection.execute(statement.on_conflict_do_nothing().returning(alerts.c.alert_id)).first() is None:
        return False
    ways = _ways_of(connection, alert.account_id, alert.type)
    if ways:
        connection.execute(insert(alert_deliveries), [{"alert_id": alert_id, "endpoint_id": way} for way in ways])
    return True


def _is_raised(connection: Connection, account_id: str, dedupe_keys: Collection[str]) -> bool:
    """Whether an account has had any of these. By `alerts_once`."""
    found = exists().where(alerts.c.account_id == account_id, alerts.c.dedupe_key.in_(dedupe_keys))
    return bool(connection.execute(select(found)).scalar_one())


def _ways_of(connection: Connection, account_id: str, alert_type: str) -> list[str]:
    """The endpoints, the account's and the operator's, that want alerts of this type; and e-mail, if it has an address.

    By `alert_endpoints_of_account`.
    """
    found = list_endpoints(connection, (account_id, ""))
    ways = [endpoint.endpoint_id for endpoint in found if not endpoint.types or alert_type in endpoint.types]
    email = connection.execute(select(accounts.c.email).where(accounts.c.account_id == account_id)).scalar()
    return [*ways, EMAIL] if email else ways


def list_endpoints(connection: Connection, account_ids: Collection[str]) -> list[Endpoint]:
    """Endpoints of these accounts, by creation. By `alert_endpoints_of_account`."""
    names = Endpoint.__dataclass_fields__
    statement = (
        select(*(alert_endpoints.c[name] for name in names))
        .where(alert_endpoints.c.account_id.in_(account_ids), alert_endpoints.c.deleted_at.is_(None))
        .order_by(alert_endpoints.c.created_at, alert_endpoints.c.endpoint_id)
    )
    rows = connection.execute(statement).mappings()
    return [Endpoint(**{**row, "types": tuple(row["types"])}) for row in rows]


def lock_endpoints(connection: Connection, account_id: str) -> None:
    """Let nobody else add an endpoint to the account until the transaction ends. An advisory lock of that name."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"alert endpoints {account_id}", 0))))


def insert_endpoint(connection: Connection, endpoint: Endpoint) -> None:
    """Add an endpoint."""
    values = {name: getattr(endpoint, name) for name in Endpoint.__dataclass_fields__}
    connection.execute(insert(alert_endpoints).values({**values, "types": list(endpoint.types)}))


def delete_endpoint(connection: Connection, account_id: str, endpoint_id: str) -> bool:
    """End an endpoint of the account, and what waits for it; False where it has no such one."""
    statement = (
        update(alert_endpoints)
        .where(
            alert_endpoints.c.endpoint_id == endpoint_id,
            alert_endpoints.c.account_id == account_id,
            alert_endpoints.c.deleted_at.is_(None),
        )
        .values(deleted_at=func.now())
    )
    if connection.execute(statement.returning(alert_endpoints.c.endpoint_id)).first() is None:
        return False
    connection.execute(
        update(alert_deliveries)
        .where(alert_deliveries.c.endpoint_id == endpoint_id, alert_deliveries.c.status == "pending")
        .values(status="failed", last_error="the endpoint was deleted")
    )
    return True


def list_alerts(
    connection: Connection, account_id: str, *, before: tuple[datetime, str] | None, limit: int
) -> list[RaisedAlert]:
    """An account's alerts, newest first, from beyond `before` on. By `alerts_of_account`."""
    statement = _raised().where(alerts.c.account_id == account_id)
    if before is not None:
        statement = statement.where(tuple_(alerts.c.created_at, alerts.c.alert_id) < tuple_(*map(literal, before)))
    ordered = statement.order_by(alerts.c.created_at.desc(), alerts.c.alert_id.desc()).limit(limit)
    return [RaisedAlert(**row._mapping) for row in connection.execute(ordered)]  # noqa: SLF001


def find_alert(connection: Connection, alert_id: str) -> RaisedAlert | None:
    """One alert, by primary key."""
    row = connection.execute(_raised().where(alerts.c.alert_id == alert_id)).first()
    return RaisedAlert(**row._mapping) if row is not None else None  # noqa: SLF001


def _raised() -> Any:
    ways = alert_deliveries.c
    of_alert = ways.alert_id == alerts.c.alert_id
    failed = select(1).where(of_alert, ways.status == "failed").exists()
    pending = select(1).where(of_alert, ways.status == "pending").exists()
    status = func.coalesce(
        select(literal("pending")).where(pending).scalar_subquery(),
        select(literal("failed")).where(failed).scalar_subquery(),
        "delivered",
    )
    attempts = select(func.coalesce(func.max(ways.attempts), 0)).where(of_alert).scalar_subquery()
    upcoming = select(func.min(ways.next_attempt_at)).where(of_alert, ways.status == "pending").scalar_subquery()
    c = alerts.c
    return select(
        c.alert_id,
        c.account_id,
        c.type,
        c.message,
        c.created_at,
        status.label("status"),
        attempts.label("attempts"),
        upcoming.label("next_attempt_at"),
    )


def send_again(connection: Connection, alert_id: str) -> None:
    """Make every delivery of an alert due anew: everywhere it goes now, and nowhere else."""
    row = connection.execute(select(alerts).where(alerts.c.alert_id == alert_id)).one()
    ways = _ways_of(connection, row.account_id, row.type)
    c = alert_deliveries.c
    connection.execute(alert_deliveries.delete().where(c.alert_id == alert_id, c.endpoint_id.not_in(ways)))
    anew = {"status": "pending", "attempts": 0, "next_attempt_at": func.now(), "delivered_at": None}
    for way in ways:
        statement = insert_or_ignore(alert_deliveries).values(alert_id=alert_id, endpoint_id=way)
        connection.execute(statement.on_conflict_do_update(index_elements=["alert_id", "endpoint_id"], set_=anew))


def claim_delivery(connection: Connection, *, lease: timedelta, busy: Collection[str] = ()) -> Due | None:
    """Take what is longest due for the lease's time, in which nobody else takes it; nothing to the `busy` endpoints.

    Locks that row, skipping locked ones. By `alert_deliveries_due`.
    """
    c = alert_deliveries.c
    due = (
        select(c.alert_id, c.endpoint_id)
        .where(c.status == "pending", c.next_attempt_at <= func.now(), c.endpoint_id.not_in(busy))
        .order_by(c.next_attempt_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte()
    )
    taken = (
        update(alert_deliveries)
        .where(c.alert_id == due.c.alert_id, c.endpoint_id == due.c.endpoint_id)
        .values(next_attempt_at=func.now() + lease, attempts=c.attempts + 1)
        .returning(c.alert_id, c.endpoint_id, c.attempts)
        .cte()
    )
    row = connection.execute(
        select(
            taken.c.attempts,
            taken.c.endpoint_id,
            alerts,
            alert_endpoints.c.url,
            alert_endpoints.c.signing_secret,
            accounts.c.email,
        )
        .join(alerts, alerts.c.alert_id == taken.c.alert_id)
        .outerjoin(
            alert_endpoints,
            and_(alert_endpoints.c.endpoint_id == taken.c.endpoint_id, alert_endpoints.c.deleted_at.is_(None)),
        )
        .outerjoin(accounts, and_(accounts.c.account_id == alerts.c.account_id, taken.c.endpoint_id == EMAIL))
    ).first()
    if row is None:
        return None
    return Due(
        alert_id=row.alert_id,
        alert=Alert(row.account_id, row.type, row.dedupe_key, row.message, row.facts),
        created_at=row.created_at,
        endpoint_id=row.endpoint_id,
        url=row.url or "",
        signing_secret=row.signing_secret or "",
        email=row.email or "",
        attempts=row.attempts,
    )


def note_delivered(connection: Connection, due: Due) -> None:
    """Note that a delivery was taken, be it after its lease; not where it was made due anew meanwhile."""
    statement = _of(due).where(alert_deliveries.c.attempts >= due.attempts)
    connection.execute(statement.values(status="delivered", delivered_at=func.now(), last_error=""))


def note_skipped(connection: Connection, due: Due) -> None:
    """Note that there is no way for a delivery to go: no mail server."""
    connection.execute(_of(due).values(status="skipped"))


def note_failed(connection: Connection, due: Due, error: str, retry_in: timedelta | None) -> None:
    """Note that a delivery failed: to be tried again after a while, or no more. Not where it was taken since."""
    statement = _of(due).where(alert_deliveries.c.attempts == due.attempts)
    told = {"last_error": error[:_MAX_ERROR_CHARS]}
    if retry_in is None:
        connection.execute(statement.values(status="failed", **told))
    else:
        connection.execute(statement.values(next_attempt_at=func.now() + retry_in, **told))


def _of(due: Due) -> Any:
    c = alert_deliveries.c
    return update(alert_deliveries).where(
        c.alert_id == due.alert_id, c.endpoint_id == due.endpoint_id, c.status == "pending"
    )


def oldest_due_seconds(connection: Connection) -> float:
    """How long the longest overdue delivery has waited."""
    c = alert_deliveries.c
    oldest = select(func.min(c.next_attempt_at)).where(c.status == "pending").scalar_subquery()
    seconds = connection.execute(select(func.extract("epoch", func.now() - oldest))).scalar()
    return max(float(seconds or 0), 0.0)


# Events are by `usage_events_waiting` and `usage_events_aggregated`, each of which has its own of them.
_IN_USE = text(
    """
    SELECT account_id FROM usage_minutes WHERE minute >= :since
    UNION SELECT account_id FROM usage_events WHERE NOT aggregated AND received_at >= :told_since
    UNION SELECT account_id FROM usage_events WHERE aggregated AND received_at >= :told_since
    LIMIT :limit
    """
)


def accounts_in_use(connection: Connection, since: datetime, *, told_since: datetime, limit: int) -> list[str]:
    """Accounts that have used something since, or told of any use since `told_since`; at most `limit`.

    Minutes are by `usage_minutes_by_time`.
    """
    arguments = {"since": since, "told_since": told_since, "limit": limit}
    return list(connection.execute(_IN_USE, arguments).scalars())


def delete_old(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Delete alerts of long ago whose deliveries have ended; how many. By `alerts_by_time`."""
    c = alert_deliveries.c
    waits = select(1).where(c.alert_id == alerts.c.alert_id, c.status == "pending").exists()
    old = select(alerts.c.alert_id).where(alerts.c.created_at < func.now() - older_than, ~waits).limit(limit).cte()
    ways = alert_deliveries.delete().where(c.alert_id.in_(select(old.c.alert_id))).returning(c.alert_id).cte()
    statement = (
        alerts.delete()
        .where(or_(alerts.c.alert_id.in_(select(old.c.alert_id)), alerts.c.alert_id.in_(select(ways.c.alert_id))))
        .returning(alerts.c.alert_id)
    )
    return len(connection.execute(statement).all())
