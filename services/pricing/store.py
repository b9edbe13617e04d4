"""Owns all of pricing's SQL. Functions take an open connection; the caller owns the transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from services.pricing.model import CatalogueVersion, Plan, PlanMetric, PublishedPrice
from services.pricing.tables import catalogue_state, catalogue_versions, plans, prices, requests
from services.rating import PriceCard, Rate

_PLAN_COLUMNS = tuple(field.name for field in fields(Plan) if field.name != "metrics")


@dataclass(frozen=True, slots=True)
class State:
    """How often the catalogue was written to, and the newest of its versions (0: none yet)."""

    revision: int
    latest_version: int


@dataclass(frozen=True, slots=True)
class WrittenRequest:
    """A write that was answered: what it was, the digest of its body, and the version it made."""

    operation: str
    body_sha256: bytes
    version: int


def read_state(connection: Connection) -> State:
    """The state as of this transaction. Takes no lock; one row by primary key."""
    row = connection.execute(select(catalogue_state.c.revision, catalogue_state.c.latest_version)).one()
    return State(row.revision, row.latest_version)


def lock_state(connection: Connection) -> State:
    """The state, locked until the transaction ends: writers of the catalogue take turns here, readers do not wait."""
    row = connection.execute(
        select(catalogue_state.c.revision, catalogue_state.c.latest_version).with_for_update()
    ).one()
    return State(row.revision, row.latest_version)


def write_state(connection: Connection, state: State) -> None:
    """Set the state. The caller holds its lock."""
    connection.execute(update(catalogue_state).values(revision=state.revision, latest_version=state.latest_version))


def database_now(connection: Connection) -> datetime:
    """This moment by the database's clock, which all replicas share.

    Not the transaction's beginning: of two writers that wait for the state's lock, the later must get the later time.
    """
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now.astimezone(UTC)


def read_prices(connection: Connection, *, after_version: int = 0) -> list[PublishedPrice]:
    """Prices published after a version, by provider, model and version. Index: prices_by_version."""
    rows = connection.execute(
        select(prices)
        .where(prices.c.version > after_version)
        .order_by(prices.c.provider, prices.c.model, prices.c.version)
    )
    return [_price(row) for row in rows]


def insert_prices(connection: Connection, published: Sequence[PublishedPrice]) -> None:
    """Write prices of a version that is there already."""
    connection.execute(insert(prices), [_price_row(price) for price in published])


def read_versions(connection: Connection, *, before: int | None, limit: int) -> list[CatalogueVersion]:
    """Publications, newest first, those before version `before`. Index: primary key."""
    query = select(catalogue_versions).order_by(catalogue_versions.c.version.desc()).limit(limit)
    if before is not None:
        query = query.where(catalogue_versions.c.version < before)
    return [_version(row) for row in connection.execute(query)]


def read_version(connection: Connection, version: int) -> CatalogueVersion:
    """One publication, which is there. Index: primary key."""
    return _version(connection.execute(select(catalogue_versions).where(catalogue_versions.c.version == version)).one())


def insert_version(connection: Connection, version: CatalogueVersion) -> None:
    """Write one publication."""
    row = {field.name: getattr(version, field.name) for field in fields(CatalogueVersion)}
    connection.execute(insert(catalogue_versions), row)


def read_plans(connection: Connection, *, after_revision: int = 0) -> list[Plan]:
    """Plans written after a revision, every version of each. Index: plans_by_revision."""
    rows = connection.execute(
        select(plans).where(plans.c.revision > after_revision).order_by(plans.c.plan_id, plans.c.version)
    )
    return [_plan(row) for row in rows]


def insert_plans(
    connection: Connection, written: Iterable[Plan], *, created_at: datetime, author: str, revision: int
) -> None:
    """Write versions of plans."""
    connection.execute(
        insert(plans),
        [_plan_row(plan) | {"created_at": created_at, "author": author, "revision": revision} for plan in written],
    )


def read_request(connection: Connection, request_id: str) -> WrittenRequest | None:
    """What an idempotency key was used for; None where it is new. Index: primary key."""
    row = connection.execute(select(requests).where(requests.c.request_id == request_id)).one_or_none()
    return None if row is None else WrittenRequest(row.operation, row.body_sha256, row.version)


def insert_request(connection: Connection, request_id: str, written: WrittenRequest, created_at: datetime) -> None:
    """Remember an idempotency key with what it did. The caller holds the state's lock, so no two race for a key."""
    connection.execute(
        insert(requests).values(
            request_id=request_id,
            operation=written.operation,
            body_sha256=written.body_sha256,
            version=written.version,
            created_at=created_at,
        )
    )


def _price(row: Row[Any]) -> PublishedPrice:
    effective_from = row.effective_from.astimezone(UTC)
    card = None
    if not row.withdrawn:
        card = PriceCard(
            provider=row.provider,
            model=row.model,
            mode=row.mode,
            rates=tuple(Rate(*rate) for rate in row.rates),
            max_input_tokens=row.max_input_tokens,
            max_output_tokens=row.max_output_tokens,
            version=row.version,
            effective_from=effective_from,
        )
    return PublishedPrice(row.provider, row.model, row.version, effective_from, card, row.display_name, row.mode)


def _price_row(price: PublishedPrice) -> dict[str, Any]:
    card = price.card
    rates = card.rates if card else ()
    return {
        "provider": price.provider,
        "model": price.model,
        "version": price.version,
        "effective_from": price.effective_from,
        "mode": price.mode,
        "display_name": price.display_name,
        "max_input_tokens": card.max_input_tokens if card else 0,
        "max_output_tokens": card.max_output_tokens if card else 0,
        "withdrawn": price.withdrawn,
        "rates": [[rate.component, rate.service_tier, rate.above_tokens, rate.nanos_per_million] for rate in rates],
    }


def _version(row: Row[Any]) -> CatalogueVersion:
    return CatalogueVersion(
        version=row.version,
        effective_from=row.effective_from.astimezone(UTC),
        created_at=row.created_at.astimezone(UTC),
        author=row.author,
        reason=row.reason,
        prices_changed=row.prices_changed,
    )


def _plan(row: Row[Any]) -> Plan:
    values = {name: getattr(row, name) for name in _PLAN_COLUMNS}
    return Plan(
        **values
        | {
            "providers": tuple(row.providers),
            "models": tuple(row.models),
            "created_at": row.created_at.astimezone(UTC),
            "metrics": tuple(PlanMetric(*metric) for metric in row.metrics),
        }
    )


def _plan_row(plan: Plan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in _PLAN_COLUMNS} | {
        "providers": list(plan.providers),
        "models": list(plan.models),
        "metrics": [
            [metric.metric, metric.included, metric.cap, metric.overage_nanos_per_million] for metric in plan.metrics
        ],
    }
