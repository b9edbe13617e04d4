"""The embedded Postgres and Redis: they start anywhere, survive kill -9, keep services apart."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from deploy.local import ports, postgres
from deploy.local.home import Home
from deploy.local.launcher import Launcher, Part
from deploy.local.postgres import EmbeddedPostgres, RoleTakenError
from deploy.local.process import Record
from deploy.local.redis import EmbeddedRedis


def rows(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def spaced(servers_folder) -> Path:
    folder = servers_folder / "a folder with spaces"
    folder.mkdir(exist_ok=True)
    return folder


def as_part(server: EmbeddedPostgres) -> Part:
    return Part(
        name="postgres",
        port=server.port,
        program=server.program(),
        ready=server.ready,
        prepare=server.initialise,
        transient=postgres.old_server_lingers,
    )


def outlive_the_postmaster(url: str) -> None:
    with contextlib.suppress(psycopg.OperationalError):
        rows(url, "SELECT sum(sqrt(n)) FROM generate_series(1, 8000000) AS n")


def bring_up(home: Home, server: EmbeddedPostgres) -> Record:
    launcher = Launcher(home, print)
    with launcher.taking_back():
        launcher.bring_up([as_part(server)])
    return home.record("postgres")


@pytest.fixture
def home(spaced):
    home = Home(spaced / "home")
    home.make()
    yield home
    Launcher(home, print).take_down([])


def test_postgres_serves_from_a_path_with_a_space_and_recovers_from_kill_9(home):
    server = EmbeddedPostgres(folder=home.path("postgres"), port=ports.free_port(), password="it's a \\ secret")
    record = bring_up(home, server)
    rows(server.url(), "CREATE TABLE kept (n int)")
    rows(server.url(), "INSERT INTO kept VALUES (7)")
    # A backend too busy to notice for a while that its postmaster died: Postgres will not start beside it.
    busy = threading.Thread(target=outlive_the_postmaster, args=(server.url(),))
    busy.start()
    while rows(server.url(), "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT sum%'") == []:
        time.sleep(0.02)
    os.kill(record.pid, signal.SIGKILL)
    again = bring_up(home, server)
    assert again.pid != record.pid
    busy.join()
    assert rows(server.url(), "SELECT n FROM kept") == [(7,)]
    assert "was not properly shut down" in home.log("postgres").read_text()
    Launcher(home, print).take_down([])
    assert not again.alive()
    assert not ports.answers(server.port)


def test_postgres_starts_although_its_old_pid_belongs_to_another_program_now(home):
    server = EmbeddedPostgres(folder=home.path("recycled"), port=ports.free_port(), password="secret", durable=False)
    record = bring_up(home, server)
    os.kill(record.pid, signal.SIGKILL)
    record.stop()
    owner = server.data.stat()
    stranger = subprocess.Popen(["sleep", "60"], user=owner.st_uid, group=owner.st_gid)
    try:
        pid_file = server.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        bring_up(home, server)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_each_service_reaches_its_own_database_only(postgres_server):
    passwords = {service: f"{service}-of-{postgres_server.port}" for service in postgres.SERVICES}
    urls = postgres.create_databases(postgres_server.url(), passwords)
    assert urls == postgres.create_databases(postgres_server.url(), passwords), "a second time changes nothing"
    rows(urls["ledger"], "CREATE TABLE mine (n int)")
    trespass = postgres.database_url(
        postgres_server.url(), user="tollkeeper_pricing", password=passwords["pricing"], database="tollkeeper_ledger"
    )
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(trespass)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(urls["pricing"], "CREATE ROLE more LOGIN")


def test_a_role_somebody_else_made_is_left_alone(postgres_server):
    rows(postgres_server.url(), "CREATE ROLE tollkeeper_elsewhere LOGIN PASSWORD 'theirs'")
    with pytest.raises(RoleTakenError, match="tollkeeper_elsewhere"):
        postgres.create_databases(postgres_server.url(), {"elsewhere": "ours"})


def test_databases_of_tests_are_fresh_and_can_copy_a_template(make_database, database_url):
    template = make_database("ledger")
    rows(template, "CREATE TABLE kept (n int)")
    copy = database_url("ledger", template=template)
    rows(copy, "INSERT INTO kept VALUES (1)")
    assert rows(template, "SELECT * FROM kept") == []
    with pytest.raises(psycopg.errors.UndefinedTable):
        rows(make_database("ledger"), "SELECT * FROM kept")


def test_servers_listen_on_loopback_only(postgres_server, redis_url):
    listening = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # Postgres' own helpers come and go
            if process.name() in {"postgres", "redis-server"}:
                listening |= {c.laddr.ip for c in process.net_connections(kind="all") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_redis_serves_from_a_path_with_a_space_and_wants_its_password(spaced):
    server = EmbeddedRedis(folder=spaced / "redis", port=ports.free_port(), password="c0ffee")
    with server.serving(spaced / "redis.log"):
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert not any("c0ffee" in " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
    assert not ports.answers(server.port)


def test_servers_end_with_the_process_that_serves_them_even_when_it_is_killed(spaced):
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from deploy.local import ports
        from deploy.local.redis import EmbeddedRedis
        folder = Path(sys.argv[1])
        server = EmbeddedRedis(folder=folder, port=ports.free_port(), password="secret")
        with server.serving(folder / "redis.log"):
            print(server.port, flush=True)
            time.sleep(60)
    """)
    owner = subprocess.Popen([sys.executable, "-c", program, spaced / "orphan"], stdout=subprocess.PIPE, text=True)
    with owner, owner.stdout:
        port = int(owner.stdout.readline())
        assert ports.answers(port)
        owner.kill()
    deadline = time.monotonic() + 5
    while ports.answers(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not ports.answers(port)
