"""Owns the use cases of entitlements."""

from __future__ import annotations

from services.proxy.cache import LookupCache
from services.proxy.entitlements.model import Entitlement
from services.proxy.entitlements.store import EntitlementStore
from services.proxy.invalidation import Announcer, EntitlementChanged


class Entitlements:
    """Takes in and looks up what accounts may call; what calls are checked against is at most the lifetime old."""

    def __init__(
        self, store: EntitlementStore, announcer: Announcer, *, lifetime_seconds: float, max_entries: int
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._cache: LookupCache[str, Entitlement] = LookupCache(
            store.get, lifetime_seconds=lifetime_seconds, max_entries=max_entries
        )

    async def take_in(self, wanted: Entitlement) -> Entitlement:
        """Store an entitlement unless it is older than the one there; the one in force afterwards."""
        in_force = await self._store.put(wanted)
        self.forget(wanted.account_id)
        # A repeat, too: the first may have been cut off before it told anybody.
        await self._announcer.announce(EntitlementChanged(wanted.account_id))
        return in_force

    def forget(self, account_id: str) -> None:
        """Look an entitlement up anew the next time: it was changed."""
        self._cache.forget(account_id)

    def forget_all(self) -> None:
        """Look every entitlement up anew the next time: changes may have gone unheard."""
        self._cache.forget_all()

    async def stored(self, account_id: str) -> Entitlement | None:
        """The one in force, from the database."""
        return await self._store.get(account_id)

    def remembered(self, account_id: str) -> Entitlement | None:
        """The one in force, where it is in memory."""
        return self._cache.remembered(account_id)

    async def get(self, account_id: str) -> Entitlement | None:
        """The one in force, from memory where it is."""
        return await self._cache.get(account_id)
