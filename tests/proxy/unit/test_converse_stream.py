"""ConverseStream as chunks of a chat completion: any split the same, cuts noticed, errors as OpenAI has them."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from proxy_converse import HEAD, chunks_of, delta, deltas, event, stop

from deploy.local.sandbox.provider import eventstream
from services.proxy import converse
from services.proxy.converse import EventStreamError
from services.proxy.converse import stream as stream_module
from services.rating import accounting

USAGE = {
    "inputTokens": 10,
    "outputTokens": 20,
    "totalTokens": 630,
    "cacheReadInputTokens": 100,
    "cacheWriteInputTokens": 500,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 200}, {"ttl": "5m", "inputTokens": 300}],
}
TEXT = (
    event("messageStart", role="assistant", p="abcd")
    + delta(0, text="Hel")
    + delta(0, text="lo €")
    + stop(0)
    + event("messageStop", stopReason="end_turn")
    + event("metadata", usage=USAGE, metrics={"latencyMs": 1}, serviceTier={"type": "priority"})
)
# Claude thinking, saying something, and calling two tools, the second without parameters.
TOOLS = (
    event("messageStart", role="assistant")
    + delta(0, reasoningContent={"text": "Weather "})
    + delta(0, reasoningContent={"text": "is asked."})
    + delta(0, reasoningContent={"signature": "c2ln"})
    + stop(0)
    + delta(1, reasoningContent={"redactedContent": "cmVk"})
    + stop(1)
    + delta(2, text="I look.")
    + stop(2)
    + event("contentBlockStart", contentBlockIndex=3, start={"toolUse": {"toolUseId": "tooluse_1", "name": "weather"}})
    + delta(3, toolUse={"input": ""})
    + delta(3, toolUse={"input": '{"city":'})
    + delta(3, toolUse={"input": '"Bonn"}'})
    + stop(3)
    + event("contentBlockStart", contentBlockIndex=4, start={"toolUse": {"toolUseId": "tooluse_2", "name": "now"}})
    + delta(4, toolUse={"input": ""})
    + stop(4)
    + event("messageStop", stopReason="tool_use")
    + event("metadata", usage={"inputTokens": 5, "outputTokens": 7, "totalTokens": 12}, metrics={"latencyMs": 1})
)
GUARDED = (
    event("messageStart", role="assistant")
    + delta(0, text="I cannot say.")
    + stop(0)
    + event("messageStop", stopReason="guardrail_intervened")
    + event(
        "metadata",
        usage={"inputTokens": 0, "outputTokens": 0, "totalTokens": 0},
        metrics={"latencyMs": 1},
        trace={"guardrail": {"actionReason": "Guardrail blocked."}},
    )
)
STREAMS = [TEXT, TOOLS, GUARDED]


def test_text_comes_as_it_is_said_with_the_usage_last():
    chunks, stream = chunks_of(TEXT)
    assert deltas(chunks) == [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo €"}, {}]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1] == {
        "id": HEAD["identifier"],
        "object": "chat.completion.chunk",
        "created": HEAD["created"],
        "model": "claude",
        "choices": [],
        "service_tier": "priority",
        "usage": {
            "prompt_tokens": 610,
            "completion_tokens": 20,
            "total_tokens": 630,
            "prompt_tokens_details": {
                "cached_tokens": 100,
                "cache_write_tokens": 500,
                "cache_write_tokens_details": {"ttl_5m_tokens": 300, "ttl_1h_tokens": 200},
            },
        },
    }
    assert stream.usage == USAGE
    assert stream.finished
    assert accounting.openai_chat(chunks[-1]["usage"]) == accounting.bedrock_converse(stream.usage)


def test_tool_calls_are_numbered_among_themselves_and_have_json_arguments():
    chunks, _ = chunks_of(TOOLS)
    calls = [call for said in deltas(chunks) for call in said.get("tool_calls", ())]
    begun = [(call["index"], call["id"], call["function"]["name"]) for call in calls if "id" in call]
    assert begun == [(0, "tooluse_1", "weather"), (1, "tooluse_2", "now")]
    arguments = ["".join(c["function"]["arguments"] for c in calls if c["index"] == number) for number in (0, 1)]
    assert [orjson.loads(text) for text in arguments] == [{"city": "Bonn"}, {}]
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_thoughts_come_as_text_and_then_whole_with_their_signature():
    said = deltas(chunks_of(TOOLS)[0])
    assert [d["reasoning_content"] for d in said if "reasoning_content" in d] == ["Weather ", "is asked."]
    assert [block for d in said for block in d.get("reasoning_blocks", ())] == [
        {"index": 0, "reasoningText": {"text": "Weather is asked.", "signature": "c2ln"}},
        {"index": 1, "redactedContent": "cmVk"},
    ]


def test_guardrail_ends_the_answer_as_a_content_filter_and_its_trace_is_passed_on():
    chunks, _ = chunks_of(GUARDED)
    assert chunks[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert chunks[-2]["choices"][0]["stop_reason"] == "guardrail_intervened"
    assert chunks[-1]["trace"] == {"guardrail": {"actionReason": "Guardrail blocked."}}


@pytest.mark.parametrize("raw", STREAMS, ids=["text", "tools", "guarded"])
def test_every_chunk_is_one_of_openais(raw):
    for chunk in chunks_of(raw)[0]:
        ChatCompletionChunk.model_validate(chunk, strict=True)


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 3000)))
def test_any_split_gives_the_same_chunks(raw, split):
    whole, _ = chunks_of(raw)
    split_up, stream = chunks_of(raw, split)
    assert split_up == whole
    assert stream.finished


def test_every_byte_by_itself_gives_the_same_chunks():
    assert chunks_of(TOOLS, range(len(TOOLS)))[0] == chunks_of(TOOLS)[0]


@given(st.sampled_from(STREAMS), st.data())
def test_a_stream_that_is_cut_is_not_finished(raw, data):
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    whole, _ = chunks_of(raw)
    chunks, stream = chunks_of(cut)
    assert not stream.finished
    assert chunks == whole[: len(chunks)]
    assert stream.usage is None


@given(st.sampled_from(STREAMS), st.data())
def test_a_flipped_bit_is_refused_and_what_came_before_it_stands(raw, data):
    at, bit = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(raw)
    changed[at] ^= 1 << bit
    stream, chunks = converse.ConverseStream(**HEAD), []
    with pytest.raises(EventStreamError):
        chunks.extend(stream.feed(bytes(changed)))
    assert chunks == chunks_of(raw)[0][: len(chunks)]
    assert not stream.finished


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("throttlingException", "rate_limit_error", "rate_limit_exceeded"),
        ("validationException", "invalid_request_error", None),
        ("modelStreamErrorException", "server_error", "model_error"),
        ("internalServerException", "server_error", None),
        ("serviceUnavailableException", "server_error", "service_unavailable"),
        ("somethingNewException", "server_error", None),
    ],
)
def test_exception_in_a_stream_is_an_error_and_ends_it(name, kind, code):
    raised = eventstream.exception(name, b'{"message":"No."}')
    chunks, stream = chunks_of(TEXT[: len(event("messageStart", role="assistant", p="abcd"))] + raised + TEXT)
    assert chunks[1:] == [{"error": {"message": "No.", "type": kind, "param": None, "code": code}}]
    assert stream.failed
    assert not stream.finished


def test_error_that_is_not_modelled_is_an_error_too():
    headers = {":message-type": "error", ":error-code": "InternalError", ":error-message": "Oh."}
    chunks, _ = chunks_of(eventstream.encode(headers, b""))
    assert chunks == [{"error": {"message": "Oh.", "type": "server_error", "param": None, "code": None}}]


def test_model_stream_error_says_what_the_model_said():
    payload = {"message": "The model failed.", "originalMessage": "Out of memory.", "originalStatusCode": 500}
    chunks, _ = chunks_of(eventstream.exception("modelStreamErrorException", orjson.dumps(payload)))
    assert chunks[0]["error"]["message"] == "Out of memory."


def test_no_usage_makes_no_chunk_of_it():
    chunks, stream = chunks_of(event("messageStop", stopReason="end_turn") + event("metadata", metrics={}))
    assert [chunk["choices"] for chunk in chunks if not chunk["choices"]] == []
    assert (stream.usage, stream.finished) == (None, True)


def test_what_is_new_or_not_the_clients_is_passed_over():
    server_tool = {"toolUse": {"toolUseId": "x", "name": "nova_grounding", "type": "server_tool_use"}}
    raw = (
        event("somethingNew", value=1)
        + event("contentBlockStart", contentBlockIndex=0, start=server_tool)
        + delta(0, toolUse={"input": "{}"})
        + stop(0)
        + delta(1, citation={"title": "x"})
        + stop(1)
    )
    assert chunks_of(raw)[0] == []


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(eventstream.event("messageStop", b"{"), id="not-json"),
        pytest.param(eventstream.event("messageStop", b"[]"), id="not-an-object"),
        pytest.param(eventstream.event("messageStop", b"[" * 5000), id="nested-too-deep"),
        pytest.param(eventstream.encode({}, b"{}"), id="no-type"),
        pytest.param(event("contentBlockDelta", delta={"text": "x"}), id="no-index"),
        pytest.param(event("contentBlockDelta", contentBlockIndex=0), id="no-delta"),
        pytest.param(event("contentBlockStart", contentBlockIndex=[], start={}), id="index-no-number"),
        pytest.param(event("contentBlockStart", contentBlockIndex=0, start={"toolUse": {}}), id="tool-without-a-name"),
        pytest.param(delta(0, toolUse={"input": "{}"}), id="input-of-no-tool"),
        pytest.param(delta(0, text="x") + event("contentBlockStart", contentBlockIndex=0, start={}), id="index-twice"),
        pytest.param(delta(0, reasoningContent={"text": 5}), id="thought-no-text"),
    ],
)
def test_events_that_are_not_as_documented_are_refused(raw):
    stream = converse.ConverseStream(**HEAD)
    with pytest.raises(EventStreamError):
        list(stream.feed(raw))
    assert stream.failed


def test_blocks_and_thoughts_are_bounded(monkeypatch):
    monkeypatch.setattr(stream_module, "MAX_BLOCKS", 3)
    monkeypatch.setattr(stream_module, "MAX_REASONING_CHARS", 5)
    with pytest.raises(EventStreamError, match="content blocks"):
        chunks_of(b"".join(delta(index, text="x") for index in range(4)))
    with pytest.raises(EventStreamError, match="thoughts"):
        chunks_of(b"".join(delta(0, reasoningContent={"text": "abc"}) for _ in range(2)))
