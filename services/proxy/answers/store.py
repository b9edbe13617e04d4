"""Owns all SQL on kept answers. Leases and expiry go by the database's clock, which the replicas share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.proxy.answers.model import DONE, RUNNING, UNKEPT, Sealed, Slot
from services.proxy.outbox import insertion
from services.proxy.tables import answers

_SWEPT_ROWS = 500
# The proxy that keeps an answer settles it at once; the outbox' deliverers take over where it has not by then.
_SETTLED_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Row:
    """What is there of a slot. `held`: its call runs. `expired`: it is past its day. `sealed`: the answer, if kept."""

    request_mac: bytes
    call_id: str
    state: str
    held: bool
    expired: bool
    sealed: Sealed | None


class AnswerStore:
    """Kept answers in Postgres; every method is one transaction."""

    def __init__(self, engine: AsyncEngine, *, lease_seconds: float, ttl_seconds: float) -> None:
        self._engine = engine
        self._lease = timedelta(seconds=lease_seconds)
        self._ttl = timedelta(seconds=ttl_seconds)

    async def begin(self, slot: Slot, request_mac: bytes, call_id: str) -> bool:
        """Take an empty slot for a call; False where it is not empty. Inserts by primary key; waits for another's."""
        columns = self._begun(request_mac, call_id)
        statement = insert(answers).values(key_id=slot.key_id, idempotency_sha256=slot.idempotency_sha256, **columns)
        taken = statement.on_conflict_do_nothing().returning(answers.c.call_id)
        async with self._engine.begin() as connection:
            return (await connection.execute(taken)).first() is not None

    async def find(self, slot: Slot) -> Row | None:
        """What is there of a slot. Reads by primary key, takes no lock."""
        held = (answers.c.state == RUNNING) & (answers.c.lease_until > sa.func.now())
        expired = answers.c.expires_at <= sa.func.now()
        statement = sa.select(answers, held.label("held"), expired.label("expired")).where(_is(slot))
        async with self._engine.connect() as connection:
            row = (await connection.execute(statement)).first()
        if row is None:
            return None
        sealed = None
        if row.state == DONE:
            head = tuple((name, value) for name, value in row.head)
            sealed = Sealed(row.http_status, head, row.content_type, row.nonce, row.ciphertext)
        return Row(row.request_mac, row.call_id, row.state, row.held, row.expired, sealed)

    async def take_over(self, slot: Slot, found: Row, request_mac: bytes, call_id: str) -> bool:
        """Begin a slot anew whose call was killed, or whose day is over; False where it changed since it was found.

        Locks the row, by primary key.
        """
        let_go = sa.or_(
            (answers.c.state == RUNNING) & (answers.c.lease_until <= sa.func.now()),
            (answers.c.state != RUNNING) & (answers.c.expires_at <= sa.func.now()),
        )
        statement = (
            sa.update(answers)
            .where(_is(slot), answers.c.call_id == found.call_id, let_go)
            .values(
                http_status=None,
                content_type=None,
                head=None,
                nonce=None,
                ciphertext=None,
                created_at=sa.func.now(),
                **self._begun(request_mac, call_id),
            )
        )
        async with self._engine.begin() as connection:
            return (await connection.execute(statement)).rowcount == 1

    async def keep(self, slot: Slot, call_id: str, sealed: Sealed | None, settlement: pb.Operation | None) -> bool:
        """Store a call's answer (None: that it was too large) and put its settlement into the outbox, or neither.

        Doing it again changes nothing. False where the slot is another call's now. Locks the row, by primary key.
        """
        statement = (
            sa.update(answers)
            .where(_is(slot), answers.c.call_id == call_id, answers.c.state == RUNNING)
            .values(expires_at=sa.func.now() + self._ttl, **_columns(sealed))
        )
        async with self._engine.begin() as connection:
            if (await connection.execute(statement)).rowcount != 1:
                return await _is_done(connection, slot, call_id)
            if settlement is not None:
                await connection.execute(insertion(settlement, due_seconds=_SETTLED_SECONDS))
        return True

    async def abandon(self, slot: Slot, call_id: str) -> None:
        """Empty a slot whose call has no answer to keep. Locks the row, by primary key."""
        mine = (answers.c.call_id == call_id) & (answers.c.state == RUNNING)
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(answers).where(_is(slot), mine))

    async def renew(self, running: Collection[tuple[Slot, str]]) -> set[str]:
        """Let calls have their slots for longer; the ids of those that still had theirs. Locks the rows, in no order.

        So as not to meet another's locks crosswise, one that is locked is skipped and counted as still there: it is
        being kept, taken over or abandoned.
        """
        wanted = [(slot.key_id, slot.idempotency_sha256, call_id) for slot, call_id in running]
        own = sa.tuple_(answers.c.key_id, answers.c.idempotency_sha256, answers.c.call_id).in_(wanted)
        there = sa.select(answers.c.call_id).where(own, answers.c.state == RUNNING)
        free = (
            sa.select(answers.c.key_id, answers.c.idempotency_sha256)
            .where(own, answers.c.state == RUNNING)
            .with_for_update(skip_locked=True)
        )
        statement = (
            sa.update(answers)
            .where(sa.tuple_(answers.c.key_id, answers.c.idempotency_sha256).in_(free))
            .values(lease_until=sa.func.now() + self._lease)
        )
        async with self._engine.begin() as connection:
            await connection.execute(statement)
            return set((await connection.execute(there)).scalars())

    async def sweep(self) -> int:
        """Delete at most 500 answers whose day is over, oldest first; how many. Reads by `answers_expired`.

        Locks the rows, skipping locked ones.
        """
        over = (
            sa.select(answers.c.key_id, answers.c.idempotency_sha256)
            .where(answers.c.expires_at <= sa.func.now())
            .where(sa.or_(answers.c.state != RUNNING, answers.c.lease_until <= sa.func.now()))
            .order_by(answers.c.expires_at)
            .limit(_SWEPT_ROWS)
            .with_for_update(skip_locked=True)
        )
        statement = sa.delete(answers).where(sa.tuple_(answers.c.key_id, answers.c.idempotency_sha256).in_(over))
        async with self._engine.begin() as connection:
            return (await connection.execute(statement)).rowcount

    def _begun(self, request_mac: bytes, call_id: str) -> dict[str, object]:
        return {
            "request_mac": request_mac,
            "call_id": call_id,
            "state": RUNNING,
            "lease_until": sa.func.now() + self._lease,
            "expires_at": sa.func.now() + self._ttl,
        }


def _is(slot: Slot) -> sa.ColumnElement[bool]:
    return (answers.c.key_id == slot.key_id) & (answers.c.idempotency_sha256 == slot.idempotency_sha256)


def _columns(sealed: Sealed | None) -> dict[str, object]:
    if sealed is None:
        return {"state": UNKEPT}
    return {
        "state": DONE,
        "http_status": sealed.status,
        "content_type": sealed.content_type,
        "head": [list(pair) for pair in sealed.metadata],
        "nonce": sealed.nonce,
        "ciphertext": sealed.ciphertext,
    }


async def _is_done(connection: AsyncConnection, slot: Slot, call_id: str) -> bool:
    """Whether a call's answer is stored already: the commit that stored it was not heard of."""
    stored = sa.select(answers.c.state).where(_is(slot), answers.c.call_id == call_id, answers.c.state != RUNNING)
    return (await connection.execute(stored)).first() is not None
