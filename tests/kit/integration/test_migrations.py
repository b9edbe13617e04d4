"""Owns the tests of migrations on a real Postgres: one runner at a time, bounded waits, an old schema refused."""

import concurrent.futures
import threading
import time

import psycopg
import pytest
import sqlalchemy.exc

from services.kit.db import connection_string
from services.kit.migrations import _LOCK_KEY, MigrationError, current, head, require_head, upgrade

CREATE = 'op.execute("CREATE TABLE t (a int)")'
# Two runners side by side would both be past the check when the first commits.
SLOW = 'op.execute("SELECT pg_sleep(0.7)"); op.execute("CREATE TABLE slow (a int)")'


@pytest.fixture
def database(database_url):
    return database_url("kittest")


def query(database, sql):
    with psycopg.connect(connection_string(database)) as connection:
        return connection.execute(sql).fetchall()


def test_a_history_is_run_once(database, tmp_path, write_history):
    history = write_history(
        tmp_path / "m",
        CREATE,
        'op.add_column("t", __import__("sqlalchemy").Column("b", __import__("sqlalchemy").Text))',
    )
    assert current(database) is None
    assert upgrade(database, history, revision="0001") == "0001"
    assert upgrade(database, history) == upgrade(database, history) == "0002"
    assert current(database) == head(history) == "0002"
    assert query(database, "SELECT a, b FROM t") == []


def test_a_path_with_spaces_and_percent_signs_works(database, tmp_path, write_history):
    history = write_history(tmp_path / "a 100% %(odd)s path, with:all" / "migrations", CREATE)
    assert upgrade(database, history) == "0001"
    require_head(database, history)


def test_a_password_with_percent_signs_works(database, tmp_path, write_history):
    query(database, "SELECT 1")
    with psycopg.connect(connection_string(database), autocommit=True) as connection:
        before = connection.info.password
        connection.execute("ALTER ROLE CURRENT_USER PASSWORD 'p%40 %(x)s@/:'")
        try:
            url = database.replace(before, "p%2540%20%25(x)s%40%2F%3A")
            assert upgrade(url, write_history(tmp_path / "m", CREATE)) == "0001"
        finally:
            connection.execute(f"ALTER ROLE CURRENT_USER PASSWORD '{before}'")


def test_two_migrations_at_once_take_turns(database, tmp_path, write_history):
    history = write_history(tmp_path / "m", SLOW, CREATE)
    # Alembic's environment is one per process; so these are processes, as replicas are.
    with concurrent.futures.ProcessPoolExecutor(3) as pool:
        results = list(pool.map(upgrade, [database] * 3, [history] * 3, timeout=60))
    assert results == ["0002"] * 3
    assert query(database, "SELECT count(*) FROM alembic_version") == [(1,)]


def test_waiting_for_another_runner_ends(database, tmp_path, write_history):
    history = write_history(tmp_path / "m", CREATE)
    held, release = threading.Event(), threading.Event()

    def hold():
        with psycopg.connect(connection_string(database)) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK_KEY,))
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    try:
        with pytest.raises(MigrationError, match="another migration"):
            upgrade(database, history, wait_seconds=0.5)
    finally:
        release.set()
        holder.join()
    assert upgrade(database, history) == "0001"


def test_a_migration_does_not_queue_behind_a_busy_table_for_long(database, tmp_path, write_history):
    history = write_history(tmp_path / "m", CREATE, 'op.execute("ALTER TABLE t ADD COLUMN b int")')
    upgrade(database, history, revision="0001")
    with psycopg.connect(connection_string(database)) as busy:
        busy.execute("LOCK TABLE t IN ACCESS SHARE MODE")
        began = time.monotonic()
        with pytest.raises(MigrationError, match="in use all the time"):
            upgrade(database, history, wait_seconds=0, lock_timeout_seconds=0.3)
        assert time.monotonic() - began < 5
    assert current(database) == "0001"
    assert upgrade(database, history) == "0002"


def test_a_migration_of_a_table_that_is_read_for_long_is_tried_again_until_it_is_free(
    database, tmp_path, write_history
):
    history = write_history(tmp_path / "m", CREATE, 'op.execute("ALTER TABLE t ADD COLUMN b int")')
    upgrade(database, history, revision="0001")

    def until_waiting(waiting):
        deadline = time.monotonic() + 20
        while query(database, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted") != [(waiting,)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with psycopg.connect(connection_string(database)) as export:
            export.execute("LOCK TABLE t IN ACCESS SHARE MODE")
            upgraded = pool.submit(upgrade, database, history, lock_timeout_seconds=0.3)
            until_waiting(True)
            until_waiting(False)  # between two tries nobody queues behind it
            assert query(database, "SELECT a FROM t") == []
        assert upgraded.result(60) == "0002"


def test_a_failed_migration_leaves_those_before_it_and_no_lock(database, tmp_path, write_history):
    history = write_history(tmp_path / "m", CREATE, 'op.execute("CREATE TABLE half (a int)"); op.execute("broken")')
    with pytest.raises(sqlalchemy.exc.ProgrammingError):
        upgrade(database, history)
    assert current(database) == "0001"
    assert query(database, "SELECT to_regclass('half')") == [(None,)]
    assert query(database, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def test_an_index_can_be_built_concurrently_while_another_runner_waits(database, tmp_path, write_history):
    body = (
        'op.execute("SELECT pg_sleep(0.5)")\n'
        "    with op.get_context().autocommit_block():\n"
        '        op.execute("CREATE INDEX CONCURRENTLY i ON t (a)")'
    )
    history = write_history(tmp_path / "m", CREATE, body)
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        assert list(pool.map(upgrade, [database] * 2, [history] * 2, timeout=60)) == ["0002"] * 2
    assert query(database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass") == [(True,)]


def test_a_schema_behind_is_refused_and_one_ahead_is_not(database, tmp_path, write_history):
    new = write_history(tmp_path / "new", CREATE, 'op.execute("SELECT 1")')
    old = write_history(tmp_path / "old", CREATE)
    with pytest.raises(MigrationError, match="is at revision none, this release needs 0002: do so"):
        require_head(database, new, how="do so")
    upgrade(database, old)
    with pytest.raises(MigrationError, match="is at revision 0001, this release needs 0002"):
        require_head(database, new)
    require_head(database, old)
    upgrade(database, new)
    require_head(database, new)
    require_head(database, old)  # the release before, restarted during a roll-out


def test_a_release_that_is_gone_back_to_finds_nothing_to_migrate(database, tmp_path, write_history):
    new = write_history(tmp_path / "new", CREATE, 'op.execute("INSERT INTO t VALUES (7)")')
    old = write_history(tmp_path / "old", CREATE)
    upgrade(database, new)
    assert upgrade(database, old) == "0002"  # its Job, or its `make up`, comes before its processes
    assert query(database, "SELECT a FROM t") == [(7,)]
    require_head(database, old)
