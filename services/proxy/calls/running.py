"""Owns the calls under way: begun, kept from lapsing, and waited for when the proxy stops."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from functools import partial

from prometheus_client import Gauge
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb

from services.kit.errors import ServiceError
from services.kit.logs import get_logger
from services.proxy.calls.call import Asked, Call
from services.proxy.calls.delivery import Delivery
from services.proxy.calls.life import Life, Parts
from services.proxy.errors import RateLimited
from services.proxy.formats.request import Request
from services.proxy.keys.model import Key

_log = get_logger(__name__)

_RUNNING = Gauge("tollkeeper_calls_running", "Model calls under way, those whose client has left among them")


class Calls:
    """Begins calls and keeps their holds from lapsing while they run."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._running: dict[asyncio.Task[None], Call] = {}
        self._of_account: Counter[str] = Counter()
        self._background: list[asyncio.Task[None]] = []
        self._draining_since: float | None = None
        _RUNNING.set_function(lambda: len(self._running))

    @property
    def parts(self) -> Parts:
        """What calls are made with."""
        return self._parts

    def begin(self, key: Key, request: Request, body: bytes, asked: Asked) -> Call:
        """Begin a call, read from `body`; what comes of it comes through its delivery, to be abandoned in the end.

        Raises RateLimited where the account has as many under way as it may: each has a place here, until its answer is
        read, and a connection to a provider, also when its client has left, and what one takes the others have not.
        """
        most = self._parts.settings.account_calls
        if self._of_account[key.account_id] >= most:
            raise RateLimited(
                f"{most} calls at once are under way: the account's limit at one replica",
                retry_after_seconds=1,
                scope="account",
                unit="calls",
                limit=most,
            )
        delivery = Delivery(patience_seconds=self._parts.settings.upstream_total_seconds / 3)
        call = Call(key, asked, request, delivery=delivery)
        self._of_account[key.account_id] += 1
        task = asyncio.create_task(Life(self._parts, call, body).live())
        self._running[task] = call
        task.add_done_callback(self._ended)
        return call

    def _ended(self, task: asyncio.Task[None]) -> None:
        call = self._running.pop(task)
        if call.delivery.abandoned:
            self._leave(call.key.account_id)
        else:  # its answer has a place here until it is read
            call.delivery.on_abandoned = partial(self._leave, call.key.account_id)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a call's end was not handled", exc_info=error)

    def _leave(self, account_id: str) -> None:
        self._of_account[account_id] -= 1
        if not self._of_account[account_id]:
            del self._of_account[account_id]

    async def start(self, draining: asyncio.Event) -> None:
        """Begin to keep holds. `draining` is set when the proxy begins to stop: the grace counts from then."""
        self._background = [
            asyncio.create_task(self._keep_for_ever()),
            asyncio.create_task(self._note_draining(draining)),
        ]

    async def stop(self) -> None:
        """Wait for the calls under way, cut off what is left after the grace, and let all of them settle."""
        since = self._draining_since if self._draining_since is not None else time.monotonic()
        left = since + self._parts.settings.grace_seconds - time.monotonic()
        if self._running:
            await asyncio.wait(self._running, timeout=max(left, 0))
        for task in self._running:
            task.cancel()
        if self._running:
            _log.warning("calls cut off, settled at what had come", calls=len(self._running))
            await asyncio.wait(self._running, timeout=3 * self._parts.settings.ledger_timeout_seconds)
        for job in self._background:
            job.cancel()
        if self._background:
            await asyncio.wait(self._background)

    async def _note_draining(self, draining: asyncio.Event) -> None:
        await draining.wait()
        self._draining_since = time.monotonic()

    async def _keep_for_ever(self) -> None:
        ttl = self._parts.settings.hold_ttl_seconds
        while True:
            await asyncio.sleep(ttl / 8)
            lapsing = [
                call
                for call in self._running.values()
                if call.hold_open and call.held_until - time.monotonic() < ttl / 2
            ]
            await asyncio.gather(*(self._extend(call, ttl) for call in lapsing))

    async def _extend(self, call: Call, ttl_seconds: int) -> None:
        """Let a hold last longer. One that lapses all the same is settled all the same. Never raises."""
        call.extensions += 1
        request = ledger_pb.ExtendHoldRequest(
            account_id=call.key.account_id,
            hold_id=call.hold_id,
            ttl_seconds=ttl_seconds,
            request_id=f"{call.hold_id}-{call.extensions}",
        )
        asked = time.monotonic()
        try:
            await self._parts.ledger.apply(ledger_pb.Operation(extend=request))
            call.held_until = asked + ttl_seconds
        except ServiceError as refusal:
            _log.warning("a hold was not extended", call_id=call.hold_id, reason=refusal.reason)
        except Exception:  # noqa: BLE001 (whatever it is, the other holds are to be kept, now and later)
            _log.exception("a hold was not extended", call_id=call.hold_id)
