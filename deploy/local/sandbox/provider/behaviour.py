"""Owns the language in which a test says how one request is to be answered, and what each word of it may be.

The words are the same in the `x-sandbox-fault` header, in a directive inside the last user message
(`[[sandbox output_tokens=120 fault=cut-stream after=3]]`) and in an armed fault; README.md lists them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

DIRECTIVE: Final = re.compile(r"\[\[sandbox\b([^\]]*)\]\]")

RESET: Final = "reset"
HANG: Final = "hang"
CUT_STREAM: Final = "cut-stream"
CUT_EVENT: Final = "cut-event"
STREAM_ERROR: Final = "stream-error"
NO_USAGE: Final = "no-usage"
IGNORE_CAP: Final = "ignore-cap"
ODD_CHUNKS: Final = "odd-chunks"
SLOW_FIRST_BYTE: Final = "slow-first-byte"
SLOW_CHUNKS: Final = "slow-chunks"

FAULTS: Final = frozenset(
    {
        RESET,
        HANG,
        CUT_STREAM,
        CUT_EVENT,
        STREAM_ERROR,
        NO_USAGE,
        IGNORE_CAP,
        ODD_CHUNKS,
        SLOW_FIRST_BYTE,
        SLOW_CHUNKS,
    }
)

_MILLISECONDS: Final = (0, 600_000)
_TOKENS: Final = (0, 200_000)
# Each number's smallest and largest value: a typing error must not ask for a gigabyte of text or an hour of waiting.
_NUMBERS: Final = {
    "output_tokens": _TOKENS,
    "reasoning": _TOKENS,
    "cached": (0, 10_000_000),
    "cache_write": (0, 10_000_000),
    "cache_write_1h": (0, 10_000_000),
    "chunk_tokens": (1, 200_000),
    "first_byte_ms": _MILLISECONDS,
    "delay_ms": _MILLISECONDS,
    "after": (0, 200_000),
    "status": (400, 599),
    "retry_after": (0, 86_400),
}
_WORDS: Final = frozenset({"fault", "usage", "tool"})

_DEFAULT_FIRST_BYTE_MS: Final = 1000
_DEFAULT_CHUNK_MS: Final = 200


class DirectiveError(ValueError):
    """A directive the sandbox does not understand: refused, since a test whose fault is ignored proves nothing."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one request is answered. Token counts are per choice, times are milliseconds, `retry_after` is seconds."""

    faults: frozenset[str] = frozenset()
    output_tokens: int | None = None
    reasoning: int = 0
    cached: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    chunk_tokens: int = 1
    first_byte_ms: int = 0
    delay_ms: int = 0
    after: int | None = None
    status: int | None = None
    retry_after: int | None = None
    tool: str | None = None

    def label(self) -> str | None:
        """What the request log calls the fault, None where the answer is an ordinary one."""
        names = sorted(self.faults)
        if self.status is not None:
            names.append(f"status-{self.status}")
        return "+".join(names) or None


ORDINARY: Final = Behaviour()

Settings = dict[str, str | int]


def parse(text: str) -> Settings:
    """Read `name=value` words and bare fault names.

    Raises:
        DirectiveError: an unknown word, or a value out of its range.
    """
    settings: Settings = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals:
            name, value = "fault", word
        if name in _NUMBERS:
            settings[name] = _number(name, value)
        elif name in _WORDS:
            settings[name] = value
        else:
            raise DirectiveError(f"sandbox: unknown word {name!r}; known are {', '.join(sorted([*_NUMBERS, *_WORDS]))}")
    _faults(settings)
    return settings


def parse_message(text: str) -> Settings:
    """Read every directive inside a message text; empty where there is none.

    Raises:
        DirectiveError: as `parse`.
    """
    if "[[sandbox" not in text:
        return {}
    return parse(" ".join(DIRECTIVE.findall(text)))


def build(settings: Settings) -> Behaviour:
    """The behaviour these settings, already read by `parse`, ask for."""
    if not settings:
        return ORDINARY
    faults = _faults(settings)
    numbers = {name: int(settings[name]) for name in _NUMBERS if name in settings}
    if SLOW_FIRST_BYTE in faults:
        # `delay_ms` then says how slow the first byte is, and not how slow the chunks are, unless both are asked for.
        slow = numbers.get("delay_ms", _DEFAULT_FIRST_BYTE_MS)
        numbers.setdefault("first_byte_ms", slow)
        if SLOW_CHUNKS not in faults:
            numbers["delay_ms"] = 0
    if SLOW_CHUNKS in faults:
        numbers.setdefault("delay_ms", _DEFAULT_CHUNK_MS)
    if faults & {CUT_STREAM, CUT_EVENT, STREAM_ERROR}:
        numbers.setdefault("after", 1)
    tool = settings.get("tool")
    return Behaviour(faults=faults, tool=None if tool is None else str(tool), **numbers)


def _number(name: str, value: str) -> int:
    low, high = _NUMBERS[name]
    if not (value.isascii() and value.isdigit()) or not low <= int(value) <= high:
        raise DirectiveError(f"sandbox: {name} must be a whole number from {low} to {high}, not {value!r}")
    return int(value)


def _faults(settings: Settings) -> frozenset[str]:
    names = {name for name in str(settings.get("fault", "")).split(",") if name and name != "none"}
    usage = settings.get("usage", "true")
    if usage not in ("true", "none"):
        raise DirectiveError(f"sandbox: usage is `true` or `none`, not {usage!r}")
    if usage == "none":
        names.add(NO_USAGE)
    unknown = names - FAULTS
    if unknown:
        raise DirectiveError(
            f"sandbox: unknown fault {', '.join(sorted(unknown))}; known are {', '.join(sorted(FAULTS))}"
        )
    return frozenset(names)
