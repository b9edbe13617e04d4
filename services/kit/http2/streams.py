"""Owns one call's stream on a connection: its messages taken apart, and what waits until there is room to send it."""

from __future__ import annotations

import asyncio

_MESSAGE_HEAD_BYTES = 5
_NOT_COMPRESSED = b"\0"


class TooLargeError(Exception):
    """A message above the limit; the text says so."""


class CompressedError(Exception):
    """A compressed message, which we do not take."""


def message(data: bytes) -> bytes:
    """A message with gRPC's prefix, not compressed."""
    return _NOT_COMPRESSED + len(data).to_bytes(4) + data


class Stream:
    """One call on a connection: what of it has come and is no message yet, what is to be sent and has no room yet.

    `window`: bytes that the peer takes on it. `taken_bytes`: what has come since the peer was last told that it may
    send more; it is not told while `is_full`.
    """

    __slots__ = ("is_full", "is_over", "number", "received", "room", "taken_bytes", "unsent", "unsent_end", "window")

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.window = window
        self.received = bytearray()
        self.taken_bytes = 0
        self.is_full = False
        self.unsent = bytearray()
        self.unsent_end = b""
        self.room: asyncio.Event | None = None
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

    async def sent(self, stall_seconds: float) -> None:
        """Wait until all was sent, or nothing can be any more: whoever makes much waits for whoever reads it.

        Raises TimeoutError where the peer takes nothing for so long.
        """
        while (self.unsent or self.unsent_end) and not self.is_over:
            if self.room is None:
                self.room = asyncio.Event()
            self.room.clear()
            left = len(self.unsent)
            try:
                async with asyncio.timeout(stall_seconds):
                    await self.room.wait()
            except TimeoutError:
                if len(self.unsent) == left:
                    raise

    def wake(self) -> None:
        """Let go on who waits in `sent`."""
        if self.room is not None:
            self.room.set()
