"""Faults on demand: each one happens on the wire as it is described, however it was asked for."""

from __future__ import annotations

import contextlib
import itertools
import json
import time

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.sandbox.provider import behaviour, tokens
from deploy.local.sandbox.provider.behaviour import DirectiveError

STREAMS = {
    "openai": ("/v1/chat/completions", {"model": "gpt-4o", "stream": True}),
    "anthropic": ("/v1/messages", {"model": "claude-3-haiku", "max_tokens": 99, "stream": True}),
}


def said(answer):
    """The text of a chat stream, as far as it came."""
    chunks = [event for event in answer.events() if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_cut_stream_ends_the_connection_after_so_many_chunks(sandbox):
    for after in (0, 1, 3):
        answer = sandbox.chat(f"[[sandbox fault=cut-stream after={after}]]", stream=True)
        assert answer.broken
        assert answer.status == 200
        assert said(answer) == "".join(tokens.DEFAULT_TOKENS[:after])
        assert answer.body.endswith(b"\n\n")  # between two events


def test_cut_stream_after_more_chunks_than_there_are_cuts_nothing(sandbox):
    answer = sandbox.chat("[[sandbox fault=cut-stream after=99]]", stream=True)
    assert not answer.broken
    assert answer.events()[-1] == "[DONE]"


def test_cut_event_ends_the_connection_inside_an_event(sandbox):
    answer = sandbox.chat("[[sandbox fault=cut-event after=2]]", stream=True)
    assert answer.broken
    assert not answer.body.endswith(b"\n\n")


def test_cut_unary_answer_ends_inside_its_body(sandbox):
    answer = sandbox.chat("[[sandbox fault=cut-stream]]")
    assert answer.broken
    assert 0 < len(answer.body) < int(answer.headers["content-length"])


@pytest.mark.parametrize("stream", [False, True])
def test_reset_drops_the_connection_before_the_first_byte(sandbox, stream):
    with sandbox.open_chat("[[sandbox fault=reset]]", stream=stream) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)  # an orderly close would give no bytes here, and no error
    record = sandbox.last_record()
    assert (record["status"], record["input_tokens"], record["completed"]) == (0, 0, False)


def test_sdk_sees_a_reset_as_a_connection_error(sandbox):
    message = [{"role": "user", "content": "[[sandbox fault=reset]]"}]
    with (
        openai.OpenAI(base_url=f"{sandbox.url}/v1", api_key="k", max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.chat.completions.create(model="gpt-4o", messages=message)


@pytest.mark.parametrize("stream", [False, True])
def test_hang_says_nothing_until_the_client_gives_up(sandbox, stream):
    with sandbox.open_chat("[[sandbox fault=hang]]", stream=stream) as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    record = sandbox.last_record()
    assert record["aborted_by_client"]
    assert record["duration_ms"] > 290  # the two processes read their clocks at other moments
    assert (record["status"], record["output_tokens"]) == (0, 0)


def test_hang_in_the_middle_keeps_what_was_said(sandbox):
    seen = b""
    with sandbox.open_chat("[[sandbox fault=hang after=2]]", stream=True) as connection:
        while seen.count(b"data: ") < 3:  # the opening and two tokens
            seen += connection.recv(65536)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    record = sandbox.last_record()
    assert (record["status"], record["output_tokens"], record["aborted_by_client"]) == (200, 2, True)


def test_slow_first_byte_delays_the_start_only(sandbox):
    started = time.monotonic()
    answer = sandbox.chat("[[sandbox fault=slow-first-byte delay_ms=300]]", stream=True)
    assert 0.3 <= time.monotonic() - started < 2
    assert answer.events()[-1] == "[DONE]"


def test_slow_chunks_come_one_by_one(sandbox):
    text = "[[sandbox fault=slow-chunks delay_ms=60 output_tokens=5]]"
    with sandbox.open_chat(text, stream=True) as connection, connection.makefile("rb") as reader:
        times = []
        while b"[DONE]" not in (line := reader.readline()):
            if b'"content":"' in line and b'"content":""' not in line:
                times.append(time.monotonic())
    assert len(times) == 5
    assert all(later - earlier >= 0.04 for earlier, later in itertools.pairwise(times))


def test_delay_slows_a_unary_answer(sandbox):
    started = time.monotonic()
    assert sandbox.chat("[[sandbox delay_ms=200]]").status == 200
    assert time.monotonic() - started >= 0.2


def test_no_usage_leaves_the_usage_out_everywhere(sandbox):
    text = "[[sandbox usage=none]]"
    assert "usage" not in sandbox.chat(text).json()
    streamed = sandbox.chat(text, stream=True, stream_options={"include_usage": True})
    assert streamed.events()[-1] == "[DONE]"
    assert all(not event.get("usage") for event in streamed.events()[:-1])
    assert "usage" not in sandbox.messages(text).json()
    messages = sandbox.messages(text, stream=True).events()
    assert all("usage" not in event and "usage" not in event.get("message", {}) for event in messages)
    gemini = {"contents": [{"parts": [{"text": text}]}]}
    for method in ("generateContent", "streamGenerateContent?alt=sse"):
        answer = sandbox.call("POST", f"/v1beta/models/gemini-1.5-pro:{method}", gemini, x_goog_api_key="k")
        assert answer.status == 200
        assert b"usageMetadata" not in answer.body
    assert sandbox.usage()["completed"]["output_tokens"] == 6 * len(tokens.DEFAULT_TOKENS)


@pytest.mark.parametrize("stream", [False, True])
def test_ignored_cap_gives_more_than_was_allowed(sandbox, stream):
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    for words, expected in (("fault=ignore-cap", 20), ("fault=ignore-cap output_tokens=77", 77)):
        answer = sandbox.chat(f"[[sandbox {words}]]", max_tokens=10, **options)
        usage = answer.events()[-2]["usage"] if stream else answer.json()["usage"]
        text = said(answer) if stream else answer.json()["choices"][0]["message"]["content"]
        assert usage["completion_tokens"] == tokens.count(text) == expected


def http_chunks(connection):
    """The HTTP chunks of an answer exactly as they were framed."""
    with connection, connection.makefile("rb") as reader:
        while reader.readline() != b"\r\n":
            pass
        chunks = []
        while length := int(reader.readline(), 16):
            chunks.append(reader.read(length))
            reader.readline()
    return chunks


@pytest.mark.parametrize("stream", [False, True])
def test_odd_chunks_split_the_bytes_anywhere_and_lose_none(sandbox, stream):
    pieces = http_chunks(sandbox.open_chat("[[sandbox fault=odd-chunks]]", stream=stream))
    whole = b"".join(pieces)
    assert len(pieces) > 10
    assert [len(piece) for piece in pieces[:6]] == [1, 2, 3, 5, 7, 11]
    if stream:
        assert sum(b"\n\n" in piece and not piece.endswith(b"\n\n") for piece in pieces) > 3
        assert whole.count(b"data: ") == len(tokens.DEFAULT_TOKENS) + 3
        assert whole.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(whole)["choices"][0]["message"]["content"] == tokens.DEFAULT_ANSWER


def test_sdk_reads_odd_chunks(sandbox):
    messages = [{"role": "user", "content": "[[sandbox fault=odd-chunks]]"}]
    with (
        openai.OpenAI(base_url=f"{sandbox.url}/v1", api_key="k", max_retries=0) as client,
        client.chat.completions.stream(model="gpt-4o", messages=messages) as stream,
    ):
        assert stream.get_final_completion().choices[0].message.content == tokens.DEFAULT_ANSWER


def test_stream_error_comes_inside_the_stream_and_refuses_a_unary_call(sandbox):
    answer = sandbox.chat("[[sandbox fault=stream-error after=2]]", stream=True)
    assert not answer.broken
    assert answer.events()[-1]["error"]["type"] == "server_error"
    assert said_before_error(answer) == "".join(tokens.DEFAULT_TOKENS[:2])
    assert sandbox.chat("[[sandbox fault=stream-error status=503]]").status == 503


def said_before_error(answer):
    chunks = answer.events()[:-1]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_chunk_tokens_makes_larger_chunks(sandbox):
    answer = sandbox.chat("[[sandbox output_tokens=25 chunk_tokens=10]]", stream=True)
    pieces = [event["choices"][0]["delta"].get("content") for event in answer.events()[:-1]]
    assert [tokens.count(piece) for piece in pieces if piece] == [10, 10, 5]


@pytest.mark.parametrize("where", ["header", "message", "armed"])
def test_faults_are_asked_for_by_header_message_or_arming(sandbox, where):
    if where == "armed":
        sandbox.arm("status=503")
    headers = {"x_sandbox_fault": "status=503"} if where == "header" else None
    text = "[[sandbox status=503]]" if where == "message" else "hello"
    assert sandbox.chat(text, headers=headers).status == 503
    assert sandbox.last_record()["fault"] == "status-503"


def test_only_the_last_user_message_directs(sandbox):
    history = [
        {"role": "user", "content": "[[sandbox status=500]]"},
        {"role": "assistant", "content": "[[sandbox status=501]]"},
        {"role": "user", "content": [{"type": "text", "text": "x [[sandbox output_tokens=2]] y"}]},
        {"role": "assistant", "content": "[[sandbox status=502]]"},
    ]
    answer = sandbox.chat(messages=history)
    assert answer.json()["usage"]["completion_tokens"] == 2


def test_message_wins_over_header_wins_over_armed_fault(sandbox):
    sandbox.arm("output_tokens=1 cached=1 reasoning=1")
    answer = sandbox.chat(
        "[[sandbox output_tokens=3]]", headers={"x_sandbox_fault": "output_tokens=2 cached=2"}
    ).json()["usage"]
    assert answer["completion_tokens"] == 3
    assert answer["prompt_tokens_details"]["cached_tokens"] == 2
    assert answer["completion_tokens_details"]["reasoning_tokens"] == 1


def test_armed_fault_strikes_the_next_n_matching_requests(sandbox):
    armed = sandbox.arm({"status": 429, "retry_after": 3}, match={"provider": "openai", "model": "gpt-4o"}, count=2)
    assert (armed.status, armed.json()["remaining"]) == (201, 2)
    assert sandbox.messages().status == 200
    assert sandbox.chat(model="gpt-4-turbo").status == 200
    assert [sandbox.chat().status for _ in range(3)] == [429, 429, 200]
    assert sandbox.call("GET", "/sandbox/faults").json()["faults"] == []


def test_armed_fault_matches_key_and_streaming_and_shows_no_key(sandbox):
    sandbox.arm("status=500", match={"api_key": "first-key-1234", "stream": True}, count=None)
    (listed,) = sandbox.call("GET", "/sandbox/faults").json()["faults"]
    assert listed["match"]["api_key"] == "…1234"

    def status(key, *, stream):
        body = {"model": "gpt-4o", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
        return sandbox.call("POST", "/v1/chat/completions", body, authorization=f"Bearer {key}").status

    assert status("first-key-1234", stream=False) == 200
    assert status("other", stream=True) == 200
    assert [status("first-key-1234", stream=True) for _ in range(3)] == [500, 500, 500]
    assert sandbox.call("DELETE", f"/sandbox/faults/{listed['id']}").status == 204
    assert sandbox.call("DELETE", f"/sandbox/faults/{listed['id']}").status == 404
    assert status("first-key-1234", stream=True) == 200


def test_armed_fault_strikes_every_nth(sandbox):
    sandbox.arm("status=500", every=3, count=2)
    assert [sandbox.chat().status for _ in range(9)] == [200, 200, 500, 200, 200, 500, 200, 200, 200]


@pytest.mark.parametrize(
    "wish",
    [
        b"{",
        [],
        {},
        {"fault": ""},
        {"fault": "sticky"},
        {"fault": "status=42"},
        {"fault": "hang", "count": 0},
        {"fault": "hang", "count": True},
        {"fault": "hang", "match": {"path": "x"}},
        {"fault": "hang", "match": {"provider": "acme"}},
        {"fault": "hang", "match": {"stream": "yes"}},
        {"fault": "hang", "when": "now"},
    ],
)
def test_a_fault_that_cannot_be_armed_is_refused_with_a_reason(sandbox, wish):
    answer = sandbox.call("POST", "/sandbox/faults", wish)
    assert answer.status == 400
    assert answer.json()["error"]
    assert sandbox.call("GET", "/sandbox/faults").json()["faults"] == []


@pytest.mark.parametrize(
    "words",
    [
        "speed=fast",
        "sticky",
        "fault=sticky",
        "output_tokens=many",
        "output_tokens=-1",
        "status=200",
        "usage=some",
        "tool=x",
    ],
)
def test_a_directive_not_understood_is_refused_not_ignored(sandbox, words):
    answer = sandbox.chat(f"[[sandbox {words}]]")
    assert answer.status == 400
    assert answer.json()["error"]["message"].startswith("sandbox: ")


@given(st.text())
def test_no_text_breaks_the_directive_reader(text):
    for read in (behaviour.parse_message, behaviour.parse):
        with contextlib.suppress(DirectiveError):
            behaviour.build(read(text))


@pytest.mark.parametrize("provider", STREAMS)
def test_cut_counts_what_went_out_in_any_format(sandbox, provider):
    path, body = STREAMS[provider]
    message = [{"role": "user", "content": "[[sandbox fault=cut-stream after=4 reasoning=6]]"}]
    headers = {"x_api_key": "k", "anthropic_version": "2023-06-01"} if provider == "anthropic" else {}
    answer = sandbox.call("POST", path, body | {"messages": message}, authorization="Bearer k", **headers)
    assert answer.broken
    record = sandbox.last_record()
    assert (record["output_tokens"], record["reasoning"], record["completed"]) == (10, 6, False)
    assert record["fault"] == "cut-stream"
    assert not record["aborted_by_client"]
