"""Owns `verify`: verifies all accounts or some, shows how far it is, and goes on where it was interrupted."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.command import Command, CommandError
from services.kit.db import async_engine
from services.kit.loops import raise_if_cancelled, run_async
from services.ledger.model.verification.findings import Finding, Verified
from services.ledger.settings import LedgerSettings
from services.ledger.store.verification import accounts_after, totals_after
from services.ledger.verifying import verified

_PAGE_ROWS = 2_000
# Accounts that are read in one transaction: as many as a query can name, or as have about so many entries.
_ACCOUNTS_AT_ONCE = 500
_ENTRIES_AT_ONCE = 20_000
# How often a line says how far it is, where there is no terminal.
_LINE_SECONDS = 10


@dataclass(slots=True)
class Found:
    """What a run has come to so far, and how far it is: what `--resume` keeps."""

    after: str = ""
    accounts: int = 0
    entries: int = 0
    unsound: int = 0
    first: str = ""

    @classmethod
    def read(cls, file: Path) -> Found:
        """What an interrupted run kept; nothing where there is no file. Raises CommandError."""
        try:
            content = json.loads(file.read_bytes())
            kept = cls(**content)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise CommandError(f"{file}: not what an interrupted run keeps") from error
        if [type(value) for value in asdict(kept).values()] != [type(value) for value in asdict(cls()).values()]:
            raise CommandError(f"{file}: not what an interrupted run keeps")
        return kept

    def keep(self, file: Path) -> None:
        """Write the file, whole or not at all. Raises CommandError."""
        part = file.with_name(f".{file.name}.part")
        try:
            part.write_text(json.dumps(asdict(self)))
            part.replace(file)
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror}") from error

    def add(self, account: Verified) -> None:
        """Count an account in."""
        self.after = account.account_id
        self.accounts += 1
        self.entries += account.entries
        if account.findings:
            self.unsound += 1
            self.first = self.first or _line(account.account_id, account.findings[0])


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--account", action="append", metavar="A", help="only this one; may be given several times")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep in FILE how far it is, and go on from there")
    parser.add_argument(
        "--json", action="store_true", help="print JSON: a line for each unsound account, and a last one"
    )


def _run(chosen: argparse.Namespace, settings: Callable[[], LedgerSettings]) -> int:
    if chosen.account and chosen.resume:
        raise CommandError("--resume is for runs over all accounts")
    found = Found.read(chosen.resume) if chosen.resume else Found()
    report = _Report(as_json=chosen.json)

    async def run() -> None:
        engine = async_engine(settings())
        try:
            await _verified(engine, chosen, found, report)
        finally:
            await engine.dispose()

    if chosen.resume:
        found.keep(chosen.resume)  # told now, not after hours, where it cannot be written
    if found.after:
        report.say(f"going on after account {found.after}: {found.accounts} accounts were verified before")
    with report.progress:
        run_async(run)
    if chosen.resume:
        chosen.resume.unlink(missing_ok=True)
    report.end(found)
    return 1 if found.unsound else 0


async def _verified(engine: AsyncEngine, chosen: argparse.Namespace, found: Found, report: _Report) -> None:
    if chosen.account:
        report.expect(len(set(chosen.account)), None)
        batches = _chosen(chosen.account)
    else:
        accounts, entries = await totals_after(engine, found.after)
        report.expect(found.accounts + accounts, entries)
        batches = _batches(engine, found.after)
    async for batch in batches:
        results = await verified(engine, batch, page_rows=_PAGE_ROWS, told=report.read)
        if chosen.account and not results:
            raise CommandError(f"there is no account {batch[0]}")
        for account in results:
            found.add(account)
            report.account(account)
        if chosen.resume:
            found.keep(chosen.resume)
        report.advance(found)
        raise_if_cancelled()  # an interruption


async def _chosen(accounts: list[str]) -> AsyncIterator[list[str]]:
    for account_id in sorted(set(accounts)):
        yield [account_id]


async def _batches(engine: AsyncEngine, after: str) -> AsyncIterator[list[str]]:
    """All accounts in order, those too that are opened meanwhile further on: few entries together, many alone."""
    while rows := await accounts_after(engine, after, _ACCOUNTS_AT_ONCE):
        batch: list[str] = []
        entries = 0
        for account_id, count in rows:
            if batch and entries + count > _ENTRIES_AT_ONCE:
                yield batch
                batch, entries = [], 0
            batch.append(account_id)
            entries += count
        yield batch
        after = rows[-1][0]


class _Report:
    """What is said: findings as they come and the result on standard output, on standard error how far it is."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._console = Console(stderr=True, highlight=False, markup=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("entries"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            # Above the bar where both are on one terminal; a file gets it as it is.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self.progress.add_task("verifying", total=None)
        self._accounts = 0
        self._told_at = time.monotonic()

    def say(self, line: str) -> None:
        """A line for a person, beside the result."""
        self._console.print(line, soft_wrap=True)

    def expect(self, accounts: int, entries: int | None) -> None:
        """How many accounts there are in all, and how many entries to read, where that is known."""
        self._accounts = accounts
        self.progress.update(self._task, total=entries)

    def read(self, entries: int) -> None:
        """So many entries more were read."""
        self.progress.advance(self._task, entries)

    def account(self, account: Verified) -> None:
        """What came of one account; nothing is said of a sound one."""
        if self._json and account.findings:
            findings = [asdict(finding) for finding in account.findings]
            _print_json({"account": account.account_id, "entries": account.entries, "findings": findings})
        elif account.findings:
            sys.stdout.write("".join(f"{_line(account.account_id, finding)}\n" for finding in account.findings))
            sys.stdout.flush()

    def advance(self, found: Found) -> None:
        """A batch is done. Where there is no bar, a line says so now and then."""
        self.progress.update(self._task, description=f"{found.accounts} accounts, {found.unsound} unsound")
        if not self._console.is_terminal and time.monotonic() > self._told_at + _LINE_SECONDS:
            self._told_at = time.monotonic()
            self.say(f"{found.accounts} of {self._accounts} accounts, {found.entries} entries, {found.unsound} unsound")

    def end(self, found: Found) -> None:
        """The result."""
        if self._json:
            counts = {"accounts": found.accounts, "entries": found.entries, "unsound": found.unsound}
            _print_json(counts | {"first": found.first})
        else:
            unsound = f"{found.unsound} unsound; the first: {found.first}" if found.unsound else "all sound"
            sys.stdout.write(f"{found.accounts} accounts, {found.entries} entries: {unsound}\n")


def _line(account_id: str, finding: Finding) -> str:
    named = f" {finding.transaction_id}" if finding.transaction_id else ""
    return f"{account_id}{named} {finding.reason}: {finding.detail}"


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


VERIFY: Command[LedgerSettings] = Command(
    "verify", "re-derive every balance from the journal, and say what does not add up", _arguments, _run
)
