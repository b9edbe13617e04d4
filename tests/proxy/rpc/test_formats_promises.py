"""What gateways get wrong, each as a test of its own, over all wire formats: no token unbilled, none unpayable.

Three more stand where they belong: `test_cached_tokens_are_not_counted_twice_in_any_format` (test_formats_recorded),
`test_revocation_reaches_the_other_replica` (test_invalidation), `test_limits_per_minute_are_shared_by_replicas`
(test_admission).
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import grpc.aio
import pytest
from prometheus_client import REGISTRY
from proxy_fakes import USD, FakePricing
from proxy_wire import FORMS, HELLO, RATES, STREAMED, ask, dear, every_provider, saying, start
from tollkeeper.proxy.v1 import wire_service_pb2_grpc

from deploy.local.ports import free_port

ROOT = Path(__file__).parents[3]
DEARER = "gpt-4o-mini"
# None of these is known to leave an account whole; all of them must.
MISHAPS = [
    HELLO,
    "[[sandbox status=429 retry_after=0]]",
    "[[sandbox fault=reset]]",
    "[[sandbox fault=cut-stream]]",
    "[[sandbox fault=cut-event]]",
    "[[sandbox fault=stream-error]]",
    "[[sandbox usage=none]]",
]


@pytest.fixture
def pricing():
    models = {(model, provider) for model, provider, _ in FORMS.values()}
    dearer = dear(DEARER, "openai")
    for rate in dearer.rates:
        rate.nanos_per_million *= 1000
    return FakePricing([dearer, *(dear(model, provider, max_output=4096) for model, provider in sorted(models))])


@pytest.fixture
async def proxy(start_proxy, provider):
    fallbacks = {"gpt-4o": [f"openai/{DEARER}"]}
    return await start_proxy(**every_provider(provider.url, upstream_attempts=1, fallbacks=fallbacks))


@pytest.mark.parametrize("form", STREAMED)
async def test_disconnected_stream_is_not_free(  # noqa: PLR0917 (fixtures)
    proxy, key, ledger, provider, eventually, form
):
    call = start(proxy, key, form, saying(form, "[[sandbox output_tokens=30 delay_ms=5]]"), stream=True)
    async for _ in call:
        break
    call.cancel()
    await eventually(lambda: ledger.settled)
    usage = ledger.usages[0]
    assert (usage.output_tokens, usage.estimated, usage.status) == (30, False, "ok")
    assert (await provider.usage())["totals"]["output_tokens"] == 30
    assert not ledger.open_holds


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_fallback_does_not_skip_the_budget(proxy, key, provider, ledger, stream):
    await provider.arm("status=500", match={"model": "gpt-4o"}, count=None)
    # Enough for the model that is asked for, which fails, and not for the one that takes its place.
    ledger.accounts["acme"].available = before = 200 * max(RATES.values()) * 3 // 2
    got = await ask(proxy, key, "chat", stream=stream)
    assert got.status == 500
    assert await provider.calls() == 1
    assert not ledger.settled
    assert not ledger.open_holds
    assert ledger.accounts["acme"].available == before


@pytest.mark.parametrize("form", FORMS)
async def test_unpriced_model_is_not_free(proxy, key, ledger, provider, pricing, refused, form):  # noqa: PLR0917 (fixtures)
    unknown = await refused(ask(proxy, key, form, model="no-such-model"))
    assert unknown.reason == "MODEL_NOT_PRICED"
    # Nor is one whose price leaves out what a call of this form uses.
    half = dear("half-priced", FORMS[form][1])
    del half.rates[:]
    half.rates.add(component="request", nanos_per_million=1)
    pricing.publish(half)
    assert (await refused(ask(proxy, key, form, model="half-priced"))).reason == "MODEL_NOT_PRICED"
    assert await provider.calls() == 0
    assert not ledger.holds


async def test_concurrent_calls_do_not_overshoot_a_budget(proxy, key, ledger, provider):
    capped = {"chat": {"max_tokens": 10}, "converse": {"max_tokens": 10}, "messages": {"max_tokens": 10}}
    capped |= {"responses": {"max_output_tokens": 16}, "gemini": {"generationConfig": {"maxOutputTokens": 10}}}
    bodies = {form: FORMS[form][2] | capped.get(form, {}) for form in FORMS}
    for form, body in bodies.items():
        await ask(proxy, key, form, body)
    # Enough for ten of forty rounds, and for what the last of them is held for besides.
    round_of_all = sum(bill.amount_nanos for bill in ledger.bills)
    dearest_hold = max(body.amount_nanos for kind, body in ledger.log if kind == "hold")
    ledger.accounts["acme"].available = budget = 10 * round_of_all + dearest_hold
    spent, called = ledger.accounts["acme"].spent, await provider.calls()
    ledger.delay_seconds = 0.02  # so that many calls are at the same point at once
    asked = [
        ask(proxy, key, form, body, stream=number % 2 == 1 and form in STREAMED)
        for number in range(40)
        for form, body in bodies.items()
    ]
    results = await asyncio.gather(*asked, return_exceptions=True)
    answered = [result for result in results if not isinstance(result, BaseException)]
    refusals = [result for result in results if isinstance(result, BaseException)]
    assert all("out of credit" in str(refusal) for refusal in refusals)
    assert refusals
    assert await provider.calls() - called == len(answered)
    assert ledger.accounts["acme"].spent - spent <= budget
    assert ledger.accounts["acme"].available == budget - (ledger.accounts["acme"].spent - spent) >= 0
    assert not ledger.open_holds


async def test_reservations_do_not_leak(proxy, key, ledger, eventually):
    asked = [
        (form, saying(form, words), stream)
        for form in FORMS
        for words in MISHAPS
        for stream in ((False, True) if form in STREAMED else (False,))
    ]
    ledger.accounts["acme"].available = before = 1000 * USD

    async def left(form, body):
        """A client that leaves at once."""
        call = start(proxy, key, form, body, stream=True)
        await asyncio.sleep(0.01)
        call.cancel()

    await asyncio.gather(
        *(ask(proxy, key, form, body, stream=stream) for form, body, stream in asked),
        *(left(form, body) for form, body, stream in asked if stream),
        return_exceptions=True,
    )
    await eventually(lambda: REGISTRY.get_sample_value("tollkeeper_calls_running") == 0 and not ledger.open_holds)
    assert len(ledger.holds) == len(ledger.settled) + len(ledger.released)
    assert before - ledger.accounts["acme"].available == sum(bill.amount_nanos for bill in ledger.bills) > 0
    # What was held is there to be spent again.
    assert (await ask(proxy, key, "messages")).status == 200


@contextlib.asynccontextmanager
async def served_by_a_process(settings):
    """A proxy of these settings in a process of its own: the process, and stubs to it."""
    names = type(settings).model_fields
    told = {name: getattr(settings, name) for name in names if getattr(settings, name) != names[name].default}
    address = f"127.0.0.1:{free_port()}"
    told |= {"listen": address, "openai_api_key": "sandbox", "grace_seconds": 20}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    environment = clean | {f"TOLLKEEPER_PROXY_{name.upper()}": str(value) for name, value in told.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.proxy", "serve", cwd=ROOT, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
            yield process, wire_service_pb2_grpc.WireServiceStub(channel)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Elsewhere:
    """A proxy that only its wire is known of."""

    def __init__(self, wire):
        self.wire = wire


async def test_spend_queued_in_memory_is_not_lost_on_sigterm(start_proxy, proxy_settings, provider, ledger, eventually):
    known = await start_proxy()
    key = (await known.make_key()).key
    async with served_by_a_process(proxy_settings) as (process, wire):
        elsewhere = Elsewhere(wire)
        await ask(elsewhere, key, "chat")
        ledger.down.add("settle")  # what is settled from here on has nowhere to go
        asked = [
            asyncio.ensure_future(
                ask(elsewhere, key, form, saying(form, "[[sandbox output_tokens=40 delay_ms=20]]"), stream=True)
            )
            for form in ("chat", "responses")
            for _ in range(5)
        ]
        await eventually(lambda: len(ledger.holds) == 11)
        process.send_signal(signal.SIGTERM)
        for got in await asyncio.gather(*asked):
            assert got.objects()[-1]["credits"]["costNanos"] != "0"  # streams go on to their end
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert len(ledger.settled) == 1
    ledger.down.clear()  # and what was queued is delivered by whoever serves next
    await eventually(lambda: len(ledger.settled) == 11)
    assert not ledger.open_holds
    assert [usage.output_tokens for usage in ledger.usages[1:]] == [40] * 10
    totals = (await provider.usage())["totals"]
    assert sum(usage.input_tokens for usage in ledger.usages) == totals["input_tokens"]
    assert sum(usage.output_tokens for usage in ledger.usages) == totals["output_tokens"]
