"""Owns settlements that the ledger has not taken yet: kept in the proxy's own Postgres until it does.

A hold is ended once whatever happens here: its id is the idempotency key, so sending it twice books it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from prometheus_client import Counter, Gauge
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.proxy.errors import LedgerUnavailable
from services.proxy.ledger import Ledger
from services.proxy.tables import outbox

_log = get_logger(__name__)

SETTLE, RELEASE = "settle", "release"

_CLAIM_SECONDS = 30
_CLAIM_ROWS = 200
_MAX_BACKOFF_SECONDS = 60
_RETRY_SECONDS = 0.5

_KEPT = Counter("tollkeeper_outbox_kept_total", "Ends of holds that went to the outbox", ["kind"])
_REFUSED = Counter("tollkeeper_outbox_refused_total", "Ends of holds that the ledger refused for good", ["reason"])
_WAITING = Gauge("tollkeeper_outbox_waiting", "Ends of holds in the outbox, when it was last looked into")


@dataclass(frozen=True, slots=True)
class Undelivered:
    """One end of a hold that the ledger has not taken yet."""

    account_id: str
    hold_id: str
    kind: str
    operation: pb.Operation
    attempts: int


class OutboxStore:
    """The outbox in Postgres; every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def keep(self, account_id: str, hold_id: str, operation: pb.Operation) -> None:
        """Keep an end of a hold; keeping it again changes nothing."""
        statement = insert(outbox).values(
            account_id=account_id,
            hold_id=hold_id,
            kind=operation.WhichOneof("kind"),
            operation=operation.SerializeToString(),
        )
        async with self._engine.begin() as connection:
            await connection.execute(statement.on_conflict_do_nothing())

    async def claim(self) -> list[Undelivered]:
        """Take what is due, for 30 seconds, in which no other replica takes it. Locks those rows, skipping locked ones.

        Reads by the index `outbox_due`.
        """
        due = (
            sa.select(outbox.c.account_id, outbox.c.hold_id, outbox.c.kind)
            .where(outbox.c.refused.is_(None), outbox.c.due_at <= sa.func.now())
            .order_by(outbox.c.due_at)
            .limit(_CLAIM_ROWS)
            .with_for_update(skip_locked=True)
        )
        statement = (
            sa.update(outbox)
            .where(sa.tuple_(outbox.c.account_id, outbox.c.hold_id, outbox.c.kind).in_(due))
            .values(due_at=sa.func.now() + timedelta(seconds=_CLAIM_SECONDS), attempts=outbox.c.attempts + 1)
            .returning(outbox.c.account_id, outbox.c.hold_id, outbox.c.kind, outbox.c.operation, outbox.c.attempts)
        )
        async with self._engine.begin() as connection:
            rows = (await connection.execute(statement)).all()
        return [
            Undelivered(row.account_id, row.hold_id, row.kind, pb.Operation.FromString(row.operation), row.attempts)
            for row in rows
        ]

    async def delivered(self, done: Sequence[Undelivered]) -> None:
        """Forget what the ledger has taken."""
        async with self._engine.begin() as connection:
            for one in done:
                await connection.execute(sa.delete(outbox).where(_is(one)))

    async def postpone(self, later: Sequence[Undelivered]) -> None:
        """Try again after a while that doubles with each attempt, at most a minute."""
        async with self._engine.begin() as connection:
            for one in later:
                wait = timedelta(seconds=min(2.0 ** min(one.attempts, 10) / 2, _MAX_BACKOFF_SECONDS))
                await connection.execute(sa.update(outbox).where(_is(one)).values(due_at=sa.func.now() + wait))

    async def refuse(self, one: Undelivered, reason: str) -> None:
        """Keep for an operator what the ledger will never take."""
        statement = insert(outbox).values(
            account_id=one.account_id,
            hold_id=one.hold_id,
            kind=one.kind,
            operation=one.operation.SerializeToString(),
            refused=reason,
        )
        statement = statement.on_conflict_do_update(
            index_elements=["account_id", "hold_id", "kind"], set_={"refused": reason}
        )
        async with self._engine.begin() as connection:
            await connection.execute(statement)

    async def waiting(self) -> int:
        """How many the ledger has not taken yet, those refused for good not counted."""
        async with self._engine.connect() as connection:
            count = sa.select(sa.func.count()).select_from(outbox).where(outbox.c.refused.is_(None))
            return int((await connection.execute(count)).scalar_one())


def _is(one: Undelivered) -> sa.ColumnElement[bool]:
    return (outbox.c.account_id == one.account_id) & (outbox.c.hold_id == one.hold_id) & (outbox.c.kind == one.kind)


class Settlements:
    """Ends holds: in the ledger, or, while that does not answer, in the outbox, which goes on trying."""

    def __init__(self, ledger: Ledger, store: OutboxStore, *, interval_seconds: float) -> None:
        self._ledger = ledger
        self._store = store
        self._interval_seconds = interval_seconds
        self._in_memory: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._deliverer: asyncio.Task[None] | None = None

    async def settle(self, request: pb.SettleHoldRequest) -> pb.SettleHoldResponse | None:
        """Book what a call used. None where the ledger will do so later, or never (that is logged as an error)."""
        result = await self._end(request.account_id, request.hold_id, pb.Operation(settle=request))
        return result.settle if result is not None else None

    async def release(self, account_id: str, hold_id: str, why: str) -> None:
        """Give a hold back; also one that may never have been made, where its answer was lost."""
        request = pb.ReleaseHoldRequest(account_id=account_id, hold_id=hold_id, description=why)
        await self._end(account_id, hold_id, pb.Operation(release=request))

    async def _end(self, account_id: str, hold_id: str, operation: pb.Operation) -> pb.OperationResult | None:
        kind = operation.WhichOneof("kind") or ""
        try:
            return (await self._ledger.apply(operation))[0]
        except LedgerUnavailable:
            _KEPT.labels(kind).inc()
            await self._keep(account_id, hold_id, operation)
        except RemoteError as refusal:
            await self._refused(Undelivered(account_id, hold_id, kind, operation, 0), refusal)
        return None

    async def _keep(self, account_id: str, hold_id: str, operation: pb.Operation) -> None:
        """Put it into the outbox; while that cannot be written, offer it to outbox and ledger from memory."""
        try:
            await self._store.keep(account_id, hold_id, operation)
        except Exception:  # noqa: BLE001 (whatever it is: a settlement is not thrown away)
            _log.exception("the outbox cannot be written; a settlement is kept in memory", hold_id=hold_id)
            task = asyncio.create_task(self._offered(account_id, hold_id, operation))
            self._in_memory.add(task)
            task.add_done_callback(self._in_memory.discard)

    async def _offered(self, account_id: str, hold_id: str, operation: pb.Operation) -> None:
        kept = False
        while not kept:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                await self._store.keep(account_id, hold_id, operation)
                kept = True
            except Exception as error:  # noqa: BLE001
                _log.error("a settlement is still in memory only", hold_id=hold_id, error=repr(error))
                kept = await self._taken(account_id, hold_id, operation)

    async def _taken(self, account_id: str, hold_id: str, operation: pb.Operation) -> bool:
        try:
            await self._ledger.apply(operation)
        except LedgerUnavailable:
            return False
        except RemoteError as refusal:
            kind = operation.WhichOneof("kind") or ""
            await self._refused(Undelivered(account_id, hold_id, kind, operation, 0), refusal)
        return True

    async def _refused(self, one: Undelivered, refusal: RemoteError) -> None:
        """Note a refusal that trying again does not change. A release that comes too late is no loss. Never raises."""
        try:
            if one.kind == RELEASE:
                _log.info("hold not released", hold_id=one.hold_id, reason=refusal.reason)
                await self._store.delivered([one])
                return
            _REFUSED.labels(refusal.reason).inc()
            _log.error(
                "the ledger refuses a settlement",
                account_id=one.account_id,
                hold_id=one.hold_id,
                reason=refusal.reason,
                message=refusal.message,
            )
            await self._store.refuse(one, refusal.reason or refusal.code.name)
        except Exception:  # noqa: BLE001 (the database is away; what matters is in the log)
            _log.exception("a refused settlement was not kept", hold_id=one.hold_id, operation=str(one.operation))

    async def start(self) -> None:
        """Begin to deliver what is in the outbox."""
        self._deliverer = asyncio.create_task(self._deliver_for_ever())

    async def stop(self, grace_seconds: float) -> None:
        """Deliver once more, then stop; what is only in memory gets the grace to reach the ledger or the outbox."""
        self._stopping.set()
        if self._deliverer is not None:
            await self._deliverer
        if self._in_memory:
            _, left = await asyncio.wait(self._in_memory, timeout=max(grace_seconds, 0.1))
            for task in left:
                _log.error("a settlement is lost: neither ledger nor outbox could be reached")
                task.cancel()
        await self._ledger.drained()

    async def _deliver_for_ever(self) -> None:
        while not self._stopping.is_set():
            await self._deliver_logged()
            try:
                await asyncio.wait_for(self._stopping.wait(), self._interval_seconds)
            except TimeoutError:
                continue
        await self._deliver_logged()

    async def _deliver_logged(self) -> None:
        try:
            await self.deliver()
        except Exception as error:  # noqa: BLE001 (the database may be away; the next round comes)
            _log.warning("outbox not looked into", error=repr(error))

    async def deliver(self) -> None:
        """Send the ledger what is due."""
        while claimed := await self._store.claim():
            results: list[Any] = await asyncio.gather(
                *(self._ledger.apply(one.operation) for one in claimed), return_exceptions=True
            )
            done, later = [], []
            for one, result in zip(claimed, results, strict=True):
                if isinstance(result, RemoteError):
                    await self._refused(one, result)
                elif isinstance(result, BaseException):
                    later.append(one)
                else:
                    done.append(one)
            await self._store.delivered(done)
            await self._store.postpone(later)
            if done:
                _log.info("outbox delivered", operations=len(done))
            if later or len(claimed) < _CLAIM_ROWS:
                break
        _WAITING.set(await self._store.waiting())
