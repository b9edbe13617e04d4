"""Bedrock Converse: JSON and binary event stream as AWS frames it, told apart by checksums that hold."""

from __future__ import annotations

import json
import struct
from urllib.parse import quote
from zlib import crc32

import pytest

from deploy.local.sandbox.provider import eventstream, tokens

MODEL = "anthropic.claude-3-sonnet-20240229-v1:0"
HELLO_TOKENS = 3 + 4 + 1
SIGNED = {
    "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/bedrock/aws4_request, "
    "SignedHeaders=host;x-amz-date, Signature=" + "0" * 64,
    "x_amz_date": "20260101T000000Z",
}


def ask(sandbox, text="hello", *, stream=False, model=MODEL, **members):
    body = {"messages": [{"role": "user", "content": [{"text": text}]}]} | members
    kind = "converse-stream" if stream else "converse"
    return sandbox.call("POST", f"/model/{quote(model, safe='')}/{kind}", body, **SIGNED)


def events(answer):
    """The stream's events: their types and payloads."""
    assert answer.headers["content-type"] == "application/vnd.amazon.eventstream"
    return [(message.headers, json.loads(message.payload)) for message in eventstream.decode(answer.body)]


def test_unary_usage_is_the_count_of_what_was_sent_and_said(sandbox):
    answer = ask(sandbox, system=[{"text": "Be brief."}])
    response = answer.json()
    said = response["output"]["message"]["content"][0]["text"]
    sent = HELLO_TOKENS + 4 + tokens.count("Be brief.")
    assert response["output"]["message"]["role"] == "assistant"
    assert response["stopReason"] == "end_turn"
    assert response["usage"] == {
        "inputTokens": sent,
        "outputTokens": tokens.count(said),
        "totalTokens": sent + tokens.count(said),
        "cacheReadInputTokens": 0,
        "cacheWriteInputTokens": 0,
    }
    assert "x-amzn-requestid" in answer.headers


def test_stream_has_bedrocks_events_in_order_with_the_usage_last(sandbox):
    seen = events(ask(sandbox, stream=True))
    kinds = [headers[":event-type"] for headers, _ in seen]
    deltas = ["contentBlockDelta"] * len(tokens.DEFAULT_TOKENS)
    assert kinds == ["messageStart", *deltas, "contentBlockStop", "messageStop", "metadata"]
    assert all(headers[":message-type"] == "event" for headers, _ in seen)
    said = "".join(payload["delta"]["text"] for headers, payload in seen if headers[":event-type"] == deltas[0])
    assert said == tokens.DEFAULT_ANSWER
    assert seen[-1][1]["usage"]["outputTokens"] == tokens.count(said)


def test_model_ids_with_escaped_characters_are_read_whole(sandbox):
    arn = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-3-haiku"
    assert ask(sandbox, model=arn).status == 200
    assert sandbox.last_record()["model"] == arn


def test_output_is_cut_at_max_tokens(sandbox):
    config = {"maxTokens": 3}
    unary = ask(sandbox, inferenceConfig=config).json()
    assert unary["output"]["message"]["content"][0]["text"] == "".join(tokens.DEFAULT_TOKENS[:3])
    assert (unary["stopReason"], unary["usage"]["outputTokens"]) == ("max_tokens", 3)
    seen = events(ask(sandbox, stream=True, inferenceConfig=config))
    assert seen[-2][1] == {"stopReason": "max_tokens"}
    assert seen[-1][1]["usage"]["outputTokens"] == 3


def test_cached_tokens_are_apart_from_the_input_and_within_the_total(sandbox):
    text = "[[sandbox cached=5 cache_write=3]]"
    usage = ask(sandbox, text).json()["usage"]
    whole = 3 + 4 + tokens.count(text)
    assert (usage["inputTokens"], usage["cacheReadInputTokens"], usage["cacheWriteInputTokens"]) == (whole - 8, 5, 3)
    assert usage["totalTokens"] == whole + usage["outputTokens"]


def test_cache_writes_are_told_by_how_long_they_are_kept(sandbox):
    unary = ask(sandbox, "[[sandbox cache_write=3 cache_write_1h=2]]").json()["usage"]
    assert unary["cacheWriteInputTokens"] == 5
    assert unary["cacheDetails"] == [{"ttl": "1h", "inputTokens": 2}, {"ttl": "5m", "inputTokens": 3}]
    seen = events(ask(sandbox, "[[sandbox cache_write=3 cache_write_1h=2]]", stream=True))
    assert seen[-1][1]["usage"] == unary


def test_answer_follows_the_schema_of_the_output_config(sandbox):
    schema = json.dumps({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
    text_format = {"type": "json_schema", "structure": {"jsonSchema": {"schema": schema, "name": "place"}}}
    answer = ask(sandbox, outputConfig={"textFormat": text_format}).json()
    assert json.loads(answer["output"]["message"]["content"][0]["text"]) == {"city": "sandbox"}
    wrong = ask(sandbox, outputConfig={"textFormat": {"type": "json_schema"}})
    assert (wrong.status, wrong.headers["x-amzn-errortype"]) == (400, "ValidationException")


def test_tier_and_latency_are_said_again(sandbox):
    asked = {"serviceTier": {"type": "flex"}, "performanceConfig": {"latency": "optimized"}}
    unary = ask(sandbox, **asked).json()
    end = events(ask(sandbox, stream=True, **asked))[-1][1]
    for name, value in asked.items():
        assert unary[name] == end[name] == value


def test_required_tool_is_used(sandbox):
    schema = {"json": {"type": "object", "properties": {"city": {"type": "string"}}}}
    tools = [{"toolSpec": {"name": name, "inputSchema": schema}} for name in ("first", "second")]
    config = {"tools": tools, "toolChoice": {"tool": {"name": "second"}}}
    unary = ask(sandbox, toolConfig=config).json()
    use = unary["output"]["message"]["content"][0]["toolUse"]
    assert (use["name"], use["input"], unary["stopReason"]) == ("second", {"city": "sandbox"}, "tool_use")
    seen = events(ask(sandbox, stream=True, toolConfig=config))
    assert seen[1][1]["start"]["toolUse"]["name"] == "second"
    deltas = [payload["delta"]["toolUse"]["input"] for _, payload in seen if "delta" in payload]
    assert json.loads("".join(deltas)) == {"city": "sandbox"}
    assert seen[-1][1]["usage"] == unary["usage"]


def test_reasoning_is_shown_where_asked_for(sandbox):
    extra = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    unary = ask(sandbox, "[[sandbox reasoning=4]]", additionalModelRequestFields=extra).json()
    thought = unary["output"]["message"]["content"][0]["reasoningContent"]["reasoningText"]
    assert tokens.count(thought["text"]) == 4
    seen = events(ask(sandbox, "[[sandbox reasoning=4]]", stream=True, additionalModelRequestFields=extra))
    assert seen[-1][1]["usage"] == unary["usage"]
    assert [
        payload["contentBlockIndex"] for headers, payload in seen if headers[":event-type"] == "contentBlockStop"
    ] == [
        0,
        1,
    ]


def test_images_are_accepted_and_counted(sandbox):
    image = {"image": {"format": "png", "source": {"bytes": "iVBORw0KGgo="}}}
    body = {"messages": [{"role": "user", "content": [{"text": "hello"}, image]}]}
    answer = sandbox.call("POST", f"/model/{MODEL}/converse", body, **SIGNED)
    assert answer.json()["usage"]["inputTokens"] == HELLO_TOKENS + 765


@pytest.mark.parametrize(
    ("status", "exception"),
    [
        (400, "ValidationException"),
        (403, "AccessDeniedException"),
        (429, "ThrottlingException"),
        (500, "InternalServerException"),
        (503, "ServiceUnavailableException"),
    ],
)
def test_errors_name_their_exception(sandbox, status, exception):
    answer = ask(sandbox, f"[[sandbox status={status}]]")
    assert (answer.status, answer.headers["x-amzn-errortype"]) == (status, exception)
    assert answer.json()["message"]


def test_stream_that_fails_midway_says_so_in_an_exception_message(sandbox):
    seen = events(ask(sandbox, "[[sandbox fault=stream-error status=429 after=2]]", stream=True))
    headers, payload = seen[-1]
    assert headers[":message-type"] == "exception"
    assert headers[":exception-type"] == "throttlingException"
    assert payload["message"]
    assert len(seen) == 1 + 2 + 1


def test_failure_that_a_stream_has_no_exception_for_is_a_model_stream_error(sandbox):
    headers, payload = events(ask(sandbox, "[[sandbox fault=stream-error status=424]]", stream=True))[-1]
    assert headers[":exception-type"] == "modelStreamErrorException"
    assert payload["originalStatusCode"] == 424


TOOLS = {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object"}}}}]}
USE = {"role": "assistant", "content": [{"toolUse": {"toolUseId": "1", "name": "f", "input": {}}}]}
RESULT = {"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": []}}]}
HELLO = {"role": "user", "content": [{"text": "hello"}]}


def content(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def test_conversation_that_bedrock_takes_is_taken(sandbox):
    body = {"messages": [HELLO, USE, RESULT], "toolConfig": TOOLS}
    assert sandbox.call("POST", f"/model/{MODEL}/converse", body, **SIGNED).status == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [USE, RESULT], "toolConfig": TOOLS}, "start with a user message"),
        ({"messages": [HELLO, HELLO]}, "alternate"),
        ({"messages": [HELLO, USE, RESULT]}, "toolConfig field must be defined"),
        ({"messages": [HELLO, USE, HELLO], "toolConfig": TOOLS}, "Expected toolResult blocks"),
        ({"messages": [RESULT], "toolConfig": TOOLS}, "exceeds the number of toolUse blocks"),
        ({"messages": [HELLO], "toolConfig": {"tools": []}}, "at least 1"),
        ({"messages": [HELLO], "inferenceConfig": {"temperature": 1.5}}, "inferenceConfig.temperature"),
        (content({"text": " "}), "is blank"),
        (content({"text": "x", "cachePoint": {"type": "default"}}), "exactly one"),
        (content({"poem": "x"}), "exactly one"),
        (content({"image": {"format": "tiff", "source": {"bytes": "AAAA"}}}), "image.format"),
        (content({"image": {"format": "png", "source": {"bytes": ""}}}), "at least 1"),
        (content({"image": {"format": "png", "source": {"bytes": "?"}}}), "not base64"),
    ],
)
def test_conversation_that_bedrock_refuses_is_refused(sandbox, body, words):
    answer = sandbox.call("POST", f"/model/{MODEL}/converse", body, **SIGNED)
    assert answer.status == 400
    assert words in answer.json()["message"]


@pytest.mark.parametrize(
    ("body", "exception"),
    [
        ({}, "ValidationException"),
        ({"messages": []}, "ValidationException"),
        ({"messages": [{"role": "system", "content": [{"text": "x"}]}]}, "ValidationException"),
        ({"messages": [{"role": "user", "content": []}]}, "ValidationException"),
        ({"messages": "x"}, "SerializationException"),
        ({"messages": [{"role": "user", "content": [{"text": 5}]}]}, "SerializationException"),
    ],
)
def test_bad_requests_are_refused_in_bedrocks_shape(sandbox, body, exception):
    answer = sandbox.call("POST", f"/model/{MODEL}/converse", body, **SIGNED)
    assert (answer.status, answer.headers["x-amzn-errortype"]) == (400, exception)


def test_frame_is_laid_out_as_specified():
    frame = eventstream.encode({":a": "bc"}, b"{}")
    headers = b"\x02:a\x07\x00\x02bc"
    total = 12 + len(headers) + 2 + 4
    assert frame[:8] == struct.pack(">II", total, len(headers))
    assert frame[8:12] == struct.pack(">I", crc32(frame[:8]))
    assert frame[12:-4] == headers + b"{}"
    assert frame[-4:] == struct.pack(">I", crc32(frame[:-4]))
    assert len(frame) == total


def test_known_empty_message_is_decoded():
    # The smallest message there is, as published with the AWS event stream test vectors.
    known = bytes.fromhex("000000100000000005c248eb7d98c8ff")
    assert list(eventstream.decode(known)) == [eventstream.Message({}, b"")]
    assert eventstream.encode({}, b"") == known


@pytest.mark.parametrize("at", [0, 5, 9, 15, 20, -1])
def test_one_changed_byte_is_noticed(at):
    frame = bytearray(eventstream.event("metadata", b'{"usage":{}}'))
    frame[at] ^= 1
    with pytest.raises(eventstream.FramingError):
        list(eventstream.decode(bytes(frame)))


def test_a_cut_frame_is_noticed():
    frame = eventstream.event("metadata", b"{}")
    for length in (1, 11, 13, len(frame) - 1):
        with pytest.raises(eventstream.FramingError):
            list(eventstream.decode(frame[:length]))
