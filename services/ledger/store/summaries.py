"""Owns the SQL of usage sums, over one account or all. Reads the usage table's monthly partitions; takes no lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Select, func, literal_column

from services.ledger import tables
from services.ledger.model.book import MAX_COUNTED
from services.ledger.model.operations import SetLimit

MAX_SUMMARIES = 10_000

_USAGE = tables.usage.c
_UTC = func.timezone("UTC", _USAGE.created_at)
# What usage may be summed by. A format is a literal, so that Postgres sees one expression in both places.
DIMENSIONS: dict[str, sa.ColumnElement[str]] = {
    "day": func.to_char(_UTC, literal_column("'YYYY-MM-DD'")),
    "month": func.to_char(_UTC, literal_column("'YYYY-MM'")),
    "provider": _USAGE.provider,
    "model": _USAGE.model,
    "key": _USAGE.key_id,
    "workspace": _USAGE.workspace,
}


@dataclass(frozen=True, slots=True)
class SummaryFilter:
    """Which usage to sum: booked in `[from_time, to_time)`; empty strings mean any."""

    from_time: datetime
    to_time: datetime
    provider: str = ""
    model: str = ""
    key_id: str = ""
    workspace: str = ""


def summed(column: Any, *, where: Any = None) -> sa.ColumnElement[int]:
    """A sum of integers, a numeric in Postgres; no more than 64 bits hold, whatever callers reported."""
    total = func.sum(column) if where is None else func.sum(column).filter(where)
    return func.least(func.coalesce(total, 0), MAX_COUNTED).cast(sa.BigInteger)


_SUMS = (
    func.count().label("requests"),
    *(
        summed(_USAGE[name]).label(name)
        for name in ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost", "billed")
    ),
    func.count().filter(_USAGE.estimated).label("estimated_requests"),
    func.count().filter(sa.not_(_USAGE.billable)).label("unbilled_requests"),
    func.count().filter(_USAGE.internal).label("internal_requests"),
    summed(_USAGE.input_tokens.cast(sa.Numeric) + _USAGE.output_tokens, where=_USAGE.internal).label("internal_tokens"),
)


def usage_sums(wanted: SummaryFilter, group_by: Sequence[str]) -> Select[Any]:
    """Sums by the dimensions named, in their order; one row in all where none is named."""
    keys = [DIMENSIONS[name].label(f"by_{name}") for name in group_by]
    columns: list[sa.ColumnElement[Any]] = [*keys, *_SUMS]
    return _chosen(sa.select(*columns), wanted).group_by(*keys).order_by(*keys).limit(MAX_SUMMARIES)


def active_accounts(wanted: SummaryFilter) -> Select[Any]:
    """How many accounts have any of this usage."""
    return _chosen(sa.select(func.count(_USAGE.account_id.distinct())), wanted)


def costs_of(account_ids: Sequence[str], start: datetime, end: datetime) -> Select[Any]:
    """What the calls of these accounts cost at providers, of those that made any. Uses the usage table's key."""
    query = sa.select(_USAGE.account_id, summed(_USAGE.cost).label("cost"))
    query = query.where(_USAGE.account_id.in_(account_ids), _USAGE.created_at >= start, _USAGE.created_at < end)
    return query.group_by(_USAGE.account_id)


def credits_of(account_ids: Sequence[str], types: Sequence[str], start: datetime, end: datetime) -> Select[Any]:
    """These accounts' entries of these types, each with what of it was undone, oldest first. Uses the journal's key."""
    journal, undone = tables.journal.c, tables.undone.c
    same = (undone.account_id == journal.account_id) & (undone.sequence == journal.sequence)
    query = sa.select(
        journal.account_id,
        journal.type,
        (journal.available + journal.held).label("amount"),
        func.coalesce(undone.amount, 0).label("undone"),
    ).select_from(tables.journal.outerjoin(tables.undone, same))
    query = query.where(
        journal.account_id.in_(account_ids),
        journal.type.in_(types),
        journal.created_at >= start,
        journal.created_at < end,
    )
    return query.order_by(journal.account_id, journal.sequence)


def counted(limits: Sequence[SetLimit], since: datetime, through: int) -> Select[Any]:
    """What limits of one scope, unit and window count since a moment, by records up to number `through`; by subject."""
    column = {"nanos": _USAGE.billed, "tokens": _USAGE.tokens, "requests": _USAGE.requests}[limits[0].unit]
    # Booked after it was counted, so that older partitions are left out.
    return _by_subject(column, limits, _USAGE).where(
        _USAGE.usage_number <= through, _USAGE.counted_at >= since, _USAGE.created_at >= since
    )


def archived(limits: Sequence[SetLimit]) -> Select[Any]:
    """What limits of one scope and unit count by records of archived months; by subject."""
    use, unit = tables.archived_use.c, limits[0].unit
    return _by_subject(use[{"nanos": "billed"}.get(unit, unit)], limits, use)


def _by_subject(column: Any, limits: Sequence[SetLimit], rows: Any) -> Select[Any]:
    """Sums of a column for each subject of limits of one scope; for the empty one where its scope has no others."""
    nobody: Any = sa.literal("")
    if not limits[0].subject:
        return sa.select(nobody, summed(column))
    subject = rows.key_id if limits[0].scope == "key" else rows.workspace
    return sa.select(subject, summed(column)).where(subject.in_({x.subject for x in limits})).group_by(subject)


def _chosen(query: Select[Any], wanted: SummaryFilter) -> Select[Any]:
    query = query.where(_USAGE.created_at >= wanted.from_time, _USAGE.created_at < wanted.to_time)
    for name in ("provider", "model", "key_id", "workspace"):
        value = getattr(wanted, name)
        if value:
            query = query.where(_USAGE[name] == value)
    return query
