"""A client that leaves or stops reading never holds a call up."""

import asyncio
import gc
import weakref

import pytest

from services.proxy.calls.delivery import Delivery, Head
from services.proxy.errors import ClientStalled

HEAD = Head((), "text/plain")


async def test_pieces_come_in_order_and_end():
    delivery = Delivery()

    async def call():
        await delivery.send(HEAD)
        for number in range(500):
            await delivery.send(b"%d" % number)
        await delivery.end()
        await delivery.end(OSError())  # only the first end counts

    calling = asyncio.ensure_future(call())
    assert await delivery.head() == HEAD
    assert [piece async for piece in delivery.pieces()] == [b"%d" % number for number in range(500)]
    await calling


async def test_call_waiting_for_a_client_goes_on_when_that_leaves():
    delivery = Delivery()

    async def call():
        for _ in range(1000):
            await delivery.send(b"x")
        await delivery.end()

    calling = asyncio.ensure_future(call())
    await asyncio.sleep(0.01)
    assert not calling.done()
    delivery.abandon()
    await asyncio.wait_for(calling, 1)


async def test_client_that_stops_reading_is_given_up():
    delivery = Delivery(stall_seconds=0.05)
    await delivery.send(HEAD)
    assert await delivery.head() == HEAD
    for _ in range(100):
        await asyncio.wait_for(delivery.send(b"x"), 1)
    assert delivery.abandoned
    with pytest.raises(ClientStalled):
        _ = [piece async for piece in delivery.pieces()]


async def test_client_that_reads_slowly_is_waited_for_no_longer_than_so_long_in_all():
    """Else it would hold the provider up until the call's time is over, and the rest is in nobody's bill."""
    delivery = Delivery(stall_seconds=30, patience_seconds=0.3)

    async def client():
        await delivery.head()
        while True:
            await delivery.piece()
            await asyncio.sleep(0.1)

    reading = asyncio.ensure_future(client())
    await delivery.send(HEAD)
    async with asyncio.timeout(10):
        for _ in range(1000):
            await delivery.send(b"x")
    assert delivery.abandoned
    with pytest.raises(ClientStalled):
        await reading


async def test_failure_before_the_head_is_the_answer():
    delivery = Delivery()
    await delivery.end(OSError())
    with pytest.raises(OSError):  # noqa: PT011
        await delivery.head()


async def test_what_waits_goes_out_together_up_to_a_bound():
    delivery = Delivery()
    await delivery.send(HEAD)
    assert await delivery.head() == HEAD
    for size in (30_000, 30_000, 30_000, 90_000, 1):
        await delivery.send(b"x" * size)
    await delivery.end()
    sizes = []
    while (body := await delivery.waiting()) is not None:
        sizes.append(len(body))
    assert sizes == [60_000, 30_000, 90_000, 1]


async def test_failure_comes_after_what_was_sent_before_it():
    delivery = Delivery()
    await delivery.send(HEAD)
    await delivery.send(b"a")
    await delivery.send(b"b")
    await delivery.end(OSError())
    await delivery.head()
    assert await delivery.waiting() == b"ab"
    with pytest.raises(OSError):  # noqa: PT011
        await delivery.waiting()


@pytest.mark.parametrize("gone", [True, False], ids=["client has left", "client reads"])
async def test_failure_keeps_nothing_of_the_call_it_came_from(gone):
    """Or large requests that are refused fill the memory until Python looks for cycles."""

    class Request:
        pass

    def refuse():
        raise RuntimeError("no")

    async def live(delivery):
        request, failed = Request(), None
        try:
            refuse()
        except RuntimeError as error:
            failed = error
        await delivery.end(failed)
        return weakref.ref(request)

    delivery = Delivery()
    if gone:
        delivery.abandon()
    gc.disable()
    try:
        request = await live(delivery)
        assert request() is None
    finally:
        gc.enable()


async def test_who_wants_to_know_is_told_once_that_the_client_has_left():
    delivery, told = Delivery(), []
    delivery.on_abandoned = lambda: told.append(delivery.abandoned)
    delivery.abandon()
    delivery.abandon()
    assert told == [True]
