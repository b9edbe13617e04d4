"""Owns bringing parts up and down: what runs healthy is left alone, what failed takes back all that this run started.

It knows nothing of Tollkeeper; `suite.py` says what the parts are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from deploy.local.home import Home
from deploy.local.process import (
    POLL_SECONDS,
    Child,
    Program,
    Record,
    StartFailedError,
    describe_exit,
    start,
    start_failure,
)

_HEALTH_PATIENCE_SECONDS = 5.0  # for a process that runs and does not answer just now


def _never(_failure: StartFailedError) -> bool:
    return False


def _nothing() -> None:
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One long-running process of a suite."""

    name: str
    port: int | None  # None: it listens nowhere
    program: Program
    # Whether it serves. Asked often, so it answers within a second or two.
    ready: Callable[[], bool]
    # Writes what the program reads at start; called before each start.
    prepare: Callable[[], object] = _nothing
    # Whether a failed start is worth another try.
    transient: Callable[[StartFailedError], bool] = _never
    # What else it was started with, for telling whether it has to be started again: a configuration's text.
    configuration: str = ""
    start_seconds: float = 60.0

    @property
    def fingerprint(self) -> str:
        """Says whether a running process is what would be started now: its command, our settings, its configuration."""
        settings = {key: value for key, value in self.program.env.items() if key.startswith("TOLLKEEPER_")}
        told = json.dumps([self.program.argv, settings, self.configuration], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One program that has to end well before the next step."""

    name: str
    # Whose log it writes to.
    part: str
    program: Program
    most_seconds: float = 120.0


class Launcher:
    """Starts and ends processes on record in one home. Whoever uses it holds the home's lock."""

    def __init__(self, home: Home, say: Callable[[str], None]) -> None:
        self._home = home
        self._say = say
        self._started: list[Child] = []

    @contextlib.contextmanager
    def taking_back(self) -> Iterator[None]:
        """On any failure inside, Ctrl-C too, end what was started inside, the last first."""
        self._started.clear()
        try:
            yield
        except BaseException:
            for child in reversed(self._started):
                child.stop()
                self._home.record_file(child.record.name).unlink(missing_ok=True)
            raise
        for child in self._started:
            child.let_go()

    def runs(self, part: Part) -> bool:
        """Whether `part` runs, as it would be started now, and serves."""
        record = self._home.record(part.name)
        if record is None or not record.alive() or record.fingerprint != part.fingerprint:
            return False
        deadline = time.monotonic() + _HEALTH_PATIENCE_SECONDS
        while not part.ready():
            if time.monotonic() > deadline or not record.alive():
                return False
            time.sleep(POLL_SECONDS)
        return True

    def bring_up(self, parts: Sequence[Part]) -> None:
        """Have all of `parts` running and ready; those that start do so at the same time.

        Raises:
            StartFailedError: one ended at its start, or was not ready in time.
            OSError: one cannot be run at all.
        """
        starting = [(part, self._start(part)) for part in parts if not self.runs(part)]
        deadlines = {part.name: time.monotonic() + part.start_seconds for part, _ in starting}
        while starting:
            waiting = []
            for part, child in starting:
                failure = start_failure(child, self._home.log(part.name), part.start_seconds, deadlines[part.name])
                if failure is not None:
                    if not part.transient(failure) or time.monotonic() > deadlines[part.name]:
                        raise failure
                    time.sleep(0.3)
                    waiting.append((part, self._start(part)))
                elif part.ready():
                    port = f", port {part.port}" if part.port else ""
                    self._say(f"{part.name} started (pid {child.record.pid}{port})")
                else:
                    waiting.append((part, child))
            starting = waiting
            time.sleep(POLL_SECONDS)

    def confirm(self, parts: Sequence[Part]) -> None:
        """See that all of `parts` still run: a process may end after it was ready.

        Raises:
            StartFailedError: one does not.
        """
        for part in parts:
            record = self._home.record(part.name)
            if record is None or not record.alive():
                raise StartFailedError(part.name, "ended soon after its start", self._home.log(part.name))

    def run_to_end(self, jobs: Sequence[Job]) -> None:
        """Run `jobs` at the same time.

        Raises:
            StartFailedError: one failed or took too long.
        """
        with contextlib.ExitStack() as stack:
            running = []
            for job in jobs:
                child = start(job.program, self._home.log(job.part))
                stack.callback(child.stop)
                running.append((job, child, time.monotonic() + job.most_seconds))
            for job, child, deadline in running:
                log = self._home.log(job.part)
                try:
                    code = child.wait(deadline - time.monotonic())
                except subprocess.TimeoutExpired:
                    raise StartFailedError(job.name, f"did not end within {job.most_seconds:g} s", log) from None
                if code != 0:
                    raise StartFailedError(job.name, f"failed with {describe_exit(code)}", log)

    def take_down(self, order: Sequence[str | tuple[str, ...]]) -> list[str]:
        """End everything on record: what `order` does not name first, then the last of `order` to its first.

        What stands together in a tuple, and what is not named, is ended at the same time. Gives the names of what was
        running.
        """
        rank = {
            name: position
            for position, together in enumerate(order)
            for name in ([together] if isinstance(together, str) else together)
        }

        def place(record: Record) -> int:
            return rank.get(record.name, len(order))

        records = sorted(self._home.records(), key=place, reverse=True)
        taken = []
        for _, found in itertools.groupby(records, place):
            group = list(found)
            with ThreadPoolExecutor(len(group)) as pool:
                running = pool.map(self._take_down, group)
                taken += [record.name for record, was_alive in zip(group, running, strict=True) if was_alive]
        return taken

    def take_down_all_but(self, names: Sequence[str]) -> list[str]:
        """End what is on record under another name than `names`. Gives the names of what was running."""
        others = [record for record in self._home.records() if record.name not in names]
        return [record.name for record in reversed(others) if self._take_down(record)]

    def _take_down(self, record: Record) -> bool:
        was_alive = record.alive()
        record.stop()
        self._home.record_file(record.name).unlink(missing_ok=True)
        if was_alive:
            self._say(f"{record.name} stopped")
        return was_alive

    def _start(self, part: Part) -> Child:
        previous = self._home.record(part.name)
        if previous is not None:
            previous.stop()  # also what a killed process left behind of its session
        part.prepare()
        child = start(part.program, self._home.log(part.name), fingerprint=part.fingerprint)
        child.record.save(self._home.record_file(part.name))
        self._started.append(child)
        return child
