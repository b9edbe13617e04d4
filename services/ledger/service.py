"""Owns the ledger's use cases: writes go through group commit, reads see what is due as done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

from services.kit.errors import Violation
from services.kit.logs import get_logger
from services.kit.refusals import InvalidArgument, Overloaded
from services.ledger.errors import AccountNotFound, HoldNotFound, LedgerError, TransactionNotFound
from services.ledger.group_commit import GroupCommit
from services.ledger.model.book import Book, Grant, Hold, Limit
from services.ledger.model.operations import Counted, Operation, Posted, Result, SetLimit, Touch
from services.ledger.model.past import book_at, cycle_at, left_then
from services.ledger.model.rows import sequence_of
from services.ledger.model.rows import transaction_id as written_transaction_id
from services.ledger.model.windows import window_containing
from services.ledger.store.narrowing import NextRows
from services.ledger.store.reads import AccountReads, Reads, TransactionFilter, UsageFilter
from services.ledger.store.summaries import SummaryFilter
from services.ledger.writer import Group

_log = get_logger(__name__)

# Each holds a connection of the pool, and its snapshot, for as long as its reader takes.
MAX_EXPORTS = 3
# Each holds one for as long as Postgres goes through an account's records, millions maybe. What is left of the pool is
# for what is short.
MAX_SEARCHES = 4
# Of one account, those that wait for their turn too.
MAX_SEARCHES_ASKED = 32


@dataclass(frozen=True, slots=True)
class BalanceView:
    """An account's balance with its grants' times."""

    book: Book
    granted_at: Mapping[str, datetime]
    as_of: datetime


@dataclass(frozen=True, slots=True)
class GrantView:
    """One grant, and when it was given."""

    grant: Grant
    created_at: datetime


@dataclass(frozen=True, slots=True)
class MonthView:
    """One account's month: available when it began and ended (or now), its worth by type, its usage; nanos."""

    opening: int
    closing: int
    by_type: Mapping[str, int]
    providers: Sequence[Row[Any]]
    total: Row[Any]


_Answer = TypeVar("_Answer")


class _Turn(asyncio.Lock):
    """Of one account's searches, whose turn it is, and how many ask for it or have it."""

    asked = 0


class Ledger:
    """What can be done with the ledger."""

    def __init__(self, commits: GroupCommit, reads: Reads) -> None:
        self._commits = commits
        self._reads = reads
        self._exporting: set[str] = set()
        self._searches = asyncio.Semaphore(MAX_SEARCHES)
        self._searched: WeakValueDictionary[str, _Turn] = WeakValueDictionary()

    async def apply(self, groups: Sequence[Group], make: Callable[[list[Result]], _Answer]) -> _Answer:
        """Do linked groups of operations in order; the answer made of their results, refusals included, as they are.

        See GroupCommit.answer.
        """
        return await self._commits.answer(await self._counted(groups), make)

    async def do(self, operation: Operation, make: Callable[[Result], _Answer]) -> _Answer:
        """Do one operation; the answer made of its result. Raises its refusal."""

        def made(results: list[Result]) -> _Answer:
            (result,) = results
            if isinstance(result.outcome, LedgerError):
                raise result.outcome
            return make(result)

        return await self._commits.answer(await self._counted([[operation]]), made)

    async def _counted(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The same, new limits with what their windows have seen so far; an account's all at one moment.

        Counted here, without a lock: a window may hold millions of records. What is booked meanwhile is added under it.
        """
        limits: dict[str, list[SetLimit]] = {}
        for group in groups:
            for operation in group:
                if isinstance(operation, SetLimit):
                    limits.setdefault(operation.account_id, []).append(operation)
        if not limits:
            return groups
        counted: dict[SetLimit, SetLimit] = {}
        for account_id, those in limits.items():
            try:
                async with self._reads.of(account_id) as rows:
                    counted |= await _counted_of(rows, those)
            except SQLAlchemyError as error:
                # Its batch counts it, or fails it alone: what else the call asks for is not to fail with it.
                _log.warning("a new limit could not be counted ahead", account=account_id, error=str(error))
        return [[counted.get(x, x) if isinstance(x, SetLimit) else x for x in group] for group in groups]

    @asynccontextmanager
    async def _reading(self, account_id: str) -> AsyncIterator[tuple[Book, AccountReads]]:
        """An account and its rows at one moment, once what is due at it has happened. Raises AccountNotFound."""
        while True:
            async with self._reads.of(account_id) as rows:
                book = await rows.book()
                if book is None:
                    raise AccountNotFound(f"there is no account {account_id}", accountId=account_id)
                if book.next_event_at is None or book.next_event_at > datetime.now(UTC):
                    yield book, rows
                    return
            await self.do(Touch(account_id), lambda result: result)

    @asynccontextmanager
    async def _searching(self, account_id: str = "") -> AsyncIterator[None]:
        """Wait for a turn to go through an account's records, or all accounts': one of each at a time, a few in all.

        Raises Overloaded where too many wait for that account.
        """
        turn = self._searched.setdefault(account_id, _Turn())
        if turn.asked >= MAX_SEARCHES_ASKED:
            raise Overloaded("as many lists and sums of this account are asked for as may be", retry_after_seconds=1)
        turn.asked += 1
        try:
            async with turn, self._searches:
                yield
        finally:
            turn.asked -= 1

    async def account(self, account_id: str) -> Book:
        """One account as of now: what is due at it has happened. Raises AccountNotFound."""
        async with self._reading(account_id) as (book, _):
            return book

    async def accounts(self, *, after: str, status: str, count: int) -> list[Book]:
        """Accounts by id."""
        return await self._reads.accounts(after=after, status=status, count=count)

    async def balance(self, account_id: str) -> BalanceView:
        """An account's balance as of now. Raises AccountNotFound."""
        async with self._reading(account_id) as (book, rows):
            now = _turned(book)
            given = await rows.grants([grant.grant_id for grant in book.grants], before=None, count=len(book.grants))
        return BalanceView(book, {row.grant.grant_id: row.created_at for row in given}, now)

    async def past_balance(self, account_id: str, as_of: datetime) -> BalanceView:
        """An account's balance as of a past time. Raises AccountNotFound, InvalidArgument where that is not known."""
        async with self._searching(account_id), self._reading(account_id) as (book, rows):
            if as_of > _turned(book):
                raise _invalid("as_of", "must not be in the future")
            if as_of < book.created_at:
                raise _invalid("as_of", f"the account was opened at {book.created_at.isoformat()}")
            moved = await rows.moved_after(as_of)
            cycle_start, _ = cycle_at(book, as_of)
            cycle_spent = await rows.spent_in_cycle(cycle_start, as_of)
            left = left_then(book, moved)
            given = await rows.grants(left, before=None, count=len(left))
        await self._check_not_archived(account_id, "as_of", cycle_start)
        grants = [row.grant for row in given]
        past = book_at(book, as_of, moved, grants, cycle_start=cycle_start, cycle_spent=cycle_spent)
        return BalanceView(past, {row.grant.grant_id: row.created_at for row in given}, as_of)

    async def month(self, account_id: str, start: datetime, end: datetime) -> MonthView:
        """One account's month. Raises AccountNotFound, InvalidArgument where it is not known."""
        async with self._searching(account_id), self._reading(account_id) as (book, rows):
            if start > _turned(book):
                raise _invalid("month", "has not begun yet")
            moves = await rows.month_moves(start, end)
            providers = await rows.usage_sums(SummaryFilter(start, end), ["provider"])
            (total,) = await rows.usage_sums(SummaryFilter(start, end), [])
        await self._check_not_archived(account_id, "month", start)
        opening, closing = book.available - moves.since_start, book.available - moves.since_end
        return MonthView(opening, closing, moves.by_type, providers, total)

    async def _check_not_archived(self, account_id: str, field: str, start: datetime) -> None:
        """Raise InvalidArgument where an account's entries since `start` are not all here.

        Called after they were read, so that what is archived at the same moment does not go unnoticed.
        """
        begins = await self._reads.archived_before(account_id)
        if begins is not None and start < begins:
            raise _invalid(field, f"the account's entries before {begins.isoformat()} are archived")

    async def grants(self, account_id: str, *, include_spent: bool, before: int | None, count: int) -> list[GrantView]:
        """An account's grants as of now, newest first, given before transaction `before`. Raises AccountNotFound."""
        async with self._reading(account_id) as (book, rows):
            left = {grant.grant_id: grant for grant in book.grants}
            given = await rows.grants(None if include_spent else left, before=before, count=count)
        return [GrantView(left.get(row.grant.grant_id, row.grant), row.created_at) for row in given]

    async def limits(self, account_id: str, *, scope: str, subject: str) -> list[Limit]:
        """An account's limits and their use as of now, by id. Raises AccountNotFound."""
        async with self._reading(account_id) as (book, rows):
            found = [*book.limits, *await rows.subject_limits()]
        now = _turned(book)
        for limit in found:
            limit.turn(book, now)
        chosen = (x for x in found if scope in {"", x.scope} and subject in {"", x.subject})
        return sorted(chosen, key=lambda limit: limit.limit_id)

    async def hold(self, account_id: str, hold_id: str) -> Hold:
        """One hold as of now. Raises AccountNotFound, HoldNotFound."""
        async with self._reading(account_id) as (_, rows):
            hold = await rows.hold(hold_id)
        if hold is None:
            raise HoldNotFound(f"the account has no hold {hold_id}", holdId=hold_id)
        return hold

    async def holds(self, account_id: str, *, status: str, before: int | None, count: int) -> tuple[list[Hold], int]:
        """An account's holds as of now, newest first, made before entry `before`. Raises AccountNotFound.

        Also the entry before which there may be more; 1: there are none. There may also be where fewer than `count`
        were found.
        """
        async with self._reading(account_id) as (book, rows):
            before = book.sequence + 1 if before is None else min(before, book.sequence + 1)
            if status != "open":
                return await rows.holds(status=status, before=before, count=count)
            found = await rows.open_holds(before=before, count=count)
            return found, found[-1].sequence if len(found) == count else 1

    async def transaction(self, account_id: str, transaction_id: str) -> Posted:
        """One transaction. Raises TransactionNotFound."""
        async with self._reads.of(account_id) as rows:
            posted = await rows.transaction(sequence_of(transaction_id))
        if posted is None or _id_of(posted) != transaction_id:
            raise TransactionNotFound(f"the account has no transaction {transaction_id}", transactionId=transaction_id)
        return posted

    async def transactions(
        self, account_id: str, wanted: TransactionFilter, *, before: int | None, count: int
    ) -> list[Posted]:
        """An account's transactions, newest first. Raises AccountNotFound."""
        async with self._searching(account_id), self._reading(account_id) as (_, rows):
            return await rows.transactions(wanted, before=before, count=count)

    async def usage(
        self, account_id: str, wanted: UsageFilter, *, before: int | None, count: int
    ) -> Sequence[Row[Any]]:
        """An account's usage records, newest first. Raises AccountNotFound."""
        async with self._searching(account_id), self._reading(account_id) as (_, rows):
            return await rows.usage(wanted, before=before, count=count)

    async def summaries(self, account_id: str, wanted: SummaryFilter, group_by: Sequence[str]) -> Sequence[Row[Any]]:
        """Sums of an account's usage. Raises AccountNotFound."""
        async with self._searching(account_id), self._reading(account_id) as (_, rows):
            return await rows.usage_sums(wanted, group_by)

    async def workspaces(
        self, account_id: str, wanted: SummaryFilter, *, after: str | None, count: int
    ) -> Sequence[Row[Any]]:
        """Sums of an account's usage by workspace, of those after this name. Raises AccountNotFound."""
        async with self._searching(account_id), self._reading(account_id) as (_, rows):
            return await rows.workspaces(wanted, after=after, count=count)

    async def all_summaries(self, wanted: SummaryFilter, group_by: Sequence[str]) -> Sequence[Row[Any]]:
        """Sums of all accounts' usage."""
        async with self._searching():
            return await self._reads.usage_sums(wanted, group_by)

    async def active_accounts(self, wanted: SummaryFilter) -> int:
        """How many accounts have any of this usage."""
        async with self._searching():
            return await self._reads.active_accounts(wanted)

    async def costs_and_credits(
        self, account_ids: Sequence[str], types: Sequence[str], start: datetime, end: datetime
    ) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]]]:
        """What the calls of these accounts cost in `[start, end)`, and their entries of these types."""
        async with self._searching():
            costs = await self._reads.costs_of(account_ids, start, end)
            return costs, await self._reads.credits_of(account_ids, types, start, end) if types else ()

    @asynccontextmanager
    async def export(self, account_id: str, what: str, start: datetime, end: datetime) -> AsyncIterator[NextRows]:
        """What was booked in `[start, end)`, a batch of rows at each call, all as it is now; see store/exports.py.

        Raises AccountNotFound; Overloaded where too many are under way, or one of the same account.
        """
        if len(self._exporting) >= MAX_EXPORTS or account_id in self._exporting:
            raise Overloaded("as many exports as may be are under way", retry_after_seconds=5)
        self._exporting.add(account_id)
        try:
            async with self._reading(account_id) as (_, rows), rows.exported(what, start, end) as following:
                yield following
        finally:
            self._exporting.discard(account_id)

    async def sweep(self, count: int) -> int:
        """Let all that is due happen at up to `count` accounts; at how many it did.

        Each is a unit of its own, so that an account where it cannot happen keeps no other from it. Raises what went
        wrong at the first such account, after all others are done.
        """
        due = left = await self._reads.due_accounts(datetime.now(UTC), count)
        while left:  # one batch lets no more than so many holds of an account lapse
            units = [self._commits.submit([[Touch(account_id)]]) for account_id in left]
            answers = await asyncio.gather(*units, return_exceptions=True)
            failed = [answer for answer in answers if isinstance(answer, BaseException)]
            if failed:
                raise failed[0]
            left = await self._reads.still_due(left, datetime.now(UTC))
        return len(due)


async def _counted_of(rows: AccountReads, limits: Sequence[SetLimit]) -> dict[SetLimit, SetLimit]:
    """An account's limits with what their windows have seen, counted once for all subjects of a kind."""
    book = await rows.book()
    if book is None:
        return {}
    now, through = _turned(book), book.usage_sequence
    alike: dict[tuple[str, str, str], list[SetLimit]] = {}
    for limit in limits:
        alike.setdefault((limit.scope, limit.unit, limit.window), []).append(limit)
    counted: dict[SetLimit, SetLimit] = {}
    for (_, _, window), those in alike.items():
        since = book.cycle_start if window == "cycle" else window_containing(window, now)[0]
        # Most accounts get their limits before their first call.
        used = await rows.counted(those, since, through) if through else {}
        counted |= {x: x._replace(counted=Counted(since, through, used.get(x.subject, 0))) for x in those}
    return counted


def _turned(book: Book) -> datetime:
    """Now, as the account has it; its cycle is the present one afterwards."""
    now = max(datetime.now(UTC), book.touched_at)
    book.turn_cycle(now)
    return now


def _id_of(posted: Posted) -> str:
    return written_transaction_id(posted.entry.created_at, posted.entry.sequence)


def _invalid(field: str, description: str) -> InvalidArgument:
    return InvalidArgument.naming([Violation(field, description)])
