"""Owns the SQL of look-ups and lists. All read committed state outside of batches; none takes a lock.

What is read of one account is read by `Reads.of`: a snapshot of that account's rows alone. `Reads` itself has what is
read over all accounts, as the tables' owner.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, Row, Select, false, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.ledger import tables
from services.ledger.model.book import Book, Grant, Hold, Limit
from services.ledger.model.operations import HOLD_MOVES, Posted, SetLimit
from services.ledger.model.past import Moved
from services.ledger.model.rows import GrantRow
from services.ledger.store import day_sums, exports, history, summaries
from services.ledger.store.columns import book_of, entry_of, hold_of
from services.ledger.store.documents import limits_of
from services.ledger.store.due import due_accounts
from services.ledger.store.history import MonthMoves
from services.ledger.store.narrowing import Narrowed, NextRows
from services.ledger.store.summaries import SummaryFilter

# Entries looked through for holds at once, and how often for one page.
HOLD_ENTRIES = 2_000
HOLD_LOOKS = 25
# The only type of transaction by which use is paid for.
BILLED_BY = "usage_deduction"
_DUE_ACCOUNTS = text(f"{due_accounts('CAST(:now AS timestamptz)')} LIMIT :count")


@dataclass(frozen=True, slots=True)
class TransactionFilter:
    """Which transactions of an account; empty and None mean any."""

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

    from_time: datetime | None = None
    to_time: datetime | None = None
    provider: str = ""
    model: str = ""
    key_id: str = ""
    workspace: str = ""
    session: str = ""
    status: str = ""
    type: str = ""


class Reads:
    """Reads of one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def of(self, account_id: str) -> AsyncIterator[AccountReads]:
        """One account's rows as they are now, and no others; also where there is no such account."""
        async with Narrowed.to(self._engine, account_id) as account:
            yield AccountReads(account)

    async def account(self, account_id: str) -> Book | None:
        """One account."""
        async with self.of(account_id) as rows:
            return await rows.book()

    async def accounts(self, *, after: str, status: str, count: int) -> list[Book]:
        """Accounts by id, after this one. By primary key; those that are not open by `accounts_stopped`."""
        query = select(tables.accounts).where(tables.accounts.c.account_id > after)
        if status:
            query = query.where(tables.accounts.c.status == status)
        if status not in {"", "open"}:
            query = query.where(text("status <> 'open'"))  # as in the index, so that also a prepared plan takes it
        return [book_of(row) for row in await self._rows(query.order_by(tables.accounts.c.account_id).limit(count))]

    async def due_accounts(self, now: datetime, count: int) -> list[str]:
        """Accounts where something is due and that nobody else sees to, the longest due first."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(_DUE_ACCOUNTS, {"now": now, "count": count})
            return [row[0] for row in rows]

    async def still_due(self, account_ids: Collection[str], now: datetime) -> list[str]:
        """Of these accounts those where something is due."""
        accounts = tables.accounts.c
        query = select(accounts.account_id).where(accounts.account_id.in_(account_ids), accounts.next_event_at <= now)
        return [row[0] for row in await self._rows(query)]

    async def archived_before(self, account_id: str) -> datetime | None:
        """The moment from which an account's journal and usage records are here. None: none of them is archived."""
        checkpoints = tables.checkpoints.c
        rows = await self._rows(select(checkpoints.archived_before).where(checkpoints.account_id == account_id))
        return rows[0][0] if rows else None

    async def usage_sums(self, wanted: SummaryFilter, group_by: Sequence[str]) -> Sequence[Row[Any]]:
        """Sums of all accounts' usage. Of whole days they are kept; else it goes through the records."""
        if day_sums.covers(wanted.from_time, wanted.to_time):
            return await self._rows(day_sums.sums(group_by), day_sums.bounds(wanted.from_time, wanted.to_time))
        return await self._rows(summaries.usage_sums(wanted, group_by))

    async def active_accounts(self, wanted: SummaryFilter) -> int:
        """How many accounts have any of this usage; as `usage_sums`."""
        if day_sums.covers(wanted.from_time, wanted.to_time):
            return int((await self._rows(day_sums.ACTIVE, day_sums.bounds(wanted.from_time, wanted.to_time)))[0][0])
        return int((await self._rows(summaries.active_accounts(wanted)))[0][0])

    async def costs_of(self, account_ids: Sequence[str], start: datetime, end: datetime) -> Sequence[Row[Any]]:
        """What the calls of these accounts cost in `[start, end)`; those that made any."""
        return await self._rows(summaries.costs_of(account_ids, start, end))

    async def credits_of(
        self, account_ids: Sequence[str], types: Sequence[str], start: datetime, end: datetime
    ) -> Sequence[Row[Any]]:
        """These accounts' entries of these types in `[start, end)`, oldest first."""
        return await self._rows(summaries.credits_of(account_ids, types, start, end))

    async def _rows(self, query: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(query, parameters)).all()
            return rows


class AccountReads:
    """Reads of one account, all of the same moment."""

    def __init__(self, account: Narrowed) -> None:
        self._account = account

    async def book(self) -> Book | None:
        """The account, by its key."""
        rows = await self._account.rows(self._own(select(tables.accounts), tables.accounts))
        return book_of(rows[0]) if rows else None

    async def grants(self, grant_ids: Collection[str] | None, *, before: int | None, count: int) -> list[GrantRow]:
        """Grants as they were given, newest first, given before transaction `before`; of these ids, None: any.

        Sorts an account's grants: by the table's key they are together, and there are few beside its entries.
        """
        grants = tables.grants
        query = self._own(select(grants), grants)
        if grant_ids is not None:
            query = query.where(grants.c.grant_id.in_(grant_ids))
        if before is not None:
            query = query.where(grants.c.sequence < before)
        rows = await self._account.rows(query.order_by(grants.c.sequence.desc()).limit(count))
        return [_grant_row(row) for row in rows]

    async def hold(self, hold_id: str) -> Hold | None:
        """One hold, by its key."""
        holds = tables.holds
        rows = await self._account.rows(self._own(select(holds), holds).where(holds.c.hold_id == hold_id))
        return hold_of(rows[0]) if rows else None

    async def open_holds(self, *, before: int, count: int) -> list[Hold]:
        """Open holds, newest first, made before entry `before`. Sorts those that the index holds_open gives."""
        holds = tables.holds
        query = self._own(select(holds), holds).where(holds.c.status == "open", holds.c.sequence < before)
        return [hold_of(row) for row in await self._account.rows(query.order_by(holds.c.sequence.desc()).limit(count))]

    async def holds(self, *, status: str, before: int, count: int) -> tuple[list[Hold], int]:
        """Holds, newest first, made before entry `before`; and the entry before which there may be more (1: none).

        Found by their entries in the journal, whose key has them in order: an index of holds for this would cost each
        hold and each settlement another write. Looks at so many entries and no more, so it may find fewer than `count`.
        """
        journal, holds = tables.journal, tables.holds
        same = (holds.c.account_id == journal.c.account_id) & (holds.c.hold_id == journal.c.hold_id)
        query = self._own(select(holds).select_from(journal.join(holds, same)), journal)
        query = query.where(journal.c.type == "hold").order_by(journal.c.sequence.desc())
        if status:
            query = query.where(holds.c.status == status)
        found: list[Hold] = []
        for _ in range(HOLD_LOOKS):
            if before <= 1:
                break
            floor = max(before - HOLD_ENTRIES, 1)
            within = query.where(journal.c.sequence >= floor, journal.c.sequence < before).limit(count - len(found))
            found += [hold_of(row) for row in await self._account.rows(within)]
            if len(found) == count:
                return found, found[-1].sequence
            before = floor
        return found, before

    async def subject_limits(self) -> list[Limit]:
        """The limits of the account's keys and workspaces."""
        subjects = tables.subject_limits
        rows = await self._account.rows(self._own(select(subjects.c.limits), subjects))
        return [limit for row in rows for limit in limits_of(row[0])]

    async def transaction(self, sequence: int) -> Posted | None:
        """One journal entry, by its key."""
        query = history.entries(self._account.account_id).where(tables.journal.c.sequence == sequence)
        rows = await self._account.rows(query)
        return _posted(rows[0]) if rows else None

    async def transactions(self, wanted: TransactionFilter, *, before: int | None, count: int) -> list[Posted]:
        """Journal entries, newest first, older than sequence `before`. Uses the journal's key, a partition a month."""
        journal = tables.journal.c
        query = history.entries(self._account.account_id)
        query = query.where(journal.type == wanted.type if wanted.type else journal.type.not_in(HOLD_MOVES))
        query = _filtered(query, journal, wanted, ("key_id", "workspace", "provider", "model"))
        if before is not None:
            query = query.where(journal.sequence < before)
        rows = await self._account.rows(query.order_by(journal.sequence.desc()).limit(count))
        return [_posted(row) for row in rows]

    async def usage(self, wanted: UsageFilter, *, before: int | None, count: int) -> Sequence[Row[Any]]:
        """Usage rows, newest first, older than number `before`. Uses the usage table's key, a partition a month."""
        usage = tables.usage
        fields = ("provider", "model", "key_id", "workspace", "session", "status")
        query = _filtered(self._own(select(usage), usage), usage.c, wanted, fields)
        if wanted.type:
            query = query.where(usage.c.billed > 0 if wanted.type == BILLED_BY else false())
        if before is not None:
            query = query.where(usage.c.usage_number < before)
        return await self._account.rows(query.order_by(usage.c.usage_number.desc()).limit(count))

    async def usage_sums(self, wanted: SummaryFilter, group_by: Sequence[str]) -> Sequence[Row[Any]]:
        """Sums of the account's usage."""
        return await self._account.rows(self._own(summaries.usage_sums(wanted, group_by), tables.usage))

    async def workspaces(self, wanted: SummaryFilter, *, after: str | None, count: int) -> Sequence[Row[Any]]:
        """Sums of the account's usage by workspace, by name; of those after this one, None: from the first."""
        query = self._own(summaries.usage_sums(wanted, ["workspace"]), tables.usage)
        if after is not None:
            query = query.where(tables.usage.c.workspace > after)
        return await self._account.rows(query.limit(count))

    async def counted(self, limits: Sequence[SetLimit], since: datetime, through: int) -> dict[str, int]:
        """What limits of one scope, unit and window count since a moment, by records up to number `through`.

        In their unit, by subject; nothing for one without any. Only a lifetime reaches back into archived months.
        """
        queries = [self._own(summaries.counted(limits, since, through), tables.usage)]
        if limits[0].window == "lifetime":
            queries.append(self._own(summaries.archived(limits), tables.archived_use))
        used: dict[str, int] = {}
        for query in queries:
            for subject, units in await self._account.rows(query):
                used[subject] = used.get(subject, 0) + int(units)
        return used

    async def moved_after(self, moment: datetime) -> Moved:
        """What entries dated after a moment moved."""
        return await history.moved_after(self._account, moment)

    async def spent_in_cycle(self, start: datetime, until: datetime) -> int:
        """What was spent from a cycle's start through a moment, less refunds of that; nanos."""
        return await history.spent_in_cycle(self._account, start, until)

    async def month_moves(self, start: datetime, end: datetime) -> MonthMoves:
        """What the entries of a month moved, and those since."""
        return await history.month_moves(self._account, start, end)

    def exported(self, what: str, start: datetime, end: datetime) -> AbstractAsyncContextManager[NextRows]:
        """The rows of an export, a batch at each call."""
        query = exports.export_query(what, self._account.account_id, start, end)
        return self._account.in_batches(query, exports.BATCH_ROWS)

    def _own(self, query: Select[Any], table: Any) -> Select[Any]:
        return query.where(table.c.account_id == self._account.account_id)


def _posted(row: Row[Any]) -> Posted:
    return Posted(entry_of(row[:-1]), row[-1])


def _grant_row(row: Row[Any]) -> GrantRow:
    grant = Grant(
        row.grant_id, row.source, row.priority, row.sequence, row.expires_at, row.amount, 0, 0, row.rollover_cap
    )
    return GrantRow(grant, row.created_at, row.expired)


def _filtered(query: Select[Any], columns: Any, wanted: Any, fields: Sequence[str]) -> Select[Any]:
    """Narrow to the times and those of `fields` that are given."""
    if wanted.from_time is not None:
        query = query.where(columns.created_at >= wanted.from_time)
    if wanted.to_time is not None:
        query = query.where(columns.created_at < wanted.to_time)
    for name in fields:
        value = getattr(wanted, name)
        if value:
            query = query.where(columns[name] == value)
    return query
