"""Owns a journal entry: what it says, and the hash that chains it to the one before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter

import orjson

from services.ledger.model.book import GrantUses


@dataclass(slots=True)
class Entry:
    """One journal entry: what it moved between the sub-accounts, and its place in the hash chain.

    `grant_uses`: what it took from (positive) or gave to (negative) each grant, and, under the empty name, what it
    added to (positive) or paid of (negative) what is overdrawn. Never changed once its hash is set.
    """

    account_id: str
    sequence: int
    created_at: datetime
    type: str
    funding: int
    available: int
    held: int
    spent: int
    expired: int
    balance_after: int
    grant_uses: GrantUses
    description: str
    request_id: str
    hold_id: str
    usage_id: str
    key_id: str
    workspace: str
    provider: str
    model: str
    hash: bytes = b""
    # What a refund or a reversal undoes.
    original_id: str = ""

    def chained(self, previous_hash: bytes) -> bytes:
        """SHA-256 over the previous entry's hash and this entry, as a JSON list of its other fields in their order.

        Compact JSON in UTF-8; times as RFC 3339 with `+00:00`, and microseconds unless they are 0.
        """
        return hashlib.sha256(previous_hash + orjson.dumps(_content(self))).digest()


_content = attrgetter(*(name for name in Entry.__slots__ if name != "hash"))
