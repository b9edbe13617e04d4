"""Sums over all accounts are what the records say at every moment, however far the job that keeps them has got."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from services.kit.db import async_engine, connection_string
from services.ledger.model.windows import window_containing
from services.ledger.store import day_sums, summaries
from services.ledger.store.reads import Reads
from services.ledger.store.summaries import SummaryFilter

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BEGINNING, END = datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
BOOKED = """
    INSERT INTO usage (account_id, usage_number, created_at, key_id, workspace, hold_id, transaction_id, billed,
        billable, session, provider, model, endpoint, input_tokens, output_tokens, cached_tokens, cache_write_tokens,
        reasoning_tokens, input_cost, output_cost, cost, price_version, duration_milliseconds, status, estimated,
        provider_request_id, service_tier, internal, feed_slot, feed_position)
    VALUES (%(account)s, %(number)s, %(at)s, '', '', '', '', %(billed)s, %(billable)s, '', %(provider)s, %(model)s, '',
        %(read)s, %(written)s, %(cached)s, 0, %(thought)s, 0, 0, %(cost)s, 1, 0, 'ok', %(estimated)s, '', '',
        %(internal)s, %(slot)s, %(position)s)
"""
GROUPS = [(), ("day",), ("month", "provider"), ("provider", "model"), ("model", "day")]
SPANS = [
    (BEGINNING, END),
    (datetime(2026, 11, 1, tzinfo=UTC), END),
    (NOW.replace(hour=0), NOW.replace(hour=0) + timedelta(1)),
]


class Book:
    """Books records as writers do: in each slot's order, its position with them."""

    def __init__(self, connection, chance):
        self._connection = connection
        self._chance = chance
        self._number = 0

    def record(self, slot, position):
        chance, self._number = self._chance, self._number + 1
        return {
            "account": f"account-{chance.randrange(9)}",
            "number": self._number,
            "at": BEGINNING + (END - BEGINNING) * chance.random(),
            "billed": chance.randrange(10**9),
            "billable": chance.random() < 0.8,
            "provider": chance.choice(["openai", "google"]),
            "model": chance.choice(["one", "two", "three"]),
            "read": chance.choice([0, 7, 2**62]),
            "written": chance.choice([0, 3, 2**62]),
            "cached": chance.randrange(5),
            "thought": chance.randrange(5),
            "cost": chance.randrange(10**9),
            "estimated": chance.random() < 0.2,
            "internal": chance.random() < 0.2,
            "slot": slot,
            "position": position,
        }

    async def write(self, slot, count):
        async with self._connection.transaction():
            taken = "UPDATE feed_slots SET position = position + %s WHERE slot = %s RETURNING position"
            (end,) = await (await self._connection.execute(taken, (count, slot))).fetchone()
            async with self._connection.cursor() as cursor:
                await cursor.executemany(BOOKED, [self.record(slot, end - count + 1 + n) for n in range(count)])


@pytest.fixture
async def connect(ledger_settings):
    made = []

    async def connected():
        made.append(
            await psycopg.AsyncConnection.connect(connection_string(ledger_settings.database_url), autocommit=True)
        )
        return made[-1]

    yield connected
    for connection in made:
        await connection.close()


@pytest.fixture
async def reads(ledger_settings):
    engine = async_engine(ledger_settings)
    yield Reads(engine)
    await engine.dispose()


async def said(reads, group_by, start, end):
    return [tuple(row) for row in await reads.usage_sums(SummaryFilter(start, end), group_by)]


async def of_records(reads, group_by, start, end):
    return [tuple(row) for row in await reads._rows(summaries.usage_sums(SummaryFilter(start, end), group_by))]


async def check(reads):
    for start, end in SPANS:
        for group_by in GROUPS:
            assert await said(reads, group_by, start, end) == await of_records(reads, group_by, start, end)
        active = await reads._rows(summaries.active_accounts(SummaryFilter(start, end)))
        assert await reads.active_accounts(SummaryFilter(start, end)) == active[0][0]


@pytest.mark.parametrize("seed", range(3))
async def test_sums_are_right_whatever_part_of_the_records_is_in_them(connect, reads, seed):
    chance = random.Random(seed)
    connection = await connect()
    book = Book(connection, chance)
    await check(reads)
    for _ in range(12):
        await book.write(chance.choice([0, 1, 63]), chance.randrange(1, 40))
        if chance.random() < 0.6:
            await day_sums.take_in(connection, chance.randrange(1, 30))
        await check(reads)
    while await day_sums.take_in(connection, 25):
        pass
    await check(reads)
    assert not await (await connection.execute("SELECT FROM summed_slots JOIN feed_slots f USING (slot) "
        "WHERE summed_slots.position <> f.position")).fetchall()  # fmt: skip


async def test_records_are_in_once_though_workers_take_turns_while_writers_write(connect, reads):
    chance = random.Random(7)
    writers = [Book(await connect(), random.Random(slot)) for slot in (3, 4)]
    for number, book in enumerate(writers):
        book._number = number * 10**6
    workers = [await connect() for _ in range(3)]

    async def write(book, slot):
        for _ in range(15):
            await book.write(slot, chance.randrange(1, 20))

    async def work(connection):
        for _ in range(30):
            await day_sums.take_in(connection, chance.randrange(1, 25))

    await asyncio.gather(write(writers[0], 3), write(writers[1], 4), *map(work, workers))
    await check(reads)


async def test_what_is_broken_off_is_not_in(connect, reads):
    connection = await connect()
    await Book(connection, random.Random(1)).write(0, 30)
    async with connection.transaction(force_rollback=True):
        await day_sums.take_in(connection, 20)
    await check(reads)
    await day_sums.take_in(connection, 20)
    await check(reads)


async def test_sums_stay_when_the_records_of_their_month_have_gone(connect, reads):
    connection = await connect()
    await Book(connection, random.Random(2)).write(0, 50)
    before = await said(reads, ("month",), BEGINNING, END)
    await day_sums.take_in(connection, 100)
    await connection.execute("DELETE FROM usage WHERE created_at < '2026-11-01'")
    assert await said(reads, ("month",), BEGINNING, END) == before


async def test_parts_of_days_are_summed_from_the_records(connect, reads):
    connection = await connect()
    await Book(connection, random.Random(3)).write(0, 50)
    await day_sums.take_in(connection, 100)
    assert window_containing("day", NOW)[0] != NOW
    assert await said(reads, ("day",), BEGINNING, NOW) == await of_records(reads, ("day",), BEGINNING, NOW)
