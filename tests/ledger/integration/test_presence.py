"""No hold lapses because the ledger was away: its settlement may be waiting. Against a real Postgres."""

import asyncio
import os
import sys

import psycopg
import pytest

from services.kit.db import async_engine
from services.ledger.group_commit import GroupCommit
from services.ledger.presence import AWAY_SECONDS, GRACE_SECONDS, Presence, attended
from services.ledger.service import Ledger
from services.ledger.store.reads import Reads
from services.ledger.worker import sweep
from tests.ledger.support.ledger_audit import audit, rows
from tests.ledger.support.ledger_memory import credit, hold, opened, settle, touch
from tests.ledger.support.ledger_past import connected


@pytest.fixture
def server(ledger_settings):
    """Makes servers' writers: each a group commit that says that it is there."""
    made = []

    def make():
        commits = GroupCommit(ledger_settings, Presence(ledger_settings))
        commits.start()
        made.append(commits)
        return commits

    yield make
    for commits in made:
        for task in commits._tasks:
            task.cancel()


@pytest.fixture
async def engine(ledger_settings):
    engine = async_engine(ledger_settings)
    yield engine
    await engine.dispose()


def happens(url, *statements):
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)


def seen(seconds_ago):
    return f"UPDATE presence SET seen_at = now() - interval '{seconds_ago} seconds'"


def lapses(seconds_ago, hold_id="h1"):
    return f"UPDATE holds SET expires_at = now() - interval '{seconds_ago} seconds' WHERE hold_id = '{hold_id}'"


DUE = "UPDATE accounts SET next_event_at = (SELECT min(expires_at) FROM holds WHERE status = 'open')"
HOLDS = "SELECT hold_id, status FROM holds ORDER BY 1"
LIVES = "SELECT extract(epoch FROM expires_at - now())::integer FROM holds ORDER BY hold_id"
BOOKS = "SELECT available, held, spent FROM accounts"


async def held(server, *hold_ids):
    """A server with an account of 100, of which each hold has 40."""
    commits = server()
    await commits.submit([[opened()], [credit(100, "c1")], *([hold(40, each)] for each in hold_ids)])
    return commits


async def test_a_hold_that_would_have_lapsed_while_the_ledger_was_away_is_settled_as_if_it_had_not_been(
    server, ledger_settings
):
    url = ledger_settings.database_url
    await (await held(server, "h1")).stop()
    happens(url, seen(3600), lapses(3000), DUE)
    back = server()
    await back.submit([[touch()]])  # whoever comes first does not get what is held
    assert rows(url, BOOKS) == [(60, 40, 0)]
    assert GRACE_SECONDS - 30 < rows(url, LIVES)[0][0] <= GRACE_SECONDS
    await back.submit([[settle(30, "h1")]])
    assert rows(url, BOOKS) == [(70, 0, 30)]
    audit(url)


async def test_a_hold_lapses_where_the_ledger_was_there(server, ledger_settings):
    url = ledger_settings.database_url
    await (await held(server, "h1")).stop()
    happens(url, seen(AWAY_SECONDS / 2), lapses(1), DUE)
    await server().submit([[touch()]])
    assert rows(url, HOLDS) == [("h1", "expired")]
    assert rows(url, BOOKS) == [(100, 0, 0)]


async def test_a_hold_that_lapsed_before_the_ledger_went_away_does_not_come_back(server, ledger_settings):
    url = ledger_settings.database_url
    await (await held(server, "h1", "h2")).stop()
    happens(url, seen(3600), lapses(3700, "h1"), lapses(3500, "h2"), DUE)
    await server().submit([[touch()]])
    assert rows(url, HOLDS) == [("h1", "expired"), ("h2", "open")]


async def test_a_hold_of_a_release_that_did_not_say_that_it_was_there_lives_on_through_the_upgrade(
    server, ledger_settings
):
    url = ledger_settings.database_url
    await (await held(server, "h1")).stop()
    happens(url, "DELETE FROM presence", lapses(300), DUE)
    await server().submit([[touch()]])
    assert rows(url, HOLDS) == [("h1", "open")]
    assert GRACE_SECONDS - 30 < rows(url, LIVES)[0][0] <= GRACE_SECONDS


async def test_a_server_that_hung_with_its_connections_open_lets_holds_live_on_before_it_books(server, ledger_settings):
    url = ledger_settings.database_url
    commits = await held(server, "h1")
    happens(url, seen(3600), lapses(3000), DUE)
    commits._presence._said_at -= 3600
    await commits.submit([[touch()]])
    assert rows(url, HOLDS) == [("h1", "open")]


async def test_of_servers_that_are_back_at_the_same_moment_none_books_before_holds_live_on(server, ledger_settings):
    url = ledger_settings.database_url
    await (await held(server, "h1")).stop()
    happens(url, seen(3600), lapses(3000), DUE)
    blocking = await psycopg.AsyncConnection.connect(url)
    await blocking.execute("SELECT FROM presence FOR UPDATE")
    several = [asyncio.create_task(server().submit([[touch()]])) for _ in range(4)]
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(20):
        while rows(url, waiting) != [(4,)]:  # noqa: ASYNC110 (Postgres tells nobody)
            await asyncio.sleep(0.02)
    await blocking.rollback()
    await blocking.close()
    await asyncio.gather(*several)
    assert rows(url, HOLDS) == [("h1", "open")]
    audit(url)


async def test_what_a_server_says_outlives_its_connection(ledger_settings, engine):
    url = ledger_settings.database_url
    presence = Presence(ledger_settings)
    assert presence.is_old
    presence.start()
    try:
        for _ in range(2):
            async with asyncio.timeout(20):
                while not await attended(engine):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert not presence.is_old
            happens(
                url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'tollkeeper-ledger-presence'",
                seen(3600),
            )
    finally:
        await presence.stop()


async def test_a_server_goes_on_saying_it_whatever_an_attempt_met(ledger_settings, engine, monkeypatch):
    real, errors = Presence.say, [RuntimeError("the handler is closed")]  # what uvloop says of what was reset

    async def say(self, connection):
        if errors:
            raise errors.pop()
        await real(self, connection)

    monkeypatch.setattr(Presence, "say", say)
    presence = Presence(ledger_settings)
    presence.start()
    try:
        async with asyncio.timeout(20):
            while not await attended(engine):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await presence.stop()


async def test_the_worker_lets_nothing_lapse_while_no_server_is_there(server, ledger_settings, engine):
    url = ledger_settings.database_url
    await (await held(server, "h1")).stop()
    happens(url, lapses(3000), DUE, "UPDATE accounts SET touched_at = '2026-01-01'", seen(3600))
    commits = GroupCommit(ledger_settings)  # as a worker has it
    commits.start()
    worker = Ledger(commits, Reads(engine))
    await sweep(worker, engine, asyncio.Event())
    assert rows(url, HOLDS) == [("h1", "open")]
    async with connected(ledger_settings) as connection:
        await Presence(ledger_settings).say(connection)
    await sweep(worker, engine, asyncio.Event())
    assert rows(url, HOLDS) == [("h1", "open")]
    happens(url, lapses(1), DUE, "UPDATE accounts SET touched_at = '2026-01-01'")
    await sweep(worker, engine, asyncio.Event())
    assert rows(url, HOLDS) == [("h1", "expired")]
    await commits.stop()


async def test_an_export_while_no_server_is_there_lets_nothing_lapse(server, ledger_settings):
    url = ledger_settings.database_url
    await (await held(server, "h1")).stop()
    happens(url, seen(3600), lapses(3000), DUE)
    command = (sys.executable, "-m", "services.ledger", "export", "--account", "acme")
    environment = os.environ | {"TOLLKEEPER_LEDGER_DATABASE_URL": url}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, env=environment)
    assert await process.wait() == 0
    assert rows(url, HOLDS) == [("h1", "open")]
    assert rows(url, BOOKS) == [(60, 40, 0)]
