"""Response headers that say what is left of a plan's quotas: after the settlement, or for a stream after the hold."""

import pytest
from proxy_fakes import CYCLE_END
from tollkeeper.proxy.v1 import generate_service_pb2, generate_service_pb2_grpc

LIMIT = 100_000


@pytest.fixture
def metered(ledger):
    """The account, on quotas of tokens and calls."""
    account = ledger.accounts["acme"]
    account.token_limit, account.request_limit = LIMIT, 1_000_000
    return account


def told(headers):
    return {name: value for name, value in dict(headers).items() if name.startswith("x-quota-")}


def tokens_left(remaining):
    reset = str(CYCLE_END.seconds)
    return {
        "x-quota-metric": "llm_tokens",
        "x-quota-limit": str(LIMIT),
        "x-quota-remaining": str(remaining),
        "x-quota-reset": reset,
    }


async def test_unary_answer_says_what_its_settlement_left(proxy, key, ledger, metered):
    answer = await proxy.chat(key, max_tokens=4000)
    used = answer.json()["usage"]["total_tokens"]
    assert metered.tokens == used
    assert used < next(iter(ledger.holds.values())).hold.tokens
    assert told(answer.headers) == tokens_left(LIMIT - used)


async def test_stream_says_what_its_hold_left(proxy, key, ledger, metered):
    answer = await proxy.chat(key, stream=True, max_tokens=4000)
    held = next(iter(ledger.holds.values())).hold.tokens
    assert metered.tokens < held
    assert told(answer.headers) == tokens_left(LIMIT - held)


async def test_the_quota_nearest_to_its_end_is_told(proxy, key, metered):
    metered.request_limit = 3
    shown = [told((await proxy.chat(key, max_tokens=5)).headers) for _ in range(4)]
    assert {headers["x-quota-metric"] for headers in shown} == {"api_calls"}
    assert [headers["x-quota-remaining"] for headers in shown] == ["2", "1", "0", "0"]


async def test_prepaid_call_has_no_quota_whatever_its_client_sends(proxy, key):
    spoofed = (("authorization", f"Bearer {key}"), ("x-quota-metric", "mine"), ("x-quota-remaining", "9"))
    for stream in (False, True):
        assert not told((await proxy.chat(key, max_tokens=5, stream=stream, metadata=spoofed)).headers)


async def test_call_that_a_quota_refuses_says_what_is_left_of_it(proxy, key, metered, refused):
    metered.tokens = LIMIT - 1
    refusal = await refused(proxy.chat(key, max_tokens=5))
    assert (refusal.reason, refusal.trailing["x-tollkeeper-http-status"]) == ("LIMIT_EXCEEDED", "429")
    assert told(refusal.trailing) == tokens_left(1)
    metered.tokens, metered.available = 0, 0
    refusal = await refused(proxy.chat(key, max_tokens=5))
    assert (refusal.reason, told(refusal.trailing)) == ("INSUFFICIENT_CREDIT", {})


async def test_what_is_left_is_not_told_where_nobody_knows(proxy, key, ledger, metered):
    refused = await proxy.chat(key, text="[[sandbox status=400]]", max_tokens=5)
    assert refused.headers["x-tollkeeper-http-status"] == "400"
    assert not told(refused.headers)  # what its hold took has been given back
    ledger.down.add("settle")
    unsettled = await proxy.chat(key, max_tokens=5)
    assert unsettled.headers["x-tollkeeper-cost-credits"]
    assert not told(unsettled.headers)
    assert metered.tokens


async def test_replayed_answer_has_the_headers_that_were_kept_and_no_quota(proxy, key, metered):
    once = (("authorization", f"Bearer {key}"), ("idempotency-key", "once"))
    first = await proxy.chat(key, max_tokens=5, metadata=once)
    assert told(first.headers) == tokens_left(LIMIT - metered.tokens)
    again = await proxy.chat(key, max_tokens=5, metadata=once)
    assert again.headers["idempotency-replayed"] == "true"
    assert not told(again.headers)


async def test_typed_form_says_the_same_in_initial_metadata(proxy, ledger, metered):
    stub = generate_service_pb2_grpc.GenerateServiceStub(proxy.channel)
    message = generate_service_pb2.Message(role="user", text="What is a toll?")
    request = generate_service_pb2.GenerateRequest(
        account_id="acme", model="gpt-4o", messages=[message], max_output_tokens=4000
    )
    whole = stub.Generate(request, metadata=proxy.service)
    await whole
    assert told(await whole.initial_metadata()) == tokens_left(LIMIT - metered.tokens)
    before = metered.tokens
    stream = stub.StreamGenerate(
        generate_service_pb2.StreamGenerateRequest(request=request, account_id="acme"), metadata=proxy.service
    )
    pieces = [piece async for piece in stream]
    assert pieces[-1].credits.cost_nanos > 0
    held = list(ledger.holds.values())[-1].hold.tokens
    assert told(await stream.initial_metadata()) == tokens_left(LIMIT - before - held)
