"""Owns what is remembered of a lookup, for a stated time and in a bounded amount."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from services.kit.bounded import keep
from services.kit.refusals import StorageUnavailable

# A database that is stopped, or cut off, says nothing: its connections stand, and no limit of its own ends a statement.
_LOAD_SECONDS = 5.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LookupCache(Generic[K, V]):
    """Remembers what `load` gave, for at most `lifetime_seconds` counted from when it was asked.

    Counted from there, because what was read may have changed while the answer was on its way: a change committed at
    some moment is seen by every lookup that begins `lifetime_seconds` later. What is not there (None) is remembered
    apart from what is, so that guesses do not push out what is known. Lookups of one key at once ask once. `load` is
    given `load_seconds` to answer.
    """

    def __init__(
        self,
        load: Callable[[K], Awaitable[V | None]],
        *,
        lifetime_seconds: float,
        max_entries: int,
        load_seconds: float = _LOAD_SECONDS,
    ) -> None:
        self._load = load
        self._load_seconds = load_seconds
        self._lifetime_seconds = lifetime_seconds
        self._max_entries = max_entries
        self._known: dict[K, tuple[V, float]] = {}
        self._absent: dict[K, float] = {}
        self._loading: dict[K, asyncio.Task[V | None]] = {}

    def remembered(self, key: K) -> V | None:
        """What is remembered, without asking; None where nothing is."""
        found = self._known.get(key)
        if found is not None and time.monotonic() < found[1]:
            return found[0]
        return None

    async def get(self, key: K) -> V | None:
        """What is remembered, else what `load` gives.

        Raises what `load` raises, which is never remembered, and StorageUnavailable where it gives nothing in time.
        """
        found = self.remembered(key)
        if found is not None:
            return found
        if time.monotonic() < self._absent.get(key, 0.0):
            return None
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.create_task(self._loaded(key))
            loading.add_done_callback(_seen)
        limit = asyncio.timeout(self._load_seconds)
        try:
            async with limit:
                # One caller that gives up must not fail the others who wait for the same.
                return await asyncio.shield(loading)
        except TimeoutError:
            if not limit.expired():
                raise
            if self._loading.get(key) is loading:
                del self._loading[key]  # it may hang for long: who comes next asks anew
            raise StorageUnavailable("the database did not answer", retry_after_seconds=1) from None

    def forget(self, key: K) -> None:
        """Ask anew the next time; an answer on its way now is not remembered."""
        self._known.pop(key, None)
        self._absent.pop(key, None)
        self._loading.pop(key, None)

    def forget_all(self) -> None:
        """Forget everything, as `forget` does with one."""
        self._known.clear()
        self._absent.clear()
        self._loading.clear()

    async def _loaded(self, key: K) -> V | None:
        expires = time.monotonic() + self._lifetime_seconds
        mine = asyncio.current_task()
        try:
            found = await self._load(key)
            if self._loading.get(key) is mine:
                self._remember(key, found, expires)
            return found
        finally:
            if self._loading.get(key) is mine:
                del self._loading[key]

    def _remember(self, key: K, found: V | None, expires: float) -> None:
        if found is None:
            self._known.pop(key, None)
            keep(self._absent, key, expires, at_most=self._max_entries)
        else:
            self._absent.pop(key, None)
            keep(self._known, key, (found, expires), at_most=self._max_entries)


def _seen(task: asyncio.Task[V | None]) -> None:
    """Look at a load's failure even where everyone who waited for it has gone."""
    if not task.cancelled():
        task.exception()
