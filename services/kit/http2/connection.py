"""Owns what both sides of a connection do with what comes: frames, settings, keepalive, and the ways to end.

A side subclasses Connection and is told what comes: `headers_came`, `data_came`, `reset_came`, `goaway_came`, `lost`.
Whatever a peer may make us keep has a limit: a header block, the streams at once, what is not yet answered to it. The
size of messages, and of what waits to be sent, is limited by those who use the streams.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.kit.http2 import frames
from services.kit.http2.headers import Decoder
from services.kit.http2.hpack import BadBlockError
from services.kit.http2.sending import MOST_FRAME_BYTES, Sending, StreamT
from services.kit.logs import get_logger

_log = get_logger(__name__)

# What a peer may send on one stream, and on all, before it is told that it was taken in.
_STREAM_WINDOW = 1024 * 1024
_CONNECTION_WINDOW = 16 * 1024 * 1024
# What a peer says to no end within a second, resets of what is no call and changed settings, beyond which it is taken
# for an attack or a fault. Calls that are given up are not among it (CVE-2023-44487): through the gateway anybody may
# give up many, and the connection has the calls of all others, too.
_UPSETS_A_SECOND = 2_000
_PREFACE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one side of a connection takes, and how it finds out that the other is gone.

    `header_bytes`: of all of a call's headers as they are in memory; twice as much ends the connection. A side pings
    after `ping_seconds` in which nothing came, and lets go where `pong_seconds` later nothing has come still. A call
    whose peer takes nothing of what waits for it for `stall_seconds` is given up: it has a place that others wait for.
    """

    message_bytes: int
    header_bytes: int
    streams: int
    ping_seconds: float
    pong_seconds: float
    stall_seconds: float = 120


class ConnectionFault(Exception):  # noqa: N818 (not an error of ours: what the peer did)
    """The peer broke the protocol; the connection ends with this code of HTTP/2's."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


HeadT = TypeVar("HeadT")


class Connection(Sending[StreamT], Generic[StreamT, HeadT]):
    """One connection. `decoder` reads its header blocks."""

    def __init__(self, limits: Limits, decoder: Decoder[HeadT]) -> None:
        super().__init__()
        self.limits = limits
        self.peer_streams = frames.LARGEST_STREAM  # as many calls at once the peer takes
        self._decoder = decoder
        self._buffer = b""
        self._block = bytearray()
        self._block_stream = 0
        self._block_ends_stream = False
        self._taken_bytes = 0
        self._greeted = False
        self._last_came = time.monotonic()
        self._watch: asyncio.TimerHandle | None = None
        self._upsets = 0
        self._upsets_since = 0.0

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
        self._waiting.clear()
        self._ending.clear()
        self._out.clear()
        self.lost()
        self.streams.clear()

    def data_received(self, data: bytes) -> None:
        """Take in what has come."""
        if self._transport.is_closing():
            return
        self._last_came = time.monotonic()
        buffer = self._buffer + data if self._buffer else data
        try:
            self._buffer = buffer[self._take_frames(buffer) :]
        except ConnectionFault as fault:
            self.end(fault.code, str(fault))
        except BadBlockError as error:
            self.end(frames.COMPRESSION_ERROR, str(error))
        except Exception:  # noqa: BLE001 (a fault of ours: its peer is told, and it ends no other connection)
            _log.exception("a frame could not be taken in")
            self.end(frames.INTERNAL_ERROR, "a frame could not be taken in")

    def _take_frames(self, buffer: bytes) -> int:
        """Take in the frames that are whole; where they end."""
        at, size = 0, len(buffer)
        while size - at >= frames.HEAD_BYTES:
            word, flags, number = frames.unpack_head(buffer, at)
            length = word >> 8
            if not self._greeted and word & 0xFF != frames.SETTINGS:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "the peer does not speak HTTP/2")
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
        self.data_came(stream, _unpadded(flags, payload) if flags & frames.PADDED else payload, ended=ended)
        if not ended:
            self.let_send(stream)

    def let_send(self, stream: StreamT) -> None:
        """Tell the peer that it may send more on a stream, once that is much and where there is room for it."""
        if stream.taken_bytes >= _STREAM_WINDOW // 2 and not stream.is_full and not stream.is_over:
            self.write(frames.window(stream.number, stream.taken_bytes))
            stream.taken_bytes = 0

    def _take_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "headers of no stream")
        if flags & frames.PADDED:
            payload = _unpadded(flags, payload)
        if flags & frames.PRIORITISED:
            if len(payload) < 5:  # noqa: PLR2004
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a priority of another size")
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
            self.widen(stream, more)
            if stream.window > frames.LARGEST_WINDOW:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "a window that cannot be")
        self._pump()

    def _take_settings(self, payload: bytes) -> None:
        if len(payload) % 6:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "settings of another size")
        self._count_upset()
        found = {}
        for at in range(0, len(payload), 6):
            found[int.from_bytes(payload[at : at + 2])] = int.from_bytes(payload[at + 2 : at + 6])
        self._apply(found)
        self.answer(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))
        if not self._greeted:
            self._greeted = True
            self._keep_alive()
            self.settings_came()
        self._pump()

    def _apply(self, found: dict[int, int]) -> None:
        """Keep to the peer's settings, those that it said last."""
        window = found.get(frames.INITIAL_WINDOW, self.peer_window)
        if window > frames.LARGEST_WINDOW:
            raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "a window that cannot be")
        more, self.peer_window = window - self.peer_window, window
        if more:
            for stream in self.streams.values():
                self.widen(stream, more)
        size = found.get(frames.MAX_FRAME, self._frame_bytes)
        if not frames.LEAST_MAX_FRAME <= size <= frames.MOST_MAX_FRAME:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a size of frames that cannot be")
        self._frame_bytes = min(size, MOST_FRAME_BYTES)
        self.peer_streams = found.get(frames.MAX_CONCURRENT_STREAMS, self.peer_streams)

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:  # noqa: PLR2004
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a ping of another size")
        if flags & frames.ACK:
            self.pong_came(payload)
        else:
            self.answer(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _take_reset(self, number: int, payload: bytes) -> None:
        stream = self.streams.get(number)
        if stream is None:
            self._count_upset()
            return
        self.forget(stream)
        self.reset_came(stream, int.from_bytes(payload[:4]))

    def _count_upset(self) -> None:
        """Count what a peer says to no end. Raises ConnectionFault where it is too much."""
        now = self._last_came
        if now - self._upsets_since > 1:
            self._upsets, self._upsets_since = 0, now
        self._upsets += 1
        if self._upsets > _UPSETS_A_SECOND:
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too much is said to no end")

    # ------------------------------------------------------------------------------------------------- life and death

    def end(self, code: int = frames.NO_ERROR, why: str = "") -> None:
        """Close the connection, what was written being sent before."""
        if self._transport.is_closing():
            return
        self.lost_because = self.lost_because or why
        self.write(frames.goaway(self.last_stream, code))
        self.close()

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
            self.abort("the peer does not speak HTTP/2")

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
            self.abort("the peer does not answer")
        else:
            self._keep_alive()


def _unpadded(flags: int, payload: bytes) -> bytes:
    """A payload without its padding."""
    assert flags & frames.PADDED
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(frames.PROTOCOL_ERROR, "more padding than there is")
    return payload[1 : len(payload) - payload[0]]
