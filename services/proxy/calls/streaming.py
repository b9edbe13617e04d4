"""Owns the passing on of a streamed answer, event by event, and what is said at its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import orjson
from pyreqwest.exceptions import PyreqwestError

from services.kit.logs import get_logger
from services.proxy.calls.call import CUT, FAILED, OK, REQUEST_ID_HEADER, Call, Settled
from services.proxy.calls.delivery import Head
from services.proxy.calls.meter import Event, with_credits
from services.proxy.errors import ProviderUnavailable
from services.proxy.sse import EventSplitter, EventTooLargeError, event_of
from services.proxy.upstream import Answer

_log = get_logger(__name__)

_MAX_EVENT_BYTES = 16 * 1024 * 1024
_AFTER_DONE_SECONDS = 0.5

EndHold = Callable[[str], Awaitable[Settled | None]]


async def relay(call: Call, answer: Answer, end_hold: EndHold, *, cancel_on_disconnect: bool) -> None:
    """Pass a stream on as it comes, settle it with `end_hold(status)` when it ends, and say what it cost.

    Each event goes out as it came, but for the last one with usage, which gets the credits. Which is the last is known
    when the next comes, so an event with usage waits for that. Raises ProviderUnavailable where nothing came.
    """
    stream = _Relay(call, end_hold)
    async with aclosing(answer.pieces()) as pieces:
        try:
            async with aclosing(_events(pieces)) as events:
                async for event in events:
                    await stream.take(event)
                    if stream.done or (cancel_on_disconnect and call.delivery.abandoned):
                        break
        except (PyreqwestError, EventTooLargeError) as error:
            _log.warning("a stream broke off", call_id=call.call_id, error=repr(error))
            stream.broken = True
        await stream.end()
        if stream.done:
            await _read_to_end(pieces)


class _Relay:
    """One stream being passed on. `waiting` is an event with usage that may be the last one."""

    def __init__(self, call: Call, end_hold: EndHold) -> None:
        self._call = call
        self._end_hold = end_hold
        self._waiting: Event | None = None
        self._headed = False
        self._last = b""
        self.done = False
        self.broken = False

    async def take(self, raw: bytes) -> None:
        """Pass on one event, or keep it waiting."""
        event = self._call.meter.take_event(raw)
        if event.done:
            self.done, self._last = True, raw
            return
        if not self._headed:
            self._headed = True
            headers = ((REQUEST_ID_HEADER, self._call.call_id),)
            await self._call.delivery.send(Head(headers, "text/event-stream"))
        await self._let_go()
        if event.chunk is not None:
            self._waiting = event
        else:
            await self._call.delivery.send(raw)

    async def end(self) -> None:
        """Settle and say how it ended."""
        if not self._headed:
            raise ProviderUnavailable("the provider broke off before it answered")
        meter, delivery = self._call.meter, self._call.delivery
        if meter.finished and not self.broken:
            await self._say_cost(await self._end_hold(OK))
            if self._last:
                await delivery.send(self._last)
        else:
            await self._let_go()
            await self._say_broken(await self._end_hold(FAILED if meter.failed else CUT))
        await delivery.end()

    async def _let_go(self) -> None:
        if self._waiting is not None:
            await self._call.delivery.send(self._waiting.raw)
            self._waiting = None

    async def _say_cost(self, settled: Settled | None) -> None:
        if settled is None:
            return await self._let_go()  # the provider said no more than that it failed
        chunk = self._waiting.chunk if self._waiting is not None else None
        await self._call.delivery.send(with_credits(chunk or self._call.meter.last_chunk(), settled.credits()))
        return None

    async def _say_broken(self, settled: Settled | None) -> None:
        if self._call.meter.failed:
            return  # the provider has said it itself
        error = {
            "message": "The provider broke off in the middle of its answer.",
            "type": "server_error",
            "param": None,
            "code": "provider_stream_broken",
        }
        told = {"error": error} if settled is None else {"error": error, "credits": settled.credits()}
        await self._call.delivery.send(event_of(orjson.dumps(told)))


async def _events(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The events of a stream; the last one also where the blank line after it is missing."""
    splitter = EventSplitter(_MAX_EVENT_BYTES)
    async for piece in pieces:
        for event in splitter.feed(piece):
            yield event
    if rest := splitter.rest().rstrip():
        yield rest + b"\n\n"


async def _read_to_end(pieces: AsyncGenerator[bytes]) -> None:
    """Read what comes after the end of a stream, which is nothing: only then is the connection used again."""
    with contextlib.suppress(TimeoutError, PyreqwestError):
        async with asyncio.timeout(_AFTER_DONE_SECONDS):
            async for _ in pieces:
                continue
