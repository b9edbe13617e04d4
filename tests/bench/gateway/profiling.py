"""Owns the profile of the proxy: a measurement during which it notes what it is at, and its top functions."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.bench.gateway.client import Client
from tests.bench.gateway.load import Job
from tests.bench.gateway.plan import MANY
from tests.bench.support import tables
from tests.bench.support.servers import REPOSITORY, BenchFailedError

_SAMPLER = REPOSITORY / "tests" / "bench" / "gateway" / "sampler"
_SECONDS = 12.0
_WRITTEN_SECONDS = 10.0
_TOP = 25
# What is above the event loop stands in every sample, and says nothing.
_ABOVE_ALL = 0.95


def settings(folder: Path) -> dict[str, str]:
    """With these the proxy loads the sampler, which does nothing until it is asked to."""
    return {"PYTHONPATH": str(_SAMPLER), "BENCH_SAMPLES_FILE": str(folder / "samples.json")}


def measured(client: Client, ours: Job, folder: Path, *, stream: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The measurement's result, and the samples. Raises BenchFailedError where the proxy wrote none."""
    (proxy,), file = ours.pids["proxy"], folder / "samples.json"
    file.unlink(missing_ok=True)
    os.kill(proxy, signal.SIGUSR1)
    job = dataclasses.replace(ours, at_once=MANY, stream=stream, seconds=_SECONDS, warm_seconds=1.0)
    result = client.run(job)
    os.kill(proxy, signal.SIGUSR1)
    deadline = time.monotonic() + _WRITTEN_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise BenchFailedError("the proxy wrote no samples")
        time.sleep(0.1)
    samples: dict[str, Any] = json.loads(file.read_text())
    return result, samples


def table(kind: str, title: str, result: dict[str, Any], samples: dict[str, Any]) -> Table:
    """The functions that took most: `kind` is `own`, or `total` with all that they called."""
    whole, of_a_call = samples["samples"], result["microseconds"]["proxy"]
    telling = [(name, count) for name, count in samples[kind].items() if count < _ABOVE_ALL * whole]
    top = sorted(telling, key=lambda item: -item[1])[:_TOP]
    rows = [[name, f"{count / whole:.1%}", f"{count / whole * of_a_call:,.1f}"] for name, count in top]
    return tables.table(f"{title} ({whole} samples)", ["function", "share", "µs of a call"], rows)
