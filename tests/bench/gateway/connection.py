"""Owns the client's HTTP/1.1: one request again and again on one connection, each sent when the last was answered."""

import asyncio
import time

from tests.bench.support.window import Window

# Bodies here are JSON and events, in which no carriage return stands, so this can only be the end of a chunked one.
_CHUNKED_END = b"\r\n0\r\n\r\n"
_LENGTH = b"content-length: "
_EVENT = b"data: "


class Sender(asyncio.Protocol):
    """Sends until `window` is over or `calls` have been answered. `ended` is resolved then, or fails with the answer.

    `first` keeps when each answer's first event came; it is empty where `stream` is not set.
    """

    def __init__(self, request: bytes, window: Window, *, stream: bool, calls: int = 0) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first: list[tuple[float, float]] = []
        self._request = request
        self._window = window
        self._stream = stream
        self._left = calls or -1
        self._buffer = b""
        self._awaits_event = stream
        self._sent = 0.0

    def connection_made(self, transport) -> None:
        """Send the first."""
        self._transport = transport
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail where an answer was still to come."""
        if not self.ended.done():
            self.ended.set_exception(ConnectionError(f"the connection was lost: {error}"))

    def data_received(self, data: bytes) -> None:
        """Take in a piece of an answer; once it is whole, send the next request."""
        buffer = self._buffer = self._buffer + data if self._buffer else data
        if self._awaits_event and _EVENT in buffer:
            self._awaits_event = False
            self.first.append((self._sent, time.perf_counter()))
        if not _is_whole(buffer):
            return
        now = time.perf_counter()
        if buffer[9:12] != b"200":
            if not self.ended.done():
                self.ended.set_exception(ConnectionError(f"refused: {buffer[:2000].decode(errors='replace')}"))
            self._transport.close()
            return
        self._window.note(self._sent, now)
        self._left -= 1
        if self._window.over or self._left == 0:
            self.ended.set_result(None)
            self._transport.close()
        else:
            self._send()

    def _send(self) -> None:
        self._buffer = b""
        self._awaits_event = self._stream
        self._sent = time.perf_counter()
        self._transport.write(self._request)


def _is_whole(buffer: bytes) -> bool:
    if buffer.endswith(_CHUNKED_END):
        return True
    ends = buffer.find(b"\r\n\r\n")
    at = buffer.find(_LENGTH, 0, ends) if ends > 0 else -1
    if at < 0:
        return False
    length = int(buffer[at + len(_LENGTH) : buffer.index(b"\r\n", at)])
    return len(buffer) >= ends + 4 + length
