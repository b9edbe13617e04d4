"""Owns the starting of clients: our own, or `wrk` where it is on PATH and can measure what is asked for."""

import dataclasses
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.ports import HOST
from deploy.local.process import Program
from tests.bench.gateway import calls
from tests.bench.gateway.load import Job
from tests.bench.support import processors
from tests.bench.support.servers import REPOSITORY, BenchFailedError, finished, python_program

# Beside the seconds that are measured.
_GRACE_SECONDS = 60.0
_CALLS_A_SECOND = 20  # fewer than that, and a job of so many calls is given up

_WRK_SCRIPT = """
wrk.method, wrk.body = "POST", %(body)s
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer %(key)s"
function done(summary, latency, requests)
  local file = io.open("%(result)s", "w")
  local failed = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  file:write(string.format('{"calls": %%d, "seconds": %%f, "failed": %%d, "p50_ms": %%f, "p99_ms": %%f}',
    summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
  file:close()
end
"""


@dataclass(frozen=True)
class Client:
    """Runs jobs; `folder` keeps them, their results and logs. `wrk` is its path, None: our own client for all."""

    folder: Path
    wrk: str | None = None

    @property
    def words(self) -> str:
        """Which client measures, for people."""
        own = "our own (raw asyncio, uvloop)"
        return f"wrk for unary calls over HTTP, {own} for the others" if self.wrk else own

    def run(self, job: Job) -> dict[str, Any]:
        """One measurement: what `load` says of it. Raises BenchFailedError."""
        if self.wrk and job.form == "http" and not job.stream and not job.calls:
            return self._by_wrk(self.wrk, job)
        task, result = self.folder / "job.json", self.folder / "result.json"
        task.touch(mode=0o600)  # it holds a key
        task.write_text(json.dumps(dataclasses.asdict(job)))
        finished(
            python_program("load", "tests.bench.gateway.load", str(task), str(result)),
            self.folder / "load.log",
            timeout_seconds=job.seconds + job.warm_seconds + job.calls / _CALLS_A_SECOND + _GRACE_SECONDS,
        )
        found: dict[str, Any] = json.loads(result.read_text())
        return found

    def _by_wrk(self, wrk: str, job: Job) -> dict[str, Any]:
        script, result = self.folder / "calls.lua", self.folder / "wrk.json"
        script.touch(mode=0o600)
        body = json.dumps(calls.body(stream=False).decode())  # a JSON string of ASCII text is one of Lua, too
        script.write_text(_WRK_SCRIPT % {"body": body, "key": job.key, "result": result})
        self._wrk(wrk, job, script, job.warm_seconds)
        # wrk's own time stands among that of what this process has started and that has ended.
        spent, before = processors.ended_seconds(), processors.read(job.pids)
        self._wrk(wrk, job, script, job.seconds)
        after, spent = processors.read(job.pids), processors.ended_seconds() - spent
        found = json.loads(result.read_text())
        if found["failed"]:
            raise BenchFailedError(f"{found['failed']} calls failed; see {self.folder / 'load.log'}")
        rate = found["calls"] / found["seconds"]
        took = after.at - before.at
        cores = processors.with_part(processors.cores(before, after), "client", spent / took)
        of_each = {part: busy * took / found["calls"] * 1e6 for part, busy in cores.items()}
        return {**found, "rate": rate, "microseconds": of_each}

    def _wrk(self, wrk: str, job: Job, script: Path, seconds: float) -> None:
        whole = max(1, math.ceil(seconds))
        words = ("-t", "1", "-c", str(job.at_once), "-d", f"{whole}s", "--timeout", "30s", "-s", str(script))
        program = Program(name="wrk", argv=(wrk, *words, f"http://{HOST}:{job.port}{job.path}"), env={}, cwd=REPOSITORY)
        finished(program, self.folder / "load.log", timeout_seconds=whole + _GRACE_SECONDS)


def client(folder: Path) -> Client:
    """The client of this machine."""
    return Client(folder, shutil.which("wrk"))
