"""Months: what is detached is summed up, the ledger goes on without it, and its archive is what it was."""

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.db import async_engine
from services.ledger.errors import CursorUnknown, ResultArchived, TransactionNotFound
from services.ledger.feed import Cursor, UsageFeed
from services.ledger.model.rows import transaction_id
from services.ledger.store import months as store
from services.ledger.store.feed import FeedReads
from services.ledger.store.months import MonthError, detach
from services.ledger.store.partitions import create_months, month_name, months
from services.ledger.verifying import verified
from tests.ledger.support.ledger_audit import entry_of, rows
from tests.ledger.support.ledger_client import refused as refusal_of
from tests.ledger.support.ledger_memory import (
    adjust,
    credit,
    debit,
    hold,
    settle,
    undo,
)
from tests.ledger.support.ledger_past import THREE, TWO, connected, happened, months_ago, two_old_months


def sums(url, account_id):
    """What an account's rows and its checkpoint come to together."""
    (moved,) = rows(
        url,
        f"""SELECT sum(funding) a, sum(available) b, sum(held) c, sum(spent) d, sum(expired) e FROM (
                SELECT funding, available, held, spent, expired FROM journal WHERE account_id = '{account_id}'
                UNION ALL
                SELECT funding, available, held, spent, expired FROM checkpoints WHERE account_id = '{account_id}'
                UNION ALL SELECT 0, 0, 0, 0, 0) x""",
    )
    return tuple(map(int, moved))


def uses(url, account_id):
    found = {}
    for table in ("journal", "checkpoints"):
        for row in rows(url, f"SELECT grant_uses FROM {table} WHERE account_id = '{account_id}'"):
            for grant_id, amount in row.grant_uses:
                found[grant_id] = found.get(grant_id, 0) + amount
    return {grant_id: amount for grant_id, amount in found.items() if amount}


async def test_checkpoint_is_what_the_detached_entries_come_to(connection, ledger_settings):
    url = ledger_settings.database_url
    await two_old_months(connection)
    before = {a: (sums(url, a), uses(url, a)) for a in ("acme", "bert", "idle")}
    journal = {(e.account_id, e.sequence): entry_of(e) for e in rows(url, "SELECT * FROM journal")}
    for moment in (months_ago(4), THREE, TWO):
        await detach(connection, month_name(moment))
        assert {a: (sums(url, a), uses(url, a)) for a in before} == before
    assert rows(url, "SELECT * FROM journal") == rows(url, "SELECT * FROM usage") == []
    points = {row.account_id: row for row in rows(url, "SELECT * FROM checkpoints")}
    assert points.keys() == {"acme", "bert"}
    for account in rows(url, "SELECT * FROM accounts WHERE account_id <> 'idle'"):
        point = points[account.account_id]
        assert (point.sequence, point.hash) == (account.sequence, account.last_hash)
        assert point.hash == journal[account.account_id, account.sequence].hash
        assert point.usage_number == account.usage_sequence
        assert (-point.funding, point.available, point.held, point.spent, point.expired) == (
            account.funded, account.available, account.held, account.spent, account.expired,
        )  # fmt: skip
    # A grant of which nothing is left is not carried along.
    assert points["acme"].grant_uses == [["grant-2", -465]]
    assert points["acme"].archived_before == TWO.replace(day=1, hour=0) + timedelta(days=31) - timedelta(
        days=(TWO.replace(day=1) + timedelta(days=31)).day - 1
    )
    assert points["bert"].archived_before < points["acme"].archived_before
    counted = rows(
        url, "SELECT account_id, key_id, workspace, billed, tokens, requests FROM archived_use ORDER BY 1, 2"
    )
    assert counted == [
        ("acme", "", "", 30, 1, 1), ("acme", "k1", "", 90, 7, 1), ("acme", "k2", "", 910, 11, 1),
        ("bert", "", "", 20, 3, 1),
    ]  # fmt: skip


async def test_ledger_goes_on_after_a_detach_and_does_nothing_twice(connection, commits, ledger_settings):
    await two_old_months(connection)
    (given, *_) = rows(
        ledger_settings.database_url, "SELECT created_at, sequence FROM journal WHERE account_id = 'acme'"
    )
    for moment in (months_ago(4), THREE, TWO):
        await detach(connection, month_name(moment))

    async def does(operation):
        ((result,),) = [await commits.submit([[operation]])]
        return result.outcome

    before = rows(ledger_settings.database_url, "SELECT * FROM accounts ORDER BY account_id")
    for repeated in (
        credit(1000, "c1", "acme"), adjust(-5, "a1", "acme"), debit(20, "d1", "bert", tokens=3),
        settle(30, "h3", "acme", tokens=1),
    ):  # fmt: skip
        assert isinstance(await does(repeated), ResultArchived), repeated
    again = await does(hold(30, "h3", "acme"))
    assert (again.hold.hold_id, again.hold.amount) == ("h3", 30)
    for kind, what in (("reversal", "r1"), ("refund", "r2")):
        old = transaction_id(given.created_at, given.sequence)
        assert isinstance(await does(undo(kind, old, what, account_id="acme")), TransactionNotFound)
    assert rows(ledger_settings.database_url, "SELECT * FROM accounts ORDER BY account_id") == before
    # Newer things work as ever.
    spent = await does(debit(15, "d9", "acme"))
    refund = undo("refund", transaction_id(spent.entry.created_at, spent.entry.sequence), "r3", account_id="acme")
    assert (await does(refund)).entry.balance_after == 465
    await does(hold(400, "h9", "acme"))
    assert (await does(settle(300, "h9", "acme"))).available == 165
    assert sums(ledger_settings.database_url, "acme") == (-1495, 165, 0, 1330, 0)
    first = rows(ledger_settings.database_url, "SELECT * FROM journal WHERE account_id = 'acme' ORDER BY sequence")[0]
    (point,) = rows(ledger_settings.database_url, "SELECT * FROM checkpoints WHERE account_id = 'acme'")
    assert first.sequence == point.sequence + 1
    assert entry_of(first).chained(point.hash) == first.hash


async def test_reads_and_verification_go_on_with_what_is_left(connection, ledger, ledger_settings):
    await two_old_months(connection)
    (old, *_) = await ledger.transactions("bert")
    for moment in (months_ago(4), THREE):
        await detach(connection, month_name(moment))
    engine = async_engine(ledger_settings)

    async def findings():
        found = await verified(engine, ["acme", "bert", "idle"], page_rows=3, told=lambda _: None)
        return {account.account_id: list(account.findings) for account in found}

    try:
        assert await findings() == {"acme": [], "bert": [], "idle": []}
        balance = await ledger.balance("acme")
        assert (balance.available_nanos, balance.spent_nanos) == (465, 1030)
        assert [record.billed_nanos for record in await ledger.usage("acme")] == [30, 910]
        assert len(await ledger.transactions("acme")) == 3
        assert await ledger.transactions("bert") == await ledger.usage("bert") == []
        request = pb.GetTransactionRequest(account_id="bert", transaction_id=old.transaction_id)
        assert (await refusal_of(ledger.GetTransaction(request))).reason == "TRANSACTION_NOT_FOUND"
        await detach(connection, month_name(TWO))
        await ledger.credit(5, "acme")
        assert await findings() == {"acme": [], "bert": [], "idle": []}
        assert (await ledger.balance("acme")).available_nanos == 470
        await connection.execute("UPDATE checkpoints SET available = available + 1, funding = funding - 1")
        spoiled = await findings()
        assert spoiled["acme"]
        assert spoiled["bert"]
    finally:
        await engine.dispose()


async def lifetime_use(ledger, name):
    """What new lifetime limits of each scope and unit begin with."""
    used = {}
    for scope, subject in (("account", ""), ("key", "k1"), ("workspace", "w")):
        for unit in ("nanos", "tokens", "requests"):
            words = {"account_id": "acme", "scope": scope, "subject": subject, "unit": unit, "window": "lifetime"}
            request_id = f"{name}-{scope}-{unit}"
            limit = await ledger.SetLimit(pb.SetLimitRequest(**words, amount=10**6, request_id=request_id))
            await ledger.DeleteLimit(
                pb.DeleteLimitRequest(account_id="acme", limit_id=limit.limit_id, request_id=f"{request_id}-end")
            )
            used[scope, unit] = limit.used
    return used


async def test_operators_sums_keep_what_is_archived(connection, ledger):
    await two_old_months(connection)
    asked = pb.SummarizeAllUsageRequest(group_by=["month", "model"])
    asked.from_time.FromDatetime(months_ago(6).replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    before = await ledger.SummarizeAllUsage(asked)
    assert {summary.month for summary in before.summaries} == {month_name(THREE), month_name(TWO)}
    for moment in (months_ago(4), THREE):
        await detach(connection, month_name(moment))
        assert await ledger.SummarizeAllUsage(asked) == before


async def test_lifetime_limit_made_later_counts_what_is_archived(connection, ledger):
    await two_old_months(connection)
    before = await lifetime_use(ledger, "before")
    assert (before["account", "nanos"], before["key", "tokens"], before["workspace", "requests"]) == (1030, 7, 0)
    for moment in (months_ago(4), THREE, TWO):
        await detach(connection, month_name(moment))
    assert await lifetime_use(ledger, "after") == before


async def refused(connection, month, words):
    before = rows_of(connection)
    with pytest.raises(MonthError, match=words):
        await detach(connection, month)
    assert rows_of(connection) == before


def rows_of(connection):
    with psycopg.connect(connection.info.dsn, password=connection.info.password) as other:
        return [
            other.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("checkpoints", "archived_use", "archived_months", "journal", "usage")
        ]


async def test_months_that_are_needed_are_not_detached(connection):
    await two_old_months(connection)
    now = datetime.now(UTC)
    for moment in (now, months_ago(1), now + timedelta(days=70)):
        await refused(connection, month_name(moment), "is needed")
    await refused(connection, "1999-01", "no month 1999-01")
    await refused(connection, month_name(THREE), f"{month_name(months_ago(4))} is older")
    await detach(connection, month_name(months_ago(4)))
    await refused(connection, month_name(months_ago(4)), "is detached already")


@pytest.mark.parametrize(
    ("spoil", "moment", "words"),
    [
        (
            "UPDATE accounts SET next_event_at = '{due}' WHERE account_id = 'idle'",
            THREE,
            "due since .* at account idle",
        ),
        ("UPDATE holds SET status = 'open' WHERE hold_id = 'h1'", THREE, "account acme has a hold"),
        ("DELETE FROM journal WHERE account_id = 'acme' AND sequence = 3", THREE, "journal of account acme has a gap"),
        ("DELETE FROM usage WHERE account_id = 'acme' AND usage_number = 1", TWO, "usage of account acme has a gap"),
    ],
)
async def test_month_in_which_something_is_open_or_missing_is_not_detached(connection, spoil, moment, words):
    await two_old_months(connection)
    await connection.execute(spoil.format(due=THREE.isoformat()))
    for before in (months_ago(4), THREE):
        if before < moment:
            await detach(connection, month_name(before))
    await refused(connection, month_name(moment), words)


async def test_month_with_rows_in_the_default_partition_is_not_detached(connection):
    await two_old_months(connection)
    await detach(connection, month_name(months_ago(4)))
    # As where nobody made a month's partition in time.
    await connection.execute(f"ALTER TABLE journal DETACH PARTITION journal_{THREE:%Y_%m}")
    await connection.execute(f"INSERT INTO journal_default SELECT * FROM journal_{THREE:%Y_%m}")
    await connection.execute(f"ALTER TABLE usage DETACH PARTITION usage_{THREE:%Y_%m}")
    await refused(connection, month_name(TWO), "journal_default has rows")


async def test_writers_go_on_while_a_month_is_detached_and_wait_only_for_a_moment(
    connection, commits, ledger_settings, monkeypatch
):
    """A reader keeps the journal busy: the detach waits for it, in pieces, and batches come in between."""
    await two_old_months(connection)
    await detach(connection, month_name(months_ago(4)))
    done = asyncio.Event()
    answered = []

    async def write():
        while not done.is_set():
            await commits.submit([[debit(0, f"w{len(answered)}", "bert")]])
            answered.append(done.is_set())

    writing = asyncio.create_task(write())
    async with connected(ledger_settings) as reader:
        async with reader.transaction():
            await reader.execute("SELECT count(*) FROM journal")
            detaching = asyncio.create_task(detach(connection, month_name(THREE)))
            async with asyncio.timeout(30):
                while not await waits(reader):  # noqa: ASYNC110 (Postgres tells nobody)
                    await asyncio.sleep(0.01)
            so_far = len(answered)
            async with asyncio.timeout(30):
                while len(answered) < so_far + 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert not detaching.done()
        assert (await detaching)[0] > 0
    done.set()
    await writing
    states = {month.month: month.state for month in await months(connection)}
    assert states[month_name(THREE)] == "detached"
    assert rows(ledger_settings.database_url, "SELECT usage_sequence FROM accounts WHERE account_id = 'bert'") == [
        (len(answered) + 1,)
    ]


async def waits(connection):
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = to_regclass('journal')"
    return (await (await connection.execute(query)).fetchone())[0]


async def test_detach_that_cannot_get_its_lock_changes_nothing(connection, ledger_settings, monkeypatch):
    monkeypatch.setattr(store, "_ATTEMPTS", 2)
    monkeypatch.setattr(store, "_PAUSE_SECONDS", 0)
    await two_old_months(connection)
    async with connected(ledger_settings) as reader, reader.transaction():
        await reader.execute("SELECT count(*) FROM usage")
        await refused(connection, month_name(months_ago(4)), "in use all the time")
    await detach(connection, month_name(months_ago(4)))


async def feed_of(settings, cursor=""):
    engine = async_engine(settings)
    taken, positions = [], cursor
    try:
        feed = UsageFeed(FeedReads(engine), asyncio.Event())
        async for answer in feed.follow(cursor, batch_size=1, until_now=True):
            taken += [(row.account_id, row.usage_number) for row in answer.rows]
            positions = str(answer.cursor)
    finally:
        await engine.dispose()
    return taken, positions


async def test_feed_begins_where_the_archive_ends_and_never_leaves_a_gap_unsaid(connection, ledger_settings):
    await two_old_months(connection)
    # Another writer's slot, in which records of both months lie mixed at the turn of the month.
    await happened(connection, TWO + timedelta(hours=2), debit(1, "s1", "acme"), slot=1)
    await happened(connection, THREE + timedelta(hours=2), debit(1, "s2", "bert"), slot=1)
    await happened(connection, TWO + timedelta(hours=2), debit(1, "s3", "bert"), slot=1)
    everything, end = await feed_of(ledger_settings)
    assert len(everything) == 7
    half = str(Cursor({0: 1}, ""))
    for moment in (months_ago(4), THREE):
        await detach(connection, month_name(moment))
    assert (await feed_of(ledger_settings, end))[0] == []
    left, _ = await feed_of(ledger_settings)
    assert left == [("acme", 2), ("acme", 3), ("acme", 4), ("bert", 3)]
    with pytest.raises(CursorUnknown, match="archived"):
        await feed_of(ledger_settings, half)
    await happened(connection, TWO + timedelta(hours=3), debit(1, "s4", "acme"))
    assert (await feed_of(ledger_settings, end))[0] == [("acme", 5)]
    await detach(connection, month_name(TWO))
    assert await feed_of(ledger_settings) == ([], "")
    with pytest.raises(CursorUnknown, match="archived"):
        await feed_of(ledger_settings, end)
    await happened(connection, datetime.now(UTC), debit(1, "s5", "acme"))
    assert (await feed_of(ledger_settings))[0] == [("acme", 6)]


async def test_partition_that_somebody_keeps_from_being_made_does_not_stop_the_start(
    connection, ledger_settings, monkeypatch
):
    monkeypatch.setattr("services.ledger.store.partitions._ATTEMPTS", 1)
    later = datetime.now(UTC) + timedelta(days=95)
    async with connected(ledger_settings) as reader:
        async with reader.transaction():
            await reader.execute("SELECT count(*) FROM usage")
            made = await create_months(connection, later)
        assert made
        assert all(name.startswith("journal_") for name in made)
        assert len(await create_months(connection, later)) == len(made)
