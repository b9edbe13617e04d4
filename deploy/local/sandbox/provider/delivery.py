"""Owns the sending of an answer over one connection: its pace, its chunks, and every way it can go wrong."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Iterator
from typing import Final

from aiohttp import web

from deploy.local.sandbox.provider.answer import Answer
from deploy.local.sandbox.provider.behaviour import (
    CUT_EVENT,
    CUT_STREAM,
    HANG,
    ODD_CHUNKS,
    RESET,
    STREAM_ERROR,
    Behaviour,
)
from deploy.local.sandbox.provider.refusal import Dialect, Refusal
from deploy.local.sandbox.provider.request_log import Call
from deploy.local.sandbox.provider.wire.base import JSON, Chunk, Wire

_ODD_SIZES: Final = (1, 2, 3, 5, 7, 11, 64, 13, 1, 200)
# A stream without pauses yields now and then, so that other calls get their turn and a client that left is noticed.
_CHUNKS_BETWEEN_YIELDS: Final = 64
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Delivery:
    """Sends one answer to one client and keeps the call's log entry true while it does."""

    def __init__(
        self,
        request: web.BaseRequest,
        call: Call,
        behaviour: Behaviour,
        headers: dict[str, str],
        stopping: asyncio.Event,
    ) -> None:
        self._request = request
        self._call = call
        self._behaviour = behaviour
        self._headers = headers
        self._stopping = stopping

    async def refuse(self, status: int, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
        """Send an error answer."""
        await self._first_byte()
        self._call.status = status
        response = web.Response(status=status, body=body, headers=self._headers | headers)
        await self._finish(response)
        return response

    async def unary(self, answer: Answer, wire: Wire) -> web.StreamResponse:
        """Send the whole answer in one body, or break off as the behaviour says."""
        faults = self._behaviour.faults
        if RESET in faults:
            return self._reset()
        await self._first_byte()
        if HANG in faults:
            return await self._hang(web.Response())
        if self._behaviour.delay_ms:
            await asyncio.sleep(self._behaviour.delay_ms / 1000)
        body = wire.unary(answer)
        headers = self._headers | {"content-type": JSON}
        if faults & {CUT_STREAM, CUT_EVENT}:
            response = web.StreamResponse(headers=headers | {"content-length": str(len(body))})
            await self._begin(response, answer)
            await response.write(body[: len(body) // 2])
            return self._cut(response)
        if ODD_CHUNKS in faults:
            response = web.StreamResponse(headers=headers)
            await self._begin(response, answer)
            splitter = _OddSplitter()
            for piece in itertools.chain(splitter.feed(body), splitter.rest()):
                await response.write(piece)
                await asyncio.sleep(0)
        else:
            response = web.Response(body=body, headers=headers)
            self._note_begun(answer)
        await self._finish(response)
        self._note_said(answer, answer.usage.output)
        return response

    async def stream(self, answer: Answer, wire: Wire, dialect: Dialect) -> web.StreamResponse:
        """Send the answer chunk by chunk, or break off as the behaviour says."""
        behaviour = self._behaviour
        if RESET in behaviour.faults:
            return self._reset()
        await self._first_byte()
        response = web.StreamResponse(headers=self._headers | {"content-type": wire.stream_content_type})
        if HANG in behaviour.faults and behaviour.after is None:
            return await self._hang(response)
        await self._begin(response, answer)
        writer = _Writer(response, odd=ODD_CHUNKS in behaviour.faults)
        sent = 0
        for chunk in wire.stream(answer):
            if behaviour.after is not None and sent >= behaviour.after and (chunk.content or sent):
                broken = await self._break_off(response, writer, wire, dialect, chunk)
                if broken is not None:
                    return broken
            if chunk.content and sent:
                if behaviour.delay_ms:
                    await asyncio.sleep(behaviour.delay_ms / 1000)
                elif sent % _CHUNKS_BETWEEN_YIELDS == 0:
                    await asyncio.sleep(0)
            await writer.write(chunk.data)
            self._note_said(answer, chunk.tokens)
            sent += chunk.content
        await writer.flush()
        await self._finish(response)
        return response

    async def _break_off(
        self, response: web.StreamResponse, writer: _Writer, wire: Wire, dialect: Dialect, chunk: Chunk
    ) -> web.StreamResponse | None:
        """End the stream here, before `chunk`, in the way that was asked for; None where none was."""
        faults = self._behaviour.faults
        await writer.flush()
        await response.write(b"")  # the headers, where nothing has gone out yet
        if HANG in faults:
            return await self._hang(response)
        if STREAM_ERROR in faults:
            status = self._behaviour.status or 500
            refusal = Refusal(status, retry_after=self._behaviour.retry_after)
            await response.write(wire.stream_error(dialect, refusal, f"req_sandbox_{self._call.number}"))
            await response.write_eof()
            return response
        if CUT_EVENT in faults:
            await response.write(chunk.data[: len(chunk.data) // 2])
            return self._cut(response)
        if CUT_STREAM in faults:
            return self._cut(response)
        return None

    async def _first_byte(self) -> None:
        if self._behaviour.first_byte_ms:
            await asyncio.sleep(self._behaviour.first_byte_ms / 1000)

    async def _begin(self, response: web.StreamResponse, answer: Answer) -> None:
        await response.prepare(self._request)
        self._note_begun(answer)

    def _note_begun(self, answer: Answer) -> None:
        call, usage = self._call, answer.usage
        call.status = 200
        call.input_tokens = usage.input
        call.cached = usage.cached
        call.cache_write = usage.cache_write + usage.cache_write_1h

    def _note_said(self, answer: Answer, count: int) -> None:
        call = self._call
        call.output_tokens += count
        call.reasoning = min(answer.usage.reasoning, call.output_tokens)  # it is always thought before it is said

    async def _finish(self, response: web.StreamResponse) -> None:
        """Send what is left and know that it was handed over: aiohttp would do it only after the handler's end."""
        if not response.prepared:
            await response.prepare(self._request)
        await response.write_eof()
        self._call.completed = self._call.status < 400  # noqa: PLR2004  (the first status that is an error)

    async def _hang(self, response: web.StreamResponse) -> web.StreamResponse:
        """Say nothing more until the client gives up, or the sandbox stops."""
        await self._stopping.wait()
        return self._cut(response)

    def _cut(self, response: web.StreamResponse) -> web.StreamResponse:
        """Close the connection in an orderly way, without the end that the answer should have had."""
        transport = self._request.transport
        if transport is not None:
            transport.close()
        return response

    def _reset(self) -> web.StreamResponse:
        """Throw the connection away: the client gets a TCP reset, before any byte of an answer."""
        transport = self._request.transport
        if transport is not None:
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()
        return web.Response()


class _Writer:
    """Writes chunks as they are, or cut into odd pieces that know nothing of events."""

    def __init__(self, response: web.StreamResponse, *, odd: bool) -> None:
        self._response = response
        self._splitter = _OddSplitter() if odd else None

    async def write(self, data: bytes) -> None:
        if self._splitter is None:
            await self._response.write(data)
            return
        for piece in self._splitter.feed(data):
            await self._response.write(piece)
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Write what the splitter still holds back."""
        for piece in self._splitter.rest() if self._splitter is not None else ():
            await self._response.write(piece)


class _OddSplitter:
    """Cuts a run of bytes into pieces of odd sizes; what does not fill a piece waits for the bytes after it."""

    def __init__(self) -> None:
        self._sizes = itertools.cycle(_ODD_SIZES)
        self._size = next(self._sizes)
        self._held = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        while len(self._held) >= self._size:
            piece, self._held = self._held[: self._size], self._held[self._size :]
            self._size = next(self._sizes)
            yield piece

    def rest(self) -> Iterator[bytes]:
        piece, self._held = self._held, b""
        if piece:
            yield piece
