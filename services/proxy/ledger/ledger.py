"""Owns which replica of the ledger an account's operations go to: the same one as long as it answers.

A replica remembers the accounts that it wrote last, which helps as long as nobody else writes to them. Any replica may
do any operation, so one that does not answer, or has just come or gone, costs a little time and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc.aio
from prometheus_client import Gauge
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc

from services.kit.logs import get_logger
from services.kit.tracing import TRACEPARENT_KEY
from services.proxy.errors import LedgerUnavailable
from services.proxy.ledger.addresses import Addresses, Place, Resolve, resolved
from services.proxy.ledger.batches import Batches

_log = get_logger(__name__)

_REPLICAS = Gauge("tollkeeper_proxy_ledger_replicas", "Replicas of the ledger that were found")
# One that did not answer in time is asked last, so long.
_SHUNNED_SECONDS = 5.0
# Said where there is no connection, or of one that ends since the replica does.
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def ranked(account_id: str, places: Iterable[str]) -> list[str]:
    """Places in an account's own order, the same for whoever asks; one that goes changes only its own accounts' first.

    Rendezvous hashing: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
    """
    account = account_id.encode()

    def weight(place: str) -> bytes:
        return hashlib.blake2b(b"%s %s" % (account, place.encode()), digest_size=8).digest()

    return sorted(places, key=weight, reverse=True)


@dataclass(slots=True, eq=False)
class _Replica:
    """A replica, and what waits for it. It is shunned until a time of `time.monotonic()`."""

    target: str
    channel: grpc.aio.Channel
    stub: Any
    batches: Batches = field(init=False)
    shunned_until: float = 0.0

    @property
    def answers(self) -> bool:
        """Whether there is no sign that it does not. A lost connection stays a failure until it is made again."""
        if self.shunned_until and self.shunned_until > time.monotonic():
            return False
        return self.channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Ledger:
    """Sends operations to the ledger's replicas.

    `connect(target, name)` makes a channel to one, whose certificate has that name where it is not empty. `batches`:
    how those of each replica are bounded (Batches).
    """

    def __init__(
        self,
        address: str,
        connect: Callable[[str, str], grpc.aio.Channel],
        *,
        timeout_seconds: float,
        resolve: Resolve = resolved,
        **batches: int,
    ) -> None:
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._batches = batches
        self._addresses = Addresses(address, self._found, resolve)
        self._replicas: dict[str, _Replica] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Find the replicas. They are connected to when there is something to send."""
        await self._addresses.start()

    async def stop(self) -> None:
        """Let go of the replicas; what waits for them is sent before."""
        await self._addresses.stop()
        self._found(())
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        for replica in list(self._replicas.values()):
            await replica.batches.drained()

    async def apply(self, *operations: pb.Operation) -> list[pb.OperationResult]:
        """The results of one operation, or of a linked group of them, in order.

        Raises RemoteError for the first that was refused, LedgerUnavailable where there is no telling whether they were
        applied.
        """
        return await self._of(operations[0]).batches.apply(*operations)

    def _of(self, operation: pb.Operation) -> _Replica:
        """The replica of an operation's account. Raises LedgerUnavailable where none was found yet."""
        replicas = self._replicas
        if len(replicas) == 1:
            (only,) = replicas.values()
            return only
        kind = operation.WhichOneof("kind")
        assert kind is not None
        order = ranked(getattr(operation, kind).account_id, replicas)
        for place in order:
            if replicas[place].answers:
                return replicas[place]
        if not order:
            raise LedgerUnavailable("the ledger was not found", retry_after_seconds=1)
        return replicas[order[0]]

    async def _sent(self, replica: _Replica, request: pb.ApplyRequest, trace: str) -> pb.ApplyResponse:
        """What a replica answers to a batch; where it is away, what another does. Raises grpc.RpcError."""
        ends = time.monotonic() + self._timeout_seconds
        try:
            return await self._asked(replica, request, trace, ends)
        except grpc.RpcError as error:
            other = next((one for one in self._replicas.values() if one is not replica and one.answers), None)
            if other is None or error.code() not in _AWAY or time.monotonic() >= ends:
                raise
            _log.warning("a replica of the ledger is away, another is asked", away=replica.target)
            return await self._asked(other, request, trace, ends)

    async def _asked(self, replica: _Replica, request: pb.ApplyRequest, trace: str, ends: float) -> pb.ApplyResponse:
        metadata = ((TRACEPARENT_KEY, trace),) if trace else None
        try:
            answer: pb.ApplyResponse = await replica.stub.Apply(
                request, timeout=max(ends - time.monotonic(), 0), metadata=metadata
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                replica.shunned_until = time.monotonic() + _SHUNNED_SECONDS
            raise
        return answer

    def _found(self, places: Collection[Place]) -> None:
        """The replicas are at these places now."""
        targets = {place.target for place in places}
        for target in self._replicas.keys() - targets:
            task = asyncio.create_task(_let_go(self._replicas.pop(target)))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        for place in places:
            if place.target not in self._replicas:
                self._replicas[place.target] = self._made(place)
        _REPLICAS.set(len(self._replicas))

    def _made(self, place: Place) -> _Replica:
        channel = self._connect(place.target, place.name)
        replica = _Replica(place.target, channel, ledger_service_pb2_grpc.LedgerServiceStub(channel))
        replica.batches = Batches(partial(self._sent, replica), **self._batches)
        return replica


async def _let_go(replica: _Replica) -> None:
    """Send what waits for a replica that is leaving, then close the way to it."""
    await replica.batches.drained()
    await replica.channel.close()
