"""Owns the outbox's rows: ends of holds that the ledger has not taken yet, whose turn they are, what was refused."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.logs import get_logger
from services.proxy.tables import outbox

_log = get_logger(__name__)

SETTLE, RELEASE = "settle", "release"

# At most so many rows are claimed at once.
CLAIM_ROWS = 200
_CLAIM_SECONDS = 30
_MAX_BACKOFF_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Undelivered:
    """One end of a hold that the ledger has not taken yet."""

    account_id: str
    hold_id: str
    kind: str
    operation: pb.Operation

    @classmethod
    def of(cls, operation: pb.Operation) -> Undelivered:
        """An operation that settles or releases a hold."""
        kind = operation.WhichOneof("kind") or ""
        assert kind in {SETTLE, RELEASE}, f"{kind or 'nothing'} ends no hold"
        end = getattr(operation, kind)
        return cls(end.account_id, end.hold_id, kind, operation)


def insertion(operation: pb.Operation, *, due_seconds: float = 0) -> Insert:
    """The statement that puts an end of a hold into the outbox, where it is not there; due after `due_seconds`."""
    one = Undelivered.of(operation)
    return (
        insert(outbox)
        .values(
            account_id=one.account_id,
            hold_id=one.hold_id,
            kind=one.kind,
            operation=operation.SerializeToString(),
            due_at=sa.func.now() + timedelta(seconds=due_seconds),
        )
        .on_conflict_do_nothing()
    )


class OutboxStore:
    """The outbox in Postgres; every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def keep(self, operation: pb.Operation) -> None:
        """Keep an end of a hold; keeping it again changes nothing. Inserts by primary key."""
        async with self._engine.begin() as connection:
            await connection.execute(insertion(operation))

    async def claim(self) -> list[Undelivered]:
        """Take what is due, for 30 seconds, in which no other replica takes it. Locks those rows, skipping locked ones.

        Reads by the index `outbox_due`. What cannot be read is set aside for an operator: it holds up nothing else.
        """
        due = (
            sa.select(outbox.c.account_id, outbox.c.hold_id, outbox.c.kind)
            .where(outbox.c.refused.is_(None), outbox.c.due_at <= sa.func.now())
            .order_by(outbox.c.due_at)
            .limit(CLAIM_ROWS)
            .with_for_update(skip_locked=True)
        )
        statement = (
            sa.update(outbox)
            .where(sa.tuple_(outbox.c.account_id, outbox.c.hold_id, outbox.c.kind).in_(due))
            .values(due_at=sa.func.now() + timedelta(seconds=_CLAIM_SECONDS), attempts=outbox.c.attempts + 1)
            .returning(outbox.c.account_id, outbox.c.hold_id, outbox.c.kind, outbox.c.operation)
        )
        claimed = []
        async with self._engine.begin() as connection:
            for row in (await connection.execute(statement)).all():
                try:
                    operation = pb.Operation.FromString(row.operation)
                except DecodeError:
                    await _set_aside(connection, Undelivered(row.account_id, row.hold_id, row.kind, pb.Operation()))
                else:
                    claimed.append(Undelivered(row.account_id, row.hold_id, row.kind, operation))
        return claimed

    async def delivered(self, done: Collection[Undelivered]) -> None:
        """Forget what the ledger has taken. Locks the rows, by primary key, in its order."""
        if not done:
            return
        rows = sa.select(outbox.c.account_id, outbox.c.hold_id, outbox.c.kind).where(_among(done))
        rows = rows.order_by(outbox.c.account_id, outbox.c.hold_id, outbox.c.kind).with_for_update()
        async with self._engine.begin() as connection:
            await connection.execute(rows)
            await connection.execute(sa.delete(outbox).where(_among(done)))

    async def postpone(self, later: Sequence[Undelivered]) -> None:
        """Try again after a while that doubles with each attempt, at most a minute. Locks the rows, by primary key."""
        if not later:
            return
        doubled = sa.func.power(2.0, sa.func.least(outbox.c.attempts, 10)) / 2
        wait = sa.func.make_interval(0, 0, 0, 0, 0, 0, sa.func.least(doubled, _MAX_BACKOFF_SECONDS))
        async with self._engine.begin() as connection:
            await connection.execute(sa.update(outbox).where(_among(later)).values(due_at=sa.func.now() + wait))

    async def refuse(self, one: Undelivered, reason: str) -> None:
        """Keep for an operator what the ledger will never take."""
        statement = insertion(one.operation)
        async with self._engine.begin() as connection:
            await connection.execute(statement)
            await connection.execute(sa.update(outbox).where(_among([one])).values(refused=reason))

    async def waiting(self) -> tuple[int, float]:
        """How many the ledger has not taken yet, those refused for good not counted, and the oldest's age in seconds.

        Reads by the index `outbox_due`, all of it.
        """
        age = sa.func.extract("epoch", sa.func.now() - sa.func.min(outbox.c.created_at))
        counted = sa.select(sa.func.count(), sa.func.coalesce(age, 0)).where(outbox.c.refused.is_(None))
        async with self._engine.connect() as connection:
            count, oldest = (await connection.execute(counted)).one()
        return int(count), float(oldest)


def _among(some: Collection[Undelivered]) -> sa.ColumnElement[bool]:
    named = [(one.account_id, one.hold_id, one.kind) for one in some]
    return sa.tuple_(outbox.c.account_id, outbox.c.hold_id, outbox.c.kind).in_(named)


async def _set_aside(connection: AsyncConnection, one: Undelivered) -> None:
    _log.error("an end of a hold in the outbox cannot be read", account_id=one.account_id, hold_id=one.hold_id)
    await connection.execute(sa.update(outbox).where(_among([one])).values(refused="UNREADABLE"))
