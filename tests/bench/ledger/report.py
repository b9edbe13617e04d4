"""Owns what the bench says: the tables, what bounds the ledger, and the line of JSON."""

from collections.abc import Sequence
from typing import Any

import psutil
from rich.table import Table

from tests.bench.ledger.pgbench import CLIENTS, THREADS
from tests.bench.ledger.plan import BATCH, MANY, MEASURED_ACCOUNTS, Figures
from tests.bench.support import tables
from tests.bench.support.figures import median, rounded, spread

_PARTS = ("client", "ledger", "echo", "postgres", "others")
# A process of one thread that is this busy has no more to give.
_BUSY = 0.85
_MACHINE_BUSY = 0.9
# Cores that strangers may take before figures are said to be too low.
_DISTURBED = 0.25

_LABELS = {
    "pgbench_plain": f"pgbench, {CLIENTS} clients, {THREADS} threads, prepared",
    "pgbench_pipelined": "the same, a transaction in one round trip",
    "echo_1": "bare unary echo, 1 at once",
    f"echo_{MANY}": f"bare unary echo, {MANY} at once",
    "apply": f"Apply, {BATCH} a batch, {MEASURED_ACCOUNTS} accounts",
    "hot": f"Apply, {BATCH} a batch, 1 account",
    "hold_1": "CreateHold, 1 at once",
    f"hold_{MANY}": f"CreateHold, {MANY} at once",
    "apply_all": "Apply, any account of all",
}

# Name, above and below the line, the least that is aimed at.
_RATIOS = (
    ("apply_vs_pgbench", "empty_apply", "pgbench_pipelined", 1.0),
    ("apply_vs_pgbench_plain", "empty_apply", "pgbench_plain", 1.0),
    ("unary_vs_echo", f"empty_hold_{MANY}", f"echo_{MANY}", 0.6),
    ("hot_vs_many", "empty_hot", "empty_apply", 0.5),
    ("large_vs_empty", "large_apply", "empty_apply", 0.8),
    ("large_all_vs_empty", "large_apply_all", "empty_apply", 0.8),
    ("large_unary_vs_empty", f"large_hold_{MANY}", f"empty_hold_{MANY}", 0.8),
)


def _label(name: str) -> str:
    side, _, kind = name.partition("_")
    return f"{side} ledger: {_LABELS[kind]}" if side in {"empty", "large"} else _LABELS[name]


def _values(rounds: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [result[name] for result in rounds if name in result]


def _cores(rounds: Sequence[dict[str, Any]], part: str) -> float | None:
    values = [result["cores"][part] for result in rounds if part in result["cores"]]
    return median(values) if values else None


def figures_table(figures: Figures) -> Table:
    """A row for each measurement: medians of the rounds, how far they lie apart, and the cores that each part used."""
    rows = []
    for name, rounds in figures.items():
        rates = _values(rounds, "rate")
        row = [_label(name), f"{median(rates):,.0f}", f"{spread(rates):.0%}"]
        for percentile in ("p50_ms", "p99_ms"):
            values = _values(rounds, percentile)
            row.append(f"{median(values):.2f}" if values else "")
        for part in _PARTS:
            cores = _cores(rounds, part)
            row.append("" if cores is None else f"{cores:.2f}")
        rows.append(row)
    columns = ["median of the rounds", "a second", "spread", "p50 ms", "p99 ms", *(f"{part}" for part in _PARTS)]
    return tables.table("Operations, transactions or calls a second; cores busy meanwhile", columns, rows)


def ratios(figures: Figures) -> dict[str, dict[str, Any]]:
    """Each ratio that was measured: the median of its rounds' own ratios, their spread, and what is aimed at."""
    found = {}
    for name, above, below, aim in _RATIOS:
        if above in figures and below in figures:
            values = [mine["rate"] / other["rate"] for mine, other in zip(figures[above], figures[below], strict=True)]
            found[name] = {"ratio": median(values), "spread": spread(values), "aim": aim}
    return found


def ratios_table(found: dict[str, dict[str, Any]]) -> Table:
    """A row for each ratio."""
    rows = [
        [name, f"{x['ratio']:.2f}", f"{x['spread']:.0%}", f"≥ {x['aim']:g}", "yes" if x["ratio"] >= x["aim"] else "no"]
        for name, x in found.items()
    ]
    return tables.table("Ratios, each within its own round", ["ratio", "median", "spread", "aim", "reached"], rows)


def bound(rounds: Sequence[dict[str, Any]], replicas: int) -> str:
    """What a measurement was waiting for, as far as processor time tells."""
    ledger, postgres = _cores(rounds, "ledger") or 0.0, _cores(rounds, "postgres") or 0.0
    busy = sum(_cores(rounds, part) or 0.0 for part in _PARTS)
    machine = psutil.cpu_count() or 1
    words = f"ledger {ledger:.2f}, Postgres {postgres:.2f}, in all {busy:.2f} of {machine} cores"
    if ledger / replicas >= _BUSY:
        return f"the ledger's one thread, Python ({words})"
    if busy >= _MACHINE_BUSY * machine:
        return f"the machine's cores ({words})"
    return f"waiting: for the disk, for locks, or for each other ({words})"


def disturbance(figures: Figures) -> str:
    """A warning where other programs were busy on this machine meanwhile; else empty."""
    others = max(_cores(rounds, "others") or 0.0 for rounds in figures.values())
    if others < _DISTURBED:
        return ""
    return f"other programs took up to {others:.2f} cores meanwhile: rates are too low, and ratios rough"


def json_line(figures: Figures, found: dict[str, dict[str, Any]], said: dict[str, Any]) -> dict[str, Any]:
    """Every figure and ratio."""
    line: dict[str, Any] = {"bench": "ledger", **said}
    for name, rounds in figures.items():
        line[name] = {
            "rate": rounded(median(_values(rounds, "rate"))),
            "rounds": [rounded(value) for value in _values(rounds, "rate")],
            **{
                percentile: rounded(median(_values(rounds, percentile)))
                for percentile in ("p50_ms", "p99_ms")
                if _values(rounds, percentile)
            },
            "cores": {part: round(cores, 2) for part in _PARTS if (cores := _cores(rounds, part)) is not None},
        }
    return line | {name: rounded(x["ratio"], 3) for name, x in found.items()}
