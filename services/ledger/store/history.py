"""Owns the SQL of an account's past: what its journal moved after a moment, in a cycle, and in a month.

Every query reads one account's entries by the journal's key, in the partitions of the months from its first moment on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Select, func

from services.ledger import tables
from services.ledger.model.operations import HOLD_MOVES
from services.ledger.model.past import Moved
from services.ledger.store.narrowing import Narrowed
from services.ledger.store.summaries import summed

_JOURNAL = tables.journal.c
_MOVES = ("funding", "available", "held", "spent", "expired")


@dataclass(frozen=True, slots=True)
class MonthMoves:
    """What moved `available` since a month began and since it ended, and what the month was worth by type; nanos."""

    since_start: int
    since_end: int
    by_type: dict[str, int]


def entries(account_id: str) -> Select[Any]:
    """An account's journal entries, and last, as `undone`, how much of each refunds and reversals have undone."""
    journal, undone = tables.journal, tables.undone
    same = (undone.c.account_id == journal.c.account_id) & (undone.c.sequence == journal.c.sequence)
    query: Select[Any] = sa.select(journal, func.coalesce(undone.c.amount, 0).label("undone"))
    return query.select_from(journal.outerjoin(undone, same)).where(journal.c.account_id == account_id)


async def moved_after(account: Narrowed, moment: datetime) -> Moved:
    """What entries dated after a moment moved."""
    later = (_JOURNAL.account_id == account.account_id, _JOURNAL.created_at > moment)
    columns: list[sa.ColumnElement[Any]] = [func.count(), *(summed(_JOURNAL[name]) for name in _MOVES)]
    ((entries, *sums),) = await account.rows(sa.select(*columns).where(*later))
    use = func.jsonb_array_elements(_JOURNAL.grant_uses).column_valued("use", joins_implicitly=True)
    grant_id, amount = use.op("->>")(0), use.op("->>")(1).cast(sa.BigInteger)
    query = sa.select(grant_id, summed(amount)).select_from(tables.journal)
    # By its place: an expression with parameters is another one wherever it stands.
    uses = await account.rows(query.where(*later).group_by(sa.literal_column("1")))
    return Moved(entries, dict(uses), *sums)


async def spent_in_cycle(account: Narrowed, start: datetime, until: datetime) -> int:
    """What was spent from a cycle's start through a moment, less refunds of that; nanos.

    A refund of what an earlier cycle spent does not count.
    """
    original = tables.journal.alias("original").c
    own = sa.exists().where(
        original.account_id == account.account_id,
        original.sequence == func.split_part(_JOURNAL.original_id, "-", 3).cast(sa.BigInteger),
        original.created_at >= start,
    )
    # Not by its type: credit that was given as a refund is one, too, and names no original.
    counted = sa.case((_JOURNAL.spent >= 0, _JOURNAL.spent), (own, _JOURNAL.spent), else_=0)
    query = sa.select(summed(counted)).where(
        _JOURNAL.account_id == account.account_id, _JOURNAL.created_at >= start, _JOURNAL.created_at <= until
    )
    return int((await account.rows(query))[0][0])


async def month_moves(account: Narrowed, start: datetime, end: datetime) -> MonthMoves:
    """What the entries dated in `[start, end)` and those since moved."""
    since = (_JOURNAL.account_id == account.account_id, _JOURNAL.created_at >= start)
    after = sa.case((_JOURNAL.created_at >= end, _JOURNAL.available), else_=0)
    sums = sa.select(summed(_JOURNAL.available), summed(after)).where(*since)
    ((since_start, since_end),) = await account.rows(sums)
    query = sa.select(_JOURNAL.type, summed(_JOURNAL.available + _JOURNAL.held))
    query = query.where(*since, _JOURNAL.created_at < end, _JOURNAL.type.not_in(HOLD_MOVES)).group_by(_JOURNAL.type)
    return MonthMoves(since_start, since_end, dict(await account.rows(query)))
