"""Owns unary gRPC calls written as HTTP/2 frames, for a client that costs less than the servers it measures.

gRPC's own client takes nearly as long for a call as its server does: on the same cores it would be measured, too. What
is understood here is what gRPC's own servers say to such a client (RFC 9113, and gRPC's PROTOCOL-HTTP2.md).
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Self

from services.kit.http2 import frames

_MESSAGE_HEAD = 5  # of a gRPC message: not compressed, its length
# In HPACK's static table (RFC 7541, appendix A); what the connection adds to its table comes after that, newest first.
_POST, _HTTP, _STATIC = 3, 6, 61


class CallFailedError(Exception):
    """The server answered with an error, or not to the end."""


def _string(text: str) -> bytes:
    """A string in HPACK, of less than 2 175 bytes, as it is."""
    raw = text.encode()
    if len(raw) < 127:  # what seven bits hold, but for the one that says that more follows
        return bytes((len(raw),)) + raw
    more = len(raw) - 127
    return bytes((127, more & 127 | 128, more >> 7) if more > 127 else (127, more)) + raw


class Connection(asyncio.Protocol):
    """One connection on which one method is called, with the same headers each time."""

    def __init__(self, address: str, method: str, headers: Sequence[tuple[str, str]]) -> None:
        named = (
            (":path", method),
            (":authority", address),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *headers,
        )
        start = bytes((0x80 | _POST, 0x80 | _HTTP))
        # The first call's headers put themselves into the connection's table, of which the next ones' only speak.
        self._headers = start + b"".join(b"\x40" + _string(name) + _string(value) for name, value in named)
        self._headers_again = start + bytes(0x80 | _STATIC + number for number in range(len(named), 0, -1))
        self._stream = -1
        self._buffer = b""
        self._window = frames.FIRST_WINDOW
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._messages: dict[int, bytes] = {}
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._ready = asyncio.get_running_loop().create_future()

    @classmethod
    async def opened(cls, address: str, method: str, headers: Sequence[tuple[str, str]] = ()) -> Self:
        """A connection to `host:port`, which the server has greeted."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(address, method, headers), host, int(port))
        await connection._ready
        return connection

    def close(self) -> None:
        """Let go of it."""
        self._transport.close()

    def call(self, request: bytes) -> asyncio.Future[bytes]:
        """Send a request message; the answer's. Fails with CallFailedError."""
        self._stream += 2
        stream = self._stream
        answer = self._answers[stream] = asyncio.get_running_loop().create_future()
        data = b"\0" + len(request).to_bytes(4) + request
        headers = frames.frame(frames.HEADERS, frames.END_HEADERS, stream, self._headers)
        self._headers = self._headers_again
        if self._unsent or len(data) > self._window:
            self._transport.write(headers)
            self._unsent.append((stream, data))
        else:
            self._window -= len(data)
            self._transport.write(headers + frames.frame(frames.DATA, frames.END_STREAM, stream, data))
        return answer

    def connection_made(self, transport) -> None:
        """Greet the server, and leave how much it may send at once to it."""
        self._transport = transport
        settings = frames.settings({frames.INITIAL_WINDOW: frames.LARGEST_WINDOW})
        transport.write(frames.PREFACE + settings + frames.window(0, frames.LARGEST_WINDOW - frames.FIRST_WINDOW))

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what waits."""
        self._fail(CallFailedError(f"the connection was lost: {error}"))

    def data_received(self, data: bytes) -> None:
        """Take in what has come, frame by frame."""
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        while size - at >= frames.HEAD_BYTES:
            ends = at + frames.HEAD_BYTES + int.from_bytes(buffer[at : at + 3])
            if ends > size:
                break
            stream = int.from_bytes(buffer[at + 5 : at + 9]) & frames.LARGEST_WINDOW
            self._take(buffer[at + 3], buffer[at + 4], stream, buffer[at + frames.HEAD_BYTES : ends])
            at = ends
        self._buffer = buffer[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.DATA:
            before = self._messages.get(stream)
            self._messages[stream] = payload if before is None else before + payload
        if kind in {frames.DATA, frames.HEADERS}:
            if flags & frames.END_STREAM:
                self._answer(stream)
        elif kind == frames.WINDOW:
            if stream == 0:
                self._window += int.from_bytes(payload)
                self._send_more()
        elif kind == frames.PING and not flags & frames.ACK:
            self._transport.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._transport.write(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))
            if not self._ready.done():
                self._ready.set_result(None)
        elif kind in {frames.RESET, frames.GOAWAY}:
            self._fail(CallFailedError(f"the server ended a call or all of them: {payload!r}"))

    def _send_more(self) -> None:
        while self._unsent and len(self._unsent[0][1]) <= self._window:
            stream, data = self._unsent.popleft()
            self._window -= len(data)
            self._transport.write(frames.frame(frames.DATA, frames.END_STREAM, stream, data))

    def _answer(self, stream: int) -> None:
        """A call has ended. One that was refused has no message."""
        answer, message = self._answers.pop(stream), self._messages.pop(stream, None)
        if answer.done():
            return
        if message is None or len(message) != _MESSAGE_HEAD + int.from_bytes(message[1:_MESSAGE_HEAD]):
            answer.set_exception(CallFailedError("the server refused a call"))
        else:
            answer.set_result(message[_MESSAGE_HEAD:])

    def _fail(self, error: CallFailedError) -> None:
        for answer in (self._ready, *self._answers.values()):
            if not answer.done():
                answer.set_exception(error)
