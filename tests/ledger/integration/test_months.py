"""Months: what is detached is summed up, the ledger goes on without it, and its archive is what it was."""

import asyncio
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta

import psycopg
import pyarrow.parquet as pq
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.command import main
from services.kit.db import async_engine
from services.ledger.__main__ import MIGRATIONS, make_server
from services.ledger.archive import write_archive
from services.ledger.commands import COMMANDS
from services.ledger.errors import CursorUnknown, ResultArchived, TransactionNotFound
from services.ledger.feed import Cursor, UsageFeed
from services.ledger.group_commit import GroupCommit
from services.ledger.model.rows import transaction_id
from services.ledger.settings import LedgerSettings
from services.ledger.store import months as store
from services.ledger.store.feed import FeedReads
from services.ledger.store.months import MonthError, detach
from services.ledger.store.partitions import create_months, month_name, months
from tests.ledger.support.ledger_audit import entry_of, rows
from tests.ledger.support.ledger_memory import (
    adjust,
    credit,
    debit,
    hold,
    opened,
    release,
    settle,
    touch,
    undo,
    usage,
)
from tests.ledger.support.ledger_past import connected, happened, make_past, months_ago

THREE, TWO = months_ago(3), months_ago(2)


@pytest.fixture
async def connection(ledger_settings):
    async with connected(ledger_settings) as connection:
        await make_past(connection, 4)
        yield connection


@pytest.fixture
async def commits(ledger_settings):
    commits = GroupCommit(ledger_settings)
    commits.start()
    yield commits
    await commits.stop()


async def two_old_months(connection):
    """Two accounts with a past: what was spent three and two months ago, and this one's holds."""
    await happened(
        connection, THREE, opened("acme"), credit(1000, "c1", "acme"), credit(500, "c2", "acme"),
        opened("bert"), credit(70, "c1", "bert"), opened("idle"),
    )  # fmt: skip
    hour = timedelta(hours=1)
    await happened(
        connection, THREE + hour, hold(100, "h1", "acme", key_id="k1"), hold(50, "h2", "acme"), release("h2", "acme"),
        settle(90, "h1", "acme", tokens=7, usage=usage(provider="openai", units={"images": 2})),
        debit(20, "d1", "bert", tokens=3),
    )  # fmt: skip
    await happened(connection, TWO, debit(910, "d2", "acme", key_id="k2", tokens=11), adjust(-5, "a1", "acme"))
    await happened(connection, TWO + hour, hold(30, "h3", "acme"), settle(30, "h3", "acme", tokens=1))
    await happened(connection, TWO + 2 * hour, touch("acme"))  # as the worker does


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


def run(capsys, monkeypatch, settings, *words):
    monkeypatch.setenv("TOLLKEEPER_LEDGER_DATABASE_URL", settings.database_url)
    arguments = {"serve": make_server, "script_location": MIGRATIONS, "own": COMMANDS, "arguments": ["months", *words]}
    status = main(LedgerSettings, **arguments)
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.fixture
def past(ledger_settings):
    async def make():
        async with connected(ledger_settings) as connection:
            await make_past(connection, 4)
            await two_old_months(connection)

    asyncio.run(make())
    return ledger_settings


def test_commands_take_a_month_from_its_partitions_to_verified_files(past, tmp_path, capsys, monkeypatch):
    def command(*words):
        return run(capsys, monkeypatch, past, *words)

    oldest, month, folder = month_name(months_ago(4)), month_name(THREE), tmp_path / "archive"
    before = {
        t: rows(past.database_url, f"SELECT * FROM {t}_{THREE:%Y_%m} ORDER BY 1, 2") for t in ("journal", "usage")
    }
    assert command("detach", month)[0::2] == (
        1,
        f"ledger: months are detached in order: {oldest} is older than {month}\n",
    )
    assert command("archive", month, "--output", str(folder))[0] == 1
    assert command("detach", oldest)[:2] == (
        0,
        f"{oldest} is detached: 0 journal entries, 0 usage records; archive it next\n",
    )
    assert json.loads(command("detach", month, "--json")[1]) == {"month": month, "journal_rows": 8, "usage_rows": 2}
    status, out, _ = command("archive", month, "--output", str(folder), "--json")
    manifest = json.loads(out)
    assert (status, manifest["dropped"]) == (0, False)
    assert json.loads((folder / f"ledger-{month}.json").read_text())["tables"] == manifest["tables"]
    for name, table in manifest["tables"].items():
        content = (folder / table["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == table["sha256"]
        found = pq.read_table(folder / table["file"]).to_pylist()
        wanted = [as_archived(row) for row in before[name]]
        assert found == wanted
        assert table["rows"] == len(wanted)
        assert table["first"]["account_id"] == "acme"
        assert table["last"]["account_id"] == "bert"
    assert not list(folder.glob("*.part"))
    listed = {row["month"]: row for row in json.loads(command("list", "--json")[1])}
    assert (listed[month]["state"], listed[month]["archived"], listed[month]["journal_rows"]) == ("detached", True, 8)
    assert command("archive", month, "--output", str(folder), "--drop")[0] == 0
    assert (
        command("archive", month, "--output", str(folder), "--drop")[2] == f"ledger: {month} is dropped, not detached\n"
    )
    status, out, _ = command("list")
    assert status == 0
    assert re.search(rf"{oldest} +detached", out)
    assert re.search(rf"{month} +dropped +yes +8 +2 +0", out)
    assert re.search(rf"{month_name(TWO)} +attached", out)


def as_archived(row):
    words = row._asdict()
    for name in ("grant_uses", "units"):
        if name in words:
            words[name] = json.dumps(words[name])
    return words


def test_wrong_arguments_and_places_are_told_in_a_line(past, tmp_path, capsys, monkeypatch):
    for words in (["detach", "2026-13"], ["detach", "x"], ["create", "--ahead", "0"], ["create", "--ahead", "61"], []):
        with pytest.raises(SystemExit, match="2"):
            run(capsys, monkeypatch, past, *words)
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    status, _, told = run(capsys, monkeypatch, past, "archive", month_name(THREE), "--output", str(tmp_path / "file"))
    assert (status, told.count("\n")) == (1, 1)


def test_months_are_made_as_far_ahead_as_asked(past, capsys, monkeypatch):
    status, out, _ = run(capsys, monkeypatch, past, "create", "--ahead", "5")
    assert (status, out.count("made ")) == (0, 4)
    assert run(capsys, monkeypatch, past, "create", "--ahead", "5")[1] == "nothing was missing\n"


async def test_archive_that_is_not_what_the_database_has_drops_nothing(
    connection, ledger_settings, tmp_path, monkeypatch
):
    await two_old_months(connection)
    for moment in (months_ago(4), THREE):
        await detach(connection, month_name(moment))
    real = pq.ParquetFile.iter_batches

    def damaged(self, **words):
        return list(real(self, **words))[:-1]

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", damaged)
    with pytest.raises(MonthError, match="not what was written"):
        await write_archive(connection, month_name(THREE), tmp_path)
    assert not list(tmp_path.glob("*.parquet"))
    assert not list(tmp_path.glob("*.json"))


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
