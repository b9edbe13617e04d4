"""Owns who calls: roles, identities, signed identity tokens (EdDSA JWT), and how a call's credential is read."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.kit.bounded import keep
from services.kit.refusals import TokenInvalid

IDENTITY_KEY = "x-tollkeeper-identity"
AUTHORIZATION_KEY = "authorization"

_ALGORITHM = "EdDSA"
_NAME = "tollkeeper"  # both issuer and audience: tokens stay inside the suite
_MAX_TOKEN_CHARS = 4096
_MAX_VERDICTS = 10_000
_RECHECK_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class Role(IntEnum):
    """What a caller is; a higher role may do what a lower one may. Numbers are those of tollkeeper.type.v1.Access."""

    PUBLIC = 1
    ACCOUNT = 2
    ADMIN = 3
    SERVICE = 4


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller: its role, who it is (`subject`), and for customers the account, key and workspace it acts for."""

    role: Role
    subject: str = ""
    account_id: str = ""
    key_id: str = ""
    workspace: str = ""
    scopes: frozenset[str] = frozenset()


ANONYMOUS = Identity(Role.PUBLIC)


class KeyFileError(ValueError):
    """A key or JWKS that cannot be used; the message names the file or key."""


def _thumbprint(key: Ed25519PublicKey) -> str:
    """The key id: RFC 7638 thumbprint of the public JWK (members in the order RFC 8037 gives)."""
    canonical = f'{{"crv":"Ed25519","kty":"OKP","x":"{_raw(key)}"}}'
    return _base64url(hashlib.sha256(canonical.encode()).digest())


def _raw(key: Ed25519PublicKey) -> str:
    return _base64url(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _jwk(key: Ed25519PublicKey) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": _raw(key), "kid": _thumbprint(key), "alg": _ALGORITHM, "use": "sig"}


def make_keypair() -> tuple[str, dict[str, Any]]:
    """A new Ed25519 key: (private key as PKCS#8 PEM, JWKS with its public key)."""
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem.decode(), {"keys": [_jwk(private.public_key())]}


class TokenSigner:
    """Makes identity and service tokens with one private key (PKCS#8 PEM, Ed25519). Raises KeyFileError for another."""

    def __init__(self, private_pem: str | bytes) -> None:
        pem = private_pem.encode() if isinstance(private_pem, str) else private_pem
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyFileError("the signing key is not an unencrypted PEM private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError("the signing key is not an Ed25519 key")
        self._key = key
        self.key_id = _thumbprint(key.public_key())
        self.jwks: dict[str, Any] = {"keys": [_jwk(key.public_key())]}

    def sign(self, identity: Identity, ttl_seconds: float) -> str:
        """A token that says `identity` for `ttl_seconds` from now."""
        now = time.time()
        claims: dict[str, Any] = {
            "iss": _NAME,
            "aud": _NAME,
            "iat": int(now),
            "exp": now + ttl_seconds,
            "sub": identity.subject,
            "role": identity.role.name,
        }
        optional = {
            "account": identity.account_id,
            "key": identity.key_id,
            "workspace": identity.workspace,
            "scope": " ".join(sorted(identity.scopes)),
        }
        claims |= {name: value for name, value in optional.items() if value}
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM, headers={"kid": self.key_id})


def _identity_of(claims: Mapping[str, Any]) -> Identity:
    """The identity a verified token states. Raises TokenInvalid for claims no signer of ours makes."""
    texts = {name: claims.get(name, "") for name in ("sub", "role", "account", "key", "workspace", "scope")}
    if not all(isinstance(text, str) for text in texts.values()) or texts["role"] not in Role.__members__:
        raise TokenInvalid("the token's claims are not understood")
    role = Role[texts["role"]]
    if role is Role.ACCOUNT and not texts["account"]:
        raise TokenInvalid("the token names no account")
    return Identity(
        role=role,
        subject=texts["sub"],
        account_id=texts["account"],
        key_id=texts["key"],
        workspace=texts["workspace"],
        scopes=frozenset(texts["scope"].split()),
    )


def expiry_of(token: str) -> float | None:
    """When a token expires, by its own word, in seconds since 1970; None where it does not say or is no such token."""
    try:
        return float(jwt.decode(token, options={"verify_signature": False, "verify_exp": False})["exp"])
    except (jwt.PyJWTError, KeyError, ValueError, TypeError):
        return None


class TokenVerifier:
    """Checks tokens against public keys, from a JWKS or from a file that is read again when it changes.

    Verdicts are remembered, a bounded number of them, never beyond the token's expiry nor a change of the keys: the
    signature of a token seen before is not computed again. Safe to share between threads.
    """

    def __init__(self, jwks: Mapping[str, Any] | None = None, *, file: Path | None = None) -> None:
        self._keys = _public_keys(jwks or {"keys": []})
        self._file = file
        self._stamp: tuple[int, int] | None = None
        self._checked = 0.0
        self._verdicts: dict[str, tuple[Identity, float]] = {}
        self._lock = threading.Lock()
        if file is not None:
            self._keys, self._stamp = _read_jwks(file)
            self._checked = time.monotonic()

    def verify(self, token: str) -> Identity:
        """The identity a token states. Raises TokenInvalid where the token does not hold (any reason)."""
        if self._file is not None and time.monotonic() - self._checked >= _RECHECK_SECONDS:
            self._reread(self._file)
        known = self._verdicts.get(token)
        if known is not None:
            identity, expires = known
            if time.time() < expires:
                return identity
            self._verdicts.pop(token, None)
        keys = self._keys
        identity, expires = self._decode(token, keys)
        with self._lock:
            if keys is self._keys:  # not a verdict of keys replaced meanwhile
                keep(self._verdicts, token, (identity, expires), at_most=_MAX_VERDICTS)
        return identity

    def _decode(self, token: str, keys: Mapping[str, Ed25519PublicKey]) -> tuple[Identity, float]:
        if len(token) > _MAX_TOKEN_CHARS:
            raise TokenInvalid("the token is too long")
        try:
            key = keys.get(str(jwt.get_unverified_header(token).get("kid", "")))
            if key is None:
                raise TokenInvalid("the token is signed with a key that is not known here")
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=_NAME,
                issuer=_NAME,
                # iat is not checked: hosts' clocks differ by more than a fresh token is old.
                options={"require": ["exp", "aud", "iss"], "verify_iat": False},
            )
            return _identity_of(claims), float(claims["exp"])
        except jwt.ExpiredSignatureError as error:
            raise TokenInvalid("the token has expired") from error
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise TokenInvalid("the token is not valid") from error

    def _reread(self, file: Path) -> None:
        with self._lock:
            self._checked = time.monotonic()
            try:
                if _stamp(file) == self._stamp:
                    return
                self._keys, self._stamp = _read_jwks(file)
                self._verdicts.clear()  # a key taken out of the file must not live on in the cache
            except (OSError, KeyFileError) as error:
                # A file caught in the middle of being written: the keys in hand stay good until it can be read.
                _log.error("identity keys not read, keeping those in use", file=str(file), error=str(error))


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def _read_jwks(file: Path) -> tuple[dict[str, Ed25519PublicKey], tuple[int, int]]:
    try:
        stamp = _stamp(file)
        return _public_keys(json.loads(file.read_text())), stamp
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{file}: {error}") from error


def _public_keys(jwks: Mapping[str, Any]) -> dict[str, Ed25519PublicKey]:
    """Public keys by key id. Raises KeyFileError for anything but Ed25519 public keys with a `kid`."""
    keys: dict[str, Ed25519PublicKey] = {}
    entries = jwks.get("keys") if isinstance(jwks, Mapping) else None
    if not isinstance(entries, list):
        raise KeyFileError('not a JWKS: it has no list "keys"')
    for number, entry in enumerate(entries):
        try:
            key = jwt.PyJWK(entry, algorithm=_ALGORITHM).key
        except (jwt.PyJWTError, TypeError, ValueError, AttributeError) as error:
            raise KeyFileError(f"key {number} of the JWKS cannot be read: {error}") from error
        if not isinstance(key, Ed25519PublicKey) or not entry.get("kid"):
            raise KeyFileError(f"key {number} of the JWKS is not an Ed25519 public key with a kid")
        keys[entry["kid"]] = key
    return keys


class Authenticator(Protocol):
    """Reads a call's credential. A service may bring its own for some RPCs (API keys, say)."""

    def authenticate(
        self, method: str, metadata: Mapping[str, str | bytes], /
    ) -> Identity | Awaitable[Identity | None] | None:
        """The caller; None where the metadata hold no credential; raises a refusal where they hold a bad one.

        May be `async` on an aio server only. `metadata` keys are lower case.
        """
        ...


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    if scheme != "Bearer" and scheme.lower() != "bearer":
        raise TokenInvalid("the authorization is not a bearer token")
    return token


class TokenAuthenticator:
    """Reads `x-tollkeeper-identity` (customers, through the gateway), else `authorization: Bearer` (services)."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    def authenticate(self, _method: str, metadata: Mapping[str, str | bytes], /) -> Identity | None:
        """See Authenticator. The customer's token comes first: the gateway may show its own credential beside it."""
        token = metadata.get(IDENTITY_KEY)
        if token is None:
            authorization = metadata.get(AUTHORIZATION_KEY)
            if authorization is None:
                return None
            token = _bearer(str(authorization))
        return self._verifier.verify(str(token))
