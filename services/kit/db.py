"""Owns how a service reaches its Postgres: URLs, and SQLAlchemy engines with bounded pools and statements."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.kit.settings import ServiceSettings

_CONNECT_TIMEOUT_SECONDS = 5
_POOL_TIMEOUT_SECONDS = 5
_RECYCLE_SECONDS = 1800


class DatabaseUrlError(ValueError):
    """A database URL that cannot be used; the message does not repeat it, as it holds a password."""


def parsed_url(database_url: str) -> URL:
    """A Postgres URL in any usual form (`postgresql://`, `postgres://`), for psycopg 3. Raises DatabaseUrlError."""
    if not database_url:
        raise DatabaseUrlError("no database is configured: set DATABASE_URL (postgresql://user:password@host/database)")
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


def _engine_arguments(settings: ServiceSettings) -> tuple[URL, dict[str, Any]]:
    url = parsed_url(settings.database_url)
    own = url.query.get("options", "")
    url = url.difference_update_query(["options"])
    return url, {
        "pool_size": settings.database_pool_size,
        "max_overflow": 0,
        "pool_timeout": _POOL_TIMEOUT_SECONDS,
        "pool_recycle": _RECYCLE_SECONDS,
        "pool_pre_ping": True,
        "connect_args": {
            "application_name": f"tollkeeper-{settings.service}",
            "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
            # What the URL asks for comes last, so it wins.
            "options": f"{session_options(settings)} {own if isinstance(own, str) else ' '.join(own)}".strip(),
        },
    }


def sync_engine(settings: ServiceSettings) -> Engine:
    """An engine for a sync service. Connects lazily. Raises DatabaseUrlError."""
    url, arguments = _engine_arguments(settings)
    return create_engine(url, **arguments)


def async_engine(settings: ServiceSettings) -> AsyncEngine:
    """An engine for an aio service. Connects lazily. Raises DatabaseUrlError."""
    url, arguments = _engine_arguments(settings)
    return create_async_engine(url, **arguments)
