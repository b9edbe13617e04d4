"""Documented answers and errors through the whole proxy: what the client is given, what the ledger is told."""

import tomllib
from collections import Counter

import orjson
import pytest
from proxy_fakes import FakePricing
from proxy_recorded import RECORDED, records
from proxy_upstream import STREAM_END, answer, chunk, scripted
from proxy_wire import FORMS, ask, cost_of, dear, every_provider

WIRE_FORMS = {
    "openai_chat": "chat",
    "openai_responses": "responses",
    "openai_embeddings": "embeddings",
    "anthropic_messages": "messages",
    "gemini": "gemini",
    "bedrock_converse": "converse",
}
# A price component for each count that is a part of another.
PARTS = {
    "cache_read_tokens": "cache_read",
    "cache_write_5m_tokens": "cache_write_5m",
    "cache_write_1h_tokens": "cache_write_1h",
    "reasoning_tokens": "reasoning",
    "audio_input_tokens": "audio_input",
    "audio_output_tokens": "audio_output",
    "image_input_tokens": "image_input",
}
# The models of those who are reached in OpenAI's form besides their own, or in that alone.
IN_OPENAIS_FORM = {"google": "gemini-2.0-flash", "huggingface": "meta-llama/Llama-3.1-8B-Instruct"}
ERRORS = tomllib.loads((RECORDED / "errors.toml").read_text())["record"]


@pytest.fixture
def pricing():
    models = {(model, provider) for model, provider, _ in FORMS.values()}
    models |= {(model, provider) for provider, model in IN_OPENAIS_FORM.items()}
    return FakePricing([dear(model, provider, max_output=4096) for model, provider in sorted(models)])


@pytest.fixture
async def upstream():
    async with scripted(answer()) as provider:
        yield provider


@pytest.fixture
async def proxy(start_proxy, upstream):
    return await start_proxy(**every_provider(upstream.url, upstream_attempts=2, upstream_retry_after_seconds=0))


def sent_as(record, size):
    """The answer as HTTP, a stream in chunks of this size."""
    if not record.stream:
        return answer(record.body)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {record.content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    pieces = [record.body[at : at + size] for at in range(0, len(record.body), size)]
    return b"".join((head, *map(chunk, pieces), STREAM_END))


def documented_cost(usage):
    parts = {PARTS[name]: count for name, count in usage.items() if name in PARTS}
    return cost_of(input=usage["input_tokens"], output=usage.get("output_tokens", 0), **parts)


async def replayed(proxy, key, upstream, record, size=7):
    upstream.script = [sent_as(record, size)]
    form = WIRE_FORMS[record.form]
    body = dict(FORMS[form][2])
    if record.stream and form in {"chat", "converse"}:
        body["stream_options"] = {"include_usage": True}  # else the last chunks are made one
    return await ask(proxy, key, form, body, stream=record.stream)


@pytest.mark.parametrize("form", WIRE_FORMS)
async def test_ledger_is_told_the_documented_usage_at_its_exact_price(proxy, key, ledger, upstream, form):
    for record in records(form):
        if record.usage is None:
            continue
        before = len(ledger.bills)
        got = await replayed(proxy, key, upstream, record)
        assert len(ledger.bills) == before + 1, record
        bill, usage, counts = ledger.bills[-1], ledger.usages[-1], record.counts
        assert (usage.input_tokens, usage.output_tokens) == (counts.input_tokens, counts.output_tokens), record
        assert (usage.cached_tokens, usage.reasoning_tokens) == (counts.cache_read_tokens, counts.reasoning_tokens)
        assert usage.cache_write_tokens == counts.cache_write_5m_tokens + counts.cache_write_1h_tokens
        assert (usage.estimated, usage.status) == (False, "ok")
        assert usage.cost_nanos == documented_cost(record.usage), record
        assert bill.amount_nanos == usage.cost_nanos * 3 // 2
        assert bill.tokens == counts.input_tokens + counts.output_tokens
        credit = b',"credits":' + credits_of(got)
        if record.form != "bedrock_converse":
            assert got.body.replace(credit, b"") == record.body
            assert usage.provider_request_id == record.id
        assert got.body.count(credit) == record.stream
        assert not ledger.open_holds


def credits_of(got):
    """The credits that a stream told, as they stand there."""
    start = got.body.find(b'"credits":') + len(b'"credits":')
    return got.body[start : got.body.find(b"}", start) + 1]


async def test_cached_tokens_are_not_counted_twice_in_any_format(proxy, key, ledger, upstream):
    seen = Counter()
    for record in records():
        if not (record.usage or {}).get("cache_read_tokens"):
            continue
        await replayed(proxy, key, upstream, record)
        usage = ledger.usages[-1]
        apart = {name: usage.units.get(name, 0) for name in ("cache_read", "cache_write_5m", "cache_write_1h")}
        assert apart["cache_read"] == usage.cached_tokens == record.usage["cache_read_tokens"]
        assert apart["cache_write_5m"] + apart["cache_write_1h"] == usage.cache_write_tokens
        assert usage.cost_nanos == documented_cost(record.usage)
        seen[record.form] += 1
    assert set(seen) == set(WIRE_FORMS) - {"openai_embeddings"}


async def test_answer_that_failed_within_is_billed_for_what_was_said(proxy, key, ledger, upstream):
    for record in records():
        if not record.failed:
            continue
        before = len(ledger.bills)
        got = await replayed(proxy, key, upstream, record)
        assert len(ledger.bills) == before + (not record.free), record
        assert not ledger.open_holds
        if not record.free:
            assert (ledger.usages[-1].status, ledger.usages[-1].estimated) == ("failed", True), record
            assert ledger.usages[-1].output_tokens > 0
        if record.form != "bedrock_converse":
            assert got.body == record.body


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error["name"])
async def test_providers_error_charges_nothing_and_says_what_the_provider_said(  # noqa: PLR0917 (fixtures)
    proxy, key, ledger, upstream, refused, error
):
    form, body, headers = error["form"], error["body"].encode(), error.get("headers", {})
    upstream.script = [answer(body, status=error["status"], **headers)]
    owner = FORMS[form][1] == error["provider"]
    begun = ask(proxy, key, form, model=FORMS[form][0] if owner else IN_OPENAIS_FORM[error["provider"]])
    if error["meaning"] == "credential":
        refusal = await refused(begun)
        assert refusal.reason == "PROVIDER_CREDENTIAL_REFUSED"
        assert refusal.trailing["x-tollkeeper-http-status"] == "503"
        assert orjson.dumps(str(refusal)).find(body[20:40]) < 0
    else:
        got = await begun
        assert got.status == error["status"]
        assert got.headers.get("retry-after") == headers.get("retry-after", error.get("retry_after"))
        if form == "converse":
            told = got.json()["error"]
            assert {name: told[name] for name in error["shown"]} == error["shown"]
        else:
            assert got.body == body
    # Who says that it had too many calls rests for longer than a call waits here.
    tried_again = error["meaning"] == "again" and "retry-after" not in headers and error["status"] != 429
    assert len(upstream.requests) == (2 if tried_again else 1)
    assert len(ledger.holds) == len(ledger.released) == 1
    assert not ledger.settled
    assert ledger.accounts["acme"].available == 10_000_000_000
