"""Owns the making of an export: rows in, the pieces of a file out, in a bounded part of memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from services.ledger.export.columns import COLUMNS
from services.ledger.export.comma_separated import CsvFile
from services.ledger.export.parquet import ParquetFile

MAX_PIECE_BYTES = 64 * 1024


class File(Protocol):
    """A file that grows: each step gives its next bytes."""

    def add(self, rows: Sequence[Any]) -> bytes:
        """Write rows."""

    def end(self) -> bytes:
        """Write what is left."""


FORMATS: dict[str, Callable[..., File]] = {"csv": CsvFile, "parquet": ParquetFile}


def new_file(what: str, form: str) -> File:
    """An empty file of `usage` or `transactions`, as `csv` or `parquet`."""
    return FORMATS[form](COLUMNS[what])


async def pieces(
    following: Callable[[], Awaitable[Sequence[Any]]], file: File
) -> AsyncGenerator[tuple[bytes, int], None]:
    """A file's pieces of at most 64 KiB, each with 0 but the last with the number of rows in all.

    `following()` gives the next rows, none at the end. Rows are written in a thread: the loop has other calls to serve.
    """
    waiting = bytearray()
    count = 0
    while rows := await following():
        count += len(rows)
        waiting += await asyncio.to_thread(file.add, rows)
        # The last piece waits, since it may be the last of all.
        while len(waiting) > MAX_PIECE_BYTES:
            yield bytes(waiting[:MAX_PIECE_BYTES]), 0
            del waiting[:MAX_PIECE_BYTES]
    waiting += await asyncio.to_thread(file.end)
    while len(waiting) > MAX_PIECE_BYTES:
        yield bytes(waiting[:MAX_PIECE_BYTES]), 0
        del waiting[:MAX_PIECE_BYTES]
    yield bytes(waiting), count
