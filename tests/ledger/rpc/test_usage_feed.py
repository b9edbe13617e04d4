"""The usage feed: every record once, each account's in order, wherever a reader is cut and goes on."""

import asyncio
import base64
import contextlib
import itertools
import json
import random
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, aclosing

import grpc
import grpc.aio
import pytest
from prometheus_client import REGISTRY
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.db import async_engine
from services.kit.identity import Role
from services.ledger import feed as feeds
from services.ledger import writer
from services.ledger.assembly import make_server
from services.ledger.errors import CursorUnknown
from services.ledger.feed import Cursor, UsageFeed
from services.ledger.group_commit import GroupCommit
from services.ledger.store.feed import FeedReads
from tests.ledger.support.ledger_audit import rows
from tests.ledger.support.ledger_client import Client, refused
from tests.ledger.support.ledger_memory import credit, debit, hold, opened, settle


def number_of(record):
    return int(record.usage_id.rpartition("-")[2])


async def read(ledger, cursor="", **words):
    """All answers until now."""
    call = ledger.journal.StreamUsage(
        pb.StreamUsageRequest(cursor=cursor, until_now=True, **words), metadata=ledger.metadata, timeout=30
    )
    return [answer async for answer in call]


async def use(ledger, count, account_id="acme", first=1):
    for number in range(first, first + count):
        request = pb.DebitAccountRequest(account_id=account_id, request_id=f"d{number}", amount_nanos=number)
        await ledger.DebitAccount(request)


async def test_feed_gives_each_record_once_in_answers_of_the_size_asked_for(ledger):
    await ledger.open(credit=1000)
    await use(ledger, 5)
    answers = await read(ledger, batch_size=2)
    assert [len(answer.records) for answer in answers] == [2, 2, 1]
    records = [record for answer in answers for record in answer.records]
    assert [(number_of(record), record.billed_nanos) for record in records] == [(n, n) for n in range(1, 6)]
    assert records == sorted(await ledger.usage(), key=number_of)


async def test_reader_goes_on_after_any_answer(ledger):
    await ledger.open(credit=1000)
    await use(ledger, 6)
    for cut in await read(ledger, batch_size=1):
        seen = number_of(cut.records[0])
        rest = [number_of(record) for answer in await read(ledger, cut.cursor) for record in answer.records]
        assert rest == list(range(seen + 1, 7))
    last = (await read(ledger))[-1].cursor
    assert await read(ledger, last) == []
    await use(ledger, 1, first=7)
    assert [number_of(record) for answer in await read(ledger, last) for record in answer.records] == [7]


async def test_empty_feed_ends_at_once_where_nothing_is_waited_for(ledger):
    assert await read(ledger) == []


async def test_feed_waits_for_what_comes(ledger):
    await ledger.open(credit=1000)
    call = ledger.journal.StreamUsage(pb.StreamUsageRequest(), metadata=ledger.metadata, timeout=30)
    for number in range(1, 4):
        await use(ledger, 1, first=number)
        answer = await call.read()
        assert [number_of(record) for record in answer.records] == [number]
    call.cancel()


def forged(*content):
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


GARBAGE = [
    "x",
    "….",
    "AAAA",
    "=" * 50,
    "W10" * 2000,
    base64.urlsafe_b64encode(b"[" * 2900).decode(),
    forged(),
    forged(2, "", []),
    forged(1, "", [[64, 1]]),
    forged(1, "", [[-1, 1]]),
    forged(1, "", [[0, 0]]),
    forged(1, "", [[0, -5]]),
    forged(1, "", [[0, 1.0]]),
    forged(1, "", [[0, "1"]]),
    forged(1, "", [[0, True]]),
    forged(1, "", [[0, 2**63]]),
    forged(1, "", [[0, 1], [0, 1]]),
    forged(1, "", [[0]]),
    forged(1, "", {"0": 1}),
    forged(1, 7, []),
    forged(1, "", [], []),
    forged(1, "", [[0, 3]]),  # ahead of the feed
    forged(1, "", [[40, 1]]),
]


async def test_cursor_that_the_feed_did_not_give_is_refused(ledger):
    await ledger.open(credit=1000)
    await use(ledger, 2)
    for cursor in GARBAGE:
        refusal = await refused(read(ledger, cursor))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_UNKNOWN"), cursor


async def test_cursor_of_every_slot_is_read_back():
    full = Cursor({slot: 2**63 - 1 - slot for slot in range(64)}, "2026-11")
    assert Cursor.of(str(full)) == full
    with pytest.raises(CursorUnknown):
        Cursor.of(str(full)[:-3])


async def test_batch_size_below_zero_is_refused(ledger):
    assert (await refused(read(ledger, batch_size=-1))).reason == "INVALID_ARGUMENT"


async def test_customers_and_operators_do_not_read_the_feed(ledger):
    for role, words in ((Role.ACCOUNT, {"account_id": "acme"}), (Role.ADMIN, {"account_id": "acme"})):
        refusal = await refused(read(ledger.acting_as(role, **words)))
        assert refusal.reason == "ROLE_TOO_LOW", role


async def test_reader_is_told_at_once_that_the_server_stops(ledger_settings, identity):
    server = await make_server(ledger_settings)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        ledger = Client(channel, identity.token)
        await ledger.open(credit=10)
        await use(ledger, 1)
        call = ledger.journal.StreamUsage(pb.StreamUsageRequest(), metadata=ledger.metadata, timeout=60)
        await call.read()
        stopping = asyncio.create_task(server.stop(grace=50))
        refusal = await refused(call.read())
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
        await asyncio.wait_for(stopping, 20)


async def readers_gone():
    async with asyncio.timeout(20):
        while REGISTRY.get_sample_value("tollkeeper_ledger_feed_readers"):  # noqa: ASYNC110 (a gauge tells nobody)
            await asyncio.sleep(0.01)


async def test_reader_that_goes_away_or_runs_out_of_time_leaves_nothing_behind(ledger, ledger_settings):
    await ledger.open(credit=1000)
    await use(ledger, 1)
    for number in range(2 * ledger_settings.database_pool_size):
        call = ledger.journal.StreamUsage(pb.StreamUsageRequest(), metadata=ledger.metadata, timeout=30)
        if number % 2:
            await call.read()
        call.cancel()
    call = ledger.journal.StreamUsage(pb.StreamUsageRequest(), metadata=ledger.metadata, timeout=0.3)
    await call.read()
    assert (await refused(call.read())).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await readers_gone()
    assert len(await read(ledger)) == 1


async def test_more_readers_than_a_process_serves_are_refused(ledger, monkeypatch):
    monkeypatch.setattr(feeds, "MAX_READERS", 1)
    await ledger.open(credit=1000)
    await use(ledger, 1)
    call = ledger.journal.StreamUsage(pb.StreamUsageRequest(), metadata=ledger.metadata, timeout=30)
    await call.read()
    assert (await refused(read(ledger))).reason == "OVERLOADED"
    call.cancel()
    await readers_gone()
    assert len(await read(ledger)) == 1


ACCOUNTS = [f"a{number}" for number in range(4)]
CLIENTS = 24
EACH = 30


async def spend(commits, number):
    """One client: holds settled and debits, at one replica and the other in turn, at a few accounts."""
    for turn in range(EACH):
        account_id = ACCOUNTS[(number + turn) % len(ACCOUNTS)]
        commit = commits[(number + turn) % len(commits)]
        name = f"c{number}-{turn}"
        if turn % 3:
            await commit.submit([[hold(5, name, account_id)]])
            await commits[turn % len(commits)].submit([[settle(3, name, account_id)]])
        else:
            await commit.submit([[debit(1, name, account_id)], [debit(0, name + "b", account_id)]])


async def follow_with_cuts(feed, done, chance):
    """Read on and on, cut at random moments; what was taken in, in order, and how often it was cut."""
    taken, cursor, cuts = [], "", 0
    while True:
        last = done.is_set()
        following = feed.follow(cursor, batch_size=chance.choice((1, 7, 100, 1000)), until_now=last)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if last else chance.random() / 10), aclosing(following) as answers:
                async for answer in answers:
                    if not last and chance.random() < 0.2:
                        break  # lost on the way: its cursor was not kept either
                    taken += [(row.account_id, row.usage_number) for row in answer.rows]
                    cursor = str(answer.cursor)
        if last:
            return taken, cuts
        cuts += 1


@pytest.mark.parametrize("slots", [None, 2])
async def test_concurrent_writers_leave_no_gap_and_no_double_for_a_reader_that_is_cut(
    ledger_settings, monkeypatch, slots
):
    if slots:  # as if all were taken: more writers than slots
        turns = itertools.cycle(range(slots))

        async def shared(_connection):
            return next(turns)

        monkeypatch.setattr(writer, "take_slot", shared)
    commits = [GroupCommit(ledger_settings.model_copy(update={"writers": 3, "max_batch": 8})) for _ in range(2)]
    seed = random.randrange(10**6)
    print("seed", seed)
    engine = async_engine(ledger_settings)
    feed = UsageFeed(FeedReads(engine), asyncio.Event())
    done = asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        for commit in commits:
            commit.start()
            stack.push_async_callback(commit.stop)
        await commits[0].submit([[operation] for a in ACCOUNTS for operation in (opened(a), credit(10**6, "c", a))])
        readers = [
            asyncio.create_task(follow_with_cuts(feed, done, random.Random(seed + number))) for number in range(2)
        ]
        await asyncio.gather(*(spend(commits, number) for number in range(CLIENTS)))
        done.set()
        results = await asyncio.gather(*readers)
    wanted = {(r.account_id, r.usage_number) for r in rows(ledger_settings.database_url, "SELECT * FROM usage")}
    assert len(wanted) == CLIENTS * (EACH // 3) * 4
    for taken, cuts in results:
        print("cuts", cuts)
        assert cuts > 5
        assert [key for key, times in Counter(taken).items() if times > 1] == []
        assert set(taken) == wanted
        of_account = defaultdict(list)
        for account_id, number in taken:
            of_account[account_id].append(number)
        assert all(numbers == sorted(numbers) for numbers in of_account.values())
    check_slots(ledger_settings.database_url, slots or 6)


def check_slots(url, used):
    """Positions are 1, 2, 3 … in each slot, times never go back in it, and the slot knows its last."""
    ends = {row.slot: row.position for row in rows(url, "SELECT * FROM feed_slots") if row.position}
    assert 1 < len(ends) <= used
    for slot, end in ends.items():
        fed = rows(url, f"SELECT feed_position, fed_at FROM usage WHERE feed_slot = {slot} ORDER BY feed_position")
        assert [row.feed_position for row in fed] == list(range(1, end + 1))
        assert [row.fed_at for row in fed] == sorted(row.fed_at for row in fed)
