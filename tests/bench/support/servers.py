"""Owns the processes of a bench: a durable Postgres of its own, Python programs; all end with the bench."""

import contextlib
import dataclasses
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from deploy.local import ports
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Child, Program, StartFailedError, describe_exit, log_tail, running, start

REPOSITORY = Path(__file__).resolve().parents[3]
_ATTEMPTS = 3
# As an operator would set it on a machine of its own; all else is Postgres' default. Commits wait for the disk.
_LARGEST_SHARED_BUFFERS = 1024**3


class BenchFailedError(Exception):
    """Something broke, so that there is nothing to report; the message has the program's last words."""


def _settings() -> Mapping[str, str]:
    buffers = min(_LARGEST_SHARED_BUFFERS, psutil.virtual_memory().total // 4) // 1024**2
    return {
        "shared_buffers": f"'{buffers}MB'",
        "max_wal_size": "'8GB'",
        "checkpoint_timeout": "'30min'",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
    }


@contextlib.contextmanager
def durable_postgres(folder: Path) -> Iterator[tuple[EmbeddedPostgres, Child]]:
    """A Postgres below `folder` for the length of a `with` block, its commits safe from a power cut."""
    server = EmbeddedPostgres(folder=folder / "postgres", port=ports.free_port(), password=secrets.token_urlsafe(16))
    server.initialise()
    with (server.data / "postgresql.auto.conf").open("a") as configuration:
        configuration.writelines(f"{name} = {value}\n" for name, value in _settings().items())
    with contextlib.ExitStack() as stack:
        for attempts_left in reversed(range(_ATTEMPTS)):
            server = dataclasses.replace(server, port=ports.free_port())
            try:
                child = stack.enter_context(running(server.program(), folder / "postgres.log", server.ready))
            except StartFailedError as failure:
                if attempts_left and "in use" in str(failure):
                    continue
                raise
            break
        yield server, child


def python_program(name: str, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> Program:
    """`python -m module arguments`, run from the repository; none of the caller's own settings steer it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TOLLKEEPER_", "PG"))}
    return Program(
        name=name,
        argv=(sys.executable, "-m", module, *arguments),
        env={**inherited, "PYTHONUNBUFFERED": "1", **(env or {})},
        cwd=REPOSITORY,
    )


@contextlib.contextmanager
def listening(make: Callable[[int], Program], log: Path) -> Iterator[tuple[int, Child]]:
    """A server on a free port for the length of a `with` block: its port and process."""
    with contextlib.ExitStack() as stack:
        for attempts_left in reversed(range(_ATTEMPTS)):
            port = ports.free_port()
            program = make(port)
            try:
                child = stack.enter_context(running(program, log, lambda port=port: ports.answers(port)))
            except StartFailedError as failure:
                if attempts_left and "in use" in str(failure):
                    continue
                raise
            break
        yield port, child


def finished(program: Program, log: Path, *, timeout_seconds: float) -> float:
    """Run a program to its end; how many seconds it took. Its output is in `log`, which is written anew.

    Raises BenchFailedError where it fails or takes too long; then it is ended.
    """
    log.unlink(missing_ok=True)
    begun = time.perf_counter()
    child = start(program, log, dies_with_parent=True)
    try:
        code = child.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        raise BenchFailedError(f"{program.name} took longer than {timeout_seconds:g} s:\n{log_tail(log)}") from None
    finally:
        child.stop()
    if code != 0:
        raise BenchFailedError(f"{program.name} failed with {describe_exit(code)}:\n{log_tail(log)}")
    return time.perf_counter() - begun
