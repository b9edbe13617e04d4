"""Owns one request to a provider: what is sent, and which of the client's own headers may go with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

Headers = tuple[tuple[str, str], ...]

# What this proxy says itself, what is about the connection, and what would choose another account of the operator's.
_RESERVED = frozenset(
    {
        "accept",
        "accept-encoding",
        "api-key",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "date",
        "expect",
        "host",
        "keep-alive",
        "openai-organization",
        "openai-project",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-api-key",
        "x-goog-api-key",
        "x-goog-user-project",
    }
)
_RESERVED_PREFIXES = ("proxy-", "x-amz-", "x-forwarded-", "x-tollkeeper-")
# An operator may set these for an account of theirs.
_OPERATORS = frozenset(
    {"accept-encoding", "openai-organization", "openai-project", "user-agent", "x-goog-user-project"}
)

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,8190}[\x21-\x7e])?")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request to a provider, ready to send.

    `form` says which of the provider's base addresses and header habits: "chat", "responses", "embeddings", "messages",
    "gemini" or "converse". `path` is below that base address, its parts percent-encoded (see `path_segment`), with the
    query if there is one: "models/gemini-1.5-pro:streamGenerateContent?alt=sse". `headers` are the client's own that
    are passed on; none of them replaces one of ours. `model` is the provider's name of what is called: its rate limits
    are of a model.
    """

    form: str
    path: str
    body: bytes
    stream: bool
    headers: Headers = ()
    model: str = field(kw_only=True)


def path_segment(text: str) -> str:
    """`text` as one segment of a path: all but letters, digits and `-_.~` percent-encoded.

    Raises ValueError for the segments that mean a folder and not a name: empty, `.` and `..`.
    """
    if text in {"", ".", ".."}:
        raise ValueError(f"{text!r} is no segment of a path")
    return quote(text, safe="")


def passed_on(headers: Iterable[tuple[str, str]], taken: frozenset[str]) -> Headers:
    """The client's headers that go to the provider: well-formed, not ours to set, none of `taken` (lower case)."""
    return tuple(
        (name, value)
        for name, value in headers
        if not is_reserved(name) and name.lower() not in taken and is_well_formed(name, value)
    )


def is_reserved(name: str, *, operators: bool = False) -> bool:
    """Whether a client may not set this header; with `operators`, whether an operator may not."""
    lower = name.lower()
    if operators and lower in _OPERATORS:
        return False
    return lower in _RESERVED or lower.startswith(_RESERVED_PREFIXES)


def is_well_formed(name: str, value: str) -> bool:
    """Whether it is a header: a token as name, visible ASCII without outer blanks as value, both of bounded length."""
    return _NAME.fullmatch(name) is not None and _VALUE.fullmatch(value) is not None
