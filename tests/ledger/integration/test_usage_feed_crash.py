"""The usage feed while ledgers and their Postgres are killed: a reader that keeps its cursor has every record once."""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict

import grpc
import grpc.aio
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract

from services.kit.identity import Role
from tests.ledger.support.ledger_audit import rows
from tests.ledger.support.ledger_parts import durable_postgres, replicas

ACCOUNTS = [f"a{number}" for number in range(3)]
CLIENTS = 16
PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
OPTIONS = [("grpc.min_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


class Callers:
    """Callers that do not give up, until told that it is over."""

    def __init__(self, channels, metadata):
        self._stubs = [contract.LedgerServiceStub(channel) for channel in channels]
        self.metadata = metadata
        self.done = False
        self.ended = False
        self.used = 0

    async def insist(self, turn, name, request):
        """Call until there is an answer, at one replica and the other in turn."""
        deadline = time.monotonic() + 60
        while True:
            try:
                call = getattr(self._stubs[turn % 2], name)
                return await call(request, metadata=self.metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING or time.monotonic() > deadline:
                    raise
                turn += 1
                await asyncio.sleep(0.05)

    async def all_use(self):
        """All of them, each until it was answered for the last time."""
        await asyncio.gather(*(self._use(number) for number in range(CLIENTS)))
        self.ended = True

    async def _use(self, number):
        turn = 0
        while not self.done:
            turn += 1
            account_id = ACCOUNTS[(number + turn) % len(ACCOUNTS)]
            request_id = f"d{number}-{turn}"
            request = pb.DebitAccountRequest(account_id=account_id, request_id=request_id, amount_nanos=1)
            await self.insist(number + turn, "DebitAccount", request)
            self.used += 1


class Reader:
    """A consumer: takes records in with their cursor, and begins there again at the other replica when it is cut."""

    def __init__(self, channels, metadata):
        self._stubs = [contract.JournalServiceStub(channel) for channel in channels]
        self._metadata = metadata
        self.taken, self.cursor, self.cuts = [], "", 0

    async def read(self, *, until_now, seconds):
        """Read at one replica until it ends, or is cut. True: it ended, so all was there."""
        request = pb.StreamUsageRequest(cursor=self.cursor, batch_size=50, until_now=until_now)
        stub = self._stubs[self.cuts % 2]
        try:
            async for answer in stub.StreamUsage(request, metadata=self._metadata, timeout=seconds):
                self.taken += [(record.account_id, number_of(record)) for record in answer.records]
                self.cursor = answer.cursor
        except grpc.aio.AioRpcError as error:
            if error.code() not in PASSING:
                raise
            self.cuts += 1
            await asyncio.sleep(0.05)
            return False
        return True

    async def follow(self, callers):
        """Read on and on while the others call, then all that is left."""
        while not callers.ended:
            await self.read(until_now=False, seconds=0.7)
        async with asyncio.timeout(60):
            while not await self.read(until_now=True, seconds=30):
                pass


def number_of(record):
    return int(record.usage_id.rpartition("-")[2])


async def break_things(parts, callers):
    """kill -9 of one part after the other, each in the middle of its batches, and started again after a moment."""
    try:
        for part in parts:
            seen = callers.used
            async with asyncio.timeout(60):
                while callers.used < seen + 100:  # noqa: ASYNC110 (callers tell nobody)
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(part.kill)
            await asyncio.sleep(0.2)
            await asyncio.to_thread(part.start)
    finally:
        callers.done = True


async def test_reader_has_every_record_once_whatever_was_killed(servers_folder, tmp_path, stack, identity):
    database, url = durable_postgres(servers_folder, stack)
    ledgers = replicas(2, url, identity.file, tmp_path, stack)
    metadata = (("authorization", f"Bearer {identity.token(Role.SERVICE)}"),)
    async with contextlib.AsyncExitStack() as channels:
        opened = [
            await channels.enter_async_context(grpc.aio.insecure_channel(address, options=OPTIONS))
            for _, address in ledgers
        ]
        callers = Callers(opened, metadata)
        accounts = contract.AccountServiceStub(opened[0])
        for account_id in ACCOUNTS:
            await accounts.OpenAccount(pb.OpenAccountRequest(account_id=account_id), metadata=metadata)
            given = pb.CreditAccountRequest(account_id=account_id, request_id="first", amount_nanos=10**12)
            await callers.insist(0, "CreditAccount", given)
        readers = [Reader(opened, metadata) for _ in range(2)]
        parts = [ledgers[0][0], database, ledgers[1][0], ledgers[0][0]]
        await asyncio.gather(
            break_things(parts, callers),
            callers.all_use(),
            *(reader.follow(callers) for reader in readers),
        )
    wanted = {(row.account_id, row.usage_number) for row in rows(url, "SELECT * FROM usage")}
    assert len(wanted) == callers.used > 400
    for reader in readers:
        assert reader.cuts > 3
        assert [key for key, times in Counter(reader.taken).items() if times > 1] == []
        assert set(reader.taken) == wanted
        of_account = defaultdict(list)
        for account_id, number in reader.taken:
            of_account[account_id].append(number)
        assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in of_account.values())
    check_slots(url, len(wanted))


def check_slots(url, count):
    """What was rolled back left no hole: each slot's positions are 1, 2, 3 … through its last."""
    ends = {row.slot: row.position for row in rows(url, "SELECT * FROM feed_slots") if row.position}
    assert sum(ends.values()) == count
    for slot, end in ends.items():
        fed = rows(url, f"SELECT feed_position FROM usage WHERE feed_slot = {slot} ORDER BY feed_position")
        assert [row.feed_position for row in fed] == list(range(1, end + 1))
