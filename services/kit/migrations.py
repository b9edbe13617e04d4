"""Owns schema migrations: runs a service's Alembic history, one runner at a time, and checks that it was run.

A service's `migrations/env.py` is two lines, the same in each:

    from services.kit.migrations import run_environment
    run_environment()
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import LockNotAvailable, RaiseException
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from services.kit.db import connection_words, parsed_url
from services.kit.logs import get_logger

_log = get_logger(__name__)

# One lock per database: advisory locks are not shared between databases. The number has no meaning.
_LOCK_KEY = 7_365_126_400_011
_POLL_SECONDS = 0.2
# Most of the time between two tries is the service's, whose statements queue behind one that waits.
_BUSY_PAUSE_SECONDS = 2.0


class MigrationError(Exception):
    """A database that is not at this release's schema, or cannot be brought there; the message says what to do."""


def upgrade(
    database_url: str,
    script_location: Path,
    *,
    revision: str = "head",
    wait_seconds: float = 120,
    lock_timeout_seconds: float = 0.5,
    statement_timeout_seconds: float = 600,
) -> str | None:
    """Bring a database to `revision`; the revision it is at afterwards. Several at once are safe: they take turns.

    One that a later release has migrated is left as it is: this release, gone back to, works with it.
    `lock_timeout_seconds` bounds how long a statement may queue for a table lock, since all of the service's statements
    queue behind it; what an export, a verification or a dump keeps in use is tried again a little later. Raises
    MigrationError where another runner holds the database for longer than `wait_seconds`, where a table is in use for
    as long, and where a migration refuses in words of its own (RAISE EXCEPTION).
    """
    with _connected(database_url) as connection, _alone(connection, wait_seconds):
        for name, seconds in (("lock_timeout", lock_timeout_seconds), ("statement_timeout", statement_timeout_seconds)):
            connection.execute(text(f"SET {name} = {int(seconds * 1000)}"))
        connection.commit()
        config = _config(script_location)
        config.attributes["connection"] = connection
        before = _current(connection)
        if _is_ahead(script_location, before):
            _log.warning("the database is ahead of this release", found=before)
            return before
        _upgrade(config, revision, time.monotonic() + wait_seconds)
        after = _current(connection)
        _log.info("migrated", database=connection.engine.url.database, before=before, after=after)
        return after


def _upgrade(config: Config, revision: str, deadline: float) -> None:
    while True:
        try:
            return command.upgrade(config, revision)
        except DBAPIError as error:
            if isinstance(error.orig, RaiseException):
                raise MigrationError(error.orig.diag.message_primary) from error
            if not isinstance(error.orig, LockNotAvailable):
                raise
            if time.monotonic() >= deadline:
                raise MigrationError(
                    "a table is in use all the time, perhaps by an export, a verification or a dump: "
                    "run this again when that has ended"
                ) from error
        config.attributes["connection"].rollback()
        _log.info("a table is in use; trying again")
        time.sleep(_BUSY_PAUSE_SECONDS)


def current(database_url: str) -> str | None:
    """The revision a database is at; None before the first migration."""
    with _connected(database_url) as connection:
        return _current(connection)


def head(script_location: Path) -> str | None:
    """The newest revision of a history; None where it is empty."""
    return ScriptDirectory.from_config(_config(script_location)).get_current_head()


def require_head(database_url: str, script_location: Path, *, how: str = "run its migrations") -> None:
    """Raise MigrationError where the schema is behind this release; `how` says what to do.

    A schema ahead of it passes: every migration works with the previous release, which may be restarted meanwhile.
    """
    wanted = head(script_location)
    found = current(database_url)
    if found == wanted:
        return
    if _is_ahead(script_location, found):
        _log.warning("the database is ahead of this release", found=found, known=wanted)
        return
    name = parsed_url(database_url).database
    raise MigrationError(f"database {name} is at revision {found or 'none'}, this release needs {wanted}: {how}")


def _is_ahead(script_location: Path, found: str | None) -> bool:
    """Whether a later release has migrated the database: its revision is none of this history's."""
    script = ScriptDirectory.from_config(_config(script_location))
    return found is not None and found not in {revision.revision for revision in script.walk_revisions()}


def run_environment() -> None:
    """What a service's `migrations/env.py` calls: runs the migrations on the connection `upgrade` opened."""
    connection = context.config.attributes.get("connection")
    if connection is None:
        raise MigrationError("run migrations with `python -m services.<service> migrate`, not with the alembic command")
    # Each migration commits by itself: one that fails leaves those before it done, and no lock is held over all.
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


def _config(script_location: Path) -> Config:
    config = Config()
    # Config interpolates %, which a path may hold.
    config.set_main_option("script_location", str(script_location).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _current(connection: Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    return revision


@contextmanager
def _connected(database_url: str) -> Iterator[Connection]:
    engine = create_engine(
        parsed_url(database_url),
        poolclass=NullPool,
        connect_args=connection_words(database_url, "tollkeeper-migrate"),
    )
    with engine.connect() as connection:
        yield connection


@contextmanager
def _alone(connection: Connection, wait_seconds: float) -> Iterator[None]:
    """Hold the migration lock of the connection's database.

    Tried again and again rather than waited for: a waiting statement holds a snapshot, for which a concurrent index
    build of the runner that has the lock would wait in turn, for ever.
    """
    deadline = time.monotonic() + wait_seconds
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}):
        connection.commit()
        if time.monotonic() >= deadline:
            raise MigrationError(f"another migration of this database has been running for {wait_seconds:g} seconds")
        time.sleep(_POLL_SECONDS)
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK_KEY})
        connection.commit()
