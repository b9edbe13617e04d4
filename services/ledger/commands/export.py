"""Owns `export`: writes an account's usage records or transactions to a file."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from services.kit.command import Command, CommandError
from services.kit.db import async_engine
from services.kit.errors import ServiceError
from services.kit.loops import run_async
from services.kit.validation import Violations
from services.ledger.export.files import FORMATS, new_file, pieces
from services.ledger.group_commit import GroupCommit
from services.ledger.presence import Presence
from services.ledger.service import Ledger
from services.ledger.servicer.filters import period
from services.ledger.settings import LedgerSettings
from services.ledger.store.exports import WHAT
from services.ledger.store.reads import Reads

_STDOUT = "-"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--account", required=True, metavar="A", help="whose")
    parser.add_argument("--what", choices=WHAT, default="usage", help="default usage")
    parser.add_argument("--format", choices=sorted(FORMATS), default="csv", help="default csv")
    parser.add_argument("--from", dest="start", type=_moment, metavar="TIME", help="default: this month's start")
    parser.add_argument(
        "--to", dest="end", type=_moment, metavar="TIME", help="default: now; what is booked then is out"
    )
    parser.add_argument("--output", default=_STDOUT, metavar="FILE", help="default -, standard output")


def _moment(text: str) -> datetime:
    """A time in ISO 8601, such as 2026-11-01 or 2026-11-01T12:00Z; UTC where it has no zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-11-01 or 2026-11-01T12:00Z") from None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _run(chosen: argparse.Namespace, settings: Callable[[], LedgerSettings]) -> int:
    v = Violations()
    v.identifier("--account", chosen.account)
    start, end = period(v, chosen.start, chosen.end)
    if v.found:
        raise CommandError("; ".join(f"{wrong.field} {wrong.description}" for wrong in v.found))
    if chosen.output == _STDOUT and chosen.format == "parquet" and sys.stdout.isatty():
        raise CommandError("a Parquet file is nothing for a terminal; name one with --output")
    ready = settings()
    rows = 0

    async def export() -> None:
        nonlocal rows
        with _output(chosen.output) as output:
            rows = await _written(ready, chosen, start, end, output)

    try:
        run_async(export)
    except ServiceError as refusal:
        raise CommandError(f"{refusal.reason}: {refusal.message}") from refusal
    except OSError as error:
        raise CommandError(f"{chosen.output} cannot be written: {error.strerror}") from error
    sys.stderr.write(f"{rows} rows\n")
    return 0


async def _written(
    settings: LedgerSettings, chosen: argparse.Namespace, start: datetime, end: datetime, output: BinaryIO
) -> int:
    """Write the file; how many rows it has."""
    # What is due at the account happens before it is read, as for every read; no hold lapses that was due while no
    # server was there, as at every server.
    engine, commits = async_engine(settings), GroupCommit(settings, Presence(settings))
    commits.start()
    ledger = Ledger(commits, Reads(engine))
    count = 0
    try:
        async with (
            ledger.export(chosen.account, chosen.what, start, end) as following,
            aclosing(pieces(following, new_file(chosen.what, chosen.format))) as found,
        ):
            async for chunk, rows in found:
                output.write(chunk)
                count += rows
    finally:
        await commits.stop()
        await engine.dispose()
    return count


@contextmanager
def _output(name: str) -> Iterator[BinaryIO]:
    """Where to write. A file is there when it is whole: what is cut short leaves what was there before."""
    if name == _STDOUT:
        # One of its own, so that nothing is left in it to fail at the end of the process.
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as output:
            yield output
        return
    path = Path(name)
    if path.exists() and not path.is_file():
        raise CommandError(f"{name} is no file")
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as output:
            yield output
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink()
        raise


EXPORT: Command[LedgerSettings] = Command(
    "export", "write an account's usage records or transactions to a file", _arguments, _run
)
