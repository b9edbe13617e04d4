"""Owns page tokens: opaque to callers, bound to the query they continue."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence

from services.kit.validation import Violations

DEFAULT_PAGE_SIZE = 100
_MAX_TOKEN_CHARS = 2_000
_INVALID = "is not a token of this query's previous answer"


def make_token(query: Sequence[str | int], position: Sequence[str | int]) -> str:
    """A token that continues `query` after `position`."""
    content = json.dumps([_digest(query), list(position)], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def read_token(
    violations: Violations, token: str, query: Sequence[str | int], form: Sequence[type[str | int]]
) -> list[str | int] | None:
    """The position in a token, of values of these types; None for the first page.

    A token of another query, or no token at all, is noted in `violations`.
    """
    if not token:
        return None
    position = _position(token, query) if len(token) <= _MAX_TOKEN_CHARS else None
    if position is None or [type(value) for value in position] != list(form):
        violations.add("page_token", _INVALID)
        return None
    return position


def _position(token: str, query: Sequence[str | int]) -> list[str | int] | None:
    try:
        content = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    match content:
        case [digest, list(position)] if digest == _digest(query):
            return position
    return None


def _digest(query: Sequence[str | int]) -> str:
    return hashlib.sha256(json.dumps(list(query)).encode()).hexdigest()[:16]
