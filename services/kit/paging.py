"""Owns page tokens: opaque to callers, and bound to the request they continue."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from google.protobuf.message import Message

from services.kit.validation import Violations

_MAX_TOKEN_CHARS = 2_000
_MAX_INTEGER = 2**63 - 1


def page_token(request: Message, *position: str | int) -> str:
    """The token of the page after `position` (the sort key of the last row given) of a list `request`."""
    content = json.dumps([_digest(request), *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def page_position(v: Violations, request: Message, *kinds: type[str | int]) -> tuple[str | int, ...] | None:
    """The position in a request's `page_token`, values of these types; None for the first page.

    A token of another request, or no token at all, is noted as a violation.
    """
    token: str = request.page_token  # type: ignore[attr-defined]
    if not token:
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        content = json.loads(raw) if len(token) <= _MAX_TOKEN_CHARS else None
    except (binascii.Error, ValueError, RecursionError):
        content = None
    match content:
        case [digest, *position] if digest == _digest(request) and [type(part) for part in position] == list(kinds):
            if all(_is_storable(part) for part in position):
                return tuple(position)
    v.add("page_token", "is not the token of this request's previous answer")
    return None


def _is_storable(part: str | int) -> bool:
    """Whether a database takes it: anybody can make up a token."""
    return part.isprintable() if isinstance(part, str) else abs(part) <= _MAX_INTEGER


def _digest(request: Message) -> str:
    """What tells one list from another: the request without its page."""
    query = type(request)()
    query.CopyFrom(request)
    for name in ("page_token", "page_size"):
        query.ClearField(name)
    return hashlib.sha256(query.SerializeToString(deterministic=True)).hexdigest()[:16]
