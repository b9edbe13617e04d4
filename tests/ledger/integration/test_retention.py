"""Retention and the worker: what ended long ago is forgotten down to its name, what moved money never is."""

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
from prometheus_client import REGISTRY

from services.kit.db import async_engine
from services.ledger import worker, writer
from services.ledger.errors import ResultArchived
from services.ledger.service import Ledger
from services.ledger.store import retention
from services.ledger.store.due import BUSY_SECONDS, OVERDUE_SECONDS
from services.ledger.store.loading import MAX_LAPSED
from services.ledger.store.reads import Reads
from services.ledger.worker import forget, report, sweep, work
from tests.ledger.support.ledger_audit import rows
from tests.ledger.support.ledger_memory import (
    credit,
    delete_limit,
    hold,
    opened,
    release,
    set_limit,
    settle,
    suspend,
    update,
)
from tests.ledger.support.ledger_past import connected, happened

OLD = datetime.now(UTC) - timedelta(days=91)
RECENT = datetime.now(UTC) - timedelta(days=89)
SERVER_THERE = "INSERT INTO presence (seen_at) VALUES (now())"


async def ended(connection, moment, account_id, name, count):
    """Holds that were settled, released or left open at a moment."""
    holds = [hold(1, f"{name}{number}", account_id) for number in range(3 * count)]
    ends = [settle(1, f"{name}{number}", account_id) for number in range(0, 3 * count, 3)]
    ends += [release(f"{name}{number}", account_id) for number in range(1, 3 * count, 3)]
    await happened(connection, moment, *holds, *ends)


def names(url, query):
    return {tuple(row) for row in rows(url, query)}


async def does(commits, operation):
    ((result,),) = [await commits.submit([[operation]])]
    return result.outcome


async def test_holds_that_ended_long_ago_leave_their_names_and_cannot_be_made_again(
    connection, commits, ledger_settings
):
    url = ledger_settings.database_url
    await happened(connection, OLD - timedelta(hours=1), opened("acme"), credit(1000, "c1", "acme"))
    await ended(connection, OLD, "acme", "old", 2)
    await ended(connection, RECENT, "acme", "new", 2)
    for _ in range(2):
        await forget(ledger_settings, asyncio.Event())
    # Also those that nobody ended: they lapsed when the account was next looked at, as of their own time.
    assert names(url, "SELECT hold_id FROM ended_holds") == {(f"old{n}",) for n in range(6)}
    assert names(url, "SELECT hold_id FROM holds") == {(f"new{n}",) for n in range(6)}
    before = rows(url, "SELECT available, held, sequence FROM accounts")
    assert isinstance(await does(commits, hold(1, "old0", "acme")), ResultArchived)
    assert isinstance(await does(commits, settle(1, "old0", "acme")), ResultArchived)
    assert isinstance(await does(commits, release("old1", "acme")), ResultArchived)
    (account,) = rows(url, "SELECT available, held, spent FROM accounts")
    assert account.spent == 4
    # The new ones that were left open have lapsed by now; nothing else has happened.
    assert (account.available, account.held) == (before[0].available + before[0].held, 0)


async def test_hold_that_lapsed_is_forgotten_by_when_it_ended_not_by_when_it_was_made(connection, ledger_settings):
    await happened(connection, OLD, opened("acme"), credit(10, "c1", "acme"), hold(1, "h1", "acme", ttl_seconds=60))
    await forget(ledger_settings, asyncio.Event())
    assert names(ledger_settings.database_url, "SELECT hold_id, status FROM holds") == {("h1", "open")}


async def test_keys_of_money_are_kept_and_those_of_settings_forgotten(connection, commits, ledger_settings):
    for moment, name in ((OLD, "old"), (RECENT, "new")):
        account_id = f"of-{name}"
        await happened(
            connection, moment, opened(account_id), credit(5, f"{name}-credit", account_id),
            set_limit(9, account_id, request_id=f"{name}-limit"), delete_limit(account_id, request_id=f"{name}-end"),
            update(f"{name}-update", account_id, display_name="x"), suspend(f"{name}-suspend", account_id),
        )  # fmt: skip
    await forget(ledger_settings, asyncio.Event())
    kept = {row[0] for row in names(ledger_settings.database_url, "SELECT request_id FROM requests")}
    assert kept == {"old-credit", "new-credit", "new-limit", "new-end", "new-update", "new-suspend"}
    replayed = await does(commits, credit(5, "old-credit", "of-old"))
    assert replayed.entry.sequence == 1
    assert names(ledger_settings.database_url, "SELECT funded FROM accounts") == {(5,)}


async def test_retention_walks_all_pages_while_clients_work_and_loses_nothing(
    connection, commits, ledger_settings, monkeypatch
):
    """Small pages, two walks at once, and clients that make, settle and repeat holds of the same accounts."""
    monkeypatch.setattr(retention, "PAGE_ROWS", 7)
    monkeypatch.setattr(retention, "BATCH_ROWS", 3)
    monkeypatch.setattr(worker, "_LEAST_REST_SECONDS", 0)
    monkeypatch.setattr(worker, "_REST", 0)
    url = ledger_settings.database_url
    accounts = [f"a{number}" for number in range(4)]
    for account_id in accounts:
        await happened(connection, OLD, opened(account_id), credit(10**6, "c1", account_id))
        await ended(connection, OLD, account_id, "old", 20)
    done = asyncio.Event()
    made = set()

    async def work_on(account_id):
        number = 0
        while not done.is_set() or number < 10:
            name = f"n{number}"
            await commits.submit([[hold(1, name, account_id)], [settle(1, name, account_id)]])
            again = await does(commits, hold(1, f"old{3 * (number % 20)}", account_id))
            # Replayed while its row is there, refused after; never made anew.
            assert isinstance(again, ResultArchived) or again.hold.created_at < RECENT
            made.add((account_id, name))
            number += 1

    async def walk(forget_page):
        async with connected(ledger_settings) as own:
            place = retention.BEGINNING
            while place is not None:
                place, _ = await forget_page(own, RECENT, place)

    clients = [asyncio.create_task(work_on(account_id)) for account_id in accounts]
    try:
        await asyncio.gather(*(walk(retention.forget_holds) for _ in range(2)), walk(retention.forget_requests))
    finally:
        done.set()
    await asyncio.gather(*clients)
    old = {(a, f"old{n}") for a in accounts for n in range(60)}
    gone = names(url, "SELECT account_id, hold_id FROM ended_holds")
    assert gone >= {(a, f"old{n}") for a in accounts for n in range(60) if n % 3 < 2}
    assert names(url, "SELECT account_id, hold_id FROM holds") == made | (old - gone)
    await walk(retention.forget_holds)  # those that lapsed when their account was first looked at
    assert names(url, "SELECT account_id, hold_id FROM ended_holds") == old
    assert names(url, "SELECT account_id, hold_id FROM holds") == made
    assert names(url, "SELECT count(*) FROM journal WHERE type = 'hold' GROUP BY account_id, hold_id") == {(1,)}
    for row in rows(url, "SELECT * FROM accounts"):
        assert (row.held, row.available + row.spent) == (0, 10**6)


async def test_account_that_is_always_busy_is_not_passed_over(connection, ledger_settings):
    await happened(connection, OLD, opened("acme"), credit(10, "c1", "acme"), opened("bert"), credit(10, "c1", "bert"))
    for account_id in ("acme", "bert"):
        await ended(connection, OLD, account_id, "old", 1)
    async with connected(ledger_settings) as batch:
        async with batch.transaction():
            await batch.execute("SELECT 1 FROM accounts WHERE account_id = 'acme' FOR NO KEY UPDATE")
            forgetting = asyncio.create_task(forget(ledger_settings, asyncio.Event()))
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            async with asyncio.timeout(20):
                while not (await (await connection.execute(query)).fetchone())[0]:  # noqa: ASYNC110 (Postgres tells nobody)
                    await asyncio.sleep(0.01)
            assert names(ledger_settings.database_url, "SELECT DISTINCT account_id FROM ended_holds") == {("bert",)}
        await forgetting
    assert len(rows(ledger_settings.database_url, "SELECT * FROM ended_holds")) == 4


async def test_account_locked_for_long_does_not_stop_the_walk(connection, ledger_settings):
    settings = ledger_settings.model_copy(update={"statement_timeout_seconds": 0.2})
    await happened(connection, OLD, opened("acme"), credit(10, "c1", "acme"), opened("bert"), credit(10, "c1", "bert"))
    for account_id in ("acme", "bert"):
        await ended(connection, OLD, account_id, "old", 1)
    async with connected(ledger_settings) as batch, batch.transaction():
        await batch.execute("SELECT 1 FROM accounts WHERE account_id = 'acme' FOR NO KEY UPDATE")
        await forget(settings, asyncio.Event())
    assert names(settings.database_url, "SELECT DISTINCT account_id FROM ended_holds") == {("bert",)}


async def test_sweep_comes_back_to_an_account_until_nothing_is_due(commits, ledger_settings):
    count = 2 * MAX_LAPSED + 10
    await commits.submit([[opened()], [credit(count, "c1")]])
    for start in range(0, count, 500):
        last = min(start + 500, count)
        await commits.submit([[hold(1, f"h{number}")] for number in range(start, last)])
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("UPDATE holds SET expires_at = now() - interval '1 second'")
        connection.execute("UPDATE accounts SET next_event_at = now() - interval '1 second', touched_at = '2026-01-01'")
        connection.execute(SERVER_THERE)
    engine = async_engine(ledger_settings)
    await sweep(Ledger(commits, Reads(engine)), engine, asyncio.Event())
    await engine.dispose()
    assert names(ledger_settings.database_url, "SELECT status, count(*) FROM holds GROUP BY 1") == {("expired", count)}
    assert names(ledger_settings.database_url, "SELECT available, held, next_event_at FROM accounts") == {
        (count, 0, None)
    }


async def test_account_that_is_busy_is_left_to_its_next_operation_for_a_while(commits, ledger_settings):
    engine = async_engine(ledger_settings)
    reads, begun = Reads(engine), datetime.now(UTC)

    async def swept_after(seconds):
        return await reads.due_accounts(begun + timedelta(seconds=seconds), 10)

    await commits.submit(
        [[opened("idle"), credit(100, "c1", "idle"), hold(10, "h1", "idle", ttl_seconds=BUSY_SECONDS)]]
    )
    await commits.submit([[opened("busy"), credit(100, "c1", "busy"), hold(10, "h1", "busy", ttl_seconds=100)]])
    assert await swept_after(BUSY_SECONDS - 1) == []
    assert await swept_after(BUSY_SECONDS + 1) == ["idle"]
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("UPDATE accounts SET touched_at = now() + interval '99 seconds' WHERE account_id = 'busy'")
    assert await swept_after(105) == ["idle"]
    assert await swept_after(115) == ["idle", "busy"]
    with psycopg.connect(ledger_settings.database_url) as connection:  # whose operations always fail
        connection.execute("UPDATE accounts SET touched_at = now() + interval '1 hour' WHERE account_id = 'busy'")
    assert await swept_after(100 + OVERDUE_SECONDS - 1) == ["idle"]
    assert await swept_after(100 + OVERDUE_SECONDS + 1) == ["idle", "busy"]
    await engine.dispose()


def gauge(name):
    return REGISTRY.get_sample_value(f"tollkeeper_ledger_{name}")


async def test_holds_under_way_and_what_was_spent_are_told(commits, ledger_settings):
    # Other tests of the process may have spent so much that a float has no place for 7 nanos more.
    writer._SPENT.reset()
    for operation in (opened(), credit(100, "c1"), hold(10, "h1"), hold(10, "h2"), settle(7, "h1")):
        await commits.submit([[operation]])
    await report(ledger_settings)
    assert gauge("holds_open") == 1
    assert gauge("spent_nanos_total") == 7


async def test_worker_reports_what_is_overdue_and_what_is_missing(connection, commits, ledger_settings):
    await report(ledger_settings)
    assert (gauge("due_lag_seconds"), gauge("months_ahead"), gauge("default_partitions_in_use")) == (0, 3, 0)
    for operation in (opened(), credit(5, "c1")):
        await commits.submit([[operation]])
    await connection.execute("UPDATE accounts SET next_event_at = now() - interval '1 hour'")
    await connection.execute("CREATE TEMPORARY TABLE later AS SELECT * FROM journal")
    await connection.execute("UPDATE later SET created_at = created_at + interval '10 years'")
    await connection.execute("INSERT INTO journal SELECT * FROM later")
    last = (datetime.now(UTC).replace(day=1) + timedelta(days=100)).strftime("%Y_%m")
    await connection.execute(f"DROP TABLE usage_{last}")
    await report(ledger_settings)
    assert 3600 <= gauge("due_lag_seconds") < 3700
    assert (gauge("months_ahead"), gauge("default_partitions_in_use")) == (2, 1)


FORGOTTEN = "SELECT 1 FROM ended_holds"
LAPSED = "SELECT 1 FROM holds WHERE status = 'expired'"


async def test_worker_does_all_its_jobs_and_ends_when_told(connection, commits, ledger_settings):
    url = ledger_settings.database_url
    await happened(connection, OLD, opened("acme"), credit(10, "c1", "acme"), hold(2, "h1", "acme", ttl_seconds=60))
    await ended(connection, OLD, "acme", "old", 1)
    await connection.execute(SERVER_THERE)
    stop = asyncio.Event()
    settings = ledger_settings.model_copy(update={"sweep_seconds": 3600})
    working = asyncio.create_task(work(settings, stop))
    async with asyncio.timeout(30):
        while not (rows(url, FORGOTTEN) and rows(url, LAPSED)):  # noqa: ASYNC110 (the worker tells nobody)
            await asyncio.sleep(0.02)
    stop.set()
    await asyncio.wait_for(working, 10)
