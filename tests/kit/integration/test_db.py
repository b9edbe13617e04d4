"""Owns the tests of connections to a real Postgres: bounded statements, bounded pools, peers that are gone."""

import os
import socket

import psutil
import psycopg
import pytest
import sqlalchemy as sa

from services.kit.db import async_engine, connection_string, connection_words, sync_engine
from services.kit.refusals import StorageUnavailable, as_refusal
from services.kit.settings import ServiceSettings


class Settings(ServiceSettings):
    service = "kittest"


@pytest.fixture
def settings(database_url):
    return Settings(database_url=database_url("kittest"), database_pool_size=2, statement_timeout_seconds=0.3)


SHOWN = (
    "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('application_name')"
)


def test_connections_are_bounded_and_named(settings):
    engine = sync_engine(settings)
    with engine.connect() as connection:
        assert tuple(connection.execute(sa.text(SHOWN)).one()) == ("300ms", "300ms", "tollkeeper-kittest")
    engine.dispose()


async def test_async_connections_are_the_same(settings):
    engine = async_engine(settings)
    async with engine.connect() as connection:
        assert tuple((await connection.execute(sa.text(SHOWN))).one()) == ("300ms", "300ms", "tollkeeper-kittest")
    await engine.dispose()


def test_options_of_the_url_count_last(settings):
    url = settings.database_url + "?options=-c%20statement_timeout%3D777%20-c%20search_path%3Dpg_catalog"
    engine = sync_engine(settings.model_copy(update={"database_url": url}))
    with engine.connect() as connection:
        shown = connection.execute(
            sa.text("SELECT current_setting('statement_timeout'), current_setting('search_path')")
        )
        assert tuple(shown.one()) == ("777ms", "pg_catalog")
    engine.dispose()


def test_a_statement_that_takes_too_long_is_unavailable_storage(settings):
    engine = sync_engine(settings)
    with engine.connect() as connection, pytest.raises(sa.exc.OperationalError) as caught:
        connection.execute(sa.text("SELECT pg_sleep(5)"))
    assert type(as_refusal(caught.value, "r")) is StorageUnavailable
    engine.dispose()


def test_a_pool_that_is_used_up_is_unavailable_storage(settings, monkeypatch):
    monkeypatch.setattr("services.kit.db._POOL_TIMEOUT_SECONDS", 0.2)
    engine = sync_engine(settings)
    with engine.connect(), engine.connect(), pytest.raises(sa.exc.TimeoutError) as caught:
        engine.connect()
    assert type(as_refusal(caught.value, "r")) is StorageUnavailable
    engine.dispose()


def test_a_database_that_only_reads_is_not_connected_to(settings):
    """As after a fail-over, where the name still leads to the old primary: a standby takes connections, no writes."""
    url = connection_string(settings.database_url)
    engine = sync_engine(settings)
    with psycopg.connect(url, autocommit=True) as operator:
        setting = f'ALTER DATABASE "{operator.info.dbname}" %s default_transaction_read_only'
        operator.execute(f"{setting % 'SET'} = on")
        with pytest.raises(sa.exc.OperationalError) as caught:
            engine.connect()
        operator.execute("SET default_transaction_read_only = off")
        operator.execute(setting % "RESET")
    assert type(as_refusal(caught.value, "r")) is StorageUnavailable
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()


READS_ONLY = sa.text("SET default_transaction_read_only = on")


def test_a_connection_whose_server_takes_no_writes_any_more_is_replaced(settings):
    """As after a fail-over that leaves connections standing: what was the primary goes on answering, as a standby."""
    engine = sync_engine(settings)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(READS_ONLY)
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
        connection.execute(sa.text("CREATE TABLE written (n int)"))
    assert type(as_refusal(caught.value, "r")) is StorageUnavailable
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE written (n int)"))
    engine.dispose()


async def test_an_async_connection_whose_server_takes_no_writes_any_more_is_replaced(settings):
    engine = async_engine(settings)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(READS_ONLY)
    async with engine.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError) as caught:
            await connection.execute(sa.text("CREATE TABLE written (n int)"))
    assert type(as_refusal(caught.value, "r")) is StorageUnavailable
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE written (n int)"))
    await engine.dispose()


def test_a_connection_cut_while_idle_is_replaced(settings):
    engine = sync_engine(settings)
    with engine.connect() as connection:
        pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
    with psycopg.connect(connection_string(settings.database_url)) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT pg_backend_pid()")) != pid
    engine.dispose()


def gives_up_after(connection):
    """What a psycopg connection's own end, and the server's, do about a peer that is silent."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as own:
        names = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        mine = [own.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return mine


# The server gives what its own socket has, not what it was asked for.
SERVERS_END = (
    "SELECT current_setting('tcp_user_timeout'), current_setting('tcp_keepalives_idle'),"
    " current_setting('tcp_keepalives_interval'), current_setting('tcp_keepalives_count')"
)
OWN_END = [15_000, 5, 5, 2]
ITS_END = ("15000", "5", "5", "2")


def test_both_ends_of_an_engines_connection_give_up_a_peer_that_vanished(settings):
    engine = sync_engine(settings)
    with engine.connect() as connection:
        assert gives_up_after(connection.connection.driver_connection) == OWN_END
        assert tuple(connection.execute(sa.text(SERVERS_END)).one()) == ITS_END
    engine.dispose()


async def test_both_ends_of_an_async_connection_give_up_a_peer_that_vanished(settings):
    engine = async_engine(settings)
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        assert gives_up_after(raw.driver_connection) == OWN_END
        assert tuple((await connection.execute(sa.text(SERVERS_END))).one()) == ITS_END
    await engine.dispose()


def test_a_server_that_takes_nothing_more_is_given_up(settings, monkeypatch):
    monkeypatch.setattr("services.kit.db._VANISHED_SECONDS", 1)
    url = connection_string(settings.database_url)
    with psycopg.connect(url, autocommit=True, **connection_words(url, "stuck")) as connection:
        server = psutil.Process(connection.info.backend_pid)
        server.suspend()
        try:
            # More than the buffers on the way hold: the rest is never taken, as by a host that is gone.
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT length(%s)", ("x" * 2**26,))
        finally:
            server.resume()
