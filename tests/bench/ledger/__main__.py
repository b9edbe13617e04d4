"""Runs the ledger's benchmark: `python -m tests.bench.ledger [--quick] [--large] [--replicas N]`.

Prints tables, then one line of JSON. The exit status is 0 unless something broke: it measures, it does not gate.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from rich.progress import Progress

from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Child, StartFailedError
from tests.bench.ledger import books, plan, report
from tests.bench.ledger.pgbench import Pgbench
from tests.bench.ledger.plan import Echo, Plan, Side
from tests.bench.ledger.tested import Client, ledger
from tests.bench.support import run, tables
from tests.bench.support.servers import BenchFailedError, durable_postgres, listening, python_program

_LARGE_ACCOUNTS = 1_000_000
# With the two grants and the open hold that every account has: thirteen entries, six holds, five usage records.
_LARGE_SETTLED_CALLS = 5
# Whatever hangs, the bench ends.
_QUICK_SECONDS, _SECONDS, _LARGE_SECONDS = 240, 900, 2700
# Of a million accounts: tables, indexes and the write-ahead log of making them. A small bench needs the log's part.
_BYTES_AN_ACCOUNT, _BYTES = 16_000, 10 * 1024**3

_console = tables.console()


def _require_room(folder: Path, accounts: int) -> None:
    needed = _BYTES + _BYTES_AN_ACCOUNT * accounts
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BenchFailedError(f"{folder} has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB are needed; set TMPDIR")


def _say(words: str) -> None:
    _console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {words}")


class _Bench:
    def __init__(self, chosen: argparse.Namespace, folder: Path, server: EmbeddedPostgres, postmaster: Child) -> None:
        self._chosen = chosen
        self._plan: Plan = plan.QUICK if chosen.quick else plan.DEFAULT
        self._folder = folder
        self._server = server
        self._postmaster = postmaster.record.pid
        self._said: dict[str, object] = {
            "replicas": chosen.replicas,
            "cores": os.cpu_count(),
            "load_before": [round(load, 2) for load in os.getloadavg()],
        }

    def run(self) -> None:
        """Make what is measured, measure, audit, report."""
        pgbench = Pgbench(self._server, self._postmaster, self._folder)
        pgbench.prepare()
        with contextlib.ExitStack() as stack:
            port, child = stack.enter_context(
                listening(
                    lambda port: python_program("echo", "tests.bench.ledger.echo", str(port)), self._folder / "echo.log"
                )
            )
            sides = [self._side(stack, "empty", plan.MEASURED_ACCOUNTS, 0)]
            if self._chosen.large:
                sides.append(self._side(stack, "large", self._chosen.large_accounts, _LARGE_SETTLED_CALLS))
            for side in sides:
                self._try_in_flight(side)
            echo = Echo(Client(self._folder), port, child.record.pid)
            figures = plan.run(self._plan, pgbench, echo, sides, _say)
            self._said["load_after"] = [round(load, 2) for load in os.getloadavg()]
            for side in sides:
                _say(f"{side.name} ledger: {side.tested.audited()}")
        self._report(figures, sides)

    def _side(self, stack: contextlib.ExitStack, name: str, accounts: int, settled_calls: int) -> Side:
        tested = stack.enter_context(
            ledger(
                name,
                server=self._server,
                postmaster=self._postmaster,
                folder=self._folder,
                replicas=self._chosen.replicas,
            )
        )
        begun = time.perf_counter()
        with Progress(console=_console, transient=True, disable=not _console.is_terminal) as progress:
            task = progress.add_task(f"{name} ledger: accounts", total=accounts)
            tested.open_accounts(accounts, settled_calls, partial(progress.advance, task))
        seconds = time.perf_counter() - begun
        self._said[f"{name}_accounts"] = accounts
        self._said[f"{name}_entries_before"] = tested.entries_before
        self._said[f"{name}_seeding_seconds"] = round(seconds, 1)
        _say(f"{name} ledger: {accounts:,} accounts, {tested.entries_before:,} entries, in {seconds:.0f} s")
        everyone = [books.account_id(number) for number in range(1, accounts + 1)]
        chosen = plan.drawn(accounts)
        return Side(name, tested, chosen, everyone if len(everyone) > len(chosen) else ())

    def _try_in_flight(self, side: Side) -> None:
        rates = plan.try_in_flight(self._plan, side)
        self._said[f"{side.name}_in_flight"] = side.in_flight
        told = ", ".join(f"{number}: {rate:,.0f}/s" for number, rate in rates.items())
        _say(f"{side.name} ledger: {side.in_flight} batches under way ({told})")

    def _report(self, figures: plan.Figures, sides: list[Side]) -> None:
        found = report.ratios(figures)
        _console.print(report.figures_table(figures))
        _console.print(report.ratios_table(found))
        for side in sides:
            for kind in ("apply", "hot", f"hold_{plan.MANY}"):
                name = f"{side.name}_{kind}"
                _console.print(f"{name} is bound by {report.bound(figures[name], self._chosen.replicas)}")
        if warning := report.disturbance(figures):
            _console.print(f"[bold]{warning}[/bold]")
        before, after = self._said["load_before"], self._said["load_after"]
        _console.print(
            f"{self._chosen.replicas} ledger process(es), {self._said['cores']} cores; load {before} → {after}"
        )
        sys.stdout.write(json.dumps(report.json_line(figures, found, self._said)) + "\n")


def _chosen() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ledger", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, under 40 seconds")
    parser.add_argument(
        "--large", action="store_true", help="also with a million accounts and over ten million entries"
    )
    parser.add_argument("--large-accounts", type=int, default=_LARGE_ACCOUNTS, metavar="N", help="as many instead")
    parser.add_argument(
        "--replicas",
        type=int,
        default=2,
        metavar="N",
        help="processes of the ledger, 1 to 8, each with its own accounts",
    )
    chosen = parser.parse_args()
    if not 1 <= chosen.replicas <= 8:
        parser.error("--replicas must be 1 to 8")
    if chosen.large_accounts < plan.MEASURED_ACCOUNTS:
        parser.error(f"--large-accounts must be at least {plan.MEASURED_ACCOUNTS}")
    return chosen


def main() -> int:
    """Run it; the exit status."""
    chosen = _chosen()
    run.end_after(_LARGE_SECONDS if chosen.large else _QUICK_SECONDS if chosen.quick else _SECONDS)
    try:
        _require_room(Path(tempfile.gettempdir()), chosen.large_accounts if chosen.large else 0)
        with run.own_folder() as folder, durable_postgres(folder) as (server, postmaster):
            _Bench(chosen, folder, server, postmaster).run()
    except (BenchFailedError, StartFailedError, run.Ended) as failure:
        sys.stderr.write(f"the bench failed: {failure}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
