"""Credentials in turn, circuits, callers that leave, and what is counted."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
import structlog
from prometheus_client import REGISTRY
from proxy_upstream import (
    HANG,
    RESET,
    STREAM_HEAD,
    WHOLE,
    answer,
    attempts,
    chat,
    chunk,
    read,
    refused,
    scripted,
    ways,
)

from services.proxy.errors import ProviderCredentialRefused, ProviderRateLimited, ProviderUnavailable
from services.proxy.upstream import ProviderRefusalError


@pytest.fixture
async def upstreams():
    async with ways() as make:
        yield make


async def rested(refusal):
    """Wait as long as a refusal says; a little longer, since uvloop's timers are early by up to a millisecond."""
    await asyncio.sleep(refusal.retry_after_seconds + 0.01)


# ---------------------------------------------------------------------------------------------------------- credentials


@pytest.mark.parametrize(
    "fault", ["status=429 retry_after=30", "status=503", "fault=reset", "status=401", "status=403"]
)
async def test_another_credential_takes_over_at_once(upstreams, provider, monkeypatch, fault):
    await provider.arm(fault, match={"api_key": "one"}, count=None)
    way = upstreams(provider.url, openai_api_key="one,two")
    # A wait would be too long to be begun.
    monkeypatch.setattr("services.proxy.upstream.client._backoff_seconds", lambda _attempts: 1000)
    assert b"Tollkeeper" in await read(way, chat())
    assert await provider.calls() == 2


@pytest.mark.parametrize("fault", ["status=429 retry_after=30", "status=503 retry_after=30"])
async def test_resting_credential_is_not_called(upstreams, provider, fault):
    await provider.arm(fault, match={"api_key": "one"}, count=None)
    way = upstreams(provider.url, openai_api_key="one,two")
    for _ in range(3):
        await read(way, chat())
    assert await provider.calls() == 4


async def test_denied_credential_is_tried_last(upstreams, provider):
    await provider.arm("status=403", match={"api_key": "one"}, count=None)
    way = upstreams(provider.url, openai_api_key="one,two")
    for _ in range(3):
        await read(way, chat())
    assert await provider.calls() == 4
    await provider.arm("status=403", match={"api_key": "two"}, count=None)
    refusal = await refused(ProviderCredentialRefused, read(way, chat()))
    assert "permission" not in refusal.message
    assert await provider.calls() == 6


async def test_refused_credential_costs_no_attempt(upstreams, provider):
    for key in ("one", "two", "three"):
        await provider.arm("status=401", match={"api_key": key}, count=None)
    way = upstreams(provider.url, openai_api_key="one,two,three,four", upstream_attempts=1)
    assert b"Tollkeeper" in await read(way, chat())


async def test_refused_credential_is_tried_with_one_call_after_its_rest(upstreams, provider):
    await provider.arm("status=401", count=1)
    way = upstreams(provider.url, upstream_credential_rest_seconds=0.2)
    refusal = await refused(ProviderCredentialRefused, read(way, chat()))
    refusal = await refused(ProviderCredentialRefused, read(way, chat()))
    assert 0 < refusal.retry_after_seconds <= 0.2
    await rested(refusal)
    assert b"Tollkeeper" in await read(way, chat())
    assert await provider.calls() == 2


# --------------------------------------------------------------------------------------------------------- rate limits

LIMITED = "status=429 retry_after=30"


def limited_models():
    labels = {"provider": "openai", "credential": "1"}
    return REGISTRY.get_sample_value("tollkeeper_proxy_upstream_limited_models", labels)


async def test_rate_limit_of_one_model_leaves_the_others_answering(upstreams, provider):
    await provider.arm(LIMITED, match={"model": "gpt-4o"}, count=None)
    way = upstreams(provider.url)
    assert (await refused(ProviderRefusalError, read(way, chat()))).status == 429
    for model in ("gpt-4o-mini", "gpt-3.5-turbo"):
        assert b"Tollkeeper" in await read(way, chat(model=model))
    assert (circuit(), limited_models()) == (0, 1)
    await refused(ProviderRateLimited, read(way, chat()))
    assert await provider.calls() == 3


async def test_credentials_that_all_rest_for_a_model_are_told_as_the_providers_limit(upstreams, provider):
    await provider.arm("status=429 retry_after=40", match={"api_key": "one"}, count=None)
    await provider.arm(LIMITED, match={"api_key": "two"}, count=None)
    way = upstreams(provider.url, openai_api_key="one,two")
    assert (await refused(ProviderRefusalError, read(way, chat()))).retry_after == "30"
    assert await provider.calls() == 2
    limited = await refused(ProviderRateLimited, read(way, chat()))
    assert 29 <= limited.retry_after_seconds <= 30
    assert await provider.calls() == 2


async def test_refused_credential_hides_no_rate_limit_of_the_other(upstreams, provider):
    await provider.arm("status=401", match={"api_key": "one"}, count=None)
    await provider.arm(LIMITED, match={"api_key": "two"}, count=None)
    way = upstreams(provider.url, openai_api_key="one,two")
    assert (await refused(ProviderRefusalError, read(way, chat()))).status == 429
    assert (await refused(ProviderRateLimited, read(way, chat()))).retry_after_seconds > 29


async def test_credential_that_fails_beside_one_that_rests_is_not_well(upstreams, provider):
    await provider.arm("status=500", match={"api_key": "one"}, count=None)
    await provider.arm(LIMITED, match={"api_key": "two"}, count=None)
    way = upstreams(provider.url, openai_api_key="one,two", upstream_breaker_failures=1)
    await refused(ProviderRefusalError, read(way, chat()))
    await refused(ProviderUnavailable, read(way, chat()))


async def test_rate_limit_is_over_when_the_provider_said_so(upstreams, provider):
    await provider.arm("status=429 retry_after=1")
    way = upstreams(provider.url, upstream_retry_after_seconds=0)
    await refused(ProviderRefusalError, read(way, chat()))
    limited = await refused(ProviderRateLimited, read(way, chat()))
    await rested(limited)
    assert b"Tollkeeper" in await read(way, chat())
    assert limited_models() == 0


# ----------------------------------------------------------------------------------------------------------- circuits


def circuit(credential="1"):
    labels = {"provider": "openai", "credential": credential}
    return REGISTRY.get_sample_value("tollkeeper_proxy_upstream_circuit", labels)


async def test_circuit_opens_after_failures_in_a_row_and_closes_by_a_probe(upstreams):
    async with scripted(*[answer(status=500)] * 4, WHOLE) as provider:
        way = upstreams(provider.url, upstream_attempts=2, upstream_breaker_failures=4, upstream_breaker_seconds=2)
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                assert (await refused(ProviderRefusalError, read(way, chat()))).status == 500
            assert circuit() == 2
            unavailable = await refused(ProviderUnavailable, read(way, chat()))
            assert 0 < unavailable.retry_after_seconds <= 2
            assert len(provider.requests) == 4
            await rested(unavailable)
            assert circuit() == 1
            assert await read(way, chat()) == b'{"ok": true}'
        assert circuit() == 0
        assert [log["state"] for log in logs if "state" in log] == ["open", "half_open", "closed"]


async def test_half_open_circuit_sends_one_call_of_many(upstreams):
    gate = [1.5, WHOLE]
    async with scripted(answer(status=500), gate) as provider:
        way = upstreams(provider.url, upstream_attempts=1, upstream_breaker_failures=1, upstream_breaker_seconds=1)
        await refused(ProviderRefusalError, read(way, chat()))
        await rested(await refused(ProviderUnavailable, read(way, chat())))
        results = await asyncio.gather(*(read(way, chat()) for _ in range(20)), return_exceptions=True)
        assert len([result for result in results if isinstance(result, bytes)]) == 1
        assert len([result for result in results if isinstance(result, ProviderUnavailable)]) == 19
        assert len(provider.requests) == 2


async def test_circuit_is_of_one_credential(upstreams, provider):
    await provider.arm("status=500", match={"api_key": "one"}, count=None)
    way = upstreams(provider.url, openai_api_key="one,two", upstream_breaker_failures=2)
    for _ in range(5):
        assert b"Tollkeeper" in await read(way, chat())
    assert (circuit("1"), circuit("2")) == (2, 0)
    assert await provider.calls() == 5 + 2


async def test_what_a_customer_did_wrong_opens_no_circuit(upstreams, provider):
    await provider.arm("status=422", count=None)
    way = upstreams(provider.url, upstream_breaker_failures=1)
    for _ in range(3):
        await refused(ProviderRefusalError, read(way, chat()))
    assert circuit() == 0


# ------------------------------------------------------------------------------------------------ leaving, and metrics


@asynccontextmanager
async def cancelled(awaitable, when):
    """Begin it, wait for `when`, cancel it; it ends as cancelled."""
    task = asyncio.ensure_future(awaitable)
    await when
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    yield


async def test_cancelled_reader_closes_the_connection(upstreams):
    async with scripted([STREAM_HEAD + chunk(b"data: 1\n\n"), HANG]) as provider:
        way, first = upstreams(provider.url), asyncio.Event()

        async def reading():
            deadline = time.monotonic() + 20
            async with way.post(way.provider("openai"), chat(stream=True), deadline=deadline) as got:
                async for _ in got.pieces():
                    first.set()

        async with cancelled(reading(), first.wait()):
            await asyncio.wait_for(provider.closed.wait(), 5)
        assert len(provider.requests) == 1


async def test_caller_cancelled_before_the_first_byte_sends_nothing_more_and_closes_as_the_answer_comes(
    upstreams, eventually
):
    async with scripted([0.5, STREAM_HEAD + chunk(b"data: 1\n\n"), 0.1, chunk(b"data: 2\n\n"), HANG]) as provider:
        way = upstreams(provider.url)
        async with cancelled(read(way, chat(stream=True)), eventually(lambda: provider.requests)):
            await asyncio.wait_for(provider.closed.wait(), 3)
        assert len(provider.requests) == 1


async def test_cancelled_probe_frees_its_place(upstreams, eventually):
    async with scripted(answer(status=500), HANG, WHOLE) as provider:
        way = upstreams(provider.url, upstream_attempts=1, upstream_breaker_failures=1, upstream_breaker_seconds=0.1)
        await refused(ProviderRefusalError, read(way, chat()))
        await eventually(lambda: circuit() == 1)
        async with cancelled(read(way, chat()), eventually(lambda: len(provider.requests) == 2)):
            assert await read(way, chat()) == b'{"ok": true}'


async def test_attempts_are_counted_by_outcome(upstreams):
    before = {name: attempts(name) for name in ("answered", "failed", "busy", "unreachable", "timeout")}
    count = "tollkeeper_proxy_upstream_first_byte_seconds_count"
    answered = REGISTRY.get_sample_value(count, {"provider": "openai"}) or 0
    steps = [answer(status=500), answer(status=429), RESET, HANG, WHOLE]
    async with scripted(*steps) as provider:
        way = upstreams(provider.url, upstream_attempts=5, upstream_first_byte_seconds=0.3, upstream_idle_seconds=0.3)
        await read(way, chat())
    assert {name: attempts(name) - before[name] for name in before} == dict.fromkeys(before, 1)
    assert REGISTRY.get_sample_value(count, {"provider": "openai"}) == answered + 1
