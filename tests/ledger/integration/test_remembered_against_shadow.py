"""Whatever is asked for, in whatever order: a ledger that remembers accounts answers and writes as one that never does.

Each run draws operations from a seed, which it prints: `REMEMBERED_SEED=n`, 0 for one by chance. `REMEMBERED_STEPS`
says how long a run is. The shadow is a second database whose group commit reads all it needs for each batch.
"""

import asyncio
import os
import secrets
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import create_async_engine

from services.ledger.group_commit import GroupCommit
from services.ledger.model.operations import AccountState, HoldSettled
from services.ledger.store import remembered
from services.ledger.store.documents import limits_of
from services.ledger.store.retention import BEGINNING, forget_holds
from services.ledger.verifying import verified
from tests.ledger.support.ledger_audit import audit, rows
from tests.ledger.support.ledger_clock import Clock
from tests.ledger.support.ledger_memory import credit, opened
from tests.ledger.support.ledger_past import connected
from tests.ledger.support.ledger_whims import ACCOUNTS, Whims

WAITS = (0, 0, 0, 0, 0.4, 1, 1, 2, 3, 7)
LONG_WAITS = (1800, 40_000, 86_400, 20 * 86_400)
TABLES = ("accounts", "subject_limits", "grants", "holds", "ended_holds", "journal", "requests", "undone", "usage")
# The place of a record in the feed is its writer's own; a request's time is that of the whole batch.
OWN = {"usage": ("feed_slot", "feed_position", "fed_at"), "requests": ("created_at",)}
STEPS = int(os.environ.get("REMEMBERED_STEPS", "240"))


@asynccontextmanager
async def replicas(settings, *changes):
    made = [GroupCommit(settings.model_copy(update=words)) for words in changes]
    for commits in made:
        commits.start()
    try:
        yield made
    finally:
        for commits in made:
            await commits.stop()


async def answers(commits, calls):
    return await asyncio.gather(*(commits.submit(call) for call in calls))


def turned(limits, book):
    """Limits in their windows of now. Which are turned when an account is written depends on what shares its batch."""
    for limit in limits:
        limit.turn(book, book.touched_at)
    return limits


def shown(outcome):
    """An answer as a client sees it."""
    if isinstance(outcome, Exception):
        return type(outcome).__name__, outcome.reason, str(outcome), repr(sorted(vars(outcome).items()))
    if isinstance(outcome, AccountState):
        book = outcome.book.copy()
        return repr(replace(book, limits=turned(book.limits, book)))
    return repr(outcome)


def tables(url):
    """All rows, in the order of their keys."""
    found = {}
    for table in TABLES:
        every = [row._asdict() for row in rows(url, f"SELECT * FROM {table}")]
        own = OWN.get(table, ())
        if table == "accounts":
            for row in every:
                row["limits"] = turned(limits_of(row["limits"]), SimpleNamespace(**row))
        found[table] = sorted(({name: row[name] for name in row if name not in own} for row in every), key=repr)
    return found


async def check_sound(url, *, forgotten):
    """The rows add up, and nothing that is due can be overlooked."""
    if not forgotten:
        audit(url)
    engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        for found in await verified(engine, list(ACCOUNTS), page_rows=1000):
            assert not found.findings, found
    finally:
        await engine.dispose()
    overlooked = """
        SELECT h.account_id, hold_id, expires_at, next_event_at FROM holds h JOIN accounts USING (account_id)
        WHERE h.status = 'open' AND (next_event_at IS NULL OR next_event_at > expires_at)
    """
    assert not rows(url, overlooked)


async def open_all(commits):
    for name, changes in ACCOUNTS.items():
        await commits.submit([[opened(name, **changes)], [credit(400, "first", name)]])


@pytest.fixture
def shadow_settings(ledger_settings, database_url, ledger_template):
    """Another database, and nothing is remembered of it."""
    url = database_url("ledger", template=ledger_template)
    return ledger_settings.model_copy(update={"database_url": url, "remembered_rows": 0})


@pytest.fixture
def seed(monkeypatch):
    """Of what is drawn; and what was wrong once is remembered again at once."""
    monkeypatch.setattr(remembered, "_FIRST_DOUBT_SECONDS", 0.0)
    monkeypatch.setattr(remembered, "_LONGEST_DOUBT_SECONDS", 0.0)
    number = int(os.environ.get("REMEMBERED_SEED", "7")) or secrets.randbelow(2**32)
    print(f"REMEMBERED_SEED={number}")
    return number


def remembered_batches():
    return REGISTRY.get_sample_value("tollkeeper_ledger_batches_total", {"accounts": "remembered"}) or 0.0


DISCONNECTED = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'tollkeeper-ledger-writer' AND datname = current_database()
"""


async def run(mine, shadow, whims, clock, both, *, forgetting):
    """Do the same at both, step by step. `mine`: group commits, one of which does each step."""
    kept, at = [], mine[0]
    for step in range(STEPS):
        calls = whims.calls()
        if whims.often(15):
            at = whims.random.choice(mine)
        found = await answers(at, calls)
        expected = await answers(shadow, calls)
        for call, results, others in zip(calls, found, expected, strict=True):
            for operation, result, other in zip([x for group in call for x in group], results, others, strict=True):
                assert (result.replayed, shown(result.outcome)) == (other.replayed, shown(other.outcome)), (
                    step,
                    operation,
                    calls,
                )
                whims.note(operation, result)
                kept.append((result, shown(result.outcome)))
        waits = LONG_WAITS if whims.often(1) else [0, 0, 0, 0.1] if whims.calm else WAITS
        clock.wait(seconds=whims.random.choice(waits))
        if whims.often(1):
            rows(both[0].database_url, DISCONNECTED)
        if forgetting and whims.often(3):
            before = clock.now - timedelta(seconds=whims.random.choice([0, 5]))
            for settings in both:
                async with connected(settings) as connection:
                    await forget_holds(connection, before, BEGINNING)
    # What was answered long ago shows what it was then, whatever was done since.
    assert all(shown(result.outcome) == then for result, then in kept)


# What each of the group commits is told that remember, and whether holds that ended are forgotten meanwhile.
VARIANTS = {
    "one": ([{"writers": 1}], False),
    "writers": ([{"writers": 2, "max_batch": 8}], True),
    "little": ([{"remembered_rows": 40}], False),
    "replicas": ([{"writers": 1}, {"writers": 1}], True),
}


@pytest.mark.parametrize("variant", VARIANTS)
async def test_remembering_changes_no_answer_and_no_row(ledger_settings, shadow_settings, monkeypatch, seed, variant):
    words, forgetting = VARIANTS[variant]
    clock = Clock(monkeypatch)
    whims = Whims(seed, clock)
    before = remembered_batches()
    async with replicas(ledger_settings, *words) as mine, replicas(shadow_settings, {}) as (shadow,):
        await open_all(mine[0])
        await open_all(shadow)
        await run(mine, shadow, whims, clock, (ledger_settings, shadow_settings), forgetting=forgetting)
    assert remembered_batches() > before
    found, expected = tables(ledger_settings.database_url), tables(shadow_settings.database_url)
    for table in TABLES:
        differing = [x for x in found[table] if x not in expected[table]]
        assert found[table] == expected[table], (table, differing[:5])
    await check_sound(ledger_settings.database_url, forgotten=forgetting)


async def test_connections_that_break_at_any_moment_lose_nothing(ledger_settings, monkeypatch, seed):
    """Two replicas at once, whose clocks go on; what was answered is there, and all rows add up."""
    url, clock, settled = ledger_settings.database_url, Clock(monkeypatch, step=timedelta(milliseconds=1)), {}
    whims = Whims(seed, clock)
    async with replicas(ledger_settings, {}, {}) as mine:
        await open_all(mine[0])
        for _ in range(STEPS // 3):
            calls = whims.calls()
            asked = [answers(mine[0], calls[::2]), answers(mine[1], calls[1::2])]
            if whims.often(20):
                asked.append(asyncio.to_thread(rows, url, DISCONNECTED))
            found = await asyncio.gather(*asked)
            for call, results in zip(calls[::2] + calls[1::2], found[0] + found[1], strict=True):
                for operation, result in zip([x for group in call for x in group], results, strict=True):
                    whims.note(operation, result)
                    if isinstance(result.outcome, HoldSettled):
                        settled[operation.account_id, operation.hold_id] = (
                            operation.amount,
                            result.outcome.hold.usage_id,
                        )
            clock.wait(seconds=whims.random.choice(WAITS))
    there = rows(url, "SELECT account_id, hold_id, settled, usage_id FROM holds WHERE status = 'settled'")
    assert {(x.account_id, x.hold_id): (x.settled, x.usage_id) for x in there}.items() >= settled.items()
    await check_sound(url, forgotten=False)
