"""Whoever waits for the ledger is told something, whatever becomes of the batch."""

import asyncio

import pytest
from structlog.testing import capture_logs
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.proxy.errors import LedgerUnavailable
from services.proxy.ledger.batches import Batches

SECONDS = 10


class Way:
    """A way to the ledger. The first batch waits for `gate`; each but that raises the next of `errors`."""

    def __init__(self, *errors):
        self.errors, self.gate, self.sent = list(errors), asyncio.Event(), 0

    async def send(self, request, _):
        self.sent += 1
        if self.sent == 1:
            await self.gate.wait()
        elif self.errors:
            raise self.errors.pop(0)
        return pb.ApplyResponse(results=[pb.OperationResult()] * len(request.operations))


def hold(number):
    return pb.Operation(hold=pb.CreateHoldRequest(account_id="acme", hold_id=f"h-{number}"))


async def test_operation_that_cannot_be_sent_is_unavailable_and_why_is_logged():
    way = Way(RuntimeError("the handler is closed"))
    way.sent = 1
    batches = Batches(way.send)
    with capture_logs() as logged, pytest.raises(LedgerUnavailable):
        await batches.apply(hold(1))
    assert [(line["log_level"], line["exc_info"]) for line in logged] == [("error", True)]
    assert await batches.apply(hold(2))


@pytest.mark.parametrize(
    "error", [RuntimeError("the handler is closed"), asyncio.CancelledError()], ids=["error", "cancelled"]
)
async def test_all_who_wait_are_told_that_their_batch_failed_and_the_next_is_sent(error):
    way = Way(error)
    batches = Batches(way.send, batches_at_once=1)
    first = asyncio.ensure_future(batches.apply(hold(1)))
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(batches.apply(hold(number))) for number in (2, 3)]
    await asyncio.sleep(0)
    way.gate.set()
    told = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), SECONDS)
    assert [type(one) for one in told] == [LedgerUnavailable] * 2
    await first
    await asyncio.wait_for(batches.drained(), SECONDS)
    assert await batches.apply(hold(4))


async def test_batch_that_fails_keeps_none_behind_it_from_being_sent():
    way = Way(RuntimeError("the handler is closed"))
    batches = Batches(way.send, batches_at_once=1, batch_operations=2)
    first = asyncio.ensure_future(batches.apply(hold(1)))
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(batches.apply(hold(number))) for number in (2, 3, 4, 5)]
    await asyncio.sleep(0)
    way.gate.set()
    told = await asyncio.wait_for(asyncio.gather(first, *waiting, return_exceptions=True), SECONDS)
    assert [isinstance(one, LedgerUnavailable) for one in told] == [False, True, True, False, False]
