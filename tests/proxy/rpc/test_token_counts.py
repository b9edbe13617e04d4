"""Anthropic's count of tokens before a message: true, free, and for nobody who may not call the model."""

import asyncio
import json

import grpc
import pytest
from google.api import httpbody_pb2
from proxy_fakes import Account
from proxy_wire import every_provider

ASKED = {
    "model": "claude-3-haiku",
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "Hello, world"}],
    "tools": [{"name": "look_up", "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}}}],
}


@pytest.fixture
async def proxy(start_proxy, provider):
    return await start_proxy(**every_provider(provider.url, upstream_attempts=1))


async def said(call):
    """The status and the JSON of an answer of one message."""
    (message,) = [message async for message in call]
    metadata = dict(await call.initial_metadata())
    return int(metadata.get("x-tollkeeper-http-status", 200)), json.loads(message.data)


def asking(proxy, rpc, key, body, *headers):
    metadata = (("x-api-key", key), ("anthropic-version", "2023-06-01"), *headers)
    return getattr(proxy.wire, rpc)(httpbody_pb2.HttpBody(data=json.dumps(body).encode()), metadata=metadata)


def count(proxy, key, body=ASKED, *headers):
    return said(asking(proxy, "CountTokens", key, body, *headers))


async def test_count_is_that_of_the_message_and_nothing_is_held_or_billed_for_it(proxy, key, ledger, provider):
    ledger.accounts["acme"] = Account(available=0)
    status, counted = await count(proxy, key)
    assert status == 200
    assert (ledger.log, await provider.calls()) == ([], 0)
    ledger.accounts["acme"] = Account(available=10**10)
    _, message = await said(asking(proxy, "Messages", key, ASKED | {"max_tokens": 100}))
    assert counted == {"input_tokens": message["usage"]["input_tokens"]}


@pytest.mark.parametrize(
    ("entitled", "model", "reason"),
    [
        ({"active": False}, "claude-3-haiku", "ACCOUNT_SUSPENDED"),
        ({"models": ["gpt-4o"]}, "claude-3-haiku", "MODEL_NOT_ALLOWED"),
        ({"providers": ["openai"]}, "claude-3-haiku", "PROVIDER_NOT_ALLOWED"),
        ({}, "claude-nobody-prices", "MODEL_NOT_PRICED"),
        ({}, "gpt-4o", "FORM_NOT_SPOKEN"),
    ],
)
async def test_count_is_refused_where_the_call_would_be(  # noqa: PLR0917
    proxy, key, refused, entitled, model, reason
):
    await proxy.entitle(**entitled)
    assert (await refused(count(proxy, key, ASKED | {"model": model}))).reason == reason


async def test_count_needs_a_key_that_calls_models(proxy, refused):
    admin = await proxy.make_key("", key_type="admin")
    assert (await refused(count(proxy, admin.key))).reason == "KEY_TYPE_NOT_ALLOWED"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await count(proxy, "tk_live_nobody")
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_counts_have_the_limit_of_calls_a_minute_and_take_no_call_from_it(proxy, refused):
    key = (await proxy.make_key(requests_per_minute=2)).key
    await asyncio.gather(count(proxy, key), count(proxy, key))
    assert (await refused(count(proxy, key))).reason == "RATE_LIMITED"
    assert (await said(asking(proxy, "Messages", key, ASKED | {"max_tokens": 100})))[0] == 200


async def test_providers_own_refusal_of_a_count_passes_as_it_came(proxy, key):
    status, told = await count(proxy, key, ASKED | {"messages": []})
    assert (status, told["error"]["type"]) == (400, "invalid_request_error")
    assert "at least one message" in told["error"]["message"]


async def test_model_is_called_while_the_provider_wants_no_more_counts(proxy, key, provider):
    await provider.arm("status=429 retry_after=60", match={"provider": "anthropic"}, count=1)
    assert (await count(proxy, key))[0] == 429
    assert (await said(asking(proxy, "Messages", key, ASKED | {"max_tokens": 100})))[0] == 200


@pytest.mark.parametrize("body", [[], {"messages": []}, {"model": 7, "messages": []}])
async def test_what_names_no_model_is_refused_here(proxy, key, refused, body):
    assert (await refused(count(proxy, key, body))).reason == "INVALID_ARGUMENT"
