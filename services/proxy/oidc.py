"""Owns callers known by somebody else's identity provider: OpenID Connect tokens on `/api/*`, where one is configured.

A token is believed that is signed with a key of the provider's JWKS, names the configured issuer and audience, and has
not expired. Its claims say for which account it acts, or that an operator holds it. It opens no model call: those are
billed to keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any

import jwt

from services.kit.bounded import keep
from services.kit.identity import Identity, Role
from services.kit.logs import get_logger
from services.kit.refusals import TokenInvalid
from services.kit.validation import is_identifier
from services.proxy.errors import IdentityProviderUnavailable
from services.proxy.settings import ProxySettings

_log = get_logger(__name__)

# Signatures that only the provider can make: never a secret shared with it, never none.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_MAX_TOKEN_CHARS = 8192
# As OpenID Connect has it: a longer one would make an identity token that no service takes.
_MAX_SUBJECT_CHARS = 255
_MAX_VERDICTS = 10_000
_TIMEOUT_SECONDS = 5
# The provider's keys are fetched again after this, and, for a key that is not among them, once in the lesser time.
_KEYS_SECONDS = 300.0
_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who holds a token, under a name that no other holder has, and until when."""

    name: str
    identity: Identity
    expires_at: datetime


def looks_like_a_token(secret: str) -> bool:
    """Whether a bearer may be a JWT: three parts, the first of them JSON. No API key of ours has that form."""
    return secret.startswith("eyJ") and secret.count(".") == 2  # noqa: PLR2004


class OidcVerifier:
    """Tells who holds a token. The provider's keys and the verdicts on tokens are remembered, bounded in number."""

    def __init__(self, settings: ProxySettings) -> None:
        self._issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._account_claim = settings.oidc_account_claim
        self._role_claim = settings.oidc_role_claim
        self._admin_role = settings.oidc_admin_role
        self._client = jwt.PyJWKClient(settings.oidc_jwks_url, cache_jwk_set=False, timeout=_TIMEOUT_SECONDS)
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = -math.inf
        self._asked_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None
        self._verdicts: dict[str, Verdict] = {}

    async def verified(self, token: str) -> Verdict:
        """Who holds the token. Raises TokenInvalid, IdentityProviderUnavailable."""
        if len(token) > _MAX_TOKEN_CHARS:
            raise TokenInvalid("the token is too long")
        name = "oidc:" + hashlib.sha256(token.encode()).hexdigest()
        found = self._verdicts.get(name)
        is_fresh = time.monotonic() - self._fetched_at < _KEYS_SECONDS
        if found is not None and is_fresh and datetime.now(UTC) < found.expires_at:
            return found
        claims = self._claims(token, await self._key_of(token))
        verdict = Verdict(name, self._identity(claims), _expiry(claims))
        keep(self._verdicts, name, verdict, at_most=_MAX_VERDICTS)
        return verdict

    async def _key_of(self, token: str) -> jwt.PyJWK:
        try:
            key_id = str(jwt.get_unverified_header(token).get("kid", ""))
        except jwt.PyJWTError as error:
            raise TokenInvalid("the token is not valid") from error
        age = time.monotonic() - self._fetched_at
        if key_id not in self._keys or age >= 2 * _KEYS_SECONDS:
            await self._fetched()
        elif age >= _KEYS_SECONDS:
            # Whoever brings a key that is in hand waits for nobody: not for the provider, and not for a stranger who
            # names a key that does not exist.
            self._fetch_soon()
        key = self._keys.get(key_id)
        if key is None:
            raise TokenInvalid("the token is signed with a key that its issuer does not have")
        return key

    async def _fetched(self) -> None:
        """Wait for the provider's keys, asked for anew unless they just were. Raises IdentityProviderUnavailable."""
        self._fetch_soon()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)
        if time.monotonic() - self._fetched_at >= 2 * _KEYS_SECONDS:
            raise IdentityProviderUnavailable("the identity provider's keys cannot be fetched")

    def _fetch_soon(self) -> None:
        """Begin to fetch the provider's keys, not too often, and once at a time."""
        now = time.monotonic()
        if self._fetching is None and now - self._asked_at >= _AGAIN_SECONDS:
            self._asked_at = now
            self._fetching = asyncio.create_task(self._fetch(now))

    async def _fetch(self, now: float) -> None:
        """Fetch the provider's keys. Where it does not answer, those in hand hold for as long again."""
        try:
            fetched = await asyncio.to_thread(self._client.get_jwk_set, refresh=True)
        except (jwt.PyJWTError, ValueError, OSError, HTTPException) as error:
            _log.error("the identity provider's keys were not fetched", error=type(error).__name__)
        else:
            self._keys = {key.key_id: key for key in fetched.keys if key.key_id}
            self._fetched_at = now
            self._verdicts.clear()
        finally:
            self._fetching = None

    def _claims(self, token: str, key: jwt.PyJWK) -> Mapping[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                options={"require": ["exp", "aud", "iss", "sub"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError as error:
            raise TokenInvalid("the token has expired") from error
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise TokenInvalid("the token is not valid") from error
        return claims

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        if len(claims["sub"]) > _MAX_SUBJECT_CHARS:
            raise TokenInvalid("the token's subject is too long")
        subject = f"oidc:{claims['sub']}"
        role = claims.get(self._role_claim)
        if self._admin_role in (role if isinstance(role, list) else [role]):
            return Identity(Role.ADMIN, subject=subject)
        account_id = claims.get(self._account_claim)
        if not isinstance(account_id, str) or not is_identifier(account_id):
            raise TokenInvalid("the token names no account")
        return Identity(Role.ACCOUNT, subject=subject, account_id=account_id)


def _expiry(claims: Mapping[str, Any]) -> datetime:
    """When a token ends. Raises TokenInvalid where it says so in no number, or names no moment that there will be."""
    try:
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise TokenInvalid("the token's expiry is not understood") from error
