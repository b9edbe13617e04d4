"""Owns exports as CSV: RFC 4180, a header, UTF-8; times in ISO 8601, UTC; amounts as integers."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from services.ledger.export.columns import BOOLEAN, INTEGER, TEXT, TIME, Column

# A spreadsheet takes a text that begins with one of these for a formula, and texts are what clients send.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def _text(value: str) -> str:
    """The text; behind a ' where a spreadsheet would run it. Parquet, which none runs, has it as it is."""
    return f"'{value}" if value.startswith(_FORMULA) else value


def _time(value: Any) -> str:
    """`2026-11-21T12:00:00.000000Z`; nothing where there is none. The connection's times are in UTC."""
    return f"{value.isoformat(timespec='microseconds')[:-6]}Z" if value is not None else ""


_WRITTEN: dict[str, Callable[[Any], Any]] = {
    TEXT: _text,
    INTEGER: int,
    BOOLEAN: lambda value: "true" if value else "false",
    TIME: _time,
}


class CsvFile:
    """A CSV file that grows: each step gives its next bytes."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = [(column.value, _WRITTEN[column.kind]) for column in columns]
        self._buffer = io.StringIO()
        self._writer = csv.writer(self._buffer, lineterminator="\r\n")
        self._writer.writerow(column.name for column in columns)

    def add(self, rows: Sequence[Any]) -> bytes:
        """Write rows."""
        self._writer.writerows([written(value(row)) for value, written in self._columns] for row in rows)
        return self._taken()

    def end(self) -> bytes:
        """Write what is left."""
        return self._taken()

    def _taken(self) -> bytes:
        found = self._buffer.getvalue().encode()
        self._buffer.seek(0)
        self._buffer.truncate()
        return found
