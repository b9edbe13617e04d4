"""Owns the ledger's use cases: writes go through group commit, reads see what is due as done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from services.ledger.errors import AccountNotFound, HoldNotFound, LedgerError, TransactionNotFound
from services.ledger.group_commit import Group, GroupCommit
from services.ledger.model.book import Book, Entry, Hold, Limit
from services.ledger.model.operations import Counted, Operation, Result, SetLimit, Touch
from services.ledger.model.rows import sequence_of
from services.ledger.model.rows import transaction_id as written_transaction_id
from services.ledger.model.windows import window_containing
from services.ledger.store.reads import Reads, TransactionFilter, UsageFilter
from services.ledger.store.summaries import SummaryFilter


@dataclass(frozen=True, slots=True)
class BalanceView:
    """An account's balance with its grants' times."""

    book: Book
    granted_at: dict[str, datetime]
    as_of: datetime


class Ledger:
    """What can be done with the ledger."""

    def __init__(self, commits: GroupCommit, reads: Reads) -> None:
        self._commits = commits
        self._reads = reads

    async def apply(self, groups: Sequence[Group]) -> list[Result]:
        """Do linked groups of operations in order; one result each, refusals included. See GroupCommit.submit."""
        return await self._commits.submit([[await self._counted(operation) for operation in g] for g in groups])

    async def do(self, operation: Operation) -> Result:
        """Do one operation. Raises its refusal."""
        (result,) = await self._commits.submit([[await self._counted(operation)]])
        if isinstance(result.outcome, LedgerError):
            raise result.outcome
        return result

    async def _counted(self, operation: Operation) -> Operation:
        """A new limit's operation with what its window has seen so far; any other as it is.

        Counted here, without a lock: a window may hold millions of records. What is booked meanwhile is added under it.
        """
        if not isinstance(operation, SetLimit):
            return operation
        book = await self._reads.account(operation.account_id)
        if book is None:
            return operation
        now = max(datetime.now(UTC), book.touched_at)
        book.turn_cycle(now)
        since = book.cycle_start if operation.window == "cycle" else window_containing(operation.window, now)[0]
        used = await self._reads.summaries.counted(operation, since, book.usage_sequence)
        return replace(operation, counted=Counted(since, book.usage_sequence, used))

    async def account(self, account_id: str) -> Book:
        """One account as of now: what is due at it has happened. Raises AccountNotFound."""
        book = await self._reads.account(account_id)
        if book is not None and book.next_event_at is not None and book.next_event_at <= datetime.now(UTC):
            await self.do(Touch(account_id))
            book = await self._reads.account(account_id)
        if book is None:
            raise AccountNotFound(f"there is no account {account_id}", accountId=account_id)
        return book

    async def accounts(self, *, after: str, status: str, count: int) -> list[Book]:
        """Accounts by id."""
        return await self._reads.accounts(after=after, status=status, count=count)

    async def balance(self, account_id: str) -> BalanceView:
        """An account's balance as of now. Raises AccountNotFound."""
        book = await self.account(account_id)
        now = max(datetime.now(UTC), book.touched_at)
        book.turn_cycle(now)
        granted_at = await self._reads.grant_times(account_id, [grant.grant_id for grant in book.grants])
        return BalanceView(book, granted_at, now)

    async def limits(self, account_id: str, *, scope: str, subject: str) -> list[Limit]:
        """An account's limits and their use as of now, by id. Raises AccountNotFound."""
        book = await self.account(account_id)
        found = [*book.limits, *await self._reads.subject_limits(account_id)]
        now = max(datetime.now(UTC), book.touched_at)
        book.turn_cycle(now)
        for limit in found:
            limit.turn(book, now)
        chosen = (x for x in found if scope in {"", x.scope} and subject in {"", x.subject})
        return sorted(chosen, key=lambda limit: limit.limit_id)

    async def hold(self, account_id: str, hold_id: str) -> Hold:
        """One hold as of now. Raises AccountNotFound, HoldNotFound."""
        await self.account(account_id)
        hold = await self._reads.hold(account_id, hold_id)
        if hold is None:
            raise HoldNotFound(f"the account has no hold {hold_id}", holdId=hold_id)
        return hold

    async def transaction(self, account_id: str, transaction_id: str) -> Entry:
        """One transaction. Raises TransactionNotFound."""
        entry = await self._reads.transaction(account_id, sequence_of(transaction_id))
        if entry is None or written_transaction_id(entry.created_at, entry.sequence) != transaction_id:
            raise TransactionNotFound(f"the account has no transaction {transaction_id}", transactionId=transaction_id)
        return entry

    async def transactions(self, wanted: TransactionFilter, *, before: int | None, count: int) -> list[Entry]:
        """An account's transactions, newest first. Raises AccountNotFound."""
        await self.account(wanted.account_id)
        return await self._reads.transactions(wanted, before=before, count=count)

    async def usage(self, wanted: UsageFilter, *, before: int | None, count: int) -> list[Row[Any]]:
        """An account's usage records, newest first. Raises AccountNotFound."""
        await self.account(wanted.account_id)
        return await self._reads.usage(wanted, before=before, count=count)

    async def summaries(self, wanted: SummaryFilter, group_by: Sequence[str]) -> list[Row[Any]]:
        """Sums of an account's usage, or of all accounts' where none is named. Raises AccountNotFound."""
        if wanted.account_id:
            await self.account(wanted.account_id)
        return await self._reads.summaries.usage(wanted, group_by)

    async def active_accounts(self, wanted: SummaryFilter) -> int:
        """How many accounts have any of this usage."""
        return await self._reads.summaries.active_accounts(wanted)

    async def sweep(self, count: int) -> int:
        """Let what is due happen at up to `count` accounts; at how many it did.

        Each is a unit of its own, so that an account where it cannot happen keeps no other from it. Raises what went
        wrong at the first such account, after all others are done.
        """
        due = await self._reads.due_accounts(datetime.now(UTC), count)
        units = [self._commits.submit([[Touch(account_id)]]) for account_id in due]
        answers = await asyncio.gather(*units, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        if failed:
            raise failed[0]
        return len(due)
