"""What must not end with what fails: the keeping of holds, and what a client waits for."""

import asyncio
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from services.proxy.answers import Begun
from services.proxy.calls.delivery import Delivery
from services.proxy.calls.life import Life
from services.proxy.calls.running import Calls
from services.proxy.errors import KeyTypeNotAllowed
from services.proxy.keys.model import ADMIN

SECONDS = 10


async def test_hold_that_cannot_be_extended_keeps_no_other_from_it(eventually):
    extended = []

    async def apply(operation):
        extended.append(operation.extend.hold_id)
        if operation.extend.hold_id == "bad":
            raise RuntimeError("the handler is closed")

    key = SimpleNamespace(account_id="acme")
    settings = SimpleNamespace(hold_ttl_seconds=1)
    calls = Calls(SimpleNamespace(settings=settings, ledger=SimpleNamespace(apply=apply)))
    running = [asyncio.ensure_future(asyncio.sleep(60)) for _ in range(2)]
    for task, hold_id in zip(running, ("bad", "good"), strict=True):
        calls._running[task] = SimpleNamespace(key=key, hold_id=hold_id, hold_open=True, held_until=0.0, extensions=0)
    keeping = asyncio.ensure_future(calls._keep_for_ever())
    with capture_logs() as logged:
        await eventually(lambda: extended.count("good") >= 2)
    assert {(line["log_level"], line["call_id"]) for line in logged} == {("error", "bad")}
    for task in (keeping, *running):
        task.cancel()
    await asyncio.wait([keeping, *running])
    calls._running.clear()


async def test_client_is_told_where_the_proxy_stops_while_its_request_is_let_go():
    letting_go = asyncio.Event()

    class Slow(Begun):
        def __init__(self):
            pass

        async def abandon(self):
            letting_go.set()
            await asyncio.sleep(60)

    async def begin(*_):
        return Slow()

    call = SimpleNamespace(
        key=SimpleNamespace(account_id="acme", key_id="key-1", key_type=ADMIN),
        asked=SimpleNamespace(idempotency_key="once", secret="s"),
        request=SimpleNamespace(model="gpt-4o"),
        provider="openai",
        call_id="call-1",
        standing=None,
        hold_open=False,
        fingerprint=lambda body: body,
        delivery=Delivery(),
    )
    parts = SimpleNamespace(settings=SimpleNamespace(log_texts=False), answers=SimpleNamespace(begin=begin))
    living = asyncio.ensure_future(Life(parts, call, b"{}").live())
    await asyncio.wait_for(letting_go.wait(), SECONDS)
    living.cancel()
    with pytest.raises(KeyTypeNotAllowed):
        await asyncio.wait_for(call.delivery.head(), SECONDS)
