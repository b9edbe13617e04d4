"""The request log: every call that reached the sandbox, with what was really sent and said, and exact totals."""

from __future__ import annotations

import concurrent.futures

import pytest

from deploy.local.sandbox.provider import tokens
from deploy.local.sandbox.provider.request_log import RequestLog

HELLO_TOKENS = 3 + 4 + 1


def test_records_say_what_the_answers_said(sandbox):
    unary = sandbox.chat("[[sandbox cached=3 reasoning=2]]").json()["usage"]
    sandbox.messages(stream=True)
    first, second = sandbox.usage()["records"]
    assert first | {"started_at": 0, "duration_ms": 0} == {
        "id": first["id"],
        "provider": "openai",
        "endpoint": "chat.completions",
        "model": "gpt-4o",
        "stream": False,
        "status": 200,
        "input_tokens": unary["prompt_tokens"],
        "output_tokens": unary["completion_tokens"],
        "cached": 3,
        "cache_write": 0,
        "reasoning": 2,
        "completed": True,
        "aborted_by_client": False,
        "fault": None,
        "started_at": 0,
        "duration_ms": 0,
    }
    assert second["id"] == first["id"] + 1
    assert (second["provider"], second["endpoint"], second["stream"]) == ("anthropic", "messages", True)
    assert (second["input_tokens"], second["output_tokens"]) == (HELLO_TOKENS, len(tokens.DEFAULT_TOKENS))


def test_record_id_is_in_the_answer(sandbox):
    answer = sandbox.chat()
    record = sandbox.last_record()
    assert answer.headers["x-request-id"] == f"req_sandbox_{record['id']}"
    assert answer.json()["id"] == f"chatcmpl-sandbox-{record['id']}"


def test_totals_hold_under_concurrent_calls_of_every_kind(sandbox):
    def call(number):
        match number % 4:
            case 0:
                sandbox.chat(f"[[sandbox output_tokens={number}]]")
            case 1:
                sandbox.messages(f"[[sandbox output_tokens={number}]]", stream=True)
            case 2:
                sandbox.chat("[[sandbox status=500]]")
            case _:
                sandbox.chat("[[sandbox fault=cut-stream after=2]]", stream=True)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(200)))
    sandbox.last_record(requests=200)
    report = sandbox.usage()
    answered = sum(number for number in range(200) if number % 4 < 2)
    assert report["requests"] == 200
    assert report["in_flight"] == 0
    assert report["completed"] | {"input_tokens": 0} == {
        "requests": 100,
        "input_tokens": 0,
        "output_tokens": answered,
        "cached": 0,
        "cache_write": 0,
        "reasoning": 0,
    }
    assert report["totals"]["output_tokens"] == answered + 50 * 2
    assert report["by_status"] == {"200": 150, "500": 50}
    for name, value in report["totals"].items():
        if name != "requests":
            assert value == sum(record[name] for record in report["records"])
            assert value == sum(provider[name] for provider in report["by_provider"].values())


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_is_recorded_with_what_had_gone_out(sandbox, stream):
    text = "[[sandbox output_tokens=500 delay_ms=40]]" if stream else "[[sandbox delay_ms=5000]]"
    seen = b""
    with sandbox.open_chat(text, stream=stream) as connection:
        while stream and seen.count(b"data: ") < 4:  # the opening and three tokens
            seen += connection.recv(65536)
    record = sandbox.last_record()
    assert record["aborted_by_client"]
    assert not record["completed"]
    if stream:
        assert 3 <= record["output_tokens"] < 50
        assert record["input_tokens"] == 3 + 4 + tokens.count(text)
    else:
        assert (record["status"], record["input_tokens"], record["output_tokens"]) == (0, 0, 0)
    assert sandbox.usage()["aborted_by_client"] == 1


def test_client_that_leaves_in_a_stream_without_pauses_is_noticed(sandbox):
    text = "[[sandbox output_tokens=200000]]"
    with sandbox.open_chat(text, stream=True) as connection:
        connection.recv(1000)
    record = sandbox.last_record()
    assert record["aborted_by_client"]
    assert 0 < record["output_tokens"] < 200_000


def test_requests_that_are_refused_have_reached_it(sandbox):
    sandbox.call("POST", "/v1/chat/completions", b"{")
    sandbox.chat("[[sandbox status=429]]")
    report = sandbox.usage()
    assert report["requests"] == 2
    assert report["completed"]["requests"] == 0
    assert report["by_status"] == {"401": 1, "429": 1}


def test_models_and_own_addresses_are_no_calls(sandbox):
    sandbox.call("GET", "/v1/models", authorization="Bearer k")
    sandbox.call("GET", "/healthz")
    sandbox.call("POST", "/v1/nothing", {})
    assert sandbox.usage()["requests"] == 0


def test_records_can_be_read_in_parts(sandbox):
    for _ in range(5):
        sandbox.chat()
    ids = [record["id"] for record in sandbox.usage()["records"]]
    assert [record["id"] for record in sandbox.usage("?limit=2")["records"]] == ids[-2:]
    assert [record["id"] for record in sandbox.usage(f"?after={ids[1]}")["records"]] == ids[2:]
    assert sandbox.usage("?limit=0")["records"] == []
    assert sandbox.usage("?limit=0")["totals"]["requests"] == 5
    assert sandbox.call("GET", "/sandbox/usage?limit=x").status == 400


def test_reset_starts_anew_and_leaves_out_calls_from_before(sandbox):
    sandbox.chat()
    with sandbox.open_chat("[[sandbox fault=slow-first-byte delay_ms=300]]") as connection:
        while not sandbox.usage()["in_flight"]:
            pass
        assert sandbox.call("DELETE", "/sandbox/usage").status == 204
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        report = sandbox.usage()
    assert (report["requests"], report["in_flight"], report["records"]) == (0, 0, [])
    assert report["totals"]["requests"] == 0


def test_memory_is_bounded_and_totals_stay_exact():
    log = RequestLog(kept=10)
    for number in range(25):
        call = log.open()
        call.provider, call.input_tokens, call.completed = "openai", number, True
        log.close(call)
    report = log.report()
    assert [record["input_tokens"] for record in report["records"]] == list(range(15, 25))
    assert report["records_dropped"] == 15
    assert report["totals"]["requests"] == report["requests"] == 25
    assert report["totals"]["input_tokens"] == sum(range(25))


def test_model_names_are_cut_to_a_bounded_length(sandbox):
    sandbox.chat(model="m" * 10_000)
    assert len(sandbox.last_record()["model"]) == 200
