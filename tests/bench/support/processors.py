"""Owns how much processor time each part of a measurement took, so that one sees what bounds it."""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil


def _own(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def tree_seconds(pid: int) -> float:
    """Processor seconds of a process and all it started, also of those that have ended since."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    ended = times.children_user + times.children_system
    return float(ended + _own(process) + sum(_own(child) for child in process.children(recursive=True)))


def ended_seconds() -> float:
    """Processor seconds of all that this process started and that has ended."""
    times = os.times()
    return times.children_user + times.children_system


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Processor seconds of each part until a moment, and of the whole machine."""

    at: float
    parts: Mapping[str, float]
    machine: float


def read(parts: Mapping[str, Sequence[int]]) -> Reading:
    """A reading for parts given as name → pids, each with what it started."""
    return Reading(
        at=time.perf_counter(),
        parts={name: sum(tree_seconds(pid) for pid in pids) for name, pids in parts.items()},
        machine=_machine_seconds(),
    )


def cores(before: Reading, after: Reading) -> dict[str, float]:
    """Cores that each part kept busy between two readings, and `others`: whatever else ran on the machine."""
    seconds = after.at - before.at
    found = {name: (after.parts[name] - before.parts[name]) / seconds for name in after.parts}
    found["others"] = max(0.0, (after.machine - before.machine) / seconds - sum(found.values()))
    return found


def with_part(found: Mapping[str, float], name: str, busy: float) -> dict[str, float]:
    """`cores` with a part that was measured by other means, and that `others` has counted until now."""
    return {**found, name: busy, "others": max(0.0, found["others"] - busy)}
