"""Owns how values are written for Postgres: arrays, a column's of a batch, and single ones.

They are written here, and not by psycopg, whose way of dumping lists took half of the ledger's time. Arrays of times,
bytes and long documents go in Postgres' binary form: what their texts cost it to read was a tenth of its time. Of
others the binary form takes Python longer to write.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import orjson

HOLDS_NUL = "a text holds a NUL"


def texts(values: Sequence[str]) -> bytes:
    """An array literal of texts. Raises ValueError where one holds a NUL, which Postgres has no text for."""
    joined = "\0".join(values)
    if joined.count("\0") != len(values) - 1:
        raise ValueError(HOLDS_NUL)
    return ('{"' + joined.replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","') + '"}').encode()


def _plain(values: Sequence[Any]) -> bytes:
    """An array literal of numbers, truth values and times: but for the brackets it is a list of them in JSON."""
    return b"{" + orjson.dumps(values)[1:-1] + b"}"


def _short_documents(values: Iterable[Any]) -> bytes:
    """Of JSON, an array literal escapes the quotes and backslashes, as JSON does those of a text in it."""
    return _plain([orjson.dumps(value).decode() for value in values])


# What kind of elements: those of Postgres' own types never change.
_TEXT, _BYTES, _TIME = 25, 17, 1184
_ARRAY = struct.Struct(">iiIii")
_LENGTH = struct.Struct(">i")
_MOMENT = struct.Struct(">iq")
_ERA = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MOST_MOMENTS = 4096


def _array(kind: int, count: int, elements: bytes) -> bytes:
    """A binary array of one dimension that counts from 1, as Postgres' array_recv reads it: before each its length."""
    return _ARRAY.pack(1, 1, kind, count, 1) + elements


def _elements(values: Sequence[bytes]) -> bytes:
    lengths = list(map(len, values))
    if min(lengths) == max(lengths):  # hashes, nearly always
        length = _LENGTH.pack(lengths[0])
        return length + length.join(values)
    return b"".join(chain.from_iterable(zip(map(_LENGTH.pack, lengths), values, strict=True)))


def _bytes(values: Sequence[bytes]) -> bytes:
    return _array(_BYTES, len(values), _elements(values))


def _documents(values: Iterable[str]) -> bytes:
    written = list(map(str.encode, values))
    return _array(_TEXT, len(written), _elements(written))


class _Moments(dict[datetime | None, bytes]):
    """Times as elements. Those of a batch are few: it is now, and many cycles and windows begin and end together."""

    def __missing__(self, value: datetime | None) -> bytes:
        if len(self) >= _MOST_MOMENTS:
            self.clear()
        element = _LENGTH.pack(-1) if value is None else _MOMENT.pack(8, (value - _ERA) // _MICROSECOND)
        self[value] = element
        return element


_moments = _Moments()


def _times(values: Sequence[datetime | None]) -> bytes:
    return _array(_TIME, len(values), b"".join(map(_moments.__getitem__, values)))


# How a column's values are written, by its SQL type.
ARRAYS: dict[str, Callable[[Any], bytes]] = {
    "text": texts,
    "json": _documents,
    "jsonb": _short_documents,
    "timestamptz": _times,
    "bytea": _bytes,
    "bigint": _plain,
    "integer": _plain,
    "boolean": _plain,
}
# Of which of them that is the binary form.
BINARY = {"json", "timestamptz", "bytea"}


def _moment(value: datetime | None) -> bytes | None:
    return None if value is None else orjson.dumps(value)[1:-1]


# The same of a single value, always in its text form.
VALUES: dict[str, Callable[[Any], bytes | None]] = {
    "text": str.encode,
    "json": str.encode,
    "jsonb": orjson.dumps,
    "timestamptz": _moment,
    "bytea": lambda value: b"\\x%s" % value.hex().encode(),
    "bigint": orjson.dumps,
    "integer": orjson.dumps,
    "boolean": orjson.dumps,
}


def literals(rows: Sequence[tuple[Any, ...]]) -> list[bytes]:
    """An array literal for each column of some keys, which are texts, numbers and times; at least one."""
    columns = zip(*rows, strict=True)
    return [texts(column) if isinstance(column[0], str) else _plain(column) for column in columns]
