"""Owns operating-system processes: starting one detached, knowing it again by pid and start time, ending all of it.

A pid alone names nothing for long, so a `Record` keeps the start time with it, and a recycled pid is never signalled.
Every program leads a session of its own: a closed terminal does not end it, and what it forked is found again by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

# psutil derives the start time from the boot time, which moves a little when the clock is set.
START_TIME_TOLERANCE_SECONDS = 2.0
POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What to run, and how it likes to be asked to end."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    # Owner of the process where the launcher is root and the program refuses to be: (uid, gid).
    user: tuple[int, int] | None = None
    stop_signal: int = signal.SIGTERM
    grace_seconds: float = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One started process, as kept on disk between two runs of the launcher; `started_at` is seconds since 1970."""

    name: str
    pid: int
    started_at: float
    stop_signal: int
    grace_seconds: float
    # Says what it was started with, so that one who would start it now can tell whether it is the same.
    fingerprint: str = ""

    def save(self, path: Path) -> None:
        """Write the record so that a reader sees all of it or none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(dataclasses.asdict(self)))
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """The record kept at `path`, or None where there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _holder_of_pid(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid)
        return None

    def _is_ours(self, process: psutil.Process) -> bool:
        return abs(process.create_time() - self.started_at) <= START_TIME_TOLERANCE_SECONDS

    def alive(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        process = self._holder_of_pid()
        if process is None:
            return False
        try:
            return self._is_ours(process) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def _session(self) -> list[psutil.Process]:
        """What is alive of the session this process leads or led, itself included.

        The kernel gives no new process a pid that still names a session. So either the pid's holder is ours, or it is
        gone and the session's members are ours, or it is a stranger and nothing of ours is left.
        """
        holder = self._holder_of_pid()
        if holder is not None and not self._is_ours(holder):
            return []
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members

    def stop(self) -> None:
        """Ask the process to end, wait for its grace, then kill it and what is left of its session."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self.stop_signal)
            deadline = time.monotonic() + self.grace_seconds
            while self.alive() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        while left := self._session():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(POLL_SECONDS)


class Child:
    """A program started by this very process, so that its exit code can be had."""

    def __init__(self, program: Program, popen: subprocess.Popen[bytes], fingerprint: str) -> None:
        self._popen = popen
        try:
            started_at = psutil.Process(popen.pid).create_time()
        except psutil.NoSuchProcess:
            started_at = time.time()
        self.record = Record(
            name=program.name,
            pid=popen.pid,
            started_at=started_at,
            stop_signal=program.stop_signal,
            grace_seconds=program.grace_seconds,
            fingerprint=fingerprint,
        )

    def exit_code(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._popen.poll()

    def wait(self, timeout_seconds: float) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, in that time.
        """
        return self._popen.wait(timeout_seconds)

    def let_go(self) -> None:
        """Let it outlive this object. Should it end before this process does, its exit code is collected."""
        threading.Thread(target=self._popen.wait, daemon=True, name=f"wait for {self.record.name}").start()

    def stop(self) -> None:
        """End it, and collect its exit code so that no zombie stays."""
        self.record.stop()
        self._popen.wait()


def start(program: Program, log: Path, *, fingerprint: str = "", dies_with_parent: bool = False) -> Child:
    """Start `program` detached, in a session of its own, its output appended to `log`.

    `dies_with_parent` has the kernel end it when this process dies by any means (Linux; elsewhere it has no effect).

    Raises:
        OSError: the program cannot be run at all.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    uid, gid = program.user if program.user is not None else (None, None)
    with log.open("ab") as output:
        popen = subprocess.Popen(
            program.argv,
            env=dict(program.env),
            cwd=program.cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=[] if program.user is not None else None,
            # Runs between fork and exec, after the change of user, which would undo it.
            preexec_fn=_die_with(os.getpid()) if dies_with_parent and sys.platform == "linux" else None,  # noqa: PLW1509
        )
    return Child(program, popen, fingerprint)


def _die_with(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def ask_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the kernel was asked
            os._exit(1)

    return ask_kernel


class StartFailedError(Exception):
    """A program ended or did not become ready in time. Its message names it and shows its log's last lines."""

    def __init__(self, name: str, what: str, log: Path) -> None:
        tail = log_tail(log)
        super().__init__(f"{name} {what}" + (f"; the end of {log}:\n{tail}" if tail else f"; {log} is empty"))
        self.name = name


def log_tail(log: Path, lines: int = 20) -> str:
    """The last `lines` lines of a log, indented; empty where there is nothing."""
    most_bytes = max(64 * 1024, lines * 1024)
    try:
        with log.open("rb") as file:
            left_out = max(0, log.stat().st_size - most_bytes)
            file.seek(left_out)
            found = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    if left_out:
        found = found[1:]  # which may have lost its beginning
    return "\n".join("    " + line for line in found[-lines:])


def await_ready(child: Child, ready: Callable[[], bool], log: Path, timeout_seconds: float) -> None:
    """Wait until `ready()`.

    Raises:
        StartFailedError: the program ended first, or was not ready after `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    while (failure := start_failure(child, log, timeout_seconds, deadline)) is None:
        if ready():
            return
        time.sleep(POLL_SECONDS)
    raise failure


def start_failure(child: Child, log: Path, timeout_seconds: float, deadline: float) -> StartFailedError | None:
    """Why a program that is not ready yet never will be: it has ended, or `deadline`, `timeout_seconds` on, is over."""
    code = child.exit_code()
    if code is not None:
        return StartFailedError(child.record.name, f"ended at start with {describe_exit(code)}", log)
    if time.monotonic() > deadline:
        return StartFailedError(child.record.name, f"was not ready within {timeout_seconds:g} s", log)
    return None


def describe_exit(code: int) -> str:
    """An exit code in words: `exit code 3`, `signal SIGKILL`."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


@contextlib.contextmanager
def running(
    program: Program, log: Path, ready: Callable[[], bool], *, timeout_seconds: float = 30.0
) -> Iterator[Child]:
    """A program for the length of a `with` block; it ends with the block, and with this process.

    Raises:
        StartFailedError: as `await_ready`.
    """
    child = start(program, log, dies_with_parent=True)
    try:
        await_ready(child, ready, log, timeout_seconds)
        yield child
    finally:
        child.stop()
