"""Owns `months`: lists the monthly partitions, makes them ahead, detaches the oldest and archives what is detached."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from services.kit.command import Command, CommandError
from services.kit.db import connection_string, connection_words
from services.kit.loops import run_async
from services.ledger.archive import write_archive
from services.ledger.settings import LedgerSettings
from services.ledger.store.months import MonthError, alone, detach, mark_archived
from services.ledger.store.partitions import MONTHS_AHEAD, Connection, Month, create_months, months

_MAX_AHEAD = 60
# Summing up a month of many millions of entries takes its time; only waiting for locks is bounded.
_OPTIONS = "-c timezone=UTC -c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c lock_timeout=5000"


def _month(text: str) -> str:
    if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a month such as 2026-11")
    return text


def _ahead(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_AHEAD:
        raise argparse.ArgumentTypeError(f"must be from 1 to {_MAX_AHEAD}")
    return int(text)


def _arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True)
    listed = what.add_parser("list", help="each month: rows, bytes, attached, detached or dropped")
    created = what.add_parser("create", help="make this month's and the next months' partitions, where missing")
    created.add_argument("--ahead", type=_ahead, default=MONTHS_AHEAD, metavar="N", help="how many (default 3)")
    detached = what.add_parser("detach", help="take the oldest month out of the journal and the usage records")
    archived = what.add_parser("archive", help="write a detached month to Parquet files, and verify them")
    archived.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder for the files")
    archived.add_argument("--drop", action="store_true", help="drop the month's tables once the files are verified")
    for one in (detached, archived):
        one.add_argument("month", type=_month, metavar="MONTH", help="such as 2026-01")
    for one in (listed, created, detached, archived):
        one.add_argument("--json", action="store_true", help="print JSON")


def _run(chosen: argparse.Namespace, settings: Callable[[], LedgerSettings]) -> int:
    configured = settings()
    if chosen.what == "archive":
        _make_folder(chosen.output)

    async def run() -> None:
        async with _connected(configured) as connection:
            found = await _RUNS[chosen.what](connection, chosen)
        if chosen.json:
            sys.stdout.write(json.dumps(found) + "\n")
        else:
            _SHOWN[chosen.what](found)

    try:
        run_async(run)
    except (MonthError, psycopg.OperationalError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from error
    return 0


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{folder}: {error.strerror}") from error


@asynccontextmanager
async def _connected(settings: LedgerSettings) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(
        connection_string(settings.database_url),
        autocommit=True,
        **connection_words(settings.database_url, "tollkeeper-ledger-months", _OPTIONS),
    ) as connection:
        yield connection


async def _list(connection: Connection, _: argparse.Namespace) -> list[dict[str, Any]]:
    return [asdict(month) for month in await months(connection)]


async def _create(connection: Connection, chosen: argparse.Namespace) -> list[str]:
    return await create_months(connection, datetime.now(UTC), chosen.ahead)


async def _detach(connection: Connection, chosen: argparse.Namespace) -> dict[str, Any]:
    async with alone(connection):
        journal_rows, usage_rows = await detach(connection, chosen.month)
    return {"month": chosen.month, "journal_rows": journal_rows, "usage_rows": usage_rows}


async def _archive(connection: Connection, chosen: argparse.Namespace) -> dict[str, Any]:
    async with alone(connection):
        manifest = await write_archive(connection, chosen.month, chosen.output)
        await mark_archived(connection, chosen.month, drop=chosen.drop)
    content: dict[str, Any] = json.loads(manifest.read_bytes())
    return content | {"manifest": str(manifest), "dropped": chosen.drop}


def _show_list(found: list[dict[str, Any]]) -> None:
    table = Table("month", "state", "archived", box=None)
    for name in ("journal rows", "usage rows", "bytes"):
        table.add_column(name, justify="right")
    for row in found:
        month = Month(**row)
        counts = (f"{count:,}" for count in (month.journal_rows, month.usage_rows, month.size_bytes))
        table.add_row(month.month, month.state, "yes" if month.archived else "", *counts)
    Console(highlight=False).print(table)


def _show_created(made: list[str]) -> None:
    sys.stdout.write("".join(f"made {name}\n" for name in made) or "nothing was missing\n")


def _show_detached(found: dict[str, Any]) -> None:
    counts = f"{found['journal_rows']} journal entries, {found['usage_rows']} usage records"
    sys.stdout.write(f"{found['month']} is detached: {counts}; archive it next\n")


def _show_archived(found: dict[str, Any]) -> None:
    for table in found["tables"].values():
        sys.stdout.write(f"{table['file']}: {table['rows']} rows, {table['size_bytes']} bytes, read back\n")
    sys.stdout.write(f"{found['manifest']}\n")
    sys.stdout.write("the tables are dropped\n" if found["dropped"] else "the tables are kept: --drop drops them\n")


_RUNS: dict[str, Callable[[Connection, argparse.Namespace], Any]] = {
    "list": _list,
    "create": _create,
    "detach": _detach,
    "archive": _archive,
}
_SHOWN: dict[str, Callable[[Any], None]] = {
    "list": _show_list,
    "create": _show_created,
    "detach": _show_detached,
    "archive": _show_archived,
}

MONTHS: Command[LedgerSettings] = Command(
    "months", "list the months' partitions, make them ahead, detach and archive the oldest", _arguments, _run
)
