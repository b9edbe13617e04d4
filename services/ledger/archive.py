"""Owns the files of an archived month: one Parquet file per table, and a manifest that says what is in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from services.ledger.store.months import MonthError, columns, contents, detached_tables
from services.ledger.store.partitions import Connection, rows

# What is in memory at once: these many rows, and the row group that they are part of.
_ROWS_AT_ONCE = 5_000
_TYPES = {
    "text": pa.string(),
    "jsonb": pa.string(),
    "bigint": pa.int64(),
    "integer": pa.int32(),
    "smallint": pa.int16(),
    "boolean": pa.bool_(),
    "bytea": pa.binary(),
    "timestamp with time zone": pa.timestamp("us", tz="UTC"),
}


@dataclass(frozen=True, slots=True)
class ArchivedTable:
    """A file of an archive. `sha256` is of the file; `rows_sha256` of its rows, each as JSON, bytes in hex."""

    file: str
    rows: int
    size_bytes: int
    sha256: str
    rows_sha256: str
    first: dict[str, Any] | None
    last: dict[str, Any] | None


class _Rows:
    """Counts rows, keeps the first and the last, and digests them all."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._digest = hashlib.sha256()
        self.count = 0
        self.first: Sequence[Any] | None = None
        self.last: Sequence[Any] | None = None

    def add(self, found: Sequence[Sequence[Any]]) -> None:
        for row in found:
            self._digest.update(orjson.dumps(list(row), default=bytes.hex))
        self.first = self.first or found[0]
        self.last = found[-1]
        self.count += len(found)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def named(self, row: Sequence[Any] | None) -> dict[str, Any] | None:
        """What tells a row from others: its account, number and time."""
        keys = ("account_id", "sequence", "usage_number", "created_at")
        return {n: v for n, v in zip(self._names, row, strict=True) if n in keys} if row else None


async def write_archive(connection: Connection, month: str, folder: Path) -> Path:
    """Write a detached month's files and read them back; the manifest. Files of the same name are replaced.

    Raises MonthError where the month is not detached, or what is read back is not what is in the database.
    """
    names = await detached_tables(connection, month)
    found = {}
    # One snapshot for both tables.
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for name in names:
            found[name] = await _written(connection, name, folder)
    (revision,) = (await rows(connection, "SELECT version_num FROM alembic_version"))[0]
    manifest = {
        "month": month,
        "made_at": datetime.now(UTC),
        "schema_revision": revision,
        "tables": {name.split("_", 1)[0]: asdict(table) for name, table in found.items()},
    }
    path = folder / f"ledger-{month}.json"
    _put(path, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    return path


async def _written(connection: Connection, table: str, folder: Path) -> ArchivedTable:
    """Write one table's file under a name of its own; it gets its name when it was read back."""
    kinds = await columns(connection, table)
    schema = pa.schema([pa.field(name, _TYPES[kind]) for name, kind in kinds])
    names = [name for name, _ in kinds]
    path = folder / f"{table}.parquet"
    part = path.with_suffix(".parquet.part")
    written = _Rows(names)
    with pq.ParquetWriter(part, schema, compression="zstd") as writer:
        async for batch in contents(connection, table, names, _ROWS_AT_ONCE):
            written.add(batch)
            arrays = [pa.array(values, field.type) for values, field in zip(zip(*batch, strict=True), schema)]  # noqa: B905 (as many as names)
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    back = _read_back(part, names)
    if (back.count, back.sha256) != (written.count, written.sha256):
        raise MonthError(f"{part}: what is read back is not what was written; nothing was dropped")
    sha256 = _synced(part)
    part.replace(path)
    return ArchivedTable(
        file=path.name,
        rows=written.count,
        size_bytes=path.stat().st_size,
        sha256=sha256,
        rows_sha256=written.sha256,
        first=written.named(written.first),
        last=written.named(written.last),
    )


def _read_back(path: Path, names: Sequence[str]) -> _Rows:
    found = _Rows(names)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(names)):
            if batch.num_rows:
                found.add(list(zip(*(column.to_pylist() for column in batch.columns), strict=True)))
    return found


def _synced(path: Path) -> str:
    """The digest of a file that is on the disk by now."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(path: Path, content: bytes) -> None:
    """Write a small file, whole or not at all; then it and its neighbours are on the disk."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(content)
    _synced(part)
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
