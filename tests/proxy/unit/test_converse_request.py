"""What a chat completion is in Converse; and that what cannot be said there is refused by its name, never dropped."""

import base64

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.sandbox.provider.refusal import Dialect, Provider, Refusal
from deploy.local.sandbox.provider.routes import Endpoint, Route
from deploy.local.sandbox.provider.wire.bedrock import Converse
from services.kit.refusals import InvalidArgument
from services.proxy import converse

PNG = base64.b64encode(b"\x89PNG\r\n").decode()
PDF = base64.b64encode(b"%PDF-1.7").decode()
CLAUDE = "us.anthropic.claude-sonnet-4-20250514-v1:0"
ROUTE = Route(Provider.BEDROCK, Endpoint.CONVERSE, Dialect.BEDROCK, CLAUDE)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now"}}
HELLO = {"role": "user", "content": "hello"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bonn"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}


def said(*messages, cap=100, **members):
    body = {"model": CLAUDE, "messages": list(messages or [HELLO]), **members}
    return converse.to_converse(body, cap)


def refused(*messages, **members):
    """The fields that the refusal names."""
    with pytest.raises(InvalidArgument) as caught:
        said(*messages, **members)
    return [violation.field for violation in caught.value.violations]


def parts(*content):
    return {"role": "user", "content": list(content)}


def file(data, **members):
    return {"type": "file", "file": {"file_data": data, **members}}


def test_text_is_a_turn_and_the_cap_is_the_proxys():
    assert said(max_tokens=7, max_completion_tokens=8, cap=55) == {
        "messages": [{"role": "user", "content": [{"text": "hello"}]}],
        "inferenceConfig": {"maxTokens": 55},
    }


def test_system_and_developer_messages_are_the_system_prompt():
    sent = said(
        {"role": "system", "content": "Be brief."},
        HELLO,
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
    )
    assert sent["system"] == [{"text": "Be brief."}, {"text": "Be kind."}]
    assert len(sent["messages"]) == 1


def test_neighbours_of_one_role_are_one_turn():
    sent = said(HELLO, {"role": "user", "content": "again"}, {"role": "assistant", "content": "yes"}, HELLO)
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["messages"][0]["content"] == [{"text": "hello"}, {"text": "again"}]


def test_images_are_blocks_of_their_bytes():
    url = {"type": "image_url", "image_url": {"url": f"data:image/jpg;base64,{PNG}", "detail": "high"}}
    (turn,) = said(parts({"type": "text", "text": "What?"}, url))["messages"]
    assert turn["content"] == [{"text": "What?"}, {"image": {"format": "jpeg", "source": {"bytes": PNG}}}]


def test_documents_have_names_that_bedrock_takes_and_none_twice():
    data = f"data:application/pdf;base64,{PDF}"
    sent = said(
        parts(file(data, filename="a/b: «Q1»  report_(v2).pdf"), file(data), file(data), {"type": "text", "text": "x"})
    )
    documents = [block["document"] for block in sent["messages"][0]["content"][:3]]
    assert [document["name"] for document in documents] == ["a b Q1 report (v2)", "document", "document 2"]
    assert documents[0] | {"name": ""} == {"format": "pdf", "name": "", "source": {"bytes": PDF}}


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": f"data:image/tiff;base64,{PNG}"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,???"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "image_url.url"),
        ({"type": "image_url"}, "image_url.url"),
        (
            {"type": "file", "file": {"file_id": "file-1", "file_data": f"data:application/pdf;base64,{PDF}"}},
            "file.file_id",
        ),
        (file(PDF), "file.file_data"),
        (file(f"data:text/plain;base64,{PDF}"), "file.file_data"),
        ({"type": "file"}, "file"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "type"),
        ({"type": ["text"]}, "type"),
        ({"type": "text", "text": 5}, "text"),
        ({}, "type"),
    ],
)
def test_part_that_cannot_be_said_is_refused_by_its_name(part, field):
    assert refused(parts({"type": "text", "text": "x"}, part)) == [f"messages[0].content[1].{field}"]


def test_tools_their_calls_and_results():
    sent = said(
        HELLO,
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL | {"id": "call_2"}]},
        RESULT,
        {"role": "tool", "tool_call_id": "call_2", "content": ""},
        {"role": "user", "content": "and?"},
        tools=[WEATHER, NOW],
    )
    use = {"name": "weather", "input": {"city": "Bonn"}}
    assert sent["messages"][1:] == [
        {
            "role": "assistant",
            "content": [{"toolUse": {"toolUseId": "call_1", **use}}, {"toolUse": {"toolUseId": "call_2", **use}}],
        },
        {
            "role": "user",
            "content": [
                {"toolResult": {"toolUseId": "call_1", "content": [{"text": "sunny"}]}},
                {"toolResult": {"toolUseId": "call_2", "content": []}},
                {"text": "and?"},
            ],
        },
    ]
    assert sent["toolConfig"] == {
        "tools": [
            {"toolSpec": {"name": "weather", "description": "Tells it.", "inputSchema": {"json": SCHEMA}}},
            {"toolSpec": {"name": "now", "inputSchema": {"json": {"type": "object", "properties": {}}}}},
        ]
    }


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        (None, {}),
        ("auto", {}),
        ("required", {"toolChoice": {"any": {}}}),
        ({"type": "function", "function": {"name": "now"}}, {"toolChoice": {"tool": {"name": "now"}}}),
    ],
)
def test_tool_choice(choice, config):
    sent = said(tools=[WEATHER, NOW], tool_choice=choice)["toolConfig"]
    assert {name: value for name, value in sent.items() if name != "tools"} == config


def test_no_tool_may_be_called_where_the_choice_is_none():
    assert "toolConfig" not in said(tools=[WEATHER], tool_choice="none")
    assert refused(HELLO, CALLED, RESULT, tools=[WEATHER], tool_choice="none") == ["tool_choice"]


def test_tools_that_are_not_allowed_are_left_out():
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    sent = said(tools=[WEATHER, NOW], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})["toolConfig"]
    assert [tool["toolSpec"]["name"] for tool in sent["tools"]] == ["now"]
    assert sent["toolChoice"] == {"any": {}}


def test_strict_tools_are_strict():
    strict = {"type": "function", "function": {**NOW["function"], "strict": True}}
    assert said(tools=[strict])["toolConfig"]["tools"][0]["toolSpec"]["strict"] is True


def test_one_tool_at_a_time_is_claudes_alone():
    sent = said(tools=[WEATHER], parallel_tool_calls=False)
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert sent["additionalModelRequestFields"] == {"tool_choice": choice}
    assert "additionalModelRequestFields" not in said(tools=[WEATHER], parallel_tool_calls=True)
    assert "additionalModelRequestFields" not in said(parallel_tool_calls=False)
    for members in ({"tool_choice": "required"}, {"model": "amazon.nova-pro-v1:0"}):
        with pytest.raises(InvalidArgument, match="parallel_tool_calls"):
            converse.to_converse(
                {"messages": [HELLO], "tools": [WEATHER], "model": CLAUDE} | members | {"parallel_tool_calls": False},
                100,
            )


@pytest.mark.parametrize(
    ("members", "fields"),
    [
        ({"tools": "x"}, ["tools"]),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, ["tools[0]", "tools"]),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, ["tools[0].function.name"]),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            ["tools[0].function.parameters"],
        ),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "then"}}}, ["tool_choice"]),
        (
            {"tools": [NOW], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            ["tool_choice.allowed_tools"],
        ),
        ({"tool_choice": "required"}, ["tool_choice"]),
        ({"tool_choice": ["required"]}, ["tool_choice"]),
    ],
)
def test_wrong_tools_are_refused_by_their_name(members, fields):
    assert refused(**members) == fields


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "critic", "content": "x"}, "role"),
        ({"role": ["user"], "content": "x"}, "role"),
        ({"role": "user", "content": " "}, "content"),
        ({"role": "user", "content": []}, "content"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": "x", "audio": {"id": "1"}}, "audio"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "tool_calls": [CALL | {"id": "a b"}]}, "tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}, "tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]},
            "tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}]},
            "tool_calls[0].function.arguments",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a":' * 300 + "1" + "}" * 300}}],
            },
            "tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "content": "x", "reasoning_blocks": [{"text": "y"}]}, "reasoning_blocks[0]"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        (
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "x", "cachePoint": {}}]},
            "content[0]",
        ),
    ],
)
def test_wrong_message_is_refused_by_its_name(message, field):
    assert refused(HELLO, message) == [f"messages[1].{field}"]


def test_conversation_without_a_turn_is_refused():
    assert refused({"role": "system", "content": "x"}) == ["messages"]
    for messages in (None, [], "x"):
        with pytest.raises(InvalidArgument, match="messages"):
            converse.to_converse({"model": CLAUDE, "messages": messages}, 1)


def test_thoughts_go_back_before_what_was_said():
    blocks = [
        {"index": 0, "reasoningText": {"text": "Hm.", "signature": "c2ln"}},
        {"index": 1, "redactedContent": "cmVk"},
    ]
    thinking = CALLED | {"content": "I look.", "reasoning_content": "Hm.", "reasoning_blocks": blocks}
    content = said(HELLO, thinking, RESULT, tools=[WEATHER])["messages"][1]["content"]
    assert content[:3] == [
        {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": "cmVk"}},
        {"text": "I look."},
    ]


@pytest.mark.parametrize(
    ("mark", "point"),
    [
        ({"cachePoint": {"type": "default", "ttl": "1h"}}, {"type": "default", "ttl": "1h"}),
        ({"prompt_cache_breakpoint": {"mode": "explicit"}}, {"type": "default"}),
        ({"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}}, {"type": "default", "ttl": "1h"}),
        ({"cache_control": {"type": "ephemeral"}}, {"type": "default"}),
        ({"cache_control": {"type": "ephemeral", "ttl": "5m"}}, {"type": "default", "ttl": "5m"}),
    ],
)
def test_cache_points_stand_after_what_is_kept(mark, point):
    part = {"type": "text", "text": "long"} | mark
    sent = said({"role": "system", "content": [part]}, parts(part), tools=[NOW | mark])
    assert sent["system"] == [{"text": "long"}, {"cachePoint": point}]
    assert sent["messages"][0]["content"] == [{"text": "long"}, {"cachePoint": point}]
    assert sent["toolConfig"]["tools"][1] == {"cachePoint": point}


def test_bedrocks_cache_point_may_stand_by_itself():
    sent = said(
        parts({"type": "text", "text": "long"}, {"cachePoint": {"type": "default"}}),
        tools=[NOW, {"cachePoint": {"type": "default"}}],
    )
    assert sent["messages"][0]["content"][1] == sent["toolConfig"]["tools"][1] == {"cachePoint": {"type": "default"}}


def test_cache_that_bedrock_cannot_keep_so_long_is_refused():
    part = {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
    assert refused(parts(part)) == ["messages[0].content[0].prompt_cache_breakpoint"]


def test_inference_parameters():
    sent = said(temperature=0, top_p=0.5, stop="END")["inferenceConfig"]
    assert sent == {"maxTokens": 100, "temperature": 0, "topP": 0.5, "stopSequences": ["END"]}
    assert said(stop=["a", "b"])["inferenceConfig"]["stopSequences"] == ["a", "b"]


def test_json_schema_is_bedrocks_own_output_format():
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    (text_format,) = said(response_format=wanted)["outputConfig"].values()
    structure = text_format["structure"]["jsonSchema"]
    assert (text_format["type"], structure["name"], orjson.loads(structure["schema"])) == (
        "json_schema",
        "place",
        SCHEMA,
    )
    assert "outputConfig" not in said(response_format={"type": "text"})


@pytest.mark.parametrize(
    ("model", "effort", "fields"),
    [
        ("openai.gpt-oss-120b-1:0", "high", {"reasoning_effort": "high"}),
        ("us.amazon.nova-2-lite-v1:0", "low", {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"}}),
        ("us.amazon.nova-2-lite-v1:0", "none", None),
        ("openai.gpt-oss-120b-1:0", None, None),
    ],
)
def test_reasoning_effort_where_it_is_documented(model, effort, fields):
    sent = converse.to_converse({"model": model, "messages": [HELLO], "reasoning_effort": effort}, 100)
    assert sent.get("additionalModelRequestFields") == fields


@pytest.mark.parametrize(
    ("tier", "own", "sent"),
    [
        ("flex", None, {"type": "flex"}),
        ("auto", None, None),
        (None, {"type": "priority"}, {"type": "priority"}),
        ("flex", {"type": "flex"}, {"type": "flex"}),
    ],
)
def test_service_tier(tier, own, sent):
    assert said(service_tier=tier, serviceTier=own).get("serviceTier") == sent
    assert converse.service_tier({"service_tier": tier, "serviceTier": own}) == (own["type"] if own else tier)


def test_bedrocks_own_fields_are_passed_as_they_are():
    own = {
        "additionalModelRequestFields": {"thinking": {"type": "enabled", "budget_tokens": 1024}, "top_k": 5},
        "guardrailConfig": {"guardrailIdentifier": "gr", "guardrailVersion": "1", "trace": "enabled"},
        "performanceConfig": {"latency": "optimized"},
        "requestMetadata": {"team": "a"},
    }
    sent = said(**own)
    assert {name: sent[name] for name in own} == own


IGNORED = {
    "stream": True,
    "stream_options": {"include_usage": False},
    "user": "u",
    "safety_identifier": "s",
    "metadata": {"a": "b"},
    "store": True,
    "seed": 7,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "modalities": ["text"],
    "verbosity": "medium",
    "audio": None,
    "prediction": None,
}


def test_harmless_fields_change_nothing():
    assert said(**IGNORED) == said()
    assert said({**HELLO, "name": "Ann"}) == said()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
        ("moderation", {"model": "omni"}),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("verbosity", "low"),
        ("promptVariables", {"a": {"text": "b"}}),
        ("something_new", 1),
        ("temperature", 1.5),
        ("temperature", True),
        ("top_p", "x"),
        ("stop", ["a", ""]),
        ("stop", {"a": 1}),
        ("response_format", {"type": "json_object"}),
        ("reasoning_effort", "high"),
        ("reasoning_effort", ["high"]),
        ("service_tier", "scale"),
        ("service_tier", ["flex"]),
        ("guardrailConfig", "gr"),
        ("requestMetadata", []),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_name(name, value):
    assert refused(**{name: value}) == [name]


@pytest.mark.parametrize(
    ("members", "field"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"serviceTier": {"type": "fast"}}, "serviceTier.type"),
        ({"serviceTier": {"type": "flex"}, "service_tier": "priority"}, "serviceTier.type"),
        ({"additionalModelRequestFields": {"max_tokens": 10**6}}, "additionalModelRequestFields.max_tokens"),
        (
            {"additionalModelRequestFields": {"inferenceConfig": {"maxTokens": 9, "topK": 1}}},
            "additionalModelRequestFields.inferenceConfig.maxTokens",
        ),
        ({"additionalModelRequestFields": {"service_tier": "priority"}}, "additionalModelRequestFields.service_tier"),
        (
            {"additionalModelRequestFields": {"tool_choice": {}}, "tools": [NOW], "parallel_tool_calls": False},
            "additionalModelRequestFields.tool_choice",
        ),
    ],
)
def test_nothing_undoes_what_was_held_for_or_is_said_twice(members, field):
    assert refused(**members) == [field]


def test_all_that_is_wrong_is_named_at_once():
    assert refused({"role": "user", "content": ""}, n=2, temperature=3) == ["n", "messages[0].content", "temperature"]


@pytest.mark.parametrize("cap", [0, -1])
def test_cap_below_one_is_refused(cap):
    assert refused(cap=cap) == ["cap"]


def test_model_ids_and_arns_are_one_segment_of_the_path():
    arn = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.x"
    assert converse.model_path(arn, True) == (
        "model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus.x/converse-stream"
    )
    assert converse.model_path("a.b-v1:0", False) == "model/a.b-v1%3A0/converse"
    assert converse.model_path("../../x?y#z", False) == "model/..%2F..%2Fx%3Fy%23z/converse"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
WHOLE = {
    "model": CLAUDE,
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        parts(
            {"type": "text", "text": "What?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
            file(f"data:application/pdf;base64,{PDF}", filename="x.pdf"),
        ),
        CALLED | {"reasoning_blocks": [{"reasoningText": {"text": "Hm."}}], "refusal": "no"},
        RESULT,
    ],
    "tools": [WEATHER, NOW],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NOW]}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    "stop": ["a"],
    "temperature": 0.5,
    "service_tier": "flex",
    "serviceTier": {"type": "flex"},
    "additionalModelRequestFields": {"inferenceConfig": {"topK": 1}},
}


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in items:
        yield from places(member, (*path, name))


def changed(body, path, value):
    """The body with another value in one place."""
    whole = orjson.loads(orjson.dumps(body))
    inner = whole
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return whole


@given(st.sampled_from([path for path in places(WHOLE) if path]), ANYTHING)
def test_one_wrong_value_anywhere_is_said_or_refused(path, value):
    try:
        sent = converse.to_converse(changed(WHOLE, path, value), 100)
    except InvalidArgument as error:
        refusal = error
    else:
        assert orjson.loads(orjson.dumps(sent))
        return
    assert refusal.violations
    assert all(violation.field and violation.description for violation in refusal.violations)


TEXTS = st.sampled_from(["", " ", "x", "€uro"])
SIMPLE = st.builds(
    lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user", "assistant"]), TEXTS
)
USED = st.builds(
    lambda count, text, answer: [
        {"role": "assistant", "content": text, "tool_calls": [CALL | {"id": f"c{n}"} for n in range(count)]},
        *({"role": "tool", "tool_call_id": f"c{n}", "content": answer} for n in range(count)),
    ],
    st.integers(1, 3),
    TEXTS,
    TEXTS,
)


@given(st.lists(SIMPLE.map(lambda message: [message]) | USED, max_size=5))
def test_conversations_are_such_as_bedrock_takes(pieces):
    # The sandbox holds them to what Bedrock demands: turns that alternate, no blank text, a result for each tool's use.
    messages = [HELLO, *(message for piece in pieces for message in piece)]
    try:
        sent = said(*messages, tools=[WEATHER])
    except InvalidArgument:
        assert any(message["role"] == "user" and not message["content"].strip() for message in messages)
        return
    try:
        prompt = Converse().read(orjson.loads(orjson.dumps(sent)), ROUTE)
    except Refusal as refusal:
        pytest.fail(f"{refusal}: {sent}")
    assert prompt.cap == 100
