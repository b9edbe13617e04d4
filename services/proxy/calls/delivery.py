"""Owns the way from a call, which lives for itself, to the client, who may leave: bounded, and never in the way."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from services.proxy.errors import ClientStalled

_WAITING_PIECES = 64
# What waits goes out together up to this: a message costs as much as thousands of bytes in it.
_JOINED_BYTES = 64 * 1024

Metadata = tuple[tuple[str, str], ...]


class Head(NamedTuple):
    """What comes before the body: response headers, and the body's content type."""

    metadata: Metadata
    content_type: str


class Delivery:
    """Carries a head, then pieces of the body, then the end; or, before the head, a failure.

    A client that reads slowly slows the call down, by `patience_seconds` in all: the provider is to be read to its end
    in the call's time, whoever reads. One that has left, or has read nothing for `stall_seconds`, does not: what is
    sent then is dropped. There is one call that sends, and one client that reads.
    """

    __slots__ = (
        "_ended",
        "_items",
        "_patience_seconds",
        "_something",
        "_stall_seconds",
        "_taken",
        "abandoned",
        "begun",
        "on_abandoned",
        "overheard",
    )

    def __init__(self, stall_seconds: float = 120, patience_seconds: float = 300) -> None:
        self._stall_seconds = stall_seconds
        self._patience_seconds = patience_seconds  # what is left of it
        self._items: deque[Head | bytes | Exception | None] = deque()
        self._something: asyncio.Future[None] | None = None  # the client waits for this
        self._taken: asyncio.Future[None] | None = None  # the call waits for this, for room
        self._ended = False
        self.abandoned = False
        self.begun = False  # something of the answer has been sent
        self.overheard: Callable[[bytes], None] | None = None  # told every piece, whether there is a client or not
        self.on_abandoned: Callable[[], None] | None = None  # called, once, when nobody reads any more

    def put(self, item: Head | bytes) -> bool:
        """Send the next thing, where there is room for it; whether there was. Else `send` it."""
        self.begun = True
        if len(self._items) >= _WAITING_PIECES:
            return False
        self._give(item)
        return True

    async def send(self, item: Head | bytes) -> None:
        """Send the next thing, when there is room for it."""
        if not self.put(item):
            await self._room()
            self._give(item)

    async def end(self, failure: Exception | None = None) -> None:
        """Say that nothing more comes, and why where it is not the answer's end. Only the first time counts."""
        if failure is not None:
            # Its frames hold the request, and the last of them holds it: both would outlast the call.
            failure.__traceback__ = None
        if not self._ended:
            self._ended = True
            if not self.abandoned:
                self._add(failure)

    def _give(self, item: Head | bytes) -> None:
        if self.overheard is not None and isinstance(item, bytes):
            self.overheard(item)
        if not self.abandoned:
            self._add(item)

    def _add(self, item: Head | bytes | Exception | None) -> None:
        self._items.append(item)
        _wake(self._something)

    async def _room(self) -> None:
        """Wait until the client takes something, or has left; one that does neither has stalled."""
        self._taken = asyncio.get_running_loop().create_future()
        begun = time.monotonic()
        try:
            async with asyncio.timeout(min(self._stall_seconds, self._patience_seconds)):
                await self._taken
        except TimeoutError:
            self.abandon()
            self._add(ClientStalled("the client stopped reading"))
        finally:
            self._taken = None
            self._patience_seconds -= time.monotonic() - begun

    def abandon(self) -> None:
        """Say that nobody reads any more."""
        self.abandoned = True
        self._items.clear()
        _wake(self._taken)
        if self.on_abandoned is not None:
            told, self.on_abandoned = self.on_abandoned, None
            told()

    async def _next(self) -> Head | bytes | None:
        """The next thing. Raises the failure where it is one."""
        if not self._items:
            self._something = asyncio.get_running_loop().create_future()
            try:
                await self._something
            finally:
                self._something = None
        item = self._items.popleft()
        _wake(self._taken)
        if isinstance(item, Exception):
            raise item
        return item

    async def head(self) -> Head:
        """The head. Raises the call's failure where there is none."""
        head = await self._next()
        assert isinstance(head, Head)
        return head

    async def piece(self) -> bytes | None:
        """The next piece of the body as it was sent, None at the end. Raises what broke it off."""
        piece = await self._next()
        assert not isinstance(piece, Head)
        return piece

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, piece by piece. Raises what broke it off."""
        while (piece := await self.piece()) is not None:
            yield piece

    async def waiting(self) -> bytes | None:
        """What waits of the body, together: at least a piece, and no more than 64 KiB of several; None at the end.

        Raises what broke it off.
        """
        piece, items = await self._next(), self._items
        assert not isinstance(piece, Head)
        if piece is None or not items or not isinstance(items[0], bytes):
            return piece
        joined, size = [piece], len(piece)
        while items and isinstance(item := items[0], bytes) and size + len(item) <= _JOINED_BYTES:
            joined.append(item)
            size += len(item)
            items.popleft()
        return b"".join(joined)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
