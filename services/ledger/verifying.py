"""Owns the use case of verifying accounts: reads their rows at one moment and feeds them to their verifications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from services.ledger.errors import AccountNotFound
from services.ledger.model.verification.findings import Verified
from services.ledger.store.verification import VerifiedRows

_T = TypeVar("_T")

# Between pages other calls of the process are served: a page takes some milliseconds.
_PAGE_ROWS = 100
# Each holds a connection of the pool, and its snapshot, and keeps the processor busy.
_AT_ONCE = 2


class Verifier:
    """Verifies accounts for a server, which has other things to do too."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def account(self, account_id: str) -> Verified:
        """What is wrong with one account. Waits while others are verified. Raises AccountNotFound."""
        async with self._turns:
            found = await verified(self._engine, [account_id], page_rows=_PAGE_ROWS)
        if not found:
            raise AccountNotFound(f"there is no account {account_id}", accountId=account_id)
        return found[0]


async def verified(
    engine: AsyncEngine, account_ids: Sequence[str], *, page_rows: int, told: Callable[[int], None] = lambda _: None
) -> list[Verified]:
    """What is wrong with accounts as they are at one moment, by id; those that are not there are left out.

    `told` is called with how many entries each page had.
    """
    async with VerifiedRows.of(engine, account_ids, page_rows) as rows:
        verifications = await rows.verifications()
        async for entries in rows.entries():
            for entry in entries:
                verifications[entry.account_id].entry(entry)
            told(len(entries))
        await _fed(rows.usage(), lambda use: verifications[use.account_id].usage(use))
        await _fed(rows.holds(), lambda hold: verifications[hold.account_id].hold(hold))
        await _fed(rows.undone(), lambda one: verifications[one.account_id].undone(one))
        await _fed(rows.keys(), lambda key: verifications[key.account_id].key(key))
    return [verifications[account_id].result() for account_id in sorted(verifications)]


async def _fed(pages: AsyncIterator[list[_T]], feed: Callable[[_T], None]) -> None:
    async for page in pages:
        for row in page:
            feed(row)
