"""What a provider has made and bills is billed, whatever it says of it and whatever becomes of its answer here."""

import asyncio
import gzip
import threading

import orjson
import pytest
from proxy_fakes import USD, FakePricing, price
from proxy_upstream import STREAM_END, STREAM_HEAD, answer, chunk, scripted
from proxy_upstream import stream as sent
from proxy_wire import ask, every_provider
from tollkeeper.proxy.v1 import generate_service_pb2 as generate_pb
from tollkeeper.proxy.v1 import generate_service_pb2_grpc

from services.proxy.formats import tokens
from services.proxy.sse import event_of

MULTIPLIER = 1.5
CLAUDE = (("claude-sonnet", "bedrock"), ("claude-3-haiku", "anthropic"))
IN, OUT = 5_000, 15_000  # nanos a token of gpt-4o


@pytest.fixture
def pricing():
    tiered = price("gpt-4o", max_output=4096)
    for tier in ("flex", "batch"):
        tiered.rates.add(component="input", service_tier=tier, nanos_per_million=USD)
        tiered.rates.add(component="output", service_tier=tier, nanos_per_million=USD)
    other = price("gpt-3.5-turbo", max_output=4096)
    of_claude = (price(model, owner, max_output=4096) for model, owner in CLAUDE)
    return FakePricing([tiered, other, *of_claude])


CHUNKS = [
    {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}},
]


def completion(text="yes", *, usage, headers=None, **fields):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    whole = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
    return answer(orjson.dumps(whole | fields), **(headers or {}))


def counted(given, answered, **fields):
    return {"prompt_tokens": given, "completion_tokens": answered, "total_tokens": given + answered} | fields


@pytest.fixture
def asked(start_proxy):
    """`await asked(provider, **body)`: what a call came to whose provider answers by this script."""

    async def ask(provider, body, **settings):
        proxy = await start_proxy(openai_base_url=f"{provider.url}/v1", **settings)
        key = (await proxy.make_key()).key
        return proxy.chat(key, **body)

    return ask


@pytest.mark.parametrize("tier", ["flex", "batch"])
async def test_cheaper_tier_is_billed_only_where_the_provider_says_that_it_served_it(asked, ledger, tier):
    async with scripted(completion(usage=counted(100, 10))) as provider:
        await (await asked(provider, {"service_tier": tier}))
    assert [bill.amount_nanos for bill in ledger.bills] == [(100 * IN + 10 * OUT) * MULTIPLIER]
    assert ledger.usages[0].service_tier == "standard"


async def test_cheaper_tier_that_the_provider_has_served_is_billed_as_such(asked, ledger):
    async with scripted(completion(usage=counted(100, 10), service_tier="flex")) as provider:
        await (await asked(provider, {"service_tier": "flex"}))
    assert [bill.amount_nanos for bill in ledger.bills] == [110 * 1_000 * MULTIPLIER]
    assert ledger.usages[0].service_tier == "flex"


async def test_tier_that_google_names_in_a_header_is_the_one_that_is_billed(asked, ledger):
    async with scripted(completion(usage=counted(100, 10), headers={"x_gemini_service_tier": "flex"})) as provider:
        await (await asked(provider, {"service_tier": "flex"}))
    assert [bill.amount_nanos for bill in ledger.bills] == [110 * 1_000 * MULTIPLIER]


@pytest.mark.parametrize(
    "header", ["content_type", "retry_after", "content_encoding", "x_gemini_service_tier", "x_amzn_errortype"]
)
async def test_answer_with_a_header_that_is_no_text_is_passed_on_and_billed(asked, ledger, header):
    made = completion(usage=counted(100, 10)).replace(
        b"\r\n", f"\r\n{header.replace('_', '-')}: ".encode() + b"\xe9\r\n", 1
    )
    async with scripted(made) as provider:
        answered = await (await asked(provider, {}))
    assert answered.json()["choices"][0]["message"]["content"] == "yes"
    assert [bill.amount_nanos for bill in ledger.bills] == [(100 * IN + 10 * OUT) * MULTIPLIER]


async def test_thoughts_that_only_the_total_counts_are_billed(asked, ledger):
    async with scripted(completion(usage=counted(20, 151, total_tokens=553))) as provider:
        await (await asked(provider, {}))
    assert [bill.amount_nanos for bill in ledger.bills] == [(20 * IN + 533 * OUT) * MULTIPLIER]


@pytest.mark.parametrize("usage", [counted(100, 4000), None], ids=["counted", "not counted"])
async def test_answer_too_large_to_be_passed_on_is_billed_and_asked_for_once(asked, ledger, refused, usage):
    made = completion("x" * 2_000_000, usage=usage)
    async with scripted(made, completion(usage=counted(1, 1))) as provider:
        fallbacks = {"gpt-4o": ["openai/gpt-3.5-turbo"]}
        call = await asked(provider, {"max_tokens": 4000}, max_message_bytes=1_000_000, fallbacks=fallbacks)
        refusal = await refused(call)
        assert refusal.reason == "ANSWER_NOT_PASSED_ON"
        assert refusal.trailing["x-tollkeeper-http-status"] == "400"
        assert len(provider.requests) == 1
    assert not ledger.open_holds
    (bill,) = ledger.bills
    assert bill.usage.status == "cut"
    if usage is None:
        assert bill.usage.estimated
        assert bill.usage.output_tokens > 100
    else:
        assert bill.amount_nanos == (100 * IN + 4000 * OUT) * MULTIPLIER


# Anthropic counts what it has read of a request that it refuses, and bills it where the model has said something.
REFUSED = {"stop_reason": "refusal", "stop_sequence": None, "stop_details": {"type": "refusal", "category": "cyber"}}
SAID = {"type": "text", "text": "Well"}


def claudes(content, *, stream):
    """A message of this content that ends as a refusal."""
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}
    if not stream:
        usage = {"input_tokens": 100, "output_tokens": 10}
        return answer(orjson.dumps(head | REFUSED | {"content": content, "usage": usage}))
    started = head | {"content": [], "stop_reason": None, "usage": {"input_tokens": 100, "output_tokens": 1}}
    events = [{"type": "message_start", "message": started}]
    for index, block in enumerate(content):
        delta = {"type": "text_delta", "text": block["text"]}
        events += [
            {"type": "content_block_start", "index": index, "content_block": block | {"text": ""}},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    events += [{"type": "message_delta", "delta": REFUSED, "usage": {"output_tokens": 10}}, {"type": "message_stop"}]
    return sent(*(event_of(orjson.dumps(event), event["type"].encode()) for event in events))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("said", [[], [SAID]], ids=["nothing", "something"])
async def test_refusal_is_billed_only_where_something_was_said_before_it(start_proxy, ledger, stream, said):
    async with scripted(claudes(said, stream=stream)) as provider:
        proxy = await start_proxy(**every_provider(provider.url))
        key = (await proxy.make_key()).key
        given = await ask(proxy, key, "messages", stream=stream)
    assert b'"refusal"' in given.body
    assert [bill.amount_nanos for bill in ledger.bills] == [(100 * IN + 10 * OUT) * MULTIPLIER for _ in said]
    assert not ledger.open_holds


async def test_stream_that_fails_and_ends_properly_all_the_same_is_recorded_as_failed(asked, ledger):
    said = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Well"}}]}
    events = [event_of(orjson.dumps(said)), event_of(b'{"error": {"message": "overloaded"}}'), event_of(b"[DONE]")]
    async with scripted(sent(*events)) as provider:
        given = await (await asked(provider, {"stream": True}))
    assert given.events()[-1] == "[DONE]"
    assert [(bill.usage.status, bill.usage.output_tokens) for bill in ledger.bills] == [("failed", 1)]


async def test_bedrocks_answer_that_is_not_understood_is_billed(start_proxy, ledger, refused):
    nested = b"[" * 300 + b"]" * 300
    use = b'{"toolUse": {"toolUseId": "t", "name": "f", "input": {"a": ' + nested + b"}}}"
    usage = b'"usage": {"inputTokens": 100, "outputTokens": 700, "totalTokens": 800}'
    body = b'{"output": {"message": {"role": "assistant", "content": [' + use + b']}}, "stopReason": "tool_use", '
    async with scripted(answer(body + usage + b"}")) as provider:
        proxy = await start_proxy(**every_provider(provider.url))
        key = (await proxy.make_key()).key
        refusal = await refused(ask(proxy, key, "converse"))
    assert refusal.reason == "ANSWER_NOT_PASSED_ON"
    assert [bill.amount_nanos for bill in ledger.bills] == [(100 * IN + 700 * OUT) * MULTIPLIER]
    assert not ledger.open_holds


async def test_page_in_place_of_an_answer_is_not_billed_and_the_fallback_is_asked(asked, ledger):
    page = answer(b"<html>Sorry</html>", content_type="text/html")
    async with scripted(page, completion(usage=counted(100, 10))) as provider:
        given = await (await asked(provider, {}, fallbacks={"gpt-4o": ["openai/gpt-3.5-turbo"]}))
        assert len(provider.requests) == 2
    assert given.headers["x-tollkeeper-fallback"] == "openai/gpt-3.5-turbo"
    assert [(bill.usage.model, bill.usage.input_tokens) for bill in ledger.bills] == [("gpt-3.5-turbo", 100)]
    assert not ledger.open_holds


LONG = orjson.dumps(
    {
        "id": "c",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi there!"}, "finish_reason": "stop"}],
        "usage": counted(100, 10),
        "logprobs": [{"token": "Hello", "logprob": -1.5}] * 200,
    }
)
ODD = {
    "half of a pair": LONG.replace(b"there!", b"\\ud83d"),
    "no number": LONG.replace(b"-1.5", b"NaN"),
    "infinite": LONG.replace(b"-1.5", b"-Infinity"),
    "byte order mark": b"\xef\xbb\xbf" + LONG,
    "no UTF-8": LONG.replace(b"there!", b"\xff"),
    "more behind it": LONG + b"\n{}",
    "broken off": LONG[:-100],
    "floating counts": LONG.replace(b":100,", b":100.0,").replace(b":10,", b":10.0,"),
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
async def test_answer_that_is_not_quite_json_is_billed_by_its_count_and_passed_on_as_it_came(asked, ledger, body):
    async with scripted(answer(body)) as provider:
        given = await (await asked(provider, {"max_tokens": 20}))
    assert given.body == body
    assert [bill.amount_nanos for bill in ledger.bills] == [(100 * IN + 10 * OUT) * MULTIPLIER]
    assert not ledger.usages[0].estimated


@pytest.mark.parametrize("name", ["half of a pair", "byte order mark", "floating counts"])
async def test_answer_that_is_not_quite_json_is_given_in_the_typed_form_too(start_proxy, ledger, name):
    async with scripted(answer(ODD[name])) as provider:
        proxy = await start_proxy(openai_base_url=f"{provider.url}/v1")
        stub = generate_service_pb2_grpc.GenerateServiceStub(proxy.channel)
        request = generate_pb.GenerateRequest(
            account_id="acme", model="gpt-4o", messages=[generate_pb.Message(role="user", text="hi")]
        )
        given = await stub.Generate(request, metadata=proxy.service)
    assert given.message.text.startswith("Hi ")
    assert (given.usage.input_tokens, given.usage.output_tokens, given.usage.estimated) == (100, 10, False)
    assert given.credits.cost_nanos == ledger.bills[0].amount_nanos == (100 * IN + 10 * OUT) * MULTIPLIER


async def test_what_is_guessed_of_an_answer_is_not_above_its_hold(asked, ledger):
    async with scripted(answer(b"upstream says " * 10_000)) as provider:
        await (await asked(provider, {"max_tokens": 20, "n": 2}))
    (bill,) = ledger.bills
    assert bill.usage.estimated
    assert bill.usage.output_tokens == 2 * 20
    assert bill.amount_nanos <= next(iter(ledger.holds.values())).hold.amount_nanos


async def test_gzip_by_its_older_name_is_read(asked, ledger):
    async with scripted(answer(gzip.compress(LONG), content_encoding="x-gzip")) as provider:
        assert (await (await asked(provider, {}))).body == LONG
    assert [bill.amount_nanos for bill in ledger.bills] == [(100 * IN + 10 * OUT) * MULTIPLIER]


async def test_stream_in_gzip_by_its_older_name_is_read(asked, ledger):
    packed = gzip.compress(b"".join((*(event_of(orjson.dumps(one)) for one in CHUNKS), b"data: [DONE]\n\n")))
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: x-gzip\r\n\r\n")
    pieces = (chunk(packed[at : at + 20]) for at in range(0, len(packed), 20))
    async with scripted(b"".join((head, *pieces, STREAM_END))) as provider:
        told = await (await asked(provider, {"stream": True}))
    assert told.events()[0]["choices"] == CHUNKS[0]["choices"]
    assert [bill.amount_nanos for bill in ledger.bills] == [(100 * IN + 10 * OUT) * MULTIPLIER]


@pytest.mark.parametrize("name", ["gzip", "x-gzip"])
async def test_answer_that_is_not_in_the_encoding_it_names_is_a_failure_of_the_provider(asked, ledger, refused, name):
    async with scripted(answer(LONG, content_encoding=name)) as provider:
        assert (await refused(await asked(provider, {}, upstream_attempts=1))).reason == "PROVIDER_UNAVAILABLE"
    assert not ledger.bills
    assert not ledger.open_holds


@pytest.mark.parametrize("body", [b"", b"\n", b"<html>maintenance</html>"])
async def test_page_in_place_of_bedrocks_answer_is_not_billed(start_proxy, ledger, refused, body):
    async with scripted(answer(body, content_type="text/html")) as provider:
        proxy = await start_proxy(**every_provider(provider.url, upstream_attempts=1))
        key = (await proxy.make_key()).key
        refusal = await refused(ask(proxy, key, "converse"))
    assert refusal.reason == "PROVIDER_UNAVAILABLE"
    assert not ledger.bills
    assert not ledger.open_holds


async def test_bedrocks_answer_that_breaks_off_is_billed_by_its_count(start_proxy, ledger, refused):
    usage = b'"usage": {"inputTokens": 100, "outputTokens": 10, "totalTokens": 110}'
    async with scripted(answer(b"{" + usage + b', "output": {"message": {"role": "ass')) as provider:
        proxy = await start_proxy(**every_provider(provider.url))
        key = (await proxy.make_key()).key
        assert (await refused(ask(proxy, key, "converse"))).reason == "ANSWER_NOT_PASSED_ON"
    assert [bill.amount_nanos for bill in ledger.bills] == [(100 * IN + 10 * OUT) * MULTIPLIER]


async def test_googles_list_of_errors_is_not_billed_and_the_fallback_is_asked(asked, ledger):
    errors = answer(b'[{"error": {"code": 503, "message": "overloaded"}}]')
    async with scripted(errors, completion(usage=counted(100, 10))) as provider:
        await (await asked(provider, {}, fallbacks={"gpt-4o": ["openai/gpt-3.5-turbo"]}))
    assert [(bill.usage.model, bill.usage.input_tokens) for bill in ledger.bills] == [("gpt-3.5-turbo", 100)]
    assert not ledger.open_holds


@pytest.mark.parametrize("stream", [False, True])
async def test_counting_what_a_provider_did_not_count_keeps_nobody_waiting(start_proxy, ledger, monkeypatch, stream):
    counting, others_went_on, waits = threading.Event(), threading.Event(), []
    estimated = tokens.estimated

    def slowly(model, texts):
        counting.set()
        waits.append(others_went_on.wait(5))
        return estimated(model, texts)

    monkeypatch.setattr("services.proxy.formats.tokens.estimated", slowly)
    proxy = await start_proxy()
    key = (await proxy.make_key()).key
    uncounted = asyncio.create_task(proxy.chat(key, text="[[sandbox usage=none]]", stream=stream, max_tokens=64))
    await asyncio.to_thread(counting.wait, 10)
    await proxy.chat(key)
    others_went_on.set()
    await uncounted
    assert waits == [True, True]  # the input and the output, once each
    assert [bill.usage.estimated for bill in ledger.bills] == [False, True]


async def test_call_that_is_cut_off_while_it_is_counted_is_settled(start_proxy, ledger, monkeypatch, eventually):
    counting, cut = threading.Event(), threading.Event()
    estimated = tokens.estimated

    def slowly(model, texts):
        counting.set()
        cut.wait(5)
        return estimated(model, texts)

    async def fails(_relay):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("services.proxy.formats.tokens.estimated", slowly)
    monkeypatch.setattr("services.proxy.calls.streaming._Relay.end", fails)
    proxy = await start_proxy()
    key = (await proxy.make_key()).key
    call = asyncio.create_task(proxy.chat(key, text="[[sandbox usage=none]]", stream=True, max_tokens=64))
    await asyncio.to_thread(counting.wait, 10)
    (living,) = (task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Life.live")
    living.cancel()  # as a proxy does that stops
    await asyncio.sleep(0)
    cut.set()
    await eventually(lambda: ledger.bills)
    assert not ledger.open_holds
    await asyncio.wait([call])
