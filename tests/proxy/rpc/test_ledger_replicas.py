"""Several replicas of the ledger: an account stays at one, and none that goes, comes or hangs costs a call."""

import asyncio
import contextlib

import grpc.aio
import pytest
from proxy_fakes import USD, Account, FakeLedger
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc

from services.kit.channels import unary_channel
from services.proxy.errors import LedgerUnavailable
from services.proxy.ledger import Ledger, addresses
from services.proxy.settings import ProxySettings

ACCOUNTS = [f"account-{number}" for number in range(40)]


class Replica:
    """A ledger that has all accounts, on a port of its own, and may go and come back there."""

    def __init__(self):
        self.fake = FakeLedger(accounts={account: Account(10 * USD) for account in ACCOUNTS})
        self.port = 0
        self.server = None

    async def come(self):
        self.server = grpc.aio.server()
        ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(self.fake, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def go(self, grace=None):
        await self.server.stop(grace)

    @property
    def asked_for(self):
        """The accounts whose operations came here."""
        return {body.account_id for _, body in self.fake.log}


@pytest.fixture
async def replicas():
    found = [Replica(), Replica()]
    for replica in found:
        await replica.come()
    yield found
    for replica in found:
        await replica.go()


@pytest.fixture
async def make_ledger():
    async with contextlib.AsyncExitStack() as stack:

        async def made(address, **settings):
            ledger = Ledger(address, lambda *to: unary_channel(to[0], ProxySettings()), timeout_seconds=5, **settings)
            await ledger.start()
            stack.push_async_callback(ledger.stop)
            return ledger

        yield made


@pytest.fixture
async def ledger(replicas, make_ledger):
    return await make_ledger(",".join(f"127.0.0.1:{replica.port}" for replica in replicas))


def hold(account, number=0):
    return pb.Operation(hold=pb.CreateHoldRequest(account_id=account, hold_id=f"h-{account}-{number}", amount_nanos=5))


async def held(ledger, number=0, accounts=ACCOUNTS):
    """A hold at each account, all at once."""
    results = await asyncio.gather(*(ledger.apply(hold(account, number)) for account in accounts))
    assert [result[0].hold.hold.hold_id for result in results] == [f"h-{account}-{number}" for account in accounts]


async def test_an_account_stays_at_one_replica_and_each_has_some(ledger, replicas):
    for number in range(3):
        await held(ledger, number)
    first, second = (replica.asked_for for replica in replicas)
    assert first.isdisjoint(second)
    assert first | second == set(ACCOUNTS)
    assert min(len(first), len(second)) > 5


async def test_a_replica_that_is_gone_costs_no_call_and_its_accounts_come_back_to_it(ledger, replicas, eventually):
    await held(ledger)
    first, second = replicas
    own = first.asked_for
    await first.go()
    for number in (1, 2):
        await held(ledger, number)
    assert second.asked_for == set(ACCOUNTS)
    await first.come()
    first.fake.log.clear()
    numbers = iter(range(3, 1000))

    async def come_back():
        await held(ledger, next(numbers))
        return first.asked_for == own

    await eventually(come_back)


async def test_calls_go_on_while_replicas_restart_one_after_the_other(ledger, replicas, eventually):
    numbers, restarting = iter(range(100_000)), True

    async def calling():
        while restarting:
            await held(ledger, next(numbers))

    callers = [asyncio.ensure_future(calling()) for _ in range(4)]
    for replica in replicas:
        await eventually(lambda fake=replica.fake: fake.log)
        await replica.go(grace=1)
        replica.fake.log.clear()
        await replica.come()
        # The next one goes when this one is called again: not both are away at once.
        await eventually(lambda fake=replica.fake: fake.log)
    restarting = False
    await asyncio.gather(*callers)


async def test_a_replica_that_hangs_is_asked_last_for_a_while(replicas, make_ledger):
    places = ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
    ledger = await make_ledger(places)
    await held(ledger)
    first, second = replicas
    (account, *_) = first.asked_for
    ledger._timeout_seconds = 0.3
    first.fake.delay_seconds = 60
    with pytest.raises(LedgerUnavailable):
        await ledger.apply(hold(account, 1))
    ledger._timeout_seconds = 5
    await ledger.apply(hold(account, 1))
    assert account in second.asked_for
    first.fake.delay_seconds = second.fake.delay_seconds = 0


async def test_where_all_hang_the_accounts_own_replica_is_asked(replicas, make_ledger):
    ledger = await make_ledger(",".join(f"127.0.0.1:{replica.port}" for replica in replicas))
    await held(ledger)
    own = {account: replica for replica in replicas for account in replica.asked_for}
    ledger._timeout_seconds = 0.3
    for replica in replicas:
        replica.fake.delay_seconds = 60
    gone = await asyncio.gather(*(ledger.apply(hold(account, 1)) for account in ACCOUNTS), return_exceptions=True)
    assert all(isinstance(one, LedgerUnavailable) for one in gone)
    for replica in replicas:
        replica.fake.delay_seconds = 0
        replica.fake.log.clear()
    ledger._timeout_seconds = 5
    await held(ledger, 2)
    assert all(replica.asked_for == {account for account in own if own[account] is replica} for replica in replicas)


async def test_replicas_are_found_by_name_as_they_come_and_go(replicas, make_ledger, monkeypatch, eventually):
    monkeypatch.setattr(addresses, "_RESOLVE_SECONDS", 0.05)
    first, second = replicas
    known = []

    async def resolve(_host, _port):
        return [("127.0.0.1", replica.port) for replica in known]

    ledger = await make_ledger("ledger.internal:50051", resolve=resolve)
    with pytest.raises(LedgerUnavailable):
        await ledger.apply(hold(ACCOUNTS[0]))
    numbers = iter(range(1000))
    for now in ([first], [first, second], [second]):
        known[:] = now

        async def all_asked(now=now):
            for replica in replicas:
                replica.fake.log.clear()
            try:
                await held(ledger, next(numbers))
            except LedgerUnavailable:
                return False
            return all(bool(replica.asked_for) == (replica in now) for replica in replicas)

        await eventually(all_asked)
