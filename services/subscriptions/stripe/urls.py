"""Owns which addresses a browser may be sent to from Stripe's pages. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from services.kit.validation import Violations

_MAX_CHARS = 2000
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_RULE = "must be an https address, or http on localhost, without user name, of at most 2000 characters"


def return_url(v: Violations, field: str, given: str, default: str) -> str:
    """The address given, else the default. What is not fit for a browser is noted as a violation of the field."""
    if given and not _is_fit(given):
        v.add(field, _RULE)
    return given or default


def _is_fit(url: str) -> bool:
    if len(url) > _MAX_CHARS or not url.isprintable() or any(char.isspace() for char in url) or "\\" in url:
        return False
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # raises where it is no port
    except ValueError:
        return False
    if not host or "@" in parts.netloc:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in _LOCAL)
