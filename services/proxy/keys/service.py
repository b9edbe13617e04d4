"""Owns the use cases of keys.

A key's own limits are in the ledger before the key is here, so none can ever be used without them. What breaks off in
between leaves limits that name a key nobody has.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb

from services.proxy.clock import utc_now
from services.proxy.entitlements.service import Entitlements
from services.proxy.errors import AccountNotFound, IdempotencyConflict, KeyNotFound
from services.proxy.invalidation import Announcer, KeyChanged
from services.proxy.keys.credentials import KnownKeys
from services.proxy.keys.model import Key, new_key_id, new_secret, sha256
from services.proxy.keys.store import KeyStore
from services.proxy.ledger import Ledger


@dataclass(frozen=True, slots=True)
class KeyWish:
    """The key that is asked for. Limits of 0 are none of its own; amounts in nanos."""

    account_id: str
    name: str
    key_type: str
    prefix: str
    workspace: str
    allowed_models: frozenset[str]
    daily_limit_nanos: int
    monthly_limit_nanos: int
    requests_per_minute: int
    tokens_per_minute: int
    expires_at: datetime | None


class Keys:
    """Makes, shows, rotates and ends keys."""

    def __init__(
        self, store: KeyStore, known: KnownKeys, entitlements: Entitlements, ledger: Ledger, announcer: Announcer
    ) -> None:
        self._store = store
        self._known = known
        self._entitlements = entitlements
        self._ledger = ledger
        self._announcer = announcer

    async def made_for(self, account_id: str, request_id: str, request_sha256: bytes) -> Key | None:
        """The key that this request has made before. Raises IdempotencyConflict where the request was another."""
        found = await self._store.by_request(account_id, request_id)
        if found is None:
            return None
        key, before = found
        if before != request_sha256:
            raise IdempotencyConflict("this request id was used with another body", request_id=request_id)
        return key

    async def create(
        self, wish: KeyWish, *, created_by: str, request_id: str = "", request_sha256: bytes = b""
    ) -> tuple[Key, str]:
        """A new key and its secret, shown this once; (key, "") where the request was answered before.

        Its limits are in the ledger before the key can be used. Raises AccountNotFound, IdempotencyConflict,
        LedgerUnavailable, and what the ledger refuses.
        """
        if wish.account_id and await self._entitlements.stored(wish.account_id) is None:
            raise AccountNotFound("no such account", account_id=wish.account_id)
        secret = new_secret(wish.prefix)
        key = Key(
            key_id=_key_id(wish.account_id, request_id, request_sha256),
            account_id=wish.account_id,
            name=wish.name,
            key_type=wish.key_type,
            prefix=wish.prefix,
            last_four=secret[-4:],
            workspace=wish.workspace,
            allowed_models=wish.allowed_models,
            daily_limit_nanos=wish.daily_limit_nanos,
            monthly_limit_nanos=wish.monthly_limit_nanos,
            requests_per_minute=wish.requests_per_minute,
            tokens_per_minute=wish.tokens_per_minute,
            created_at=utc_now(),
            expires_at=wish.expires_at,
        )
        limits = _limits(key)
        if limits:
            await self._ledger.apply(*limits)
        added = await self._store.add(
            key,
            key_sha256=sha256(secret),
            created_by=created_by,
            request_id=request_id or None,
            request_sha256=request_sha256 if request_id else None,
        )
        if not added:  # the same request twice at once; the other was first
            before = await self.made_for(wish.account_id, request_id, request_sha256)
            assert before is not None
            return before, ""
        return key, secret

    async def rotate(
        self,
        key_id: str,
        *,
        overlap_seconds: int,
        created_by: str,
        request_id: str = "",
        request_sha256: bytes = b"",
    ) -> tuple[Key, str]:
        """A key in the place of another, and its secret; (key, "") where the request was answered before.

        The other one ends after the overlap, or earlier where it was to. Both count against the same limits, so the
        ledger is not asked. Raises KeyNotFound, KeyReplaced, KeyNotActive, IdempotencyConflict.
        """
        old = await self.get(key_id)
        if request_id:
            before = await self.made_for(old.account_id, request_id, request_sha256)
            if before is not None:
                return before, ""
        now, secret = utc_now(), new_secret(old.prefix)
        old.require_rotatable(now)
        new = old.rotated(secret, now)
        ended = await self._store.replace(
            key_id,
            new,
            ends_at=now + timedelta(seconds=overlap_seconds),
            key_sha256=sha256(secret),
            created_by=created_by,
            request_id=request_id or None,
            request_sha256=request_sha256 if request_id else None,
        )
        if ended is None:  # something else happened to the key, or the same request, at once; that was first
            return await self._rotated_by_another(old, request_id, request_sha256), ""
        await self._changed(key_id, ended)
        return new, secret

    async def _rotated_by_another(self, old: Key, request_id: str, request_sha256: bytes) -> Key:
        """The key that the same request made meanwhile. Raises what stands in the way where it was no such request."""
        before = await self.made_for(old.account_id, request_id, request_sha256) if request_id else None
        if before is None:
            (await self.get(old.key_id)).require_rotatable(utc_now())
        assert before is not None, "nothing stood in the way"
        return before

    async def get(self, key_id: str) -> Key:
        """One key. Raises KeyNotFound."""
        key = await self._store.by_id(key_id)
        if key is None:
            raise KeyNotFound("no such key", key_id=key_id)
        return key

    async def page(
        self, *, account_id: str, status: str, before: tuple[datetime, str] | None, size: int
    ) -> tuple[list[Key], bool]:
        """At most `size` keys, newest first, and whether there are more."""
        found = await self._store.newest(
            account_id=account_id, status=status, now=utc_now(), before=before, limit=size + 1
        )
        return found[:size], len(found) > size

    async def revoke(self, key_id: str) -> Key:
        """End a key: everywhere at once, or within the cache's lifetime. Raises KeyNotFound."""
        found = await self._store.revoke(key_id, utc_now())
        if found is None:
            raise KeyNotFound("no such key", key_id=key_id)
        key, digest = found
        await self._changed(key_id, digest)
        return key

    async def _changed(self, key_id: str, digest: bytes) -> None:
        """Have a key that was changed looked up anew, here and everywhere."""
        self._known.forget(key_id, digest)
        await self._announcer.announce(KeyChanged(key_id, digest))


def _key_id(account_id: str, request_id: str, request_sha256: bytes) -> str:
    """The id of a new key. The same request gets the same one, so that its limits are not put twice under two ids.

    Another body under the same request id gets another, so that of two at once the second's limits are not the first's.
    """
    if not request_id:
        return new_key_id()
    named = f"{account_id}/{request_id}/{request_sha256.hex()}"
    return f"key-{hashlib.sha256(named.encode()).hexdigest()[:24]}"


def _limits(key: Key) -> list[ledger_pb.Operation]:
    """What the ledger is told of a key's own limits, all or none."""
    wanted = [("day", key.daily_limit_nanos), ("month", key.monthly_limit_nanos)]
    operations = [
        ledger_pb.Operation(
            set_limit=ledger_pb.SetLimitRequest(
                account_id=key.account_id,
                scope="key",
                subject=key.key_id,
                unit="nanos",
                window=window,
                amount_nanos=amount,
                mode="hard",
                request_id=f"{key.key_id}:{window}",
            )
        )
        for window, amount in wanted
        if amount
    ]
    for operation in operations[:-1]:
        operation.linked = True
    return operations
