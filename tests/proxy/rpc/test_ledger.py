"""The way to the ledger: batches, refusals one by one, and a ledger that does not answer."""

import asyncio
import contextlib

import pytest
from proxy_fakes import USD, Account, FakeLedger, served
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc

from services.kit.channels import unary_channel
from services.kit.errors import RemoteError
from services.proxy.errors import LedgerUnavailable
from services.proxy.ledger import Ledger, batches
from services.proxy.settings import ProxySettings

TIMEOUT = {"timeout_seconds": 1}


@pytest.fixture
async def fake():
    return FakeLedger(accounts={"acme": Account(10 * USD), "poor": Account(0)})


@pytest.fixture
async def make_ledger(fake):
    async with (
        served((ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server, fake)) as address,
        contextlib.AsyncExitStack() as stack,
    ):

        async def made(**settings):
            ledger = Ledger(address, lambda target, _: unary_channel(target, ProxySettings()), **TIMEOUT | settings)
            await ledger.start()
            stack.push_async_callback(ledger.stop)
            return ledger

        yield made


def hold(number, account="acme"):
    return pb.Operation(hold=pb.CreateHoldRequest(account_id=account, hold_id=f"h-{number}", amount_nanos=5))


async def test_operations_at_once_go_in_one_call_and_each_gets_its_own_result(make_ledger, fake):
    ledger = await make_ledger(batches_at_once=1)
    results = await asyncio.gather(*(ledger.apply(hold(number)) for number in range(100)))
    assert [result[0].hold.hold.hold_id for result in results] == [f"h-{number}" for number in range(100)]
    assert len(fake.applies) <= 2


async def test_few_wait_for_the_batch_under_way_but_not_for_one_that_is_held_up(make_ledger, fake, eventually):
    ledger = await make_ledger(timeout_seconds=30)
    gate = fake.gate = asyncio.Event()
    held_up = asyncio.ensure_future(ledger.apply(hold(1)))
    await eventually(lambda: fake.asked == 1)
    fake.gate = None
    results = await asyncio.gather(*(ledger.apply(hold(number)) for number in (2, 3)))
    assert [result[0].hold.hold.hold_id for result in results] == ["h-2", "h-3"]
    assert (fake.asked, held_up.done()) == (2, False)
    gate.set()
    assert (await held_up)[0].hold.hold.hold_id == "h-1"


async def test_batches_are_bounded(make_ledger, fake):
    ledger = await make_ledger(batch_operations=10)
    await asyncio.gather(*(ledger.apply(hold(number)) for number in range(95)))
    assert max(map(len, fake.applies)) <= 10
    assert sum(map(len, fake.applies)) == 95


async def test_refused_operation_does_not_fail_its_neighbours(make_ledger):
    ledger = await make_ledger(batches_at_once=1)
    results = await asyncio.gather(
        *(ledger.apply(hold(number, "poor" if number % 2 else "acme")) for number in range(20)), return_exceptions=True
    )
    for number, result in enumerate(results):
        if number % 2:
            assert isinstance(result, RemoteError)
            assert (result.reason, result.kind.http_status) == ("INSUFFICIENT_CREDIT", 402)
        else:
            assert result[0].hold.hold.amount_nanos == 5


async def test_linked_operations_stay_in_one_batch(make_ledger, fake):
    ledger = await make_ledger(batch_operations=2, batches_at_once=1)
    linked = [hold(1), hold(2)]
    linked[0].linked = True
    await asyncio.gather(ledger.apply(hold(3)), ledger.apply(hold(4)), ledger.apply(*linked))
    assert [len(kinds) for kinds in fake.applies] == [1, 1, 2]


async def test_ledger_that_does_not_answer_is_unavailable_to_all_who_wait(make_ledger, fake):
    ledger = await make_ledger()
    fake.delay_seconds = 3
    results = await asyncio.gather(*(ledger.apply(hold(number)) for number in range(5)), return_exceptions=True)
    assert all(isinstance(result, LedgerUnavailable) for result in results)
    fake.delay_seconds = 0
    assert (await ledger.apply(hold(9)))[0].hold.hold.amount_nanos == 5


async def test_queue_is_bounded(make_ledger, fake):
    ledger = await make_ledger(waiting_operations=10)
    fake.delay_seconds = 0.1
    results = await asyncio.gather(*(ledger.apply(hold(number)) for number in range(50)), return_exceptions=True)
    # One is under way, ten wait.
    assert len([result for result in results if isinstance(result, LedgerUnavailable)]) == 39


async def test_caller_that_has_gone_is_not_sent_for(make_ledger, fake):
    ledger = await make_ledger(batches_at_once=1)
    fake.delay_seconds = 0.1
    first = asyncio.ensure_future(ledger.apply(hold(1)))
    await asyncio.sleep(0.02)
    gone = asyncio.ensure_future(ledger.apply(hold(2)))
    await asyncio.sleep(0.02)
    gone.cancel()
    await first
    await ledger.drained()
    assert list(fake.holds) == ["h-1"]


async def test_caller_that_goes_while_its_operation_is_under_way_holds_up_nobody(
    make_ledger, fake, eventually, monkeypatch
):
    monkeypatch.setattr(batches, "_PATIENCE_SECONDS", 60.0)
    ledger = await make_ledger(batches_at_once=1)
    fake.gate = asyncio.Event()
    gone = asyncio.ensure_future(ledger.apply(hold(1)))
    await eventually(lambda: fake.asked == 1)
    others = [asyncio.ensure_future(ledger.apply(hold(number))) for number in (2, 3)]
    await asyncio.sleep(0)
    fake.gate = None
    gone.cancel()
    results = await asyncio.wait_for(asyncio.gather(*others), 10)
    assert [result[0].hold.hold.hold_id for result in results] == ["h-2", "h-3"]
    await asyncio.wait_for(ledger.drained(), 5)
