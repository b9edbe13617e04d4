"""The way to providers: what reaches them, how often, with which credential, and what comes of their failures."""

import asyncio
import gzip
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog
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
    stream,
    ways,
)
from pyreqwest.exceptions import PyreqwestError

from services.proxy.errors import (
    ProviderCredentialRefused,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from services.proxy.upstream import Outgoing, ProviderRefusalError, attempt, failure, path_segment

ROOT = Path(__file__).parents[3]
GOOD, SECRET = "sk-good", "aws-secret"
REFUSAL_HEAD = b"HTTP/1.1 400 X\r\ncontent-type: application/json\r\ncontent-length: 2000000\r\n\r\n"
BROKEN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"


@pytest.fixture(scope="module")
def strict_url():
    """A sandbox provider that takes one key, and checks AWS signatures."""
    arguments = ["--api-key", GOOD, "--aws-secret-key", SECRET, "--listen", "127.0.0.1:0", "--grace-seconds", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.local.sandbox.provider", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield re.search(r"http://\S+", process.stdout.readline())[0]
    process.terminate()
    process.wait(10)
    process.stdout.close()


@pytest.fixture
async def upstreams():
    async with ways() as make:
        yield make


@pytest.fixture
def every(strict_url, upstreams):
    """The way to all five providers of the strict sandbox, with `key` and `secret`."""

    def make(key=GOOD, secret=SECRET):
        return upstreams(
            strict_url,
            openai_api_key=key,
            anthropic_base_url=f"{strict_url}/anthropic/v1",
            anthropic_api_key=key,
            google_base_url=f"{strict_url}/google/v1beta/openai",
            google_native_base_url=f"{strict_url}/google/v1beta",
            google_api_key=key,
            huggingface_base_url=f"{strict_url}/huggingface/v1",
            huggingface_api_key=key,
            bedrock_base_url=f"{strict_url}/bedrock",
            bedrock_access_key_id=key,
            bedrock_secret_access_key=secret,
            bedrock_region="eu-west-1",
        )

    return make


# ------------------------------------------------------------------------------------------------------ forms, headers

USER = [{"role": "user", "content": "Hello"}]
CONVERSE = {"messages": [{"role": "user", "content": [{"text": "Hello"}]}]}
GEMINI = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
ARN = "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.anthropic.claude-3-haiku-v1:0"
FORMS = [
    ("openai", "chat", "chat/completions", {"model": "gpt-4o", "messages": USER}),
    ("openai", "responses", "responses", {"model": "gpt-4o", "input": "Hello"}),
    ("openai", "embeddings", "embeddings", {"model": "text-embedding-3-small", "input": "Hello"}),
    ("anthropic", "chat", "chat/completions", {"model": "claude-3-haiku", "messages": USER}),
    ("anthropic", "messages", "messages", {"model": "claude-3-haiku", "max_tokens": 99, "messages": USER}),
    ("google", "chat", "chat/completions", {"model": "gemini-1.5-pro", "messages": USER}),
    ("google", "embeddings", "embeddings", {"model": "text-embedding-004", "input": "Hello"}),
    ("google", "gemini", "models/gemini-1.5-pro:generateContent", GEMINI),
    ("huggingface", "chat", "chat/completions", {"model": "meta-llama/Llama-3", "messages": USER}),
    ("bedrock", "converse", f"model/{path_segment('anthropic.claude-3-haiku-v1:0')}/converse", CONVERSE),
    ("bedrock", "converse", f"model/{path_segment(ARN)}/converse", CONVERSE),
]
STREAMS = [
    ("openai", "chat", "chat/completions", FORMS[0][3] | {"stream": True}),
    ("anthropic", "messages", "messages", FORMS[4][3] | {"stream": True}),
    ("google", "gemini", "models/gemini-1.5-pro:streamGenerateContent?alt=sse", GEMINI),
    ("bedrock", "converse", f"model/{path_segment(ARN)}/converse-stream", CONVERSE),
]


@pytest.mark.parametrize(("provider", "form", "path", "body"), FORMS, ids=lambda value: str(value)[:40])
async def test_each_form_is_answered_with_the_operators_credential(every, provider, form, path, body):
    answered = await read(every(), Outgoing(form, path, json.dumps(body).encode(), stream=False, model="m"), provider)
    assert json.loads(answered)


@pytest.mark.parametrize(("provider", "form", "path", "body"), STREAMS, ids=lambda value: str(value)[:40])
async def test_each_stream_is_answered_as_events(every, provider, form, path, body):
    upstreams = every()
    outgoing = Outgoing(form, path, json.dumps(body).encode(), stream=True, model="m")
    async with upstreams.post(upstreams.provider(provider), outgoing, deadline=time.monotonic() + 20) as got:
        assert (got.is_events, got.is_event_stream_aws) == (provider != "bedrock", provider == "bedrock")
        assert len([piece async for piece in got.pieces()]) >= 1


@pytest.mark.parametrize(("provider", "form", "path", "body"), FORMS, ids=lambda value: str(value)[:40])
async def test_refused_credential_is_the_operators_matter_and_rests(every, provider, form, path, body):
    upstreams = every(key="sk-wrong")
    outgoing = Outgoing(form, path, json.dumps(body).encode(), stream=False, model="m")
    sent = attempts("rejected", provider)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            refusal = await refused(ProviderCredentialRefused, read(upstreams, outgoing, provider))
            assert "key" not in refusal.message
    assert attempts("rejected", provider) == sent + 1
    assert [(log["provider"], log["credential"]) for log in logs if log["log_level"] == "error"] == [(provider, 1)]
    assert "sk-wrong" not in str(logs)


async def test_wrong_aws_secret_is_a_refused_credential(every):
    outgoing = Outgoing("converse", "model/a/converse", json.dumps(CONVERSE).encode(), stream=False, model="m")
    await refused(ProviderCredentialRefused, read(every(secret="wrong"), outgoing, "bedrock"))


async def test_client_adds_headers_and_replaces_none_of_ours(upstreams):
    async with scripted(WHOLE) as provider:
        way = upstreams(
            provider.url,
            anthropic_base_url=provider.url,
            anthropic_api_key="ours",
            anthropic_headers={"X-Team": "ours", "Anthropic-Beta": "ours"},
        )
        headers = tuple(
            (name, "theirs")
            for name in ("Authorization", "X-Api-Key", "Host", "Content-Length", "Content-Type", "x-team", "cookie")
        )
        passed = (("anthropic-beta", "theirs"), ("anthropic-feature", "a"), ("bad", "a\r\nhost: b"))
        await read(
            way, Outgoing("messages", "messages", b"{}", stream=False, headers=headers + passed, model="m"), "anthropic"
        )
        versioned = (("Anthropic-Version", "2024-01-01"),)
        await read(
            way, Outgoing("messages", "messages", b"{}", stream=False, headers=versioned, model="m"), "anthropic"
        )
    first, second = provider.requests
    assert first.line == "POST /messages HTTP/1.1"
    assert first.values("authorization") == first.values("cookie") == first.values("bad") == []
    assert first.values("x-api-key") == first.values("x-team") == first.values("anthropic-beta") == ["ours"]
    assert first.values("host") == [f"127.0.0.1:{provider.port}"]
    assert first.values("content-length") == ["2"]
    assert first.values("content-type") == ["application/json"]
    assert first.values("anthropic-feature") == ["a"]
    assert first.values("anthropic-version") == ["2023-06-01"]
    assert second.values("anthropic-version") == ["2024-01-01"]


@pytest.mark.parametrize("path", ["models/../../admin", "models/%2e%2e/a", "models/a b", "models/a#b", "models/ä"])
async def test_path_that_would_not_be_sent_as_it_is_is_never_sent(upstreams, path):
    async with scripted(WHOLE) as provider:
        with pytest.raises(ValueError, match="not a path as it is sent"):
            await read(upstreams(provider.url), Outgoing("chat", path, b"{}", stream=False, model="m"))
        assert not provider.requests


# Seconds in which the client's own thread has given back the connection of a call that is over. Nothing tells when.
GIVEN_BACK = 0.05


async def test_connections_are_used_again(upstreams):
    async with scripted(WHOLE) as provider:
        way = upstreams(provider.url)
        for _ in range(10):
            await read(way, chat())
            await asyncio.sleep(GIVEN_BACK)
        assert (len(provider.requests), provider.connections) == (10, 1)


LONG = b'{"said": "' + b"a" * 300_000 + b'"}'
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    "steps",
    [
        [answer(LONG)],
        [answer(LONG)[:200], 0.02, answer(LONG)[200:-1], 0.02, LONG[-1:]],
        [answer(gzip.compress(LONG), content_encoding="gzip")],
        [JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n", chunk(LONG[:9]), 0.02, chunk(LONG[9:]) + b"0\r\n\r\n"],
    ],
    ids=["at once", "in pieces", "compressed", "in chunks"],
)
async def test_answer_comes_whole_however_its_end_is_told_and_its_connection_is_used_again(upstreams, steps):
    async with scripted(steps) as provider:
        way = upstreams(provider.url)
        for _ in range(3):
            assert await read(way, chat()) == LONG
            await asyncio.sleep(GIVEN_BACK)
        assert provider.connections == 1


async def test_provider_of_the_file_is_called_with_its_headers(upstreams, tmp_path):
    async with scripted(WHOLE) as provider:
        file = tmp_path / "providers.toml"
        file.write_text(
            f'[[providers]]\nname = "other"\nbase_url = "{provider.url}/api"\n'
            'api_keys = ["k"]\nheaders = { X-A = "b" }\n'
        )
        way = upstreams(provider.url, providers_file=file)
        assert way.names == {"openai", "other"}
        assert way.speaking(frozenset({"responses"})) == {"openai"}
        await read(way, chat(), "other")
    (seen,) = provider.requests
    assert seen.line == "POST /api/chat/completions HTTP/1.1"
    assert (seen.values("authorization"), seen.values("x-a")) == (["Bearer k"], ["b"])


# ------------------------------------------------------------------------------------------------------------ retries


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [*(f"status={n}" for n in (408, 429, 500, 502, 503, 504, 529)), "fault=reset"])
async def test_what_may_pass_is_tried_again_before_the_first_byte(upstreams, provider, fault, stream):
    await provider.arm(fault)
    assert b"chatcmpl-sandbox" in await read(upstreams(provider.url), chat(stream=stream))
    assert await provider.calls() == 2


@pytest.mark.parametrize("status", [400, 404, 405, 409, 413, 422, 501])
async def test_what_is_about_the_request_is_passed_on_and_never_tried_again(upstreams, provider, status):
    await provider.arm(f"status={status}", count=5)
    refusal = await refused(ProviderRefusalError, read(upstreams(provider.url), chat()))
    assert refusal.status == status
    assert json.loads(refusal.body)["error"]["message"]
    assert await provider.calls() == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_last_refusal_is_passed_on_when_attempts_are_used_up(upstreams, provider, status):
    await provider.arm(f"status={status}", count=5)
    refusal = await refused(ProviderRefusalError, read(upstreams(provider.url, upstream_attempts=3), chat()))
    assert (refusal.status, refusal.retry_after) == (status, "")
    assert json.loads(refusal.body)["error"]["message"]
    assert await provider.calls() == 3


@pytest.mark.parametrize(
    "steps",
    [
        [REFUSAL_HEAD + b'{"error":', HANG],
        [REFUSAL_HEAD + b'{"error":', RESET],
        [REFUSAL_HEAD + b"x" * 2_000_000],
    ],
    ids=["begun", "cut", "too large"],
)
async def test_refusal_whose_words_do_not_come_is_one_by_its_status(upstreams, monkeypatch, steps):
    monkeypatch.setattr(attempt, "_ERROR_WORDS_SECONDS", 0.2)
    async with scripted(steps) as provider:
        refusal = await refused(ProviderRefusalError, read(upstreams(provider.url), chat()))
        assert (refusal.status, refusal.body) == (400, b"")
        assert len(provider.requests) == 1  # what is about the request is not tried again


async def test_provider_that_is_not_there_is_unavailable(upstreams):
    refusal = await refused(ProviderUnavailable, read(upstreams("http://127.0.0.1:1"), chat()))
    assert refusal.retry_after_seconds == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [b"", STREAM_HEAD], ids=["silent", "headers"])
async def test_silence_before_the_first_byte_is_tried_again_and_its_connection_closed(upstreams, begun, stream):
    async with scripted([begun, HANG], WHOLE) as provider:
        way = upstreams(provider.url, upstream_first_byte_seconds=0.3, upstream_idle_seconds=0.3)
        assert await read(way, chat(stream=stream)) == b'{"ok": true}'
        assert len(provider.requests) == 2
        await asyncio.wait_for(provider.closed.wait(), 5)


async def test_provider_that_stays_silent_is_a_timeout(upstreams):
    async with scripted(HANG) as provider:
        way = upstreams(provider.url, upstream_first_byte_seconds=0.1, upstream_idle_seconds=0.1, upstream_attempts=2)
        await refused(ProviderTimeout, read(way, chat()))
        assert len(provider.requests) == 2


@pytest.mark.parametrize("begun", [STREAM_HEAD, STREAM_HEAD + b"0\r\n\r\n"], ids=["cut", "empty"])
async def test_stream_that_ends_before_its_first_byte_is_tried_again(upstreams, begun):
    async with scripted([begun, b""], stream(b"data: 1\n\n")) as provider:
        assert await read(upstreams(provider.url), chat(stream=True)) == b"data: 1\n\n"
        assert len(provider.requests) == 2


@pytest.mark.parametrize(
    "begun", [STREAM_HEAD + chunk(b"data: 1\n\n"), BROKEN_HEAD + b'{"half"'], ids=["stream", "unary"]
)
async def test_nothing_is_sent_again_after_its_first_byte(upstreams, begun):
    async with scripted([begun, b""], WHOLE) as provider:
        with pytest.raises(PyreqwestError):
            await read(upstreams(provider.url), chat(stream=begun.startswith(STREAM_HEAD)))
        assert len(provider.requests) == 1


async def test_stream_that_falls_silent_is_cut_after_the_idle_time(upstreams):
    async with scripted([STREAM_HEAD + chunk(b"data: 1\n\n"), HANG]) as provider:
        way = upstreams(provider.url, upstream_idle_seconds=0.2, upstream_first_byte_seconds=60)
        with pytest.raises(PyreqwestError) as caught:
            await asyncio.wait_for(read(way, chat(stream=True), seconds=60), 20)
        assert isinstance(failure("openai", caught.value), ProviderTimeout)
        await asyncio.wait_for(provider.closed.wait(), 5)


async def test_redirect_is_not_followed_and_not_shown(upstreams):
    async with scripted(answer(b"", status=302, location="http://127.0.0.1:1/"), WHOLE) as provider:
        await refused(ProviderUnavailable, read(upstreams(provider.url), chat()))
        assert len(provider.requests) == 1


# ----------------------------------------------------------------------------------------------------------- deadlines


async def test_no_attempt_begins_after_the_deadline(upstreams):
    async with scripted(answer(status=503), WHOLE) as provider:
        way = upstreams(provider.url, upstream_retry_after_seconds=60)
        await refused(ProviderTimeout, read(way, chat(), seconds=0))
        assert not provider.requests


async def test_wait_that_would_pass_the_deadline_is_not_begun(upstreams):
    async with scripted(answer(status=503, retry_after=5), WHOLE) as provider:
        way = upstreams(provider.url, upstream_retry_after_seconds=60)
        refusal = await refused(ProviderRefusalError, read(way, chat(), seconds=4))
        assert (refusal.status, refusal.retry_after) == (503, "5")
        assert len(provider.requests) == 1


@pytest.mark.parametrize("begun", [b"", STREAM_HEAD + chunk(b"data: 1\n\n")], ids=["before", "within"])
async def test_answer_ends_at_the_deadline(upstreams, begun):
    async with scripted([begun, HANG]) as provider:
        with pytest.raises((ProviderTimeout, PyreqwestError)):
            await read(upstreams(provider.url), chat(stream=True), seconds=0.3)
        assert len(provider.requests) == 1
        await asyncio.wait_for(provider.closed.wait(), 5)


# ---------------------------------------------------------------------------------------------------------- Retry-After


async def test_retry_after_is_waited_for(upstreams):
    async with scripted(answer(status=429, retry_after="0.5"), WHOLE) as provider:
        assert await read(upstreams(provider.url), chat()) == b'{"ok": true}'
    first, second = provider.requests
    assert second.at - first.at >= 0.5


async def test_retry_after_above_the_limit_is_passed_on_and_nobody_calls_while_it_runs(upstreams, provider):
    await provider.arm("status=429 retry_after=30")
    way = upstreams(provider.url, upstream_retry_after_seconds=5)
    refusal = await refused(ProviderRefusalError, read(way, chat()))
    assert (refusal.status, refusal.retry_after) == (429, "30")
    limited = await refused(ProviderRateLimited, read(way, chat()))
    assert 29 <= limited.retry_after_seconds <= 30
    assert await provider.calls() == 1


async def test_failure_with_a_retry_after_is_the_whole_credentials(upstreams, provider):
    await provider.arm("status=503 retry_after=30")
    way = upstreams(provider.url)
    await refused(ProviderRefusalError, read(way, chat()))
    unavailable = await refused(ProviderUnavailable, read(way, chat(model="gpt-4o-mini")))
    assert 29 <= unavailable.retry_after_seconds <= 30
    assert await provider.calls() == 1


async def test_call_that_is_cancelled_reads_no_further_however_quickly_pieces_come(upstreams):
    pieces = [part for _ in range(30_000) for part in (chunk(b"data: {}\n\n"), 0.0005)]
    async with scripted([STREAM_HEAD, *pieces]) as provider:
        way = upstreams(provider.url)
        begun = asyncio.Semaphore(0)

        async def reading():
            outgoing = chat(stream=True)
            async with way.post(way.provider("openai"), outgoing, deadline=time.monotonic() + 60) as got:
                begun.release()
                async for _ in got.pieces():
                    pass

        for _ in range(3):
            tasks = [asyncio.create_task(reading()) for _ in range(30)]
            for _ in tasks:
                await begun.acquire()
            for task in tasks:
                task.cancel()
            _, reads_on = await asyncio.wait(tasks, timeout=5)
            assert not reads_on
            assert all(task.cancelled() for task in tasks)
