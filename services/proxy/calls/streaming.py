"""Owns the passing on of a streamed answer, event by event, and what is said at its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson
from pyreqwest.exceptions import PyreqwestError

from services.kit.logs import get_logger
from services.proxy import provider_json
from services.proxy.calls.call import CUT, FAILED, OK, Call, Settled
from services.proxy.calls.delivery import Head
from services.proxy.converse.exchange import ReadableAnswer
from services.proxy.errors import ProviderUnavailable
from services.proxy.formats.answer import Event
from services.proxy.formats.tokens import SaidSoFar
from services.proxy.sse import DONE, EventSplitter, EventTooLargeError, data_of

_log = get_logger(__name__)

_MAX_EVENT_BYTES = 48 * 1024 * 1024  # an image of 4 096 pixels a side, as PNG in base64, may have 30 MiB
_AFTER_DONE_SECONDS = 0.5

EndHold = Callable[[str], Awaitable[Settled | None]]
ExtendHold = Callable[[int], Awaitable[bool]]


async def relay(
    call: Call,
    answer: ReadableAnswer,
    end_hold: EndHold,
    extend_hold: ExtendHold,
    *,
    discreet: Callable[[bytes], bytes],
    output_tokens: int,
    cancel_on_disconnect: bool,
) -> None:
    """Pass a stream on as it comes, settle it with `end_hold(status)` when it ends, and say what it cost.

    Each event goes out as it came, but for the last one that can carry the credits. Which is the last is known when the
    next comes, so an event that may be waits for that. A provider that says more than is held has its hold extended, by
    `output_tokens` or several times as many; where that is refused, the stream ends there. Raises ProviderUnavailable
    where nothing came. Of the provider's word that it failed the client is given what `discreet` leaves.
    """
    stream = _Relay(call, end_hold, discreet, cancel_on_disconnect=cancel_on_disconnect)
    async with aclosing(answer.pieces()) as pieces:
        try:
            async with stream.while_wanted():
                await stream.pass_on(pieces, extend_hold, output_tokens)
        except (PyreqwestError, EventTooLargeError, ProviderUnavailable) as error:
            _log.warning("a stream broke off", call_id=call.call_id, error=repr(error))
            stream.broken = True
        await stream.end()
        if stream.done:
            await _read_to_end(pieces)


class _Relay:
    """One stream being passed on. `waiting` is an event that may be the last one to carry the credits.

    `behind` it are comments that came after it.
    """

    def __init__(
        self, call: Call, end_hold: EndHold, discreet: Callable[[bytes], bytes], *, cancel_on_disconnect: bool
    ) -> None:
        self._call = call
        self._end_hold = end_hold
        self._discreet = discreet
        self._cancel_on_disconnect = cancel_on_disconnect
        self._waiting: Event | None = None
        self._headed = False
        self._behind = b""
        self._last = b""
        self._said = SaidSoFar(call.request.model)
        self.done = False
        self.broken = False
        self.cut_short = False

    @contextlib.asynccontextmanager
    async def while_wanted(self) -> AsyncIterator[None]:
        """Where a client that leaves ends the call, end what is within at that moment, and not at the next event.

        Before the first event nothing is measured that could be billed: that one is waited for.
        """
        if not self._cancel_on_disconnect:
            yield
            return
        delivery, wanted = self._call.delivery, asyncio.timeout(None)

        def left() -> None:
            if self._headed:
                wanted.reschedule(asyncio.get_running_loop().time())

        try:
            async with wanted:
                delivery.on_abandoned = left
                yield
        except TimeoutError:
            if not wanted.expired():
                raise
        finally:
            delivery.on_abandoned = None

    async def pass_on(self, pieces: AsyncGenerator[bytes], extend_hold: ExtendHold, output_tokens: int) -> None:
        """Pass on the events of a stream until it is done, or nobody waits for it, or its hold is not extended.

        The last event is one also where the blank line after it is missing; half of one is not.
        """
        splitter, call, reader = EventSplitter(_MAX_EVENT_BYTES), self._call, self._call.reader
        async for piece in pieces:
            for event in splitter.feed(piece):
                await self.take(event)
                if self.done or (self._cancel_on_disconnect and call.delivery.abandoned):
                    return
                held = call.held_output_tokens
                if (said := self._said_at_least(held)) > held and not reader.finished:
                    more = -(-(said - held) // output_tokens) * output_tokens
                    if not await extend_hold(more):
                        self.cut_short = True
                        return
        rest = splitter.rest().rstrip()
        if rest and _is_whole(rest):
            await self.take(rest + b"\n\n")

    def _said_at_least(self, held: int) -> int:
        """How many tokens the model has said at the least: by the provider's count, where it counts as it goes.

        That is the true one, and what is billed. Else one in each piece, and what their texts have at the least. A
        count below the number of pieces is none: some tell 0 until the end.
        """
        reader = self._call.reader
        told = reader.output_so_far
        if told and told >= reader.pieces:
            return told
        return max(reader.pieces, self._said.at_least(reader.said, held))

    async def take(self, raw: bytes) -> None:
        """Pass on one event, or keep it waiting."""
        event = self._call.reader.take_event(raw)
        if self._call.reader.failed:
            raw = self._discreet(raw)
            chunk = provider_json.read(data_of(raw))
            event = replace(
                event, raw=raw, chunk=chunk if event.chunk is not None and isinstance(chunk, dict) else None
            )
        self.done = event.done
        if event.done and event.chunk is None:
            self._last = raw
            return
        if not self._headed:
            self._headed = True
            await self._call.delivery.send(Head(self._call.head(), self._call.reader.content_type))
        if event.withheld:
            return
        if self._waiting is not None and self._call.reader.finished and not data_of(raw):
            self._behind += raw  # a comment at the end says nothing of which event is the last
            return
        if self._waiting is not None:
            await self._let_go()
        if event.chunk is not None:
            self._waiting = event
        elif not self._call.delivery.put(framed := self._call.reader.framed(raw)):
            await self._call.delivery.send(framed)

    async def end(self) -> None:
        """Settle and say how it ended."""
        if not self._headed:
            raise ProviderUnavailable("the provider broke off before it answered")
        reader = self._call.reader
        if self.cut_short:
            await self._let_go()
            settled = await self._end_hold(CUT)
            await self._send(reader.cut_short(_credits(settled), self._call.counted()))
        elif reader.finished and not self.broken:
            await self._say_cost(await self._end_hold(FAILED if reader.failed else OK))
        else:
            await self._let_go()
            settled = await self._end_hold(FAILED if reader.failed else CUT)
            if not reader.failed:  # else the provider has said it itself
                await self._send(reader.broken(_credits(settled)))
        if closing := reader.closing():
            await self._call.delivery.send(closing)
        await self._call.delivery.end()

    async def _send(self, event: bytes) -> None:
        await self._call.delivery.send(self._call.reader.framed(event))

    async def _let_go(self) -> None:
        if self._waiting is not None:
            await self._send(self._waiting.raw)
            self._waiting = None
            await self._let_comments_go()

    async def _let_comments_go(self) -> None:
        behind, self._behind = self._behind, b""
        if behind:
            await self._send(behind)

    async def _say_cost(self, settled: Settled | None) -> None:
        """Send the last events, the credits in the last that can carry them."""
        call, told = self._call, None
        if settled is not None:
            told = call.reader.credited(self._waiting, settled.credits(), call.counted)
        if told is None:
            await self._let_go()  # the provider said no more than that it failed, or nothing can carry them
        else:
            await self._send(told)
            await self._let_comments_go()
        if self._last:
            await self._send(self._last)


def _is_whole(event: bytes) -> bool:
    """Whether an event without its blank line has come to its end: all data are JSON, but for OpenAI's end."""
    data = data_of(event)
    if data in {b"", DONE}:
        return True
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _credits(settled: Settled | None) -> dict[str, Any] | None:
    return settled.credits() if settled is not None else None


async def _read_to_end(pieces: AsyncGenerator[bytes]) -> None:
    """Read what comes after the end of a stream, which is nothing: only then is the connection used again."""
    with contextlib.suppress(TimeoutError, PyreqwestError):
        async with asyncio.timeout(_AFTER_DONE_SECONDS):
            async for _ in pieces:
                continue
