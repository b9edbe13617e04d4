"""Owns exports as Parquet: amounts and counts are int64, times timestamps in UTC to the microsecond."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from services.ledger.export.columns import BOOLEAN, INTEGER, TEXT, TIME, Column

# What is kept in memory until it is written, and what a reader has to take in at once.
ROW_GROUP_ROWS = 10_000

_TYPES = {TEXT: pa.string(), INTEGER: pa.int64(), BOOLEAN: pa.bool_(), TIME: pa.timestamp("us", tz="UTC")}


class _Taken(io.RawIOBase):
    """Where the Parquet writer writes to: keeps bytes until they are taken."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, found: Any, /) -> int:
        self._bytes += found
        self._written += len(found)
        return len(found)

    def tell(self) -> int:
        return self._written

    def take(self) -> bytes:
        """What was written since it was last taken."""
        found, self._bytes = bytes(self._bytes), bytearray()
        return found


class ParquetFile:
    """A Parquet file that grows: each step gives its next bytes, none until a group of rows is full."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._schema = pa.schema([pa.field(column.name, _TYPES[column.kind]) for column in columns])
        self._sink = _Taken()
        self._writer = pq.ParquetWriter(self._sink, self._schema)
        self._group: list[Any] = []
        self._group_rows = 0

    def add(self, rows: Sequence[Any]) -> bytes:
        """Write rows."""
        arrays = [pa.array([column.value(row) for row in rows], _TYPES[column.kind]) for column in self._columns]
        self._group.append(pa.record_batch(arrays, schema=self._schema))
        self._group_rows += len(rows)
        if self._group_rows >= ROW_GROUP_ROWS:
            self._write_group()
        return self._sink.take()

    def end(self) -> bytes:
        """Write what is left, and the index at the end, without which it is no Parquet file."""
        if self._group:
            self._write_group()
        self._writer.close()
        return self._sink.take()

    def _write_group(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._group, self._schema))
        self._group, self._group_rows = [], 0
