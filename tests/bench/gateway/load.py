"""Owns the client, a program of its own: calls for a while, and says how many were answered how soon.

    python -m tests.bench.gateway.load JOB RESULT

`JOB` is a file with the fields of `Job` as JSON; `RESULT` is written.
"""

import asyncio
import dataclasses
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from google.api import httpbody_pb2

from deploy.local.ports import HOST
from tests.bench.gateway import calls
from tests.bench.gateway.connection import Sender
from tests.bench.support import processors
from tests.bench.support.figures import percentile
from tests.bench.support.window import Window

_TIMEOUT_SECONDS = 30.0
# After the processors have been read, which takes a moment: what waited meanwhile is answered before the window begins.
_PAUSE_SECONDS = 0.05
_FOR_EVER_SECONDS = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement: `at_once` calls under way for so many seconds, or `calls` in all where that is given.

    `form` is `http` or `grpc`; `pids`: whose processor time to read, by name.
    """

    port: int
    form: str = "http"
    path: str = calls.PATH
    key: str = ""
    stream: bool = False
    at_once: int = 1
    seconds: float = 0
    warm_seconds: float = 0
    calls: int = 0
    pids: dict[str, list[int]] = dataclasses.field(default_factory=dict)


class _Http:
    """Callers over HTTP/1.1, a connection each."""

    def __init__(self, job: Job, window: Window) -> None:
        self._job = job
        request = calls.http_request(job.path, job.port, job.key, stream=job.stream)
        of_each = -(-job.calls // job.at_once)
        self._senders = [Sender(request, window, stream=job.stream, calls=of_each) for _ in range(job.at_once)]

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for sender in self._senders:
            await loop.create_connection(lambda sender=sender: sender, HOST, self._job.port)
        await asyncio.gather(*(sender.ended for sender in self._senders))

    def first(self) -> list[tuple[float, float]]:
        return [one for sender in self._senders for one in sender.first]


class _Grpc:
    """Callers of the proxy's own RPC, on one channel."""

    def __init__(self, job: Job, window: Window) -> None:
        self._job = job
        self._window = window
        body = httpbody_pb2.HttpBody(content_type="application/json", data=calls.body(stream=job.stream))
        self._request = body.SerializeToString()

    async def run(self) -> None:
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"{HOST}:{self._job.port}", options=options) as channel:
            await asyncio.wait_for(channel.channel_ready(), _TIMEOUT_SECONDS)
            call: Any = channel.unary_stream(calls.RPC)
            await asyncio.gather(*(self._caller(call) for _ in range(self._job.at_once)))

    async def _caller(self, call: Any) -> None:
        metadata = (("authorization", f"Bearer {self._job.key}"),)
        while not self._window.over:
            sent = time.perf_counter()
            async for _ in call(self._request, metadata=metadata, timeout=_TIMEOUT_SECONDS):
                pass
            self._window.note(sent, time.perf_counter())

    def first(self) -> list[tuple[float, float]]:
        return []


async def _measured(job: Job) -> dict[str, Any]:
    window = Window(0.0, _FOR_EVER_SECONDS + time.perf_counter())
    callers = {"http": _Http, "grpc": _Grpc}[job.form](job, window)
    gc.collect()
    gc.freeze()
    begun = time.perf_counter()
    calling = asyncio.ensure_future(callers.run())
    if job.calls:
        await calling
        return {"calls": len(window.answered), "seconds": time.perf_counter() - begun}
    # A call that fails ends the measurement at once.
    await asyncio.wait([calling], timeout=job.warm_seconds)
    before = processors.read(job.pids)
    await asyncio.wait([calling], timeout=_PAUSE_SECONDS)
    # Reading the processors is no part of what a client does.
    own, window.begins = time.process_time(), time.perf_counter()
    window.ends = window.begins + job.seconds
    await asyncio.wait([calling], timeout=job.seconds)
    own = time.process_time() - own
    after = processors.read(job.pids)
    await asyncio.wait_for(calling, _TIMEOUT_SECONDS)
    cores = processors.with_part(processors.cores(before, after), "client", own / job.seconds)
    return _result(window, callers.first(), cores)


def _result(window: Window, first: list[tuple[float, float]], cores: dict[str, float]) -> dict[str, Any]:
    took, rate = window.took(), window.rate()
    if not took:
        raise RuntimeError("nothing was answered in the time measured")
    result: dict[str, Any] = {
        "rate": rate,
        "p50_ms": percentile(took, 50) * 1000,
        "p99_ms": percentile(took, 99) * 1000,
        "calls": len(window.answered),
        "microseconds": {part: busy / rate * 1e6 for part, busy in cores.items()},
    }
    if firsts := [now - sent for sent, now in first if window.begins <= now <= window.ends]:
        result |= {"first_p50_ms": percentile(firsts, 50) * 1000, "first_p99_ms": percentile(firsts, 99) * 1000}
    return result


def main() -> None:
    """Do the job that the first argument names; write its result where the second says."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_measured(job))
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
