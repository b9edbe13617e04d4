"""Owns the reading of what providers send as JSON, also where it is not quite JSON: its count is billed by."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from services.proxy.sse import BYTE_ORDER_MARK

_BLANKS = " \t\r\n"
# Longer numbers have more than 64 bits: no count, and nothing that can be written again.
_MAX_DIGITS = 18
# A count in an answer's JSON, by its name in any form; in a text its quotes would be escaped.
_COUNT = re.compile(rb'"(usage|usageMetadata)"\s*:\s*(?=\{)')


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


_DECODER = json.JSONDecoder(parse_int=_integer, parse_constant=lambda _: None, strict=False)


def read(body: bytes) -> object:
    """What JSON says; None where it is none, or null.

    Read strictly at first. Providers also send what the standard forbids and their own clients take: halves of a
    surrogate pair, NaN, bytes that are no UTF-8, a byte order mark, something behind the end. What of it cannot be
    written in UTF-8 is replaced, what is no number is null.
    """
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _read_mildly(body)


def _read_mildly(body: bytes) -> object:
    try:
        found, _ = _DECODER.raw_decode(body.decode(errors="replace").lstrip(_BLANKS))
        return _clean(found)
    except (ValueError, RecursionError):
        return None


def last_count(body: bytes) -> dict[str, Any]:
    """The last count in JSON of which the rest is not read, under its own name; empty where there is none."""
    last = None
    for last in _COUNT.finditer(body):  # noqa: B007 (there may be many, of which none but the last is kept)
        pass
    counted = _read_mildly(body[last.end() :]) if last is not None else None
    return {last[1].decode(): counted} if last is not None and isinstance(counted, dict) else {}


def _clean(value: Any) -> Any:
    """The same in texts that can be written: a half of a surrogate pair cannot."""
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case list():
            return [_clean(one) for one in value]
        case dict():
            return {_clean(name): _clean(one) for name, one in value.items()}
        case _:
            return value
