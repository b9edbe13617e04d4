"""Runs the gateway's benchmark: `python -m tests.bench.gateway [--quick] [--memory] [--profile]`.

Prints tables, then one line of JSON. The exit status is 0 unless something broke: it measures, it does not gate.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from deploy.local.process import StartFailedError
from tests.bench.gateway import audit, memory, plan, profiling, report, suite
from tests.bench.gateway.client import client
from tests.bench.gateway.suite import Tested
from tests.bench.support import run, tables
from tests.bench.support.servers import BenchFailedError

# Whatever hangs, the bench ends.
_QUICK_SECONDS, _SECONDS, _MEMORY_SECONDS = 300, 900, 1800

_console = tables.console()


def _say(words: str) -> None:
    _console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {words}")


def _bench(chosen: argparse.Namespace, folder: Path) -> None:
    """Start what is measured, measure, audit, report."""
    calling = client(folder)
    said: dict[str, Any] = {
        "client": calling.words,
        "cores": os.cpu_count(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }
    more = profiling.settings(folder) if chosen.profile else {}
    with plan.upstream(folder) as (port, provider), suite.running(folder, port, more) as tested:
        _say(f"the suite is up; client: {calling.words}")
        entries_before = audit.entries(tested)
        with plan.targets(folder, tested, provider) as targets:
            figures: plan.Figures = {}
            answered = 0
            if not (chosen.memory or chosen.profile):
                figures = plan.run(plan.QUICK if chosen.quick else plan.DEFAULT, calling, targets, _say)
                answered = plan.answered(figures)
            ours = plan.through_gateway(targets).job
            if chosen.profile:
                for stream in (False, True):
                    result, samples = profiling.measured(calling, ours, folder, stream=stream)
                    answered += result["calls"]
                    _print_profile("streams" if stream else "unary calls", result, samples)
            if chosen.memory:
                series = memory.measured(calling, ours, _say)
                answered += series.calls[-1]
                said["memory_mb"] = [round(size, 1) for size in series.megabytes]
                _console.print(series.table())
                _console.print(series.words())
        said["load_after"] = [round(load, 2) for load in os.getloadavg()]
        _print_audit(tested, entries_before, answered)
    _report(figures, said)


def _print_audit(tested: Tested, entries_before: int, answered: int) -> None:
    _say(audit.require_sound(tested, entries_before=entries_before, answered=answered))


def _print_profile(what: str, result: dict[str, Any], samples: dict[str, Any]) -> None:
    took, rate = result["microseconds"]["proxy"], result["rate"]
    _console.print(f"Proxy, {what}, {plan.MANY} at once: {took:,.0f} µs of a call, {rate:,.0f} calls a second")
    _console.print(profiling.table("own", f"Own time, {what}", result, samples))
    _console.print(profiling.table("total", f"With all they call, {what}", result, samples))


def _report(figures: plan.Figures, said: dict[str, Any]) -> None:
    aims = report.aims(figures) if figures else {}
    if figures:
        for kind in ("unary", "stream"):
            _console.print(report.rates_table(figures, kind))
        _console.print(report.processors_table(figures))
        _console.print(report.aims_table(aims))
        if warning := report.disturbance(figures):
            _console.print(f"[bold]{warning}[/bold]")
    load = f"load {said['load_before']} → {said['load_after']}"
    _console.print(f"client: {said['client']}; {said['cores']} cores; {load}")
    sys.stdout.write(json.dumps(report.json_line(figures, aims, said)) + "\n")


def _chosen() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument(
        "--memory", action="store_true", help=f"instead: the proxy's memory through {memory.CALLS:,} calls"
    )
    parser.add_argument("--profile", action="store_true", help="instead: the proxy's top functions")
    return parser.parse_args()


def main() -> int:
    """Run it; the exit status."""
    chosen = _chosen()
    run.end_after(_MEMORY_SECONDS if chosen.memory else _QUICK_SECONDS if chosen.quick else _SECONDS)
    try:
        with run.own_folder() as folder:
            _bench(chosen, folder)
    except (BenchFailedError, StartFailedError, run.Ended) as failure:
        sys.stderr.write(f"the bench failed: {failure}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
