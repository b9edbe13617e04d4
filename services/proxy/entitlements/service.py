"""Owns the use cases of entitlements."""

from __future__ import annotations

from services.proxy.cache import LookupCache
from services.proxy.entitlements.model import Entitlement
from services.proxy.entitlements.store import EntitlementStore


class Entitlements:
    """Takes in and looks up what accounts may call; what calls are checked against is at most the lifetime old."""

    def __init__(self, store: EntitlementStore, *, lifetime_seconds: float, max_entries: int) -> None:
        self._store = store
        self._cache: LookupCache[str, Entitlement] = LookupCache(
            store.get, lifetime_seconds=lifetime_seconds, max_entries=max_entries
        )

    async def take_in(self, wanted: Entitlement) -> Entitlement:
        """Store an entitlement unless it is older than the one there; the one in force afterwards."""
        in_force = await self._store.put(wanted)
        self._cache.forget(wanted.account_id)
        return in_force

    async def stored(self, account_id: str) -> Entitlement | None:
        """The one in force, from the database."""
        return await self._store.get(account_id)

    def remembered(self, account_id: str) -> Entitlement | None:
        """The one in force, where it is in memory."""
        return self._cache.remembered(account_id)

    async def get(self, account_id: str) -> Entitlement | None:
        """The one in force, from memory where it is."""
        return await self._cache.get(account_id)
