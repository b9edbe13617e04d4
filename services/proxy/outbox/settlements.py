"""Owns how a hold is ended: in the ledger, else by the outbox, else from memory, until one of them has taken it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import deque
from collections.abc import Coroutine
from itertools import islice
from typing import Any, TypeVar

from prometheus_client import Counter, Gauge
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.kit.refusals import logged
from services.proxy.errors import LedgerUnavailable
from services.proxy.ledger import Ledger
from services.proxy.outbox.store import CLAIM_ROWS, RELEASE, OutboxStore, Undelivered

_log = get_logger(__name__)

_T = TypeVar("_T")

# A database that is stopped or cut off says nothing, and no limit of its own ends a statement.
_KEEP_SECONDS = 2.0
_RETRY_SECONDS = 0.5
_MAX_RETRY_SECONDS = 5.0
_FORGOTTEN_AT_ONCE = 1000
_MAX_TO_FORGET = 10_000
# What the ledger says of an end that it took so long ago that it has only its archive to tell of it.
_TAKEN_LONG_AGO = "RESULT_ARCHIVED"

_KEPT = Counter("tollkeeper_outbox_kept_total", "Ends of holds that went to the outbox", ["kind"])
_REFUSED = Counter("tollkeeper_outbox_refused_total", "Ends of holds that the ledger refused for good", ["reason"])
_WAITING = Gauge("tollkeeper_outbox_waiting", "Ends of holds in the outbox, when it was last looked into")
_OLDEST = Gauge("tollkeeper_outbox_oldest_seconds", "Age of the oldest of them then, 0 where there is none")
_IN_MEMORY = Gauge("tollkeeper_outbox_in_memory", "Ends of holds that neither ledger nor outbox has taken yet")


class Settlements:
    """Ends holds: in the ledger, or, while that does not answer, in the outbox, which goes on trying."""

    def __init__(self, ledger: Ledger, store: OutboxStore, *, interval_seconds: float) -> None:
        self._ledger = ledger
        self._store = store
        self._interval_seconds = interval_seconds
        self._ending: dict[str, Undelivered] = {}  # by hold
        self._all_ended: asyncio.Future[None] | None = None  # whoever stops this waits for it
        self._left_behind: frozenset[str] = frozenset()  # holds whose ends were put into the outbox meanwhile
        self._going_on: set[asyncio.Task[Any]] = set()
        # At most as many as there are calls: while neither ledger nor outbox answers, no call is admitted.
        self._in_memory: dict[asyncio.Task[None], Undelivered] = {}
        # What the ledger has taken and the outbox still has. What is dropped here is delivered again, without effect.
        self._to_forget: deque[Undelivered] = deque(maxlen=_MAX_TO_FORGET)
        self._stopping = asyncio.Event()
        self._deliverer: asyncio.Task[None] | None = None

    async def settle(self, request: pb.SettleHoldRequest) -> pb.SettleHoldResponse | None:
        """Book what a call used. None where the ledger will do so later, or never (that is logged as an error).

        Goes on where the caller is cancelled.
        """
        result = await self._ended(pb.Operation(settle=request))
        return result.settle if result is not None else None

    async def settle_kept(self, request: pb.SettleHoldRequest) -> pb.SettleHoldResponse | None:
        """Book now what is in the outbox already. None as in `settle`: then the outbox goes on with it.

        Once it is booked the outbox forgets it, within its interval.
        """
        one = Undelivered.of(pb.Operation(settle=request))
        try:
            result = (await self._ledger.apply(one.operation))[0]
        except RemoteError as refusal:
            await self._refused(one, refusal)
        except LedgerUnavailable:
            _KEPT.labels(one.kind).inc()
        else:
            self._to_forget.append(one)
            return result.settle
        return None

    async def release(self, account_id: str, hold_id: str, why: str) -> None:
        """Give a hold back; also one that may never have been made, where its answer was lost. As `settle`."""
        request = pb.ReleaseHoldRequest(account_id=account_id, hold_id=hold_id, description=why)
        await self._ended(pb.Operation(release=request))

    async def _ended(self, operation: pb.Operation) -> pb.OperationResult | None:
        """End a hold; where who asks is cancelled, as calls are when the proxy stops, in a task of its own.

        That one begins anew: sent twice it is booked once, not sent at all it would be lost.
        """
        one = Undelivered.of(operation)
        try:
            return await self._end(one)
        except asyncio.CancelledError:
            self._go_on(self._end(one))
            raise

    def _go_on(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Do it in a task, for which nobody needs to wait."""
        task = asyncio.create_task(work)
        self._going_on.add(task)
        task.add_done_callback(self._going_on.discard)
        return task

    async def _end(self, one: Undelivered) -> pb.OperationResult | None:
        self._ending[one.hold_id] = one
        try:
            return (await self._ledger.apply(one.operation))[0]
        except RemoteError as refusal:
            await self._refused(one, refusal)
        except Exception as error:  # noqa: BLE001 (whatever it is, the ledger may not have it)
            if not isinstance(error, LedgerUnavailable):
                _log.exception("an end of a hold was not sent", hold_id=one.hold_id)
            if one.hold_id not in self._left_behind:
                _KEPT.labels(one.kind).inc()
                await self._keep(one)
        finally:
            self._ending.pop(one.hold_id, None)
            if not self._ending and self._all_ended is not None and not self._all_ended.done():
                self._all_ended.set_result(None)
        return None

    async def _keep(self, one: Undelivered) -> None:
        """Put it into the outbox; while that cannot be written, offer it to outbox and ledger from memory."""
        keeping = self._go_on(self._store.keep(one.operation))
        try:
            # Not cancelled where it takes too long: that would wait for the database, too.
            await asyncio.wait_for(asyncio.shield(keeping), _KEEP_SECONDS)
        except Exception as error:  # noqa: BLE001 (whatever it is: a settlement is not thrown away)
            keeping.add_done_callback(_seen)
            _log.error(
                "the outbox cannot be written; an end of a hold is kept in memory", hold_id=one.hold_id, **logged(error)
            )
            task = asyncio.create_task(self._offered(one))
            self._in_memory[task] = one
            task.add_done_callback(self._in_memory.pop)
            _IN_MEMORY.set(len(self._in_memory))

    async def _offered(self, one: Undelivered) -> None:
        wait = _RETRY_SECONDS
        while True:
            await self._pause(wait)
            if await self._placed(one):
                return
            wait = min(2 * wait, _MAX_RETRY_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Wait, less long where the proxy stops meanwhile."""
        if self._stopping.is_set():
            await asyncio.sleep(_RETRY_SECONDS)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _placed(self, one: Undelivered) -> bool:
        """Offer it to outbox and ledger at once, so that one that does not answer is not in the other's way.

        The slower offer ends by itself. Cut off while it connects, it would keep its half of a connection open for as
        long as the database lets it; and what both have taken is booked once.
        """
        for offer in asyncio.as_completed([self._go_on(self._stored(one)), self._go_on(self._taken(one))]):
            if await offer:
                return True
        return False

    async def _stored(self, one: Undelivered) -> bool:
        try:
            await self._store.keep(one.operation)
        except Exception:  # noqa: BLE001 (the database is away still; the gauge says so)
            return False
        return True

    async def _taken(self, one: Undelivered) -> bool:
        try:
            await self._ledger.apply(one.operation)
        except RemoteError as refusal:
            await self._refused(one, refusal)
        except Exception:  # noqa: BLE001 (the same of the ledger)
            return False
        return True

    async def _refused(self, one: Undelivered, refusal: RemoteError) -> None:
        """Note a refusal that trying again does not change. A release that comes too late is no loss. Never raises."""
        try:
            if one.kind == RELEASE or refusal.reason == _TAKEN_LONG_AGO:
                _log.info("hold not ended again", kind=one.kind, hold_id=one.hold_id, reason=refusal.reason)
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
            _log.exception("a refused settlement was not kept", hold_id=one.hold_id, operation=_in_a_log(one))

    async def start(self) -> None:
        """Begin to deliver what is in the outbox."""
        self._deliverer = asyncio.create_task(self._deliver_for_ever())

    async def stop(self, grace_seconds: float) -> None:
        """Let what is under way end, deliver once more, then stop.

        What the ledger has not answered within the grace goes to the outbox; what is only in memory has the grace to
        reach one of the two. What reaches neither is lost, and written to the log whole.
        """
        self._stopping.set()
        grace = max(grace_seconds, 0.1)
        if self._ending:
            self._all_ended = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._all_ended], timeout=grace)
        self._left_behind = frozenset(self._ending)
        await asyncio.gather(*(self._keep(one) for one in list(self._ending.values())))
        if self._deliverer is not None:
            # A database that says nothing holds it up for ever, and what is below must be written to the log.
            await asyncio.wait([self._deliverer], timeout=grace)
            self._deliverer.cancel()  # of no effect where it has ended
        if self._in_memory:
            await asyncio.wait(self._in_memory, timeout=grace)
        for task, one in list(self._in_memory.items()):
            _tell_lost(one)
            task.cancel()
        if self._going_on:
            await asyncio.wait(self._going_on, timeout=grace)
        for left in self._going_on:
            left.cancel()
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
        _IN_MEMORY.set(len(self._in_memory))
        try:
            await self.deliver()
        except Exception as error:  # noqa: BLE001 (the database may be away; the next round comes)
            _log.warning("outbox not looked into", error=repr(error))

    async def deliver(self) -> None:
        """Send the ledger what is due; when the proxy stops, one batch of it."""
        await self._forget()
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
            if later or len(claimed) < CLAIM_ROWS or self._stopping.is_set():
                break
        waiting, oldest_seconds = await self._store.waiting()
        _WAITING.set(waiting)
        _OLDEST.set(oldest_seconds)

    async def _forget(self) -> None:
        while booked := list(islice(self._to_forget, _FORGOTTEN_AT_ONCE)):
            await self._store.delivered(booked)
            for _ in booked:
                self._to_forget.popleft()


def _seen(task: asyncio.Task[Any]) -> None:
    """Look at how it failed, where nobody waits for it any more."""
    if not task.cancelled():
        task.exception()


def _tell_lost(one: Undelivered) -> None:
    """Log all that it takes to bill it by hand: docs/operating/proxy.md. A hold that is not released lapses."""
    if one.kind == RELEASE:
        _log.warning("a hold is not released: it lapses", account_id=one.account_id, hold_id=one.hold_id)
        return
    settle = one.operation.settle
    _log.error(
        "a settlement is lost: neither ledger nor outbox was reached",
        account_id=one.account_id,
        hold_id=one.hold_id,
        amount_nanos=settle.amount_nanos,
        tokens=settle.tokens,
        model=f"{settle.usage.provider}/{settle.usage.model}",
        operation=_in_a_log(one),
    )


def _in_a_log(one: Undelivered) -> str:
    """The operation as base64 of its protobuf form, from which it can be sent by hand. No call's text is in it."""
    return base64.b64encode(one.operation.SerializeToString()).decode()
