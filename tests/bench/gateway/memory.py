"""Owns the proxy's memory as calls go on: a series of samples, and whether it is flat."""

import dataclasses
from collections.abc import Callable, Sequence
from statistics import mean

import psutil
from rich.table import Table

from tests.bench.gateway.client import Client
from tests.bench.gateway.load import Job
from tests.bench.gateway.plan import MANY
from tests.bench.support import tables

CALLS, _STEP = 100_000, 5_000
_MOST_MEGABYTES = 200
# Of the last half: how much larger its second half may be than its first, as a share.
_FLAT = 0.01
# One step in so many is of streams.
_STREAMS_EVERY = 5


@dataclasses.dataclass(frozen=True)
class Series:
    """Resident memory in megabytes, and how many calls had been answered then: before the first, after each step."""

    megabytes: Sequence[float]
    calls: Sequence[int]

    @property
    def growth(self) -> float:
        """How much larger the last quarter is than the one before it, as a share."""
        quarter = max(1, (len(self.megabytes) - 1) // 4)
        before, last = mean(self.megabytes[-2 * quarter : -quarter]), mean(self.megabytes[-quarter:])
        return last / before - 1

    @property
    def within(self) -> bool:
        """Whether it stays below the bound and is flat."""
        return max(self.megabytes) < _MOST_MEGABYTES and self.growth <= _FLAT

    def table(self) -> Table:
        """A row for each sample."""
        rows = [[f"{calls:,}", f"{size:.1f}"] for calls, size in zip(self.calls, self.megabytes, strict=True)]
        return tables.table("Memory of one proxy worker", ["after calls", "MB resident"], rows)

    def words(self) -> str:
        """What it comes to."""
        return (
            f"at most {max(self.megabytes):.0f} MB (aim < {_MOST_MEGABYTES}), the last quarter {self.growth:+.1%} "
            f"against the one before it (aim ≤ {_FLAT:.0%}): {'reached' if self.within else 'not reached'}"
        )


def measured(client: Client, ours: Job, told: Callable[[str], None]) -> Series:
    """Call `CALLS` times, `MANY` at once, every fifth step with streams."""
    process = psutil.Process(ours.pids["proxy"][0])

    def resident() -> float:
        return float(process.memory_info().rss / 1e6)

    megabytes, answered = [resident()], [0]
    for number in range(1, CALLS // _STEP + 1):
        job = dataclasses.replace(ours, at_once=MANY, calls=_STEP, stream=number % _STREAMS_EVERY == 0)
        result = client.run(job)
        answered.append(answered[-1] + result["calls"])
        megabytes.append(resident())
        rate = result["calls"] / result["seconds"]
        told(f"{answered[-1]:,} calls, {rate:,.0f} a second, {megabytes[-1]:.1f} MB")
    return Series(megabytes, answered)
