"""Owns page tokens: opaque to callers, bound to the filters they were given with."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from services.kit.validation import Violations, is_identifier

_MAX_TOKEN_CHARS = 400
_STALE = "must be one from the previous page, with the other fields as they were then"


def page_token(after: str, *filters: str) -> str:
    """A token that goes on after an id; empty where there is none."""
    if not after:
        return ""
    return base64.urlsafe_b64encode(json.dumps([after, _digest(filters)]).encode()).decode()


def read_page_token(violations: Violations, field: str, token: str, *filters: str) -> str:
    """The id to go on after; a token that was not given with these filters is noted as wrong."""
    if not token:
        return ""
    after, digest = _parts(token) if len(token) <= _MAX_TOKEN_CHARS else ("", "")
    if not (is_identifier(after) and digest == _digest(filters)):
        violations.add(field, _STALE)
        return ""
    return after


def _parts(token: str) -> tuple[str, str]:
    """Id and digest of a token; both empty for what is none."""
    try:
        after, digest = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        return "", ""
    return (after, digest) if isinstance(after, str) and isinstance(digest, str) else ("", "")


def _digest(filters: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(filters).encode()).hexdigest()[:16]
