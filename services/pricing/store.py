"""Owns all of pricing's SQL. Functions take an open connection; the caller owns the transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from services.pricing.model import CatalogueVersion, Plan, PlanMetric, PlanVersion, PublishedPrice
from services.pricing.overrides import Override, OverrideEnd
from services.pricing.tables import (
    catalogue_state,
    catalogue_versions,
    plans,
    price_override_ends,
    price_overrides,
    prices,
    requests,
)
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


def read_overrides(connection: Connection, *, after_version: int = 0, account_id: str | None = None) -> list[Override]:
    """Overrides set after a version, as they were set, by version; of one account or (None) of all.

    Index: primary key, or price_overrides_by_account.
    """
    query = select(price_overrides).where(price_overrides.c.version > after_version).order_by(price_overrides.c.version)
    if account_id is not None:
        query = query.where(price_overrides.c.account_id == account_id)
    return [_override(row) for row in connection.execute(query)]


def read_override(connection: Connection, version: int) -> Override:
    """The override of a version that is there, as it was set. Index: primary key."""
    return _override(connection.execute(select(price_overrides).where(price_overrides.c.version == version)).one())


def read_override_ends(
    connection: Connection, *, after_version: int = 0, account_id: str | None = None
) -> list[OverrideEnd]:
    """Ends of overrides written after a version, by version; of one account or (None) of all.

    Index: primary key, or price_override_ends_by_account.
    """
    query = (
        select(price_override_ends)
        .where(price_override_ends.c.version > after_version)
        .order_by(price_override_ends.c.version)
    )
    if account_id is not None:
        query = query.where(price_override_ends.c.account_id == account_id)
    return [
        OverrideEnd(row.account_id, row.provider, row.model, row.version, row.ended_at.astimezone(UTC))
        for row in connection.execute(query)
    ]


def insert_override(connection: Connection, override: Override) -> None:
    """Write an override of a version that is there already."""
    connection.execute(
        insert(price_overrides).values(
            version=override.version,
            account_id=override.account_id,
            provider=override.provider,
            model=override.model,
            effective_from=override.effective_from,
            agreed_until=override.agreed_until,
            multiplier_millionths=override.multiplier_millionths,
            rates=_rate_rows(override.rates),
        )
    )


def insert_override_end(connection: Connection, end: OverrideEnd) -> None:
    """Write the end of an account's overrides for a model, of a version that is there already."""
    connection.execute(
        insert(price_override_ends).values({field.name: getattr(end, field.name) for field in fields(OverrideEnd)})
    )


def read_plans(connection: Connection, *, after_revision: int = 0) -> list[Plan]:
    """Plans written after a revision, every version of each. Index: plans_by_revision."""
    rows = connection.execute(
        select(plans).where(plans.c.revision > after_revision).order_by(plans.c.plan_id, plans.c.version)
    )
    return [_plan(row) for row in rows]


def insert_plans(
    connection: Connection,
    written: Iterable[Plan],
    *,
    created_at: datetime,
    author: str,
    reason: str = "",
    revision: int,
) -> None:
    """Write versions of plans."""
    by = {"created_at": created_at, "author": author, "reason": reason, "revision": revision}
    connection.execute(insert(plans), [_plan_row(plan) | by for plan in written])


def read_newest_plan(connection: Connection, plan_id: str) -> Plan | None:
    """A plan in its newest version; None where there is no such plan. Index: primary key."""
    query = select(plans).where(plans.c.plan_id == plan_id).order_by(plans.c.version.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else _plan(row)


def read_plan(connection: Connection, plan_id: str, version: int) -> Plan:
    """A plan in a version that is there. Index: primary key."""
    query = select(plans).where(plans.c.plan_id == plan_id, plans.c.version == version)
    return _plan(connection.execute(query).one())


def read_plan_history(connection: Connection, plan_id: str, *, before: int | None, limit: int) -> list[PlanVersion]:
    """A plan's versions, newest first, those before version `before`. Index: primary key."""
    query = select(plans).where(plans.c.plan_id == plan_id).order_by(plans.c.version.desc()).limit(limit)
    if before is not None:
        query = query.where(plans.c.version < before)
    return [PlanVersion(_plan(row), row.author, row.reason) for row in connection.execute(query)]


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


def _rate_rows(rates: Iterable[Rate]) -> list[list[str | int]]:
    return [[rate.component, rate.service_tier, rate.above_tokens, rate.nanos_per_million] for rate in rates]


def _override(row: Row[Any]) -> Override:
    return Override(
        account_id=row.account_id,
        provider=row.provider,
        model=row.model,
        version=row.version,
        effective_from=row.effective_from.astimezone(UTC),
        agreed_until=row.agreed_until and row.agreed_until.astimezone(UTC),
        rates=tuple(Rate(*rate) for rate in row.rates),
        multiplier_millionths=row.multiplier_millionths,
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
        "rates": _rate_rows(rates),
    }


def _version(row: Row[Any]) -> CatalogueVersion:
    return CatalogueVersion(
        version=row.version,
        effective_from=row.effective_from.astimezone(UTC),
        created_at=row.created_at.astimezone(UTC),
        author=row.author,
        reason=row.reason,
        prices_changed=row.prices_changed,
        account_id=row.account_id,
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
