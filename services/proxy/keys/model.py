"""Owns what an API key is: its form, its hash, when it may be used, and the identity it gives its caller."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from dataclasses import dataclass, replace
from datetime import datetime

from services.kit.identity import Identity, Role
from services.proxy.errors import ApiKeyExpired, ApiKeyRevoked, KeyNotActive, KeyReplaced

STANDARD, INTERNAL, ADMIN = "standard", "internal", "admin"
KEY_TYPES = (STANDARD, INTERNAL, ADMIN)
ACTIVE, REVOKED, EXPIRED = "active", "revoked", "expired"
STATUSES = (ACTIVE, REVOKED, EXPIRED)

DEFAULT_PREFIX = "tk_live_"
PREFIX = re.compile(r"[a-z0-9_-]{2,32}")
PREFIX_RULE = "must be 2 to 32 of a-z 0-9 _ -"

# 40 of 62 characters are 238 random bits: the hash needs no salt and no stretching, since nobody can guess its input.
_ALPHABET = string.ascii_letters + string.digits
_RANDOM_CHARS = 40
_WELL_FORMED = re.compile(rf"[a-z0-9_-]{{2,32}}[A-Za-z0-9]{{{_RANDOM_CHARS}}}")


@dataclass(frozen=True, slots=True)
class Key:
    """A key's record. Limits of 0 are none of its own; amounts in nanos.

    `first_key_id` is the key that its line of rotations began with; empty where it is itself that one.
    """

    key_id: str
    account_id: str
    name: str
    key_type: str
    prefix: str
    last_four: str
    workspace: str
    allowed_models: frozenset[str]
    daily_limit_nanos: int
    monthly_limit_nanos: int
    requests_per_minute: int
    tokens_per_minute: int
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    replaced_by_key_id: str = ""
    first_key_id: str = ""

    def status(self, now: datetime) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return EXPIRED
        return ACTIVE

    @property
    def billable(self) -> bool:
        """Whether its calls are paid for."""
        return self.key_type != INTERNAL

    @property
    def limit_subject(self) -> str:
        """The key id that limits count its calls by, and bills name: the first of its line.

        So keys that overlap share their limits, and rotating one raises none of them.
        """
        return self.first_key_id or self.key_id

    def require_rotatable(self, now: datetime) -> None:
        """Raise KeyReplaced or KeyNotActive where no other key may take its place any more."""
        if self.replaced_by_key_id:
            raise KeyReplaced(
                "this API key was rotated before", key_id=self.key_id, replaced_by_key_id=self.replaced_by_key_id
            )
        if self.status(now) != ACTIVE:
            raise KeyNotActive("only an active API key can be rotated", key_id=self.key_id, status=self.status(now))

    def rotated(self, secret: str, now: datetime) -> Key:
        """The key that takes this one's place: with the same rights, limits and end."""
        return replace(
            self, key_id=new_key_id(), last_four=secret[-4:], created_at=now, first_key_id=self.limit_subject
        )

    def require_usable(self, now: datetime) -> None:
        """Raise ApiKeyRevoked or ApiKeyExpired where it may not be used any more."""
        if self.revoked_at is not None:
            raise ApiKeyRevoked("this API key was revoked", key_id=self.key_id)
        if self.expires_at is not None and self.expires_at <= now:
            raise ApiKeyExpired("this API key has expired", key_id=self.key_id)


@dataclass(frozen=True, slots=True)
class KeyIdentity(Identity):
    """A caller known by an API key, with the key's record."""

    key: Key | None = None


def identity_of(key: Key) -> KeyIdentity:
    """The identity of who holds the key: an operator with an admin key, else a customer."""
    return KeyIdentity(
        role=Role.ADMIN if key.key_type == ADMIN else Role.ACCOUNT,
        subject=key.key_id,
        account_id=key.account_id,
        key_id=key.key_id,
        workspace=key.workspace,
        key=key,
    )


def new_key_id() -> str:
    """A new key's id, which nobody had before."""
    return f"key-{secrets.token_hex(12)}"


def new_secret(prefix: str) -> str:
    """A new key: the prefix and 40 random characters of `[A-Za-z0-9]`."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARS))


def is_well_formed(secret: str) -> bool:
    """Whether the text could be a key at all; what could not is not looked up."""
    return _WELL_FORMED.fullmatch(secret) is not None


def sha256(secret: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode()).digest()
