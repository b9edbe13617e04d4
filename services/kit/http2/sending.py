"""Owns what a connection sends: frames of one turn of the loop together, requests at once, data as there is room."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from services.kit.http2 import frames
from services.kit.http2.streams import Stream

# We split what we send into frames of at most so much, even where the peer takes larger ones: streams share the way.
MOST_FRAME_BYTES = 64 * 1024
# More than this is not kept for the end of a turn: the transport says then whether the peer still reads.
_TURN_BYTES = 64 * 1024
# A peer that makes us answer (pings, settings, calls refused) and does not read the answers is let go at so much.
_UNREAD_BYTES = 1024 * 1024

StreamT = TypeVar("StreamT", bound=Stream)


class Sending(asyncio.Protocol, Generic[StreamT]):
    """The half of a connection that sends.

    A stream whose data wait is in `_waiting` where its own window has room for more, so that the connection's window
    and the transport alone hold it up; its turn comes after those that were there before. One whose end alone waits is
    in `_ending`: only the transport holds that up.
    """

    def __init__(self) -> None:
        self.streams: dict[int, StreamT] = {}
        self.peer_window = frames.FIRST_WINDOW  # of a new stream
        self.lost_because = ""
        self._transport: asyncio.Transport
        self._window = frames.FIRST_WINDOW
        self._frame_bytes = frames.LEAST_MAX_FRAME
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._waiting: dict[int, StreamT] = {}
        self._ending: dict[int, StreamT] = {}
        self._is_paused = False
        self._unread_bytes = 0

    def end_sent(self, stream: StreamT) -> None:
        """All that we had to send on a stream was sent."""

    def pause_writing(self) -> None:
        """The peer reads more slowly than we write."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_paused = False
        self._unread_bytes = 0
        self._pump()

    def write(self, raw: bytes) -> None:
        """Send frames that no flow control holds back. What is written in one turn of the loop goes out together."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self.flush)
        self._out.append(raw)
        self._out_bytes += len(raw)
        if self._out_bytes > _TURN_BYTES:
            self.flush()

    def answer(self, raw: bytes) -> None:
        """Send what a frame of the peer's asks for. One that asks on and on, and reads no answers, is let go."""
        if self._is_paused:
            self._unread_bytes += len(raw)
            if self._unread_bytes > _UNREAD_BYTES:
                self.abort("the peer asks, and does not read the answers")
        self.write(raw)

    def flush(self) -> None:
        """Send what was written, now: what the loop has to do in this turn may take long."""
        out, self._out, self._out_bytes = self._out, [], 0
        if out and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def close(self) -> None:
        """Close the connection, what was written being sent before."""
        self.flush()
        self._transport.close()

    def abort(self, why: str) -> None:
        """Close the connection to a peer that takes nothing more."""
        self.lost_because = self.lost_because or why
        self._transport.abort()

    def send(self, stream: StreamT, head: bytes, data: bytes, end: bytes = b"") -> None:
        """Send frames of a stream: `head` at once, `data` as flow control has room for it, `end` after it.

        Nothing is sent on one that is over.
        """
        if stream.is_over:
            return
        size = len(data)
        if not (self._is_paused or stream.unsent) and size <= min(stream.window, self._window, self._frame_bytes):
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
        if stream.unsent:
            self._await_turn(stream)
        elif end:
            self._ending[stream.number] = stream
        self._pump()

    def _await_turn(self, stream: StreamT) -> None:
        if stream.unsent and stream.window > 0:
            self._waiting.setdefault(stream.number, stream)

    def widen(self, stream: StreamT, more_bytes: int) -> None:
        """Give a stream's window so much more, or less: settings that came late may leave it below nothing."""
        stream.window += more_bytes
        self._await_turn(stream)

    def _pump(self) -> None:
        """Send what waits and has room, a frame of each stream in turn."""
        while self._ending and not self._is_paused:
            stream = self._ending.pop(next(iter(self._ending)))
            self._send_end(stream)
        while self._waiting and self._window > 0 and not self._is_paused:
            stream = self._waiting.pop(next(iter(self._waiting)))
            self._send_piece(stream)

    def _send_piece(self, stream: StreamT) -> None:
        """Send a frame of what waits in a stream, as large as there is room for."""
        unsent = stream.unsent
        size = min(len(unsent), stream.window, self._window, self._frame_bytes)
        if size <= 0:  # settings have come meanwhile
            return
        stream.window -= size
        self._window -= size
        piece = frames.frame(frames.DATA, 0, stream.number, bytes(unsent[:size]))
        del unsent[:size]
        self.write(piece)
        if unsent:
            self._await_turn(stream)
        elif stream.unsent_end:
            self._send_end(stream)
        else:
            stream.wake()

    def _send_end(self, stream: StreamT) -> None:
        end, stream.unsent_end = stream.unsent_end, b""
        self.write(end)
        self.end_sent(stream)
        stream.wake()

    def forget(self, stream: StreamT) -> None:
        """Know a stream no more: it has come to its end, or was given up."""
        stream.is_over = True
        stream.unsent.clear()
        self._waiting.pop(stream.number, None)
        self._ending.pop(stream.number, None)
        self.streams.pop(stream.number, None)
        stream.wake()

    def give_up(self, stream: StreamT, code: int) -> None:
        """Reset a stream, where it is not over."""
        if not stream.is_over:
            self.write(frames.reset(stream.number, code))
            self.forget(stream)
