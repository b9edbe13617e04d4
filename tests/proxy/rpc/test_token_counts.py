"""Counts of tokens before a call: true, free, and for nobody who may not call the model."""

import asyncio
import json

import grpc
import pytest
from google.api import httpbody_pb2
from proxy_fakes import Account, FakePricing, price
from proxy_wire import HELLO, every_provider
from tollkeeper.proxy.v1 import wire_service_pb2 as pb

ASKED = {
    "model": "claude-3-haiku",
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "Hello, world"}],
    "tools": [{"name": "look_up", "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}}}],
}


@pytest.fixture
def pricing():
    models = {"gpt-4o": "openai", "claude-3-haiku": "anthropic", "gemini-1.5-pro": "google"}
    return FakePricing([price(model, provider, max_output=4096) for model, provider in models.items()])


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


def asking_google(proxy, rpc, key, body, model="gemini-1.5-pro"):
    message = pb.CountGoogleTokensRequest if rpc == "CountGoogleTokens" else pb.GenerateContentRequest
    request = message(model=model, body=httpbody_pb2.HttpBody(data=json.dumps(body).encode()))
    return getattr(proxy.wire, rpc)(request, metadata=(("x-goog-api-key", key),))


async def test_count_is_that_of_the_message_and_nothing_is_held_or_billed_for_it(proxy, key, ledger, provider):
    ledger.accounts["acme"] = Account(available=0)
    status, counted = await count(proxy, key)
    assert status == 200
    assert (ledger.log, await provider.calls()) == ([], 0)
    ledger.accounts["acme"] = Account(available=10**10)
    _, message = await said(asking(proxy, "Messages", key, ASKED | {"max_tokens": 100}))
    assert counted == {"input_tokens": message["usage"]["input_tokens"]}


async def test_count_of_a_response_is_openais(proxy, key, ledger, provider):
    asked = {"model": "gpt-4o", "input": HELLO, "instructions": "Be brief.", "tools": []}
    status, counted = await said(asking(proxy, "CountInputTokens", key, asked))
    assert (status, ledger.log, await provider.calls()) == (200, [], 0)
    _, response = await said(asking(proxy, "Responses", key, asked))
    assert counted == {"object": "response.input_tokens", "input_tokens": response["usage"]["input_tokens"]}


@pytest.mark.parametrize("name", ["generateContentRequest", "generate_content_request", None])
async def test_count_of_contents_is_googles_under_its_own_name_of_the_model(start_proxy, provider, ledger, name):
    models = {"gemini-1.5-pro": "gemini-1.5-pro-002"}
    proxy = await start_proxy(**every_provider(provider.url, google_models=models))
    key = (await proxy.make_key()).key
    asked = {"contents": [{"role": "user", "parts": [{"text": HELLO}]}]}
    whole = asked | {"model": "models/gemini-1.5-pro", "systemInstruction": {"parts": [{"text": "Be brief."}]}}
    body, called = (asked, asked) if name is None else ({name: whole}, whole)
    status, counted = await said(asking_google(proxy, "CountGoogleTokens", key, body))
    assert (status, ledger.log, await provider.calls()) == (200, [], 0)
    _, content = await said(asking_google(proxy, "GenerateContent", key, called))
    assert counted["totalTokens"] == content["usageMetadata"]["promptTokenCount"]


@pytest.mark.parametrize(
    ("rpc", "body"),
    [
        ("CountInputTokens", {"model": "claude-3-haiku", "input": HELLO}),
        ("CountGoogleTokens", {"contents": [{"parts": [{"text": HELLO}]}]}),
    ],
)
async def test_model_is_counted_in_its_own_form_alone(proxy, key, refused, rpc, body):
    if rpc == "CountGoogleTokens":
        call = asking_google(proxy, rpc, key, body, model="gpt-4o")
    else:
        call = asking(proxy, rpc, key, body)
    assert (await refused(said(call))).reason == "FORM_NOT_SPOKEN"


@pytest.mark.parametrize("body", [[], {"generateContentRequest": 7}, {"generate_content_request": []}])
async def test_contents_that_cannot_be_counted_are_refused_here(proxy, key, refused, body):
    assert (await refused(said(asking_google(proxy, "CountGoogleTokens", key, body)))).reason == "INVALID_ARGUMENT"


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
