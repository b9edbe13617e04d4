"""Owns what a kept answer is, what a client's idempotency key may be, and how answers are encrypted. Pure.

An answer is encrypted with AES-256-GCM under a key that HKDF-SHA256 (RFC 5869) derives from the client's own API key,
of which we keep no more than its hash. So who has the database, and not the client's key, reads no answer; nor can a
guess of a prompt be checked against it, since the request's hash is kept as an HMAC under a derived key too.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.kit.validation import Violations

IDEMPOTENCY_KEY = "idempotency-key"

MAX_KEY_CHARS = 255

# Where a request stands: its call runs (or its proxy was killed), its answer is kept, or was too large to be kept.
RUNNING, DONE, UNKEPT = "running", "done", "unkept"

_PURPOSE = b"tollkeeper.proxy.answers.v1:"
_KEY_BYTES = 32
_NONCE_BYTES = 12


class UnreadableError(Exception):
    """What is kept was not encrypted with this key, or was changed since."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """A whole answer as the client was given it: response headers, the body and its type, HTTP status."""

    metadata: tuple[tuple[str, str], ...]
    content_type: str
    body: bytes
    status: int = 200


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one answer: of one idempotency key of one API key. The text of the idempotency key is not kept."""

    key_id: str
    idempotency_sha256: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """An answer as it lies in the database: all but the body in the clear, though no less protected from changes."""

    status: int
    metadata: tuple[tuple[str, str], ...]
    content_type: str
    nonce: bytes
    ciphertext: bytes


def slot_of(key_id: str, idempotency_key: str) -> Slot:
    """The place of a client's idempotency key. Raises InvalidArgument naming `idempotency-key`."""
    violations = Violations()
    if not 1 <= len(idempotency_key) <= MAX_KEY_CHARS or not idempotency_key.isprintable():
        violations.add(IDEMPOTENCY_KEY, f"must be 1 to {MAX_KEY_CHARS} printable characters")
    violations.raise_if_any()
    return Slot(key_id, hashlib.sha256(idempotency_key.encode()).digest())


class Cipher:
    """Seals and opens the answer of one slot with keys derived from the API key `secret`."""

    def __init__(self, slot: Slot, secret: str) -> None:
        self._slot = slot
        # A pair of keys for each slot, so a random nonce never meets many others under its key.
        derived = HKDF(SHA256(), 2 * _KEY_BYTES, salt=slot.idempotency_sha256, info=_PURPOSE + slot.key_id.encode())
        both = derived.derive(secret.encode())
        self._aead = AESGCM(both[:_KEY_BYTES])
        self._mac_key = both[_KEY_BYTES:]

    def request_mac(self, request_sha256: bytes) -> bytes:
        """What is kept of a request, to know it again."""
        return hmac.digest(self._mac_key, request_sha256, "sha256")

    def seal(self, call_id: str, answer: KeptAnswer) -> Sealed:
        """Encrypt an answer."""
        nonce = os.urandom(_NONCE_BYTES)
        bound = self._bound(call_id, answer.status, answer.metadata, answer.content_type)
        ciphertext = self._aead.encrypt(nonce, answer.body, bound)
        return Sealed(answer.status, answer.metadata, answer.content_type, nonce, ciphertext)

    def open(self, call_id: str, sealed: Sealed) -> KeptAnswer:
        """Decrypt an answer. Raises UnreadableError."""
        bound = self._bound(call_id, sealed.status, sealed.metadata, sealed.content_type)
        try:
            body = self._aead.decrypt(sealed.nonce, sealed.ciphertext, bound)
        except InvalidTag as error:
            raise UnreadableError("the kept answer does not open with this key") from error
        return KeptAnswer(sealed.metadata, sealed.content_type, body, sealed.status)

    def _bound(self, call_id: str, *clear: object) -> bytes:
        """What the ciphertext is bound to: it opens in its own row only, beside the head it was kept with."""
        return orjson.dumps([self._slot.key_id, call_id, *clear])
