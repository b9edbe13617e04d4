"""Owns the SQL of verification: all rows of some accounts, as they are at one moment.

Everything is read through the keys, which begin with the account, and joined and sorted by the database: it goes to its
disk with what does not fit into its memory. Nothing takes a lock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import datetime
from typing import Any, TypeVar

import orjson
from sqlalchemy import Row, Table, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.ledger import tables
from services.ledger.model.book import Book, Grant, GrantUses, Hold, Limit
from services.ledger.model.entry import Entry
from services.ledger.model.rows import GrantRow
from services.ledger.model.verification.account import Verification
from services.ledger.model.verification.findings import Start
from services.ledger.model.verification.holds import HoldRows
from services.ledger.model.verification.keys import KeyRows
from services.ledger.model.verification.undoing import UndoneRows
from services.ledger.model.verification.use import Counts, UseRows
from services.ledger.store.columns import book_of
from services.ledger.store.documents import grants_of, limits_of

_T = TypeVar("_T")

# The database sorts and joins an account of many millions of entries before it gives the first row.
_STATEMENT_TIMEOUT = text("SELECT set_config('statement_timeout', '1800000', true)")

_ENTRY = ", ".join(f"{f.name}::text" if f.name == "grant_uses" else f.name for f in fields(Entry))
_USES_AT = [f.name for f in fields(Entry)].index("grant_uses")
# Uses the key, which is in this order.
_ENTRIES = text(
    f"SELECT {_ENTRY} FROM journal WHERE account_id = ANY(:accounts) ORDER BY account_id, sequence, created_at"  # noqa: S608
)

# Of a hold what verification needs: all but what a replay is answered with.
_HOLD = (
    "amount", "tokens", "requests", "key_id", "workspace", "billable", "created_at", "expires_at", "sequence",
    "reservations", "unbacked", "status", "settled", "ended_at", "end_sequence",
)  # fmt: skip
_RESERVATIONS_AT = _HOLD.index("reservations")
# A refund names the hold of what it refunds, and moves nothing of it. In no order: sorting rows so wide takes longest.
_HOLDS = text(f"""
    WITH moved AS (
        SELECT account_id, hold_id, min(sequence) AS first, min(created_at) AS first_at,
            count(*) FILTER (WHERE type = 'hold') AS made,
            sum(held) FILTER (WHERE type IN ('hold', 'hold_extended')) AS set_aside,
            sum(held) AS held,
            count(*) FILTER (WHERE type = 'usage_deduction') AS charges,
            sum(spent) FILTER (WHERE type = 'usage_deduction') AS charged
        FROM journal WHERE account_id = ANY(:accounts) AND hold_id <> '' AND type <> 'refund'
        GROUP BY account_id, hold_id
    ), recorded AS (
        SELECT account_id, hold_id, count(*) AS records FROM usage
        WHERE account_id = ANY(:accounts) AND hold_id <> '' GROUP BY account_id, hold_id
    ), kept AS (
        SELECT account_id, hold_id, {", ".join(_HOLD)} FROM holds WHERE account_id = ANY(:accounts)
    )
    SELECT h.account_id, h.hold_id, made, set_aside, held, charges, charged, records, first, first_at,
        h.status IS NULL AND EXISTS (
            SELECT FROM ended_holds e WHERE e.account_id = h.account_id AND e.hold_id = h.hold_id),
        {", ".join(f"h.{name}::text" if name == "reservations" else f"h.{name}" for name in _HOLD)}
    FROM (moved FULL JOIN recorded USING (account_id, hold_id) FULL JOIN kept USING (account_id, hold_id)) AS h
""")  # noqa: S608 (names are this module's own)

_USE = text("""
    WITH deducted AS (
        SELECT account_id, sequence, created_at, spent, usage_id, hold_id, key_id, workspace, provider, model
        FROM journal WHERE account_id = ANY(:accounts) AND type = 'usage_deduction'
    ), recorded AS (
        SELECT *, 'use-' || to_char(created_at AT TIME ZONE 'UTC', 'YYYYMM') || '-' || usage_number AS usage_id
        FROM usage WHERE account_id = ANY(:accounts)
    )
    SELECT account_id, u.usage_number, u.transaction_id, u.counted_at,
        u.key_id, u.workspace, u.billed, u.tokens, u.requests, j.sequence, j.created_at, j.spent,
        concat_ws(', ',
            CASE WHEN u.created_at <> j.created_at THEN 'time' END,
            CASE WHEN u.hold_id <> j.hold_id THEN 'hold' END,
            CASE WHEN u.key_id <> j.key_id THEN 'key' END,
            CASE WHEN u.workspace <> j.workspace THEN 'workspace' END,
            CASE WHEN u.provider <> j.provider THEN 'provider' END,
            CASE WHEN u.model <> j.model THEN 'model' END)
    FROM recorded u FULL JOIN deducted j USING (account_id, usage_id)
    ORDER BY account_id, u.usage_number, j.sequence
""")

# Credit from the source refund is a transaction of that type too, but undoes nothing.
_UNDONE = text(r"""
    WITH undoing AS (
        SELECT account_id, original_id AS named, min(sequence) AS first, min(created_at) AS first_at,
            sum(CASE type WHEN 'reversal' THEN funding ELSE -spent END) AS amount,
            CASE WHEN original_id ~ '^txn-\d{6}-\d{1,18}$' THEN split_part(original_id, '-', 3)::bigint ELSE 0 END
                AS sequence
        FROM journal WHERE account_id = ANY(:accounts) AND original_id <> ''
        GROUP BY account_id, original_id
    ), kept AS (
        SELECT account_id, sequence, amount FROM undone WHERE account_id = ANY(:accounts)
    ), both_sides AS (
        SELECT account_id, sequence, kept.amount AS kept, named, undoing.amount, first, first_at
        FROM undoing FULL JOIN kept USING (account_id, sequence)
    )
    SELECT b.account_id, b.sequence, b.kept, b.named, b.amount, b.first, b.first_at, o.created_at,
        CASE WHEN o.type = 'usage_deduction' THEN o.spent ELSE greatest(-o.funding, 0) END
    FROM both_sides b LEFT JOIN journal o ON o.account_id = b.account_id AND o.sequence = b.sequence
""")

# Only those that differ. Keys of requests that moved no money, which name no entry, are forgotten in time.
_KEYS = text("""
    WITH written AS (
        SELECT account_id, request_id, sequence, created_at FROM journal
        WHERE account_id = ANY(:accounts) AND request_id <> ''
    ), kept AS (
        SELECT account_id, request_id, sequence FROM requests WHERE account_id = ANY(:accounts) AND sequence <> 0
    )
    SELECT account_id, request_id, coalesce(w.sequence, 0), w.created_at, coalesce(k.sequence, 0)
    FROM written w FULL JOIN kept k USING (account_id, request_id) WHERE w.sequence IS DISTINCT FROM k.sequence
""")

_ARCHIVED_USE = text(
    "SELECT account_id, key_id, workspace, billed, tokens, requests FROM archived_use WHERE account_id = ANY(:accounts)"
)


class VerifiedRows:
    """All rows of some accounts, at one moment."""

    def __init__(self, connection: AsyncConnection, account_ids: Sequence[str], page_rows: int) -> None:
        self._connection = connection
        self._ids = list(account_ids)
        self._page_rows = page_rows

    @classmethod
    @asynccontextmanager
    async def of(cls, engine: AsyncEngine, account_ids: Sequence[str], page_rows: int) -> AsyncIterator[VerifiedRows]:
        """Begin the transaction that sees them. They are read `page_rows` at a time."""
        snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with snapshot.connect() as connection:
            await connection.execute(_STATEMENT_TIMEOUT)
            yield cls(connection, account_ids, page_rows)

    async def verifications(self) -> dict[str, Verification]:
        """The accounts that are there, by id, each ready to be fed."""
        accounts = await self._all(tables.accounts)
        limits, grants = (
            _by_account(await self._all(tables.subject_limits)),
            _by_account(await self._all(tables.grants)),
        )
        starts = {row.account_id: _start_of(row) for row in await self._all(tables.checkpoints)}
        archived: dict[str, list[Counts]] = {}
        for account_id, *counts in await self._connection.execute(_ARCHIVED_USE, {"accounts": self._ids}):
            archived.setdefault(account_id, []).append(Counts(*counts))
        made = {}
        for row in accounts:
            reader = _Reader()
            subjects = [reader.limits(subject.limits) for subject in limits.get(row.account_id, ())]
            made[row.account_id] = Verification(
                reader.book(row),
                limits=[limit for found in subjects for limit in found],
                grants=map(_grant_row, grants.get(row.account_id, ())),
                start=starts.get(row.account_id, Start()),
                archived_use=archived.get(row.account_id, ()),
                unreadable=reader.unreadable,
            )
        return made

    async def entries(self) -> AsyncIterator[list[Entry]]:
        """The journal, each account's in order."""
        async for page in self._pages(_ENTRIES, _entry_of):
            yield page

    async def holds(self) -> AsyncIterator[list[HoldRows]]:
        """The holds, each with what the journal and the usage records say of it."""
        async for page in self._pages(_HOLDS, _hold_rows):
            yield page

    async def usage(self) -> AsyncIterator[list[UseRows]]:
        """The usage records, each account's in order, each with its deduction; last, deductions without one."""
        async for page in self._pages(_USE, _use_rows):
            yield page

    async def undone(self) -> AsyncIterator[list[UndoneRows]]:
        """The entries of which something was undone, each with what its refunds or reversals come to."""
        async for page in self._pages(_UNDONE, _undone_rows):
            yield page

    async def keys(self) -> AsyncIterator[list[KeyRows]]:
        """The keys of requests that differ from the entries written under them."""
        async for page in self._pages(_KEYS, lambda row: KeyRows(*row)):
            yield page

    async def _all(self, table: Table) -> Sequence[Row[Any]]:
        query = select(table).where(table.c.account_id.in_(self._ids))
        return (await self._connection.execute(query)).all()

    async def _pages(self, query: Any, read: Callable[[Sequence[Any]], _T]) -> AsyncIterator[list[_T]]:
        """A query's rows, by a cursor in the database."""
        options = {"yield_per": self._page_rows}
        result = await self._connection.stream(query, {"accounts": self._ids}, execution_options=options)
        try:
            while rows := await result.fetchmany(self._page_rows):
                yield [read(row) for row in rows]
        finally:
            await result.close()


async def accounts_after(engine: AsyncEngine, after: str, count: int) -> list[tuple[str, int]]:
    """The ids of accounts after this one, in order, and how many entries each has. Uses the key."""
    accounts = tables.accounts.c
    query = select(accounts.account_id, accounts.sequence).where(accounts.account_id > after)
    async with engine.connect() as connection:
        rows = await connection.execute(query.order_by(accounts.account_id).limit(count))
        return [(row.account_id, row.sequence) for row in rows]


async def totals_after(engine: AsyncEngine, after: str) -> tuple[int, int]:
    """How many accounts there are after this one, and how many entries they have. Reads the table once."""
    query = text("SELECT count(*), coalesce(sum(sequence), 0)::bigint FROM accounts WHERE account_id > :after")
    async with engine.connect() as connection:
        (row,) = await connection.execute(query, {"after": after})
        return row[0], row[1]


class _Reader:
    """Reads what is JSON in an account's rows, and keeps what cannot be read."""

    def __init__(self) -> None:
        self.unreadable: list[tuple[str, str]] = []

    def book(self, row: Row[Any]) -> Book:
        """An account's row; without the grants or limits that cannot be read."""
        values = row._asdict()
        grants, limits = self._grants(values["grants"]), self.limits(values["limits"])
        book = book_of(tuple((values | {"grants": [], "limits": []}).values()))
        book.grants, book.limits = grants, limits
        return book

    def _grants(self, document: Any) -> list[Grant]:
        try:
            grants = grants_of(document)
            figures = [(g.priority, g.order, g.amount, g.remaining, g.reserved, g.rollover_cap) for g in grants]
            if _are_integers(figures):
                return grants
        except (TypeError, ValueError):
            pass
        self.unreadable.append(("GRANT_DIFFERS", f"expected grants in the account's row, found {document}"[:1000]))
        return []

    def limits(self, document: Any) -> list[Limit]:
        """The limits in an account's, a key's or a workspace's row; none where they cannot be read."""
        try:
            limits = limits_of(document)
            if _are_integers((limit.amount, limit.used, limit.held) for limit in limits):
                return limits
        except (TypeError, ValueError):
            pass
        self.unreadable.append(("LIMIT_DIFFERS", f"expected limits, found {document}"[:1000]))
        return []


def _are_integers(figures: Iterable[tuple[Any, ...]]) -> bool:
    return all(type(figure) is int for row in figures for figure in row)


def _uses_of(document: str) -> GrantUses:
    """Pairs of grant and amount; what is anything else becomes one that no entry or hold can have had."""
    if document == "[]":
        return ()
    try:
        uses = tuple((grant_id, amount) for grant_id, amount in orjson.loads(document))
    except (TypeError, ValueError):
        return ((document, 0),)
    if all(type(grant_id) is str and type(amount) is int for grant_id, amount in uses):
        return uses
    return ((document, 0),)


def _entry_of(row: Sequence[Any]) -> Entry:
    values = list(row)
    values[_USES_AT] = _uses_of(values[_USES_AT])
    return Entry(*values)


def _hold_rows(row: Sequence[Any]) -> HoldRows:
    account_id, hold_id, made, set_aside, held, charges, charged, records, first, first_at, ended, *kept = row
    hold = None
    if kept[0] is not None:
        kept[_RESERVATIONS_AT] = _uses_of(kept[_RESERVATIONS_AT])
        hold = Hold(account_id=account_id, hold_id=hold_id, **dict(zip(_HOLD, kept, strict=True)))
    # A sum of 64-bit integers is a numeric.
    return HoldRows(
        account_id,
        hold_id,
        hold,
        ended=ended,
        made=made or 0,
        set_aside=int(set_aside or 0),
        held=int(held or 0),
        charges=charges or 0,
        charged=int(charged or 0),
        records=records or 0,
        first=first or 0,
        first_at=first_at,
    )


def _use_rows(row: Sequence[Any]) -> UseRows:
    (
        account_id,
        number,
        transaction,
        counted_at,
        key_id,
        workspace,
        *of_record,
        sequence,
        created_at,
        spent,
        differing,
    ) = row
    billed, tokens, requests = of_record
    counts = Counts(key_id or "", workspace or "", billed or 0, tokens or 0, requests or 0)
    return UseRows(
        account_id,
        number or 0,
        transaction or "",
        counted_at,
        counts,
        entry=sequence or 0,
        entry_at=created_at,
        spent=spent or 0,
        differing=differing,
    )


def _undone_rows(row: Sequence[Any]) -> UndoneRows:
    account_id, sequence, kept, named, undoing, first, first_at, original_at, undoable = row
    return UndoneRows(
        account_id,
        sequence,
        kept,
        named or "",
        int(undoing or 0),
        first=first or 0,
        first_at=first_at,
        original_at=original_at,
        undoable=undoable or 0,
    )


def _start_of(row: Row[Any]) -> Start:
    sums = {name: getattr(row, name) for name in ("funding", "available", "held", "spent", "expired")}
    archived_before: datetime = row.archived_before
    return Start(row.sequence, row.hash, sums, dict(row.grant_uses), row.usage_number, archived_before)


def _grant_row(row: Row[Any]) -> GrantRow:
    grant = Grant(
        row.grant_id, row.source, row.priority, row.sequence, row.expires_at, row.amount, 0, 0, row.rollover_cap
    )
    return GrantRow(grant, row.created_at, row.expired)


def _by_account(rows: Iterable[Row[Any]]) -> dict[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = {}
    for row in rows:
        found.setdefault(row.account_id, []).append(row)
    return found
