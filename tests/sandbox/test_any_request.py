"""Whatever is sent, in every format: a clear answer or a clear refusal, and a stream that adds up to its own usage."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.sandbox.provider import refusal
from deploy.local.sandbox.provider.answer import compose
from deploy.local.sandbox.provider.behaviour import Behaviour
from deploy.local.sandbox.provider.refusal import Refusal
from deploy.local.sandbox.provider.routes import resolve
from deploy.local.sandbox.provider.wire.anthropic_messages import Messages
from deploy.local.sandbox.provider.wire.bedrock import Converse
from deploy.local.sandbox.provider.wire.gemini import GenerateContent
from deploy.local.sandbox.provider.wire.openai_chat import ChatCompletions
from deploy.local.sandbox.provider.wire.openai_embeddings import Embeddings
from deploy.local.sandbox.provider.wire.openai_responses import Responses

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 3},
        "days": {"type": ["integer", "null"], "minimum": 2},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2},
        "either": {"anyOf": [{"type": "number"}, {"type": "string"}]},
        "both": {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"enum": ["x"]}}}]},
    },
    "$defs": {"tag": {"type": "object", "properties": {"next": {"$ref": "#/$defs/tag"}}}},
}
IMAGE = "data:image/png;base64,iVBORw0KGgo="
FUNCTION = {"name": "look_up", "description": "Looks up", "parameters": SCHEMA}
FORMATS = {
    "/v1/chat/completions": (
        ChatCompletions(),
        {
            "model": "gpt-4o",
            "messages": [
                {"role": "system", "name": "s", "content": "Be brief."},
                {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "done"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "hello"},
                        {"type": "image_url", "image_url": {"url": IMAGE}},
                        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                        {"type": "file", "file": {"file_data": "AAAA"}},
                    ],
                },
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "look_up"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 40,
            "temperature": 0.5,
            "n": 2,
            "stop": ["zzz"],
        },
    ),
    "/v1/responses": (
        Responses(),
        {
            "model": "gpt-4o",
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hello"}, {"type": "input_image"}]},
                {"type": "function_call_output", "call_id": "1", "output": "done"},
            ],
            "tools": [{"type": "function"} | FUNCTION],
            "tool_choice": {"type": "function", "name": "look_up"},
            "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
            "max_output_tokens": 40,
            "stream": True,
        },
    ),
    "/v1/embeddings": (
        Embeddings(),
        {"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"},
    ),
    "/v1/messages": (
        Messages(),
        {
            "model": "claude-3-haiku",
            "max_tokens": 40,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "done"}]},
                        {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
                        {"type": "document", "source": {"type": "base64", "data": "AAAA"}},
                        {"type": "text", "text": "hello"},
                    ],
                },
            ],
            "tools": [{"name": "look_up", "input_schema": SCHEMA}],
            "tool_choice": {"type": "tool", "name": "look_up"},
            "stop_sequences": ["zzz"],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "stream": True,
        },
    ),
    "/v1beta/models/gemini-1.5-pro:streamGenerateContent": (
        GenerateContent(sse=True),
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
                {"role": "user", "parts": [{"text": "hello"}, {"inlineData": {"mimeType": "image/png", "data": "AA"}}]},
            ],
            "tools": [{"functionDeclarations": [FUNCTION]}],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["look_up"]}},
            "generationConfig": {
                "maxOutputTokens": 40,
                "candidateCount": 2,
                "stopSequences": ["zzz"],
                "responseMimeType": "application/json",
                "responseSchema": SCHEMA,
                "thinkingConfig": {"includeThoughts": True},
            },
        },
    ),
    "/model/anthropic.claude-3/converse-stream": (
        Converse(),
        {
            "system": [{"text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"text": "hello"}]},
                {"role": "assistant", "content": [{"toolUse": {"toolUseId": "1", "name": "f", "input": {}}}]},
                {
                    "role": "user",
                    "content": [
                        {"toolResult": {"toolUseId": "1", "content": [{"text": "done"}]}},
                        {"image": {"format": "png", "source": {"bytes": "AAAA"}}},
                        {"document": {"format": "pdf", "name": "x", "source": {"bytes": "AAAA"}}},
                        {"cachePoint": {"type": "default"}},
                        {"text": "hello"},
                    ],
                },
            ],
            "toolConfig": {
                "tools": [{"toolSpec": {"name": "look_up", "inputSchema": {"json": SCHEMA}}}],
                "toolChoice": {"tool": {"name": "look_up"}},
            },
            "inferenceConfig": {"maxTokens": 40, "stopSequences": ["zzz"]},
            "additionalModelRequestFields": {"thinking": {"type": "enabled"}},
        },
    ),
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
TOKENS = st.integers(0, 60)
BEHAVIOURS = st.builds(
    Behaviour,
    faults=st.sets(st.sampled_from(["ignore-cap", "no-usage"])).map(frozenset),
    output_tokens=st.none() | TOKENS,
    reasoning=TOKENS,
    cached=TOKENS,
    cache_write=TOKENS,
    cache_write_1h=TOKENS,
    chunk_tokens=st.integers(1, 7),
)


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in items:
        yield from places(member, (*path, name))


def changed(body, path, value):
    """The body with another value in one place."""
    whole = json.loads(json.dumps(body))
    if not path:
        return whole
    inner = whole
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return whole


def answered(path, body, behaviour):
    wire, _ = FORMATS[path]
    route = resolve("POST", path)
    assert route is not None
    route = route if route.provider is not None else route.of("openai")
    prompt = wire.read(body, route)
    return wire, prompt, compose(prompt, behaviour, number=1, created=1)


@pytest.mark.parametrize("path", FORMATS)
@given(data=st.data())
def test_one_wrong_value_anywhere_is_answered_or_refused(path, data):
    body = FORMATS[path][1]
    wrong = changed(body, data.draw(st.sampled_from(list(places(body)))), data.draw(ANYTHING))
    behaviour = data.draw(BEHAVIOURS)
    try:
        wire, _, answer = answered(path, wrong, behaviour)
    except Refusal as error:
        refused = error
    else:
        assert orjson.loads(wire.unary(answer))
        assert b"".join(chunk.data for chunk in wire.stream(answer))
        return
    assert refused.status == 400
    assert refused.message
    assert orjson.loads(refusal.body(resolve("POST", path).dialect, refused, "r"))


@pytest.mark.parametrize("path", FORMATS)
@given(
    behaviour=BEHAVIOURS, cap=st.integers(16, 60), without=st.sets(st.sampled_from(["tool_choice", "schema", "cap"]))
)
def test_stream_adds_up_to_its_usage_and_to_the_cap(path, behaviour, cap, without):
    body = json.loads(json.dumps(FORMATS[path][1]))
    if "tool_choice" in without:
        body.pop("tool_choice", None)
        for name in ("toolChoice", "functionCallingConfig"):
            body.get("toolConfig", {}).pop(name, None)
    if "schema" in without:
        for holder, name in (
            (body, "response_format"),
            (body, "text"),
            (body.get("generationConfig"), "responseSchema"),
        ):
            (holder or {}).pop(name, None)
    for holder, name in (
        (body, "max_tokens"),
        (body, "max_output_tokens"),
        (body.get("generationConfig", {}), "maxOutputTokens"),
        (body.get("inferenceConfig", {}), "maxTokens"),
    ):
        if name in holder:
            holder[name] = cap
    wire, prompt, answer = answered(path, body, behaviour)
    usage = answer.usage
    assert sum(chunk.tokens for chunk in wire.stream(answer)) == usage.output
    assert usage.cached + usage.cache_write + usage.cache_write_1h <= usage.input
    assert usage.reasoning <= usage.output
    if "ignore-cap" not in behaviour.faults and prompt.cap is not None:
        assert usage.output <= prompt.cap * prompt.choices
