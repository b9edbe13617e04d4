"""Owns what both sides of a connection do: frames in, flow control out, settings, keepalive, and the ways to end.

A side subclasses Connection and is told what comes: `headers_came`, `data_came`, `reset_came`, `goaway_came`, `lost`.
Whatever a peer may make us keep has a limit: a header block, the streams at once, what is not yet answered to it. The
size of messages, and of what waits to be sent, is limited by those who use the streams.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.kit.http2 import frames
from services.kit.http2.headers import Decoder
from services.kit.http2.hpack import BadBlockError

# What a peer may send on one stream, and on all, before it is told that it was taken in.
_STREAM_WINDOW = 1024 * 1024
_CONNECTION_WINDOW = 16 * 1024 * 1024
# We split what we send into frames of at most so much, even where the peer takes larger ones: streams share the way.
_FRAME_BYTES = 64 * 1024
# A peer that makes us answer (pings, settings) and does not read the answers is let go at so much.
_UNREAD_BYTES = 1024 * 1024
# Calls reset by a peer within a second, beyond which it is taken for an attack (CVE-2023-44487) or a fault.
_RESETS_A_SECOND = 2_000
_PREFACE_SECONDS = 20.0

_MESSAGE_HEAD_BYTES = 5
_NOT_COMPRESSED = b"\0"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one side of a connection takes, and how it finds out that the other is gone.

    `header_bytes`: of all of a call's headers as they are in memory; twice as much ends the connection. A side pings
    after `ping_seconds` in which nothing came, and lets go where `pong_seconds` later nothing has come still.
    """

    message_bytes: int
    header_bytes: int
    streams: int
    ping_seconds: float
    pong_seconds: float


class ConnectionFault(Exception):  # noqa: N818 (not an error of ours: what the peer did)
    """The peer broke the protocol; the connection ends with this code of HTTP/2's."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class TooLargeError(Exception):
    """A message above the limit; the text says so."""


class CompressedError(Exception):
    """A compressed message, which we do not take."""


def message(data: bytes) -> bytes:
    """A message with gRPC's prefix, not compressed."""
    return _NOT_COMPRESSED + len(data).to_bytes(4) + data


class Stream:
    """One call on a connection: what of it has come and is no message yet, what is to be sent and has no room yet."""

    __slots__ = ("connection", "is_over", "number", "received", "room", "taken_bytes", "unsent", "unsent_end", "window")

    def __init__(self, connection: Connection[Any, Any], number: int) -> None:
        self.connection = connection
        self.number = number
        self.window = connection.peer_window
        self.received = bytearray()
        self.taken_bytes = 0
        self.unsent = bytearray()
        self.unsent_end = b""
        self.room: asyncio.Future[None] | None = None
        self.is_over = False  # nothing more is to be sent, or can be

    def take(self, data: bytes, limit_bytes: int) -> list[bytes]:
        """The messages that are complete with `data`. Raises TooLargeError and CompressedError."""
        received = self.received
        if not received and len(data) >= _MESSAGE_HEAD_BYTES:
            # Nearly always a frame is a message.
            size = int.from_bytes(data[1:_MESSAGE_HEAD_BYTES])
            if len(data) == _MESSAGE_HEAD_BYTES + size and not data[0] and size <= limit_bytes:
                return [data[_MESSAGE_HEAD_BYTES:]]
        received += data
        found = []
        while len(received) >= _MESSAGE_HEAD_BYTES:
            size = int.from_bytes(received[1:_MESSAGE_HEAD_BYTES])
            if received[0]:
                raise CompressedError
            if size > limit_bytes:
                raise TooLargeError(f"a message of {size:,} bytes is larger than {limit_bytes:,}")
            end = _MESSAGE_HEAD_BYTES + size
            if len(received) < end:
                break
            found.append(bytes(received[_MESSAGE_HEAD_BYTES:end]))
            del received[:end]
        return found

    async def sent(self) -> None:
        """Wait until all was sent, or nothing can be any more: whoever makes much waits for whoever reads it."""
        while (self.unsent or self.unsent_end) and not self.is_over:
            self.room = asyncio.get_running_loop().create_future()
            try:
                await self.room
            finally:
                self.room = None

    def wake(self) -> None:
        """Let go on who waits in `sent`."""
        if self.room is not None and not self.room.done():
            self.room.set_result(None)


StreamT = TypeVar("StreamT", bound=Stream)
HeadT = TypeVar("HeadT")


class Connection(asyncio.Protocol, Generic[StreamT, HeadT]):
    """One connection. `decoder` reads its header blocks."""

    def __init__(self, limits: Limits, decoder: Decoder[HeadT]) -> None:
        self.limits = limits
        self.streams: dict[int, StreamT] = {}
        self.peer_window = frames.FIRST_WINDOW  # of a new stream
        self.peer_streams = frames.LARGEST_STREAM  # as many calls at once the peer takes
        self.lost_because = ""
        self._decoder = decoder
        self._transport: asyncio.Transport
        self._buffer = b""
        self._out: list[bytes] = []
        self._block = bytearray()
        self._block_stream = 0
        self._block_ends_stream = False
        self._window = frames.FIRST_WINDOW
        self._frame_bytes = frames.LEAST_MAX_FRAME
        self._taken_bytes = 0
        self._blocked: dict[int, StreamT] = {}
        self._is_paused = False
        self._greeted = False
        self._last_came = time.monotonic()
        self._watch: asyncio.TimerHandle | None = None
        self._resets = 0
        self._resets_since = 0.0

    # ------------------------------------------------------------------------------------------- what a side is told

    def greet(self) -> bytes:
        """What a side sends before its settings."""
        return b""

    def headers_came(self, number: int, head: HeadT, *, ended: bool) -> None:
        """A stream's headers or trailers."""
        raise NotImplementedError

    def data_came(self, stream: StreamT, data: bytes, *, ended: bool) -> None:
        """Data of a stream that is known."""
        raise NotImplementedError

    def reset_came(self, stream: StreamT, code: int) -> None:
        """The peer gave a stream up. It is known no more."""
        raise NotImplementedError

    def end_sent(self, stream: StreamT) -> None:
        """All that we had to send on a stream was sent."""

    def settings_came(self) -> None:
        """The peer has said what it takes."""

    def pong_came(self, payload: bytes) -> None:
        """The peer answered a ping."""

    def goaway_came(self, last_stream: int) -> None:
        """The peer takes no streams above that one any more."""

    def lost(self) -> None:
        """The connection is gone; `lost_because` says why. Nothing can be sent."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the peer, and tell it how much it may send."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        own = {
            frames.ENABLE_PUSH: 0,
            frames.MAX_CONCURRENT_STREAMS: self.limits.streams,
            frames.INITIAL_WINDOW: _STREAM_WINDOW,
            frames.MAX_HEADER_LIST: self.limits.header_bytes,
        }
        more = frames.window(0, _CONNECTION_WINDOW - frames.FIRST_WINDOW)
        self.write(self.greet() + frames.settings(own) + more)
        self._watch = asyncio.get_running_loop().call_later(_PREFACE_SECONDS, self._check_greeted)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the side."""
        if self._watch is not None:
            self._watch.cancel()
        if not self.lost_because:
            self.lost_because = str(error) if error is not None else "the peer closed the connection"
        for stream in list(self.streams.values()):
            stream.is_over = True
            stream.wake()
        self._blocked.clear()
        self._out.clear()
        self.lost()
        self.streams.clear()

    def pause_writing(self) -> None:
        """The peer reads more slowly than we write."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_paused = False
        self._pump()

    def data_received(self, data: bytes) -> None:
        """Take in what has come."""
        self._last_came = time.monotonic()
        buffer = self._buffer + data if self._buffer else data
        try:
            self._buffer = buffer[self._take_frames(buffer) :]
        except ConnectionFault as fault:
            self.end(fault.code, str(fault))
        except BadBlockError as error:
            self.end(frames.COMPRESSION_ERROR, str(error))

    def _take_frames(self, buffer: bytes) -> int:
        """Take in the frames that are whole; where they end."""
        at, size = 0, len(buffer)
        while size - at >= frames.HEAD_BYTES:
            word, flags, number = frames.unpack_head(buffer, at)
            length = word >> 8
            if length > frames.LEAST_MAX_FRAME:  # we have told the peer of no other limit
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a frame is too large")
            start = at + frames.HEAD_BYTES
            if start + length > size:
                break
            at = start + length
            self._take(word & 0xFF, flags, number & frames.LARGEST_STREAM, buffer[start:at])
        return at

    # ----------------------------------------------------------------------------------------------------- frames in

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block_stream and (kind != frames.CONTINUATION or number != self._block_stream):
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a header block is broken off")
        if kind == frames.DATA:
            self._take_data(flags, number, payload)
        elif kind == frames.HEADERS:
            self._take_headers(flags, number, payload)
        elif kind == frames.WINDOW:
            self._take_window(number, payload)
        else:
            self._take_seldom(kind, flags, number, payload)

    def _take_seldom(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Frames of which a call needs none. Priorities, and kinds that are not known, are passed over."""
        if kind == frames.SETTINGS and not flags & frames.ACK:
            self._take_settings(payload)
        elif kind == frames.PING:
            self._take_ping(flags, payload)
        elif kind == frames.RESET:
            self._take_reset(number, payload)
        elif kind == frames.CONTINUATION:
            if not self._block_stream:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "a header block goes on that has not begun")
            self._add_to_block(flags, payload)
        elif kind == frames.GOAWAY:
            self.goaway_came(int.from_bytes(payload[:4]) & frames.LARGEST_STREAM)
        elif kind == frames.PUSH:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "nothing may be pushed")

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        # What the peer may send counts with its padding, and for streams that we know no more.
        self._taken_bytes += len(payload)
        if self._taken_bytes >= _CONNECTION_WINDOW // 2:
            self.write(frames.window(0, self._taken_bytes))
            self._taken_bytes = 0
        stream = self.streams.get(number)
        if stream is None:
            if not number:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "data of no stream")
            return
        ended = bool(flags & frames.END_STREAM)
        stream.taken_bytes += len(payload)
        if stream.taken_bytes >= _STREAM_WINDOW // 2 and not ended:
            self.write(frames.window(number, stream.taken_bytes))
            stream.taken_bytes = 0
        self.data_came(stream, _unpadded(flags, payload) if flags & frames.PADDED else payload, ended=ended)

    def _take_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "headers of no stream")
        if flags & frames.PADDED:
            payload = _unpadded(flags, payload)
        if flags & frames.PRIORITISED:
            payload = payload[5:]
        ended = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self.headers_came(number, self._decoder.decode(payload), ended=ended)
        else:
            self._block_stream, self._block_ends_stream = number, ended
            self._add_to_block(flags, payload)

    def _add_to_block(self, flags: int, payload: bytes) -> None:
        self._block += payload
        if len(self._block) > 2 * self.limits.header_bytes:
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            block, number = bytes(self._block), self._block_stream
            self._block.clear()
            self._block_stream = 0
            self.headers_came(number, self._decoder.decode(block), ended=self._block_ends_stream)

    def _take_window(self, number: int, payload: bytes) -> None:
        more = int.from_bytes(payload) & frames.LARGEST_WINDOW
        if len(payload) != 4:  # noqa: PLR2004
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a window of another size")
        if not number:
            self._window += more
            if not more or self._window > frames.LARGEST_WINDOW:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "a window that cannot be")
        elif (stream := self.streams.get(number)) is not None:
            stream.window += more
            if stream.window > frames.LARGEST_WINDOW:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "a window that cannot be")
        if self._blocked:
            self._pump()

    def _take_settings(self, payload: bytes) -> None:
        if len(payload) % 6:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "settings of another size")
        for at in range(0, len(payload), 6):
            self._take_setting(int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + 6]))
        self.answer(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))
        if not self._greeted:
            self._greeted = True
            self._keep_alive()
            self.settings_came()
        self._pump()

    def _take_setting(self, name: int, value: int) -> None:
        if name == frames.INITIAL_WINDOW:
            if value > frames.LARGEST_WINDOW:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "a window that cannot be")
            for stream in self.streams.values():
                stream.window += value - self.peer_window
            self.peer_window = value
        elif name == frames.MAX_FRAME:
            if not frames.LEAST_MAX_FRAME <= value <= frames.MOST_MAX_FRAME:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "a size of frames that cannot be")
            self._frame_bytes = min(value, _FRAME_BYTES)
        elif name == frames.MAX_CONCURRENT_STREAMS:
            self.peer_streams = value

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:  # noqa: PLR2004
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a ping of another size")
        if flags & frames.ACK:
            self.pong_came(payload)
        else:
            self.answer(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _take_reset(self, number: int, payload: bytes) -> None:
        now = self._last_came
        if now - self._resets_since > 1:
            self._resets, self._resets_since = 0, now
        self._resets += 1
        if self._resets > _RESETS_A_SECOND:
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too many calls are given up")
        stream = self.streams.get(number)
        if stream is not None:
            self.forget(stream)
            self.reset_came(stream, int.from_bytes(payload[:4]))

    def answer(self, answer: bytes) -> None:
        """Send what a frame of the peer's asks for. Raises ConnectionFault where the peer reads no answers."""
        if self._transport.get_write_buffer_size() > _UNREAD_BYTES + self._unsent_bytes:
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "the peer asks, and does not read the answers")
        self.write(answer)

    @property
    def _unsent_bytes(self) -> int:
        """What may rightly wait in the transport: a frame of each stream."""
        return len(self.streams) * _FRAME_BYTES

    # ---------------------------------------------------------------------------------------------------- frames out

    def write(self, raw: bytes) -> None:
        """Send frames that no flow control holds back. What is written in one turn of the loop goes out together."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(raw)

    def _flush(self) -> None:
        out = self._out
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def send(self, stream: StreamT, head: bytes, data: bytes, end: bytes = b"") -> None:
        """Send frames of a stream: `head` at once, `data` as flow control has room for it, `end` after it.

        Nothing is sent on one that is over.
        """
        if stream.is_over:
            return
        size = len(data)
        if not self._is_paused and not stream.unsent and size <= min(stream.window, self._window, self._frame_bytes):
            stream.window -= size
            self._window -= size
            framed = frames.pack_head(size << 8, 0, stream.number) + data if size else b""
            self.write(head + framed + end)
            if end:
                self.end_sent(stream)
            return
        if head:
            self.write(head)
        stream.unsent += data
        stream.unsent_end = end
        if stream.unsent or end:
            self._blocked[stream.number] = stream
            self._pump()

    def _pump(self) -> None:
        """Send what waits and has room, a frame of each stream in turn."""
        while self._blocked and not self._is_paused:
            moved = False
            for stream in list(self._blocked.values()):
                moved |= self._send_piece(stream)
                if self._is_paused:
                    return
            if not moved:
                return

    def _send_piece(self, stream: StreamT) -> bool:
        """Send a frame of what waits in a stream; whether there was room."""
        unsent = stream.unsent
        size = max(0, min(len(unsent), stream.window, self._window, self._frame_bytes))
        if unsent and not size:
            return False
        stream.window -= size
        self._window -= size
        piece = frames.frame(frames.DATA, 0, stream.number, bytes(unsent[:size])) if size else b""
        del unsent[:size]
        if unsent:
            self.write(piece)
            return True
        del self._blocked[stream.number]
        self.write(piece + stream.unsent_end)
        if stream.unsent_end:
            stream.unsent_end = b""
            self.end_sent(stream)
        stream.wake()
        return True

    def forget(self, stream: StreamT) -> None:
        """Know a stream no more: it has come to its end, or was given up."""
        stream.is_over = True
        stream.unsent.clear()
        self._blocked.pop(stream.number, None)
        self.streams.pop(stream.number, None)
        stream.wake()

    def give_up(self, stream: StreamT, code: int) -> None:
        """Reset a stream, where it is not over."""
        if not stream.is_over:
            self.forget(stream)
            self.write(frames.reset(stream.number, code))

    # ------------------------------------------------------------------------------------------------- life and death

    def end(self, code: int = frames.NO_ERROR, why: str = "") -> None:
        """Close the connection, what was written being sent before."""
        if self._transport.is_closing():
            return
        self.lost_because = self.lost_because or why
        self.write(frames.goaway(self.last_stream, code))
        self.close()

    def close(self) -> None:
        """Close the connection, what was written being sent before."""
        self._flush()
        self._transport.close()

    @property
    def last_stream(self) -> int:
        """The peer's newest stream that we have taken."""
        return 0

    @property
    def transport(self) -> asyncio.Transport:
        """What the connection goes over."""
        return self._transport

    def _check_greeted(self) -> None:
        if not self._greeted:
            self.lost_because = "the peer does not speak HTTP/2"
            self._transport.abort()

    def _keep_alive(self) -> None:
        """Look, once in a while, whether the peer is still there."""
        if self._watch is not None:
            self._watch.cancel()
        silent = time.monotonic() - self._last_came
        loop = asyncio.get_running_loop()
        if silent < self.limits.ping_seconds:
            self._watch = loop.call_later(self.limits.ping_seconds - silent, self._keep_alive)
        else:
            self.write(frames.frame(frames.PING, 0, 0, bytes(8)))
            self._watch = loop.call_later(self.limits.pong_seconds, self._check_alive, self._last_came)

    def _check_alive(self, came_before: float) -> None:
        if self._last_came == came_before:
            self.lost_because = "the peer does not answer"
            self._transport.abort()
        else:
            self._keep_alive()


def _unpadded(flags: int, payload: bytes) -> bytes:
    """A payload without its padding."""
    assert flags & frames.PADDED
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(frames.PROTOCOL_ERROR, "more padding than there is")
    return payload[1 : len(payload) - payload[0]]
