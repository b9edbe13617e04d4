"""Owns how a service reaches its Postgres: URLs, what connections are opened with, engines with bounded pools."""

from __future__ import annotations

from typing import Any

from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.kit.settings import ServiceSettings

_CONNECT_TIMEOUT_SECONDS = 5
_POOL_TIMEOUT_SECONDS = 5
_RECYCLE_SECONDS = 1800
# After how long a peer that vanished without a word (a host without power, a link that drops all) is given up.
_VANISHED_SECONDS = 15
# Silence is asked into after so long, again each so many seconds, so often: all within the time above.
_PROBE_AFTER_SECONDS, _PROBE_EACH_SECONDS, _PROBES = 5, 5, 2
_SERVER_OPTIONS = (
    f"-c tcp_user_timeout={_VANISHED_SECONDS * 1000} -c tcp_keepalives_idle={_PROBE_AFTER_SECONDS}"
    f" -c tcp_keepalives_interval={_PROBE_EACH_SECONDS} -c tcp_keepalives_count={_PROBES}"
)


class DatabaseUrlError(ValueError):
    """A database URL that cannot be used; the message does not repeat it, as it holds a password."""


def parsed_url(database_url: str) -> URL:
    """A Postgres URL in any usual form (`postgresql://`, `postgres://`), for psycopg 3. Raises DatabaseUrlError."""
    if not database_url:
        raise DatabaseUrlError(
            "no database is configured: set TOLLKEEPER_<SERVICE>_DATABASE_URL (postgresql://user:password@host/database)"
        )
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError) as error:
        raise DatabaseUrlError("the database URL cannot be read (postgresql://user:password@host/database)") from error
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise DatabaseUrlError(f"the database URL must begin with postgresql://, not {url.drivername}://")
    return url.set(drivername="postgresql+psycopg")


def connection_string(database_url: str) -> str:
    """The same as a libpq URL, for psycopg itself. Raises DatabaseUrlError."""
    return parsed_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)


def session_options(settings: ServiceSettings) -> str:
    """The libpq `options` every connection starts with: UTC, limits on statements and on forgotten transactions."""
    statement_ms = int(settings.statement_timeout_seconds * 1000)
    return (
        f"-c timezone=UTC -c statement_timeout={statement_ms} -c lock_timeout={statement_ms}"
        f" -c idle_in_transaction_session_timeout={3 * statement_ms}"
    )


def connection_words(database_url: str, application_name: str, options: str = "") -> dict[str, Any]:
    """Libpq's words that every connection is opened with besides its URL, for psycopg or SQLAlchemy's `connect_args`.

    Both ends give up a peer that vanished within 15 seconds, where the kernel's defaults are a quarter of an hour for
    what was sent and two hours for silence: this end by libpq's words (postgresql.org/docs/current/libpq-connect.html),
    the server by settings of the session, as it would else keep the locks of a client that is gone, a leader's among
    them. A server that is there and does not answer is not meant: its statements end by `options`, calls by deadlines.

    A server that takes no writes is refused: after a fail-over a name may still lead to the old primary, a standby by
    now, which takes connections, shows what is old and lets every process lead.

    What the URL says itself wins. Raises DatabaseUrlError.
    """
    asked = dict(parsed_url(database_url).normalized_query)
    # Of two settings of one name the last one wins.
    spoken = " ".join(filter(None, [_SERVER_OPTIONS, options, *asked.pop("options", ())]))
    words = {
        "application_name": application_name,
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "tcp_user_timeout": _VANISHED_SECONDS * 1000,
        "keepalives_idle": _PROBE_AFTER_SECONDS,
        "keepalives_interval": _PROBE_EACH_SECONDS,
        "keepalives_count": _PROBES,
        "target_session_attrs": "read-write",
    }
    return {name: value for name, value in words.items() if name not in asked} | {"options": spoken}


def _engine_arguments(settings: ServiceSettings) -> tuple[URL, dict[str, Any]]:
    words = connection_words(settings.database_url, f"tollkeeper-{settings.service}", session_options(settings))
    return parsed_url(settings.database_url), {
        "pool_size": settings.database_pool_size,
        "max_overflow": 0,
        "pool_timeout": _POOL_TIMEOUT_SECONDS,
        "pool_recycle": _RECYCLE_SECONDS,
        "pool_pre_ping": True,
        "connect_args": words,
    }


def _leave_standby(context: ExceptionContext) -> None:
    """Take a server that takes no writes for one that is gone.

    A fail-over may leave connections standing (Aurora's does); the next are made where writes are taken.
    """
    if isinstance(context.original_exception, ReadOnlySqlTransaction):
        context.is_disconnect = True


def sync_engine(settings: ServiceSettings) -> Engine:
    """An engine for a sync service. Connects lazily. Raises DatabaseUrlError."""
    url, arguments = _engine_arguments(settings)
    engine = create_engine(url, **arguments)
    event.listen(engine, "handle_error", _leave_standby)
    return engine


def async_engine(settings: ServiceSettings) -> AsyncEngine:
    """An engine for an aio service. Connects lazily. Raises DatabaseUrlError."""
    url, arguments = _engine_arguments(settings)
    engine = create_async_engine(url, **arguments)
    event.listen(engine.sync_engine, "handle_error", _leave_standby)
    return engine
