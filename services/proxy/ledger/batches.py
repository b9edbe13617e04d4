"""Owns batches for the ledger: operations of calls that run at once go in one `Apply`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import grpc
from google.rpc import status_pb2  # type: ignore[import-untyped]
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.errors import Kind, RemoteError, ServiceError
from services.kit.logs import get_logger
from services.kit.tracing import traceparent
from services.proxy.errors import LedgerUnavailable

_log = get_logger(__name__)

# Said of an operation that may succeed when it is sent again.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
}

# How long few operations wait for the batch under way to end before they go as a batch of their own, so that one that
# is held up does not hold up all. At the ledger they would wait no less, in a batch that costs both sides as much.
_PATIENCE_SECONDS = 0.05

# What is asked for, who waits for it, and the trace that it belongs to.
_Group = tuple[tuple[pb.Operation, ...], "asyncio.Future[list[pb.OperationResult]]", str]


# Sends a batch, which belongs to a trace (empty: to none). Raises grpc.RpcError; whatever else it raises is logged.
Send = Callable[[pb.ApplyRequest, str], Awaitable[pb.ApplyResponse]]


class Batches:
    """Sends operations in batches: while one is under way, what comes meanwhile waits and goes with the next.

    Where none is under way an operation goes at once, alone. A second batch begins only when much waits, or has waited
    for long: few large batches cost less than many small ones.
    At most `batches_at_once` are under way, of at most `batch_operations` each, and at most `waiting_operations` wait:
    above that, LedgerUnavailable at once.
    """

    def __init__(
        self, send: Send, *, batch_operations: int = 256, batches_at_once: int = 2, waiting_operations: int = 10_000
    ) -> None:
        self._send = send
        self._batch_operations = batch_operations
        self._batches_at_once = batches_at_once
        self._waiting_operations = waiting_operations
        self._waiting: deque[_Group] = deque()
        self._waiting_count = 0
        self._senders: set[asyncio.Future[None]] = set()
        self._patience: asyncio.TimerHandle | None = None

    async def apply(self, *operations: pb.Operation) -> list[pb.OperationResult]:
        """The results of one operation, or of a linked group of them, in order.

        Raises RemoteError for the first that was refused, LedgerUnavailable where there is no telling whether they were
        applied.
        """
        if self._waiting_count + len(operations) > self._waiting_operations:
            raise LedgerUnavailable("too many operations wait for the ledger", retry_after_seconds=1)
        results = await (self._queued(operations) if self._senders else self._at_once(operations))
        for result in results:
            if result.HasField("error"):
                raise _refusal(result.error)
        return results

    async def _at_once(self, operations: tuple[pb.Operation, ...]) -> list[pb.OperationResult]:
        """Send operations alone, in the caller's own task. A task sends what comes meanwhile.

        A caller that is cancelled leaves open whether they are applied, as one does whose batch is under way.
        """
        sender: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._senders.add(sender)
        try:
            return await self._sent(operations, traceparent())
        finally:
            self._senders.discard(sender)
            sender.set_result(None)
            self._begin()

    async def _queued(self, operations: tuple[pb.Operation, ...]) -> list[pb.OperationResult]:
        answered: asyncio.Future[list[pb.OperationResult]] = asyncio.get_running_loop().create_future()
        self._waiting.append((operations, answered, traceparent()))
        self._waiting_count += len(operations)
        if self._waiting_count >= self._batch_operations // 4:
            self._begin()
        elif self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._begin)
        return await answered

    def _begin(self) -> None:
        """Send what waits, in a batch beside those under way where there may be one more."""
        self._be_patient()
        if self._waiting and len(self._senders) < self._batches_at_once:
            self._senders.add(asyncio.create_task(self._send_waiting()))

    def _be_patient(self) -> None:
        """Begin the wait anew with what comes next."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        while self._senders:
            await asyncio.wait(self._senders)

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                await self._send_batch(self._next_batch())
        finally:
            # Here and not when the task is seen to be done: what comes in between would wait for nothing.
            self._senders.discard(asyncio.current_task())

    async def _send_batch(self, groups: list[_Group]) -> None:
        message = "operations were not sent to the ledger"
        try:
            asked = [operation for operations, _, _ in groups for operation in operations]
            results = await self._sent(asked, groups[0][2] if groups else "")
            at = 0
            for operations, answered, _ in groups:
                if not answered.done():
                    answered.set_result(results[at : at + len(operations)])
                at += len(operations)
        except LedgerUnavailable as error:
            message = error.message
        finally:
            # Whatever it was that failed, nobody may be left waiting.
            for _, answered, _ in groups:
                if not answered.done():
                    answered.set_exception(LedgerUnavailable(message, retry_after_seconds=1))

    def _next_batch(self) -> list[_Group]:
        self._be_patient()
        groups: list[_Group] = []
        size = 0
        while self._waiting and (not groups or size + len(self._waiting[0][0]) <= self._batch_operations):
            group = self._waiting.popleft()
            self._waiting_count -= len(group[0])
            if group[1].done():  # whoever asked has gone before it was sent
                continue
            groups.append(group)
            size += len(group[0])
        return groups

    async def _sent(self, operations: Sequence[pb.Operation], trace: str) -> list[pb.OperationResult]:
        """The results of a batch, which belongs to the trace of the first who asked."""
        if not operations:
            return []
        try:
            answer = await self._send(pb.ApplyRequest(operations=operations), trace)
        except grpc.RpcError as error:
            refusal = RemoteError.from_rpc(error)
            _log.warning("ledger gave no answer", code=refusal.code.name, message=refusal.message)
            raise LedgerUnavailable("the ledger did not answer", retry_after_seconds=1) from error
        except Exception as error:
            _log.exception("ledger could not be asked")
            raise LedgerUnavailable("the ledger could not be asked", retry_after_seconds=1) from error
        if len(answer.results) != len(operations):
            _log.error("ledger answered another number of operations", sent=len(operations), got=len(answer.results))
            raise LedgerUnavailable("the ledger's answer was not understood", retry_after_seconds=1)
        return list(answer.results)


def _refusal(status: status_pb2.Status) -> ServiceError:
    """What the ledger said of one operation, or LedgerUnavailable where it may say otherwise next time."""
    refusal = RemoteError.from_status(status)
    if refusal.code in _PASSING:
        return LedgerUnavailable(
            "the ledger could not do it just now", ledger_reason=refusal.reason, retry_after_seconds=1
        )
    if refusal.reason == "INSUFFICIENT_CREDIT":
        refusal.kind = Kind.PAYMENT_REQUIRED  # its code is that of an exhausted limit
    return refusal
