"""What one customer's calls meet at a provider is not the others': nobody's requests keep anybody else from it."""

import asyncio
from dataclasses import replace

import grpc.aio
import pytest
from prometheus_client import REGISTRY
from proxy_fakes import USD, Account
from proxy_upstream import answer, scripted

from services.kit.errors import RemoteError

WORDS = b"""{"choices": [{"index": 0, "message": {"role": "assistant", "content": "Tollkeeper %s"}}],
"usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}}"""
FAULTS = {
    "a credential that is refused": "status=401",
    "a provider that wants money": "status=402",
    "a provider that fails": "status=500",
    "a provider that is down for so long": "status=503 retry_after=60",
    "a connection that breaks": "fault=reset",
    "a rate limit of no length": "status=429",
    "a rate limit for so long": "status=429 retry_after=60",
}


@pytest.fixture
async def customers(start_proxy, ledger, monkeypatch):
    """A proxy, and a key of each of these accounts."""
    monkeypatch.setattr("services.proxy.upstream.client._backoff_seconds", lambda _attempts: 0)
    proxy = await start_proxy(upstream_breaker_failures=3, upstream_retry_after_seconds=0)
    keys = {}
    for account in ("mallory", "acme", "bob", "carol"):
        ledger.accounts[account] = Account(available=10 * USD)
        await proxy.entitle(account)
        keys[account] = (await proxy.make_key(account)).key
    return proxy, keys


async def tried(proxy, key, **fields):
    """The gRPC status of a call's refusal; OK where it was answered. A provider's own error is one, too."""
    try:
        answer = await proxy.chat(key, **fields)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK if b"Tollkeeper" in answer.body else grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_what_one_customers_calls_meet_keeps_no_other_from_the_provider(customers, provider, fault):
    proxy, keys = customers
    await provider.arm(fault, count=None)
    for _ in range(5):
        assert await tried(proxy, keys["mallory"]) is not grpc.StatusCode.OK
    provider.reset()
    assert await tried(proxy, keys["acme"]) is grpc.StatusCode.OK


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_what_one_customers_calls_have_met_holds_for_the_next_of_its_own(customers, provider, fault):
    proxy, keys = customers
    await provider.arm(fault, count=None)
    for _ in range(4):
        await tried(proxy, keys["mallory"])
    before = await provider.calls()
    assert await tried(proxy, keys["mallory"]) is not grpc.StatusCode.OK
    assert await provider.calls() == before


async def test_credential_that_three_customers_calls_find_refused_rests_for_all(customers, provider):
    proxy, keys = customers
    await provider.arm("status=401", count=None)
    for account in ("mallory", "acme", "bob"):
        await tried(proxy, keys[account])
    assert await provider.calls() == 3
    assert await tried(proxy, keys["carol"]) is grpc.StatusCode.UNAVAILABLE
    assert await provider.calls() == 3
    assert circuit() == 2


async def test_an_answer_to_anybody_between_them_starts_the_count_of_customers_anew(customers, provider):
    proxy, keys = customers
    for account in ("mallory", "acme"):
        await provider.arm("status=401", count=1)
        await tried(proxy, keys[account])
    assert await tried(proxy, keys["carol"]) is grpc.StatusCode.OK
    await provider.arm("status=401", count=1)
    await tried(proxy, keys["bob"])
    assert await tried(proxy, keys["carol"]) is grpc.StatusCode.OK
    assert circuit() == 0


async def test_provider_that_is_not_there_is_so_for_everyone_at_once(customers, start_proxy):
    _, keys = customers
    proxy = await start_proxy(upstream_breaker_failures=3, openai_base_url="http://127.0.0.1:9")
    await tried(proxy, keys["mallory"])
    assert circuit() == 2


async def test_rate_limit_of_no_length_is_kept_a_little_longer_each_time(customers, provider):
    proxy, keys = customers
    await provider.arm("status=429", count=None)
    waits = []
    for _ in range(3):
        await tried(proxy, keys["mallory"])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await proxy.chat(keys["mallory"])
        waits.append(float(dict(caught.value.trailing_metadata())["retry-after"]))
        await asyncio.sleep(waits[-1])
    assert waits == sorted(waits)


def circuit():
    return REGISTRY.get_sample_value("tollkeeper_proxy_upstream_circuit", {"provider": "openai", "credential": "1"})


async def test_one_customers_open_calls_leave_room_for_the_others(customers, start_proxy, provider, eventually):
    _, keys = customers
    proxy = await start_proxy(upstream_connections=4, account_calls=2, upstream_connect_seconds=1)
    slow = {"text": "[[sandbox output_tokens=100 delay_ms=500]]", "stream": True, "max_tokens": 100}
    begun = [proxy.start_chat(keys["mallory"], **slow) for _ in range(8)]
    refusals = [one for one in await asyncio.gather(*map(refusal_of_begun, begun)) if one is not None]
    assert await tried(proxy, keys["acme"]) is grpc.StatusCode.OK
    assert [(one.reason, one.metadata["unit"], one.metadata["scope"]) for one in refusals] == [
        ("RATE_LIMITED", "calls", "account")
    ] * 6
    for call in begun:
        call.cancel()
    # Those whose client has left go on to their end, and count until then.
    assert await tried(proxy, keys["mallory"]) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_answers_that_one_customer_does_not_read_leave_room_for_the_others(start_proxy, ledger, eventually):
    """Each has a place here until it is read, though its call has long been settled."""
    ledger.accounts["mallory"] = Account(available=10 * USD)
    async with scripted(answer(WORDS % (b"x" * 3_000_000))) as provider:
        proxy = await start_proxy(account_calls=2, openai_base_url=f"{provider.url}/v1")
        await proxy.entitle("mallory")
        mallory, acme = [(await proxy.make_key(account)).key for account in ("mallory", "acme")]
        # It takes no more than it is asked to read.
        only_what_is_read = [("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(proxy.server.address, options=only_what_is_read) as slow:
            unread = [replace(proxy, channel=slow).start_chat(mallory) for _ in range(2)]
            await eventually(lambda: len(ledger.settled) == 2)
            assert await tried(proxy, mallory) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await tried(proxy, acme) is grpc.StatusCode.OK
            for call in unread:
                assert (await call.read()).data
                assert await call.read() is grpc.aio.EOF

        async def there_is_room():
            return await tried(proxy, mallory) is grpc.StatusCode.OK

        await eventually(there_is_room)


async def test_ended_calls_make_room_for_the_next(customers, start_proxy):
    _, keys = customers
    proxy = await start_proxy(account_calls=1)
    for _ in range(5):
        assert await tried(proxy, keys["mallory"]) is grpc.StatusCode.OK


async def refusal_of_begun(call):
    """The refusal of a stream that was not begun; None where its first piece came."""
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return RemoteError.from_rpc(error)
    return None
