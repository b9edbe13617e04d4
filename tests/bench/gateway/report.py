"""Owns what the bench says: the tables, the aims, and the line of JSON."""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from tests.bench.gateway.plan import AT_ONCE, MANY, Figures, name_of
from tests.bench.support import tables
from tests.bench.support.figures import median, rounded, spread

_PARTS = ("client", "envoy", "proxy", "ledger", "postgres", "redis", "rest", "upstream", "echo")
# Share of a core that strangers may take before figures are said to be rough.
_DISTURBED = 0.25

_LABELS = {
    "direct": "client → provider",
    "ceiling": "Envoy, bare → gRPC echo (the ceiling)",
    "edge": "Envoy, as the gateway → gRPC echo",
    "grpc": "proxy → provider, all checks, no Envoy",
    "ours": "gateway → proxy → provider, all checks",
}
_NAMES = tuple(_LABELS)

_Compared = Callable[[float, float], float]


@dataclasses.dataclass(frozen=True)
class Aim:
    """A figure that is aimed at: its rounds' own values, and the bound; `at_least` says on which side of it."""

    values: Sequence[float]
    bound: float
    at_least: bool

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.values)

    @property
    def reached(self) -> bool:
        """Whether it is."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def _values(rounds: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [result[name] for result in rounds if name in result]


def _measured(figures: Figures, kind: str) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Target, how many at once, and the rounds: in the order that people read them."""
    named = [(target, at_once, name_of(target, kind, at_once)) for at_once in AT_ONCE for target in _NAMES]
    return [(target, at_once, figures[name]) for target, at_once, name in named if name in figures]


def rates_table(figures: Figures, kind: str) -> Table:
    """A row for each measurement of `kind`: medians of the rounds, how far they lie apart."""
    columns = ["median of the rounds", "at once", "a second", "spread", "of the ceiling", "p50 ms", "p99 ms"]
    if kind == "stream":
        columns += ["first token p50", "p99"]
    rows = []
    for target, at_once, rounds in _measured(figures, kind):
        rates = _values(rounds, "rate")
        share = median(_paired(figures, (target, "ceiling"), (kind, at_once), "rate", operator.truediv))
        row = [_LABELS[target], str(at_once), f"{median(rates):,.0f}", f"{spread(rates):.0%}", f"{share:.2f}"]
        for name in ("p50_ms", "p99_ms", "first_p50_ms", "first_p99_ms")[: len(columns) - 5]:
            values = _values(rounds, name)
            row.append(f"{median(values):.2f}" if values else "")
        rows.append(row)
    return tables.table("Unary calls" if kind == "unary" else "Streams of 20 chunks", columns, rows)


def processors_table(figures: Figures) -> Table:
    """A row for each measurement: the processor time that a call took of each part, which noise disturbs little."""
    rows = []
    for kind in ("unary", "stream"):
        for target, at_once, rounds in _measured(figures, kind):
            each = [_microseconds(rounds, part) for part in _PARTS]
            found = [value for value in each if value is not None]
            row = [f"{_LABELS[target]}, {kind}", str(at_once), *("" if x is None else f"{x:,.0f}" for x in each)]
            rows.append([*row, f"{sum(found):,.0f}"])
    columns = ["processor µs of a call", "at once", *_PARTS, "in all"]
    return tables.table("Who works for a call", columns, rows)


def _microseconds(rounds: Sequence[dict[str, Any]], part: str) -> float | None:
    values = [result["microseconds"][part] for result in rounds if part in result["microseconds"]]
    return median(values) if values else None


def _paired(
    figures: Figures, targets: tuple[str, str], measurement: tuple[str, int], name: str, compared: _Compared
) -> list[float]:
    """Each round's own comparison of two targets."""
    mine, theirs = (figures[name_of(target, *measurement)] for target in targets)
    return [compared(a[name], b[name]) for a, b in zip(mine, theirs, strict=True)]


def aims(figures: Figures) -> dict[str, Aim]:
    """What is aimed at, and what was measured of it."""

    def added(other: str, kind: str, name: str) -> list[float]:
        return _paired(figures, ("ours", other), (kind, 1), name, operator.sub)

    shares = _paired(figures, ("ours", "ceiling"), ("unary", MANY), "rate", operator.truediv)
    return {
        f"ours / ceiling, {MANY} at once": Aim(shares, 0.35, at_least=True),
        "p50 ms added to the provider's": Aim(added("direct", "unary", "p50_ms"), 4, at_least=False),
        "p50 ms added to the ceiling's": Aim(added("ceiling", "unary", "p50_ms"), 4, at_least=False),
        "first token p50 ms added to the provider's": Aim(added("direct", "stream", "first_p50_ms"), 4, at_least=False),
    }


def aims_table(found: dict[str, Aim]) -> Table:
    """A row for each."""
    rows = [
        [
            name,
            f"{aim.value:.2f}",
            f"{min(aim.values):.2f} to {max(aim.values):.2f}",
            f"{'≥' if aim.at_least else '≤'} {aim.bound:g}",
            "yes" if aim.reached else "no",
        ]
        for name, aim in found.items()
    ]
    columns = ["each within its own round", "median", "rounds", "aim", "reached"]
    return tables.table("Aims; added times are at one call at a time", columns, rows)


def disturbance(figures: Figures) -> str:
    """A warning where other programs were busy on this machine meanwhile; else empty."""
    busy = max(
        median(result["microseconds"]["others"] * result["rate"] / 1e6 for result in rounds)
        for rounds in figures.values()
    )
    if busy < _DISTURBED:
        return ""
    return f"other programs took up to {busy:.2f} cores meanwhile: rates are too low, and times too long"


def json_line(figures: Figures, found: dict[str, Aim], said: dict[str, Any]) -> dict[str, Any]:
    """Every figure and aim."""
    line: dict[str, Any] = {"bench": "gateway", **said}
    for name, rounds in figures.items():
        kept = ("rate", "p50_ms", "p99_ms", "first_p50_ms", "first_p99_ms")
        each = {part: of_each for part in _PARTS if (of_each := _microseconds(rounds, part)) is not None}
        line[name] = {
            **{key: rounded(median(values)) for key in kept if (values := _values(rounds, key))},
            "rounds": [rounded(value) for value in _values(rounds, "rate")],
            "microseconds": {part: round(of_each, 1) for part, of_each in each.items()},
        }
    return line | {"aims": {name: {"value": rounded(a.value, 3), "reached": a.reached} for name, a in found.items()}}
