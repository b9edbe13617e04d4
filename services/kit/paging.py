"""Owns page tokens: opaque to callers, and bound to the request they continue."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from datetime import datetime
from typing import Any

from google.protobuf.message import Message

from services.kit.validation import Violations

_MAX_TOKEN_CHARS = 2_000
_MAX_INTEGER = 2**63 - 1


def page_token(request: Message, *position: str | int | datetime) -> str:
    """The token of the page after `position` (the sort key of the last row given) of a list `request`."""
    plain = [part.isoformat() if isinstance(part, datetime) else part for part in position]
    content = json.dumps([_digest(request), *plain], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def page_position(v: Violations, request: Message, *kinds: type[str | int | datetime]) -> tuple[Any, ...] | None:
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
        case [digest, *plain] if digest == _digest(request) and len(plain) == len(kinds):
            position = [_part(value, kind) for value, kind in zip(plain, kinds, strict=True)]
            if None not in position:
                return tuple(position)
    v.add("page_token", "is not the token of this request's previous answer")
    return None


def _part(value: object, kind: type[str | int | datetime]) -> str | int | datetime | None:
    """A value of a position as what it was; None where a database would not take it: anybody can make up a token."""
    if kind is datetime:
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        except ValueError:
            return None
        return moment if moment is not None and moment.tzinfo is not None else None
    if type(value) is not kind:
        return None
    if isinstance(value, str):
        return value if value.isprintable() else None
    return value if isinstance(value, int) and abs(value) <= _MAX_INTEGER else None


def _digest(request: Message) -> str:
    """What tells one list from another: the request without its page."""
    query = type(request)()
    query.CopyFrom(request)
    for name in ("page_token", "page_size"):
        query.ClearField(name)
    return hashlib.sha256(query.SerializeToString(deterministic=True)).hexdigest()[:16]
