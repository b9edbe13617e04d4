"""Owns the way from a call, which lives for itself, to the client, who may leave: bounded, and never in the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.proxy.errors import ClientStalled

_WAITING_PIECES = 64

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Head:
    """What comes before the body: response headers, and the body's content type."""

    metadata: Metadata
    content_type: str


class Delivery:
    """Carries a head, then pieces of the body, then the end; or, before the head, a failure.

    A client that reads slowly slows the call down. One that has left, or has read nothing for `stall_seconds`, does
    not: what is sent then is dropped.
    """

    def __init__(self, stall_seconds: float = 60) -> None:
        self._stall_seconds = stall_seconds
        self._queue: asyncio.Queue[Head | bytes | Exception | None] = asyncio.Queue(_WAITING_PIECES)
        self._ended = False
        self.abandoned = False
        self.begun = False  # something of the answer has been sent

    async def send(self, item: Head | bytes) -> None:
        """Send the next thing."""
        self.begun = True
        await self._put(item)

    async def end(self, failure: Exception | None = None) -> None:
        """Say that nothing more comes, and why where it is not the answer's end. Only the first time counts."""
        if not self._ended:
            self._ended = True
            await self._put(failure)

    async def _put(self, item: Head | bytes | Exception | None) -> None:
        if self.abandoned:
            return
        try:
            async with asyncio.timeout(self._stall_seconds if self._queue.full() else None):
                await self._queue.put(item)
        except TimeoutError:
            self.abandon()
            self._queue.put_nowait(ClientStalled("the client stopped reading"))

    def abandon(self) -> None:
        """Say that nobody reads any more."""
        self.abandoned = True
        while not self._queue.empty():
            self._queue.get_nowait()

    async def head(self) -> Head:
        """The head. Raises the call's failure where there is none."""
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        assert isinstance(item, Head)
        return item

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. Raises what broke it off."""
        while (item := await self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            assert isinstance(item, bytes)
            yield item
