"""Owns the use cases of keys."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb

from services.proxy.clock import utc_now
from services.proxy.entitlements.service import Entitlements
from services.proxy.errors import AccountNotFound, IdempotencyConflict, KeyNotFound
from services.proxy.keys.credentials import KnownKeys
from services.proxy.keys.model import Key, new_secret, sha256
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
    """Makes, shows and ends keys."""

    def __init__(self, store: KeyStore, known: KnownKeys, entitlements: Entitlements, ledger: Ledger) -> None:
        self._store = store
        self._known = known
        self._entitlements = entitlements
        self._ledger = ledger

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
            key_id=_key_id(wish.account_id, request_id),
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
        digest = sha256(secret)
        added = await self._store.add(
            key,
            key_sha256=digest,
            created_by=created_by,
            request_id=request_id or None,
            request_sha256=request_sha256 if request_id else None,
        )
        if not added:  # the same request twice at once; the other was first
            before = await self.made_for(wish.account_id, request_id, request_sha256)
            assert before is not None
            return before, ""
        self._known.forget(key.key_id, digest)
        return key, secret

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
        """End a key: here at once, elsewhere within the cache's lifetime. Raises KeyNotFound."""
        found = await self._store.revoke(key_id, utc_now())
        if found is None:
            raise KeyNotFound("no such key", key_id=key_id)
        key, digest = found
        self._known.forget(key_id, digest)
        return key


def _key_id(account_id: str, request_id: str) -> str:
    """The id of a new key. The same request gets the same one, so that its limits are not put twice under two ids."""
    if not request_id:
        return f"key-{secrets.token_hex(12)}"
    return f"key-{hashlib.sha256(f'{account_id}/{request_id}'.encode()).hexdigest()[:24]}"


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
                # Of two requests for the same key at once with other limits, the second is refused.
                request_id=f"{key.key_id}:{window}",
            )
        )
        for window, amount in wanted
        if amount
    ]
    for operation in operations[:-1]:
        operation.linked = True
    return operations
