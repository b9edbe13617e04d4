"""Owns how one account is read: as a role to which Postgres shows no other account's rows, and which cannot write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Row, Select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

NextRows = Callable[[], Awaitable[Sequence[Row[Any]]]]

# Both end with the transaction. The policies are those of migration 0003; the reader may read customers' tables alone.
_NARROW = text(
    "SELECT set_config('role', session_user || '_reader', true), set_config('tollkeeper.account', :account, true)"
)


class Narrowed:
    """One account's rows as they are at one moment: its queries run in one transaction, which sees nothing else.

    Queries name the account all the same: so they find their index, and do not rest on one guard alone.
    """

    def __init__(self, connection: AsyncConnection, account_id: str) -> None:
        self._connection = connection
        self.account_id = account_id

    @classmethod
    @asynccontextmanager
    async def to(cls, engine: AsyncEngine, account_id: str) -> AsyncIterator[Narrowed]:
        """Begin such a transaction. This is the only way to one, so that no query of it can forget to be narrowed."""
        snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with snapshot.connect() as connection:
            await connection.execute(_NARROW, {"account": account_id})
            yield cls(connection, account_id)

    async def rows(self, query: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        """All rows of a query that bounds how many there are."""
        return (await self._connection.execute(query)).all()

    @asynccontextmanager
    async def in_batches(self, query: Select[Any], size: int) -> AsyncIterator[NextRows]:
        """Any number of rows, by a cursor in the database: each call gives the next `size`, none at the end."""
        result = await self._connection.stream(query, execution_options={"yield_per": size})

        async def following() -> Sequence[Row[Any]]:
            rows: Sequence[Row[Any]] = await result.fetchmany(size)
            return rows

        try:
            yield following
        finally:
            await result.close()
