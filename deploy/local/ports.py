"""Owns ports on 127.0.0.1: picking free ones, and naming who holds a busy one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
from pathlib import Path

import psutil

HOST = "127.0.0.1"

# Below those that systems give to whoever does not care (Linux from 32768, others from 49152): between the choice and
# the server's start nobody gets one by chance.
_CHOSEN_FROM = range(15_000, 32_000)
_CHOICES = 1000
# Nor does another process that chooses at the same time: each has a stretch of its own, by its pid, and such processes'
# pids are near. Two suites that started together, twenty ports each, took one another's in one of forty cases.
_STRETCH = 64
_chosen = itertools.count()


def free_port() -> int:
    """A port that nobody listened on a moment ago. Raises OSError where none is found."""
    stretches = len(_CHOSEN_FROM) // _STRETCH
    for attempt in range(_CHOICES):
        stretch = os.getpid() % stretches if attempt < _STRETCH else random.randrange(stretches)  # noqa: S311 (no secret)
        port = _CHOSEN_FROM[stretch * _STRETCH + next(_chosen) % _STRETCH]
        if is_free(port):
            return port
    raise OSError(f"no free port from {_CHOSEN_FROM.start} to {_CHOSEN_FROM.stop - 1} on {HOST}")


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now; connections of an ended server still in TIME_WAIT do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def answers(port: int, timeout_seconds: float = 0.5) -> bool:
    """Whether something accepts connections on `port`."""
    try:
        with socket.create_connection((HOST, port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def occupant(port: int) -> str:
    """Who listens on `port`, as far as this user may see: `nginx (pid 4711)`, or `another process`."""
    processes: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(
                c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections(kind="tcp")
            ):
                processes.append(process)
    names = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.name()} (pid {process.pid})")
    return ", ".join(names) or "another process"


class PortBook:
    """The ports of one home by name, kept in a file: a name keeps its port for as long as it can have it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._ports: dict[str, int] = json.loads(file.read_text())
        except FileNotFoundError:
            self._ports = {}

    def get(self, name: str) -> int | None:
        """The port on record, or None."""
        return self._ports.get(name)

    def keep(self, name: str, port: int) -> None:
        """Put a port on record that somebody else chose."""
        self._ports[name] = port
        self._file.write_text(json.dumps(self._ports, indent=2, sort_keys=True))

    def assign(self, name: str, *, in_use: bool, spared: int = 0) -> int:
        """The port of `name`: the one on record where it is free or, as `in_use` says, our own process has it.

        Never `spared`, which is somebody's who does not listen yet.
        """
        kept = self._ports.get(name)
        if kept is not None and kept != spared and (in_use or is_free(kept)):
            return kept
        fresh = free_port()
        while fresh in {*self._ports.values(), spared}:
            fresh = free_port()
        self.keep(name, fresh)
        return fresh
