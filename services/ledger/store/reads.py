"""Owns the SQL of look-ups and lists. All read committed state outside of batches; none takes a lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.ext.asyncio import AsyncEngine

from services.ledger import tables
from services.ledger.model.book import Book, Entry, Hold, Limit
from services.ledger.store.columns import book_of, entry_of, hold_of
from services.ledger.store.documents import limits_of
from services.ledger.store.summaries import Summaries

HOLD_MOVES = ("hold", "hold_extended", "hold_released", "hold_expired")


@dataclass(frozen=True, slots=True)
class TransactionFilter:
    """Which transactions of an account; empty and None mean any."""

    account_id: str
    from_time: datetime | None = None
    to_time: datetime | None = None
    type: str = ""
    key_id: str = ""
    workspace: str = ""
    provider: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which usage records of an account; empty and None mean any."""

    account_id: str
    from_time: datetime | None = None
    to_time: datetime | None = None
    provider: str = ""
    model: str = ""
    key_id: str = ""
    workspace: str = ""
    session: str = ""
    status: str = ""


class Reads:
    """Reads of one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.summaries = Summaries(engine)

    async def account(self, account_id: str) -> Book | None:
        """One account, by its key."""
        rows = await self._rows(select(tables.accounts).where(tables.accounts.c.account_id == account_id))
        return book_of(rows[0]) if rows else None

    async def accounts(self, *, after: str, status: str, count: int) -> list[Book]:
        """Accounts by id, after this one."""
        query = select(tables.accounts).where(tables.accounts.c.account_id > after)
        if status:
            query = query.where(tables.accounts.c.status == status)
        return [book_of(row) for row in await self._rows(query.order_by(tables.accounts.c.account_id).limit(count))]

    async def due_accounts(self, now: datetime, count: int) -> list[str]:
        """Accounts where something is due, the longest due first. Uses the index accounts_due."""
        accounts = tables.accounts.c
        query = select(accounts.account_id).where(accounts.next_event_at <= now)
        return [row[0] for row in await self._rows(query.order_by(accounts.next_event_at).limit(count))]

    async def grant_times(self, account_id: str, grant_ids: Sequence[str]) -> dict[str, datetime]:
        """When these grants were given."""
        grants = tables.grants.c
        query: Select[Any] = select(grants.grant_id, grants.created_at)
        query = query.where(grants.account_id == account_id, grants.grant_id.in_(grant_ids))
        rows: Sequence[Any] = await self._rows(query)
        return {row.grant_id: row.created_at for row in rows}

    async def hold(self, account_id: str, hold_id: str) -> Hold | None:
        """One hold, by its key."""
        holds = tables.holds
        rows = await self._rows(select(holds).where(holds.c.account_id == account_id, holds.c.hold_id == hold_id))
        return hold_of(rows[0]) if rows else None

    async def subject_limits(self, account_id: str) -> list[Limit]:
        """The limits of an account's keys and workspaces."""
        subjects = tables.subject_limits.c
        rows = await self._rows(select(subjects.limits).where(subjects.account_id == account_id))
        return [limit for row in rows for limit in limits_of(row[0])]

    async def transaction(self, account_id: str, sequence: int) -> Entry | None:
        """One journal entry, by its key."""
        journal = tables.journal
        query = select(journal).where(journal.c.account_id == account_id, journal.c.sequence == sequence)
        rows = await self._rows(query)
        return entry_of(rows[0]) if rows else None

    async def transactions(self, wanted: TransactionFilter, *, before: int | None, count: int) -> list[Entry]:
        """Journal entries, newest first, older than sequence `before`. Uses the journal's key, a partition a month."""
        journal = tables.journal
        query = select(journal)
        query = (
            query.where(journal.c.type == wanted.type)
            if wanted.type
            else query.where(journal.c.type.not_in(HOLD_MOVES))
        )
        query = _filtered(query, journal.c, wanted, ("key_id", "workspace", "provider", "model"))
        if before is not None:
            query = query.where(journal.c.sequence < before)
        return [entry_of(row) for row in await self._rows(query.order_by(journal.c.sequence.desc()).limit(count))]

    async def usage(self, wanted: UsageFilter, *, before: int | None, count: int) -> list[Row[Any]]:
        """Usage rows, newest first, older than number `before`. Uses the usage table's key, a partition a month."""
        usage = tables.usage
        fields = ("provider", "model", "key_id", "workspace", "session", "status")
        query = _filtered(select(usage), usage.c, wanted, fields)
        if before is not None:
            query = query.where(usage.c.usage_number < before)
        return list(await self._rows(query.order_by(usage.c.usage_number.desc()).limit(count)))

    async def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return rows


def _filtered(query: Select[Any], columns: Any, wanted: Any, fields: Sequence[str]) -> Select[Any]:
    """Narrow to the account, the times and those of `fields` that are given."""
    query = query.where(columns.account_id == wanted.account_id)
    if wanted.from_time is not None:
        query = query.where(columns.created_at >= wanted.from_time)
    if wanted.to_time is not None:
        query = query.where(columns.created_at < wanted.to_time)
    for name in fields:
        value = getattr(wanted, name)
        if value:
            query = query.where(columns[name] == value)
    return query
