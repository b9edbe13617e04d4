"""Owns how a caller is known by an API key: from a call's metadata, or from an HTTP request's headers."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from services.kit.identity import AUTHORIZATION_KEY, Identity, TokenAuthenticator
from services.proxy.cache import LookupCache
from services.proxy.clock import utc_now
from services.proxy.errors import ApiKeyInvalid
from services.proxy.keys.model import Key, identity_of, is_well_formed, sha256
from services.proxy.keys.store import KeyStore

API_KEY_HEADERS = ("x-api-key", "x-goog-api-key")
CREDENTIAL_HEADERS = (AUTHORIZATION_KEY, *API_KEY_HEADERS)


def credential(headers: Mapping[str, str | bytes]) -> str | None:
    """The API key that the headers (lower-case names) bring: a bearer, else `x-api-key`, else `x-goog-api-key`.

    None where there is none. Raises ApiKeyInvalid for an `authorization` that is no bearer and stands alone.
    """
    authorization = str(headers.get(AUTHORIZATION_KEY, ""))
    scheme, _, bearer = authorization.partition(" ")
    if scheme.lower() == "bearer" and bearer.strip():
        return bearer.strip()
    for name in API_KEY_HEADERS:
        value = str(headers.get(name, "")).strip()
        if value:
            return value
    if authorization:
        raise ApiKeyInvalid("the authorization is not a bearer API key")
    return None


def comes_as_googles(headers: Mapping[str, str | bytes]) -> bool:
    """Whether the API key that the headers bring is in the header that Google's SDK has."""
    return not headers.get(AUTHORIZATION_KEY) and not headers.get("x-api-key") and bool(headers.get("x-goog-api-key"))


class KnownKeys:
    """Keys by their secret and by their id, remembered for the cache's stated lifetime.

    A change is forgotten at once where it is heard of (`invalidation.py`); the lifetime is the longest that it may take
    to be seen, with Redis and without.
    """

    def __init__(self, store: KeyStore, *, lifetime_seconds: float, max_entries: int) -> None:
        self._by_sha256: LookupCache[bytes, Key] = LookupCache(
            store.by_sha256, lifetime_seconds=lifetime_seconds, max_entries=max_entries
        )
        self._by_id: LookupCache[str, Key] = LookupCache(
            store.by_id, lifetime_seconds=lifetime_seconds, max_entries=max_entries
        )

    def usable(self, secret: str) -> Key | Awaitable[Key]:
        """The key, where it may be used now; at once where it is remembered.

        Raises ApiKeyInvalid, ApiKeyRevoked, ApiKeyExpired, as does awaiting what it gives.
        """
        if not is_well_formed(secret):
            raise ApiKeyInvalid("this is not an API key")
        digest = sha256(secret)
        key = self._by_sha256.remembered(digest)
        if key is None:
            return self._looked_up(digest)
        key.require_usable(utc_now())
        return key

    async def by_id(self, key_id: str) -> Key:
        """The key of an identity token. Raises as `usable`."""
        key = await self._by_id.get(key_id)
        if key is None:
            raise ApiKeyInvalid("this API key is not known")
        key.require_usable(utc_now())
        return key

    def forget(self, key_id: str, digest: bytes) -> None:
        """Look a key up anew the next time: it was changed."""
        self._by_sha256.forget(digest)
        self._by_id.forget(key_id)

    def forget_all(self) -> None:
        """Look every key up anew the next time: changes may have gone unheard."""
        self._by_sha256.forget_all()
        self._by_id.forget_all()

    async def _looked_up(self, digest: bytes) -> Key:
        key = await self._by_sha256.get(digest)
        if key is None:
            raise ApiKeyInvalid("this API key is not known")
        key.require_usable(utc_now())
        return key


class KeyAuthenticator:
    """Reads the API key of a model call. An identity token or a service token is no credential there.

    For the RPCs of `by_token`, which the gateway authorizes beforehand, it reads the identity token instead.
    """

    def __init__(self, known: KnownKeys, tokens: TokenAuthenticator, *, by_token: frozenset[str]) -> None:
        self._known = known
        self._tokens = tokens
        self._by_token = by_token

    def authenticate(
        self, method: str, metadata: Mapping[str, str | bytes], /
    ) -> Identity | Awaitable[Identity | None] | None:
        """See services.kit.identity.Authenticator; the identity it gives is a KeyIdentity."""
        if method in self._by_token:
            identity = self._tokens.authenticate(method, metadata)
            return self._of_token(identity) if identity is not None and identity.key_id else identity
        secret = credential(metadata)
        if secret is None:
            return None
        key = self._known.usable(secret)
        return identity_of(key) if isinstance(key, Key) else _awaited(key)

    async def _of_token(self, identity: Identity) -> Identity:
        return identity_of(await self._known.by_id(identity.key_id))


async def _awaited(key: Awaitable[Key]) -> Identity:
    return identity_of(await key)
