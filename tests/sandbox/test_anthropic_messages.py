"""Anthropic messages: the unmodified SDK sees Anthropic, and usage is the count of what went over the wire."""

from __future__ import annotations

import json

import anthropic
import pytest

from deploy.local.sandbox.provider import tokens

TOOL = {
    "name": "get_weather",
    "description": "Weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
HELLO_TOKENS = 3 + 4 + 1


@pytest.fixture
def client(sandbox):
    with anthropic.Anthropic(base_url=sandbox.url, api_key=sandbox.key, max_retries=0) as client:
        yield client


def ask(text="hello", **options):
    return {"model": "claude-3-haiku", "max_tokens": 1000, "messages": [{"role": "user", "content": text}]} | options


def rebuilt(client, **asked):
    with client.messages.stream(**asked) as stream:
        return stream.get_final_message()


def both(client, **asked):
    """The same request unary and streamed."""
    return [client.messages.create(**asked), rebuilt(client, **asked)]


def test_usage_is_the_count_of_what_was_sent_and_said(client):
    for message in both(client, **ask(system="Be brief.")):
        assert message.content[0].text == tokens.DEFAULT_ANSWER
        assert message.stop_reason == "end_turn"
        assert message.usage.input_tokens == HELLO_TOKENS + 4 + tokens.count("Be brief.")
        assert message.usage.output_tokens == tokens.count(message.content[0].text)
        assert message.usage.cache_read_input_tokens == message.usage.cache_creation_input_tokens == 0


def test_stream_has_anthropics_events_in_order(sandbox):
    answer = sandbox.messages(stream=True)
    deltas = len(tokens.DEFAULT_TOKENS)
    assert answer.event_names() == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    events = answer.events()
    assert [event["type"] for event in events] == answer.event_names()
    assert events[0]["message"]["usage"]["input_tokens"] == HELLO_TOKENS
    assert events[-2]["usage"]["output_tokens"] == deltas


def test_output_is_cut_at_max_tokens(client):
    for message in both(client, **ask(max_tokens=3)):
        assert message.content[0].text == "".join(tokens.DEFAULT_TOKENS[:3])
        assert message.stop_reason == "max_tokens"
        assert message.usage.output_tokens == 3


def test_cache_tokens_are_apart_from_the_input_tokens(client):
    text = "[[sandbox cached=5 cache_write=3 cache_write_1h=2]]"
    whole = 3 + 4 + tokens.count(text)
    for message in both(client, **ask(text)):
        usage = message.usage
        assert usage.cache_read_input_tokens == 5
        assert usage.cache_creation_input_tokens == 5
        assert usage.input_tokens == whole - 10
        assert usage.cache_creation.ephemeral_5m_input_tokens == 3
        assert usage.cache_creation.ephemeral_1h_input_tokens == 2


def test_required_tool_is_used(client):
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        for message in both(client, **ask(tools=[TOOL], tool_choice=choice)):
            use = message.content[0]
            assert message.stop_reason == "tool_use"
            assert (use.type, use.name, use.input) == ("tool_use", "get_weather", {"city": "sandbox"})
            assert message.usage.output_tokens == tokens.count("get_weather") + tokens.count('{"city":"sandbox"}')
            assert message.usage.input_tokens == HELLO_TOKENS + tokens.count_json(TOOL)


def test_tool_results_and_images_are_accepted_and_counted(client):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    use = {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}, image]}
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    message = client.messages.create(model="claude-3-haiku", max_tokens=9, messages=turns)
    used = tokens.count("get_weather") + tokens.count('{"city":"Rome"}')
    assert message.usage.input_tokens == HELLO_TOKENS + 4 + used + 4 + 1 + 765


def test_thinking_is_shown_where_asked_for_and_counted_anyway(client):
    text = "[[sandbox reasoning=10]]"
    said = 10 + len(tokens.DEFAULT_TOKENS)
    for message in both(client, **ask(text)):
        assert [block.type for block in message.content] == ["text"]
        assert message.usage.output_tokens == said
    thinking = {"type": "enabled", "budget_tokens": 1024}
    for message in both(client, **ask(text, max_tokens=2000, thinking=thinking)):
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert tokens.count(message.content[0].thinking) == 10
        assert message.content[0].signature
        assert message.usage.output_tokens == said


def test_stop_sequence_ends_the_answer_and_is_named(client):
    for message in both(client, **ask(stop_sequences=[" sandbox"])):
        assert message.content[0].text == "This is the Tollkeeper"
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " sandbox")


@pytest.mark.parametrize(
    ("status", "expected", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.OverloadedError, "overloaded_error"),
    ],
)
def test_error_statuses_become_the_sdks_exceptions(client, status, expected, kind):
    with pytest.raises(expected) as raised:
        client.messages.create(**ask(f"[[sandbox status={status} retry_after=1]]"))
    assert raised.value.status_code == status
    assert raised.value.body["error"]["type"] == kind
    assert raised.value.response.headers["retry-after"] == "1"
    assert raised.value.body["request_id"] == raised.value.request_id


def test_stream_that_fails_midway_raises_in_the_sdk(client):
    with (
        pytest.raises(anthropic.APIStatusError, match="overloaded_error"),
        client.messages.stream(**ask("[[sandbox fault=stream-error status=529 after=2]]")) as stream,
    ):
        stream.get_final_message()


def test_max_tokens_of_nothing_fills_the_cache_and_says_nothing(client):
    for message in both(client, **ask("[[sandbox cache_write=5]]", max_tokens=0)):
        assert (message.content, message.stop_reason) == ([], "max_tokens")
        assert (message.usage.output_tokens, message.usage.cache_creation_input_tokens) == (0, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "greater than or equal to 0"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "non-empty"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"tool_choice": {"type": "any"}}, "not found"),
        ({"stream": "yes"}, "valid boolean"),
    ],
)
def test_bad_requests_are_refused_in_anthropics_shape(sandbox, changes, said):
    answer = sandbox.messages(**changes)
    assert answer.status == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert said in answer.json()["error"]["message"]


def test_version_header_is_required(sandbox):
    answer = sandbox.call("POST", "/v1/messages", ask(), x_api_key="k")
    assert answer.status == 400
    assert answer.json()["error"]["message"] == "anthropic-version: header is required"


def test_models_are_listed_in_anthropics_form(client):
    assert "claude-3-haiku" in {model.id for model in client.models.list()}
    assert client.models.retrieve("claude-3-opus").display_name == "claude-3-opus"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-none")


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORMAT = {"type": "json_schema", "schema": SCHEMA}


@pytest.mark.parametrize("field", [{"output_config": {"format": FORMAT}}, {"output_format": FORMAT}])
def test_answer_follows_the_schema_that_is_asked_for(sandbox, field):
    message = sandbox.messages(**field).json()
    assert set(json.loads(message["content"][0]["text"])) == {"city"}
    plain = sandbox.messages().json()
    assert message["usage"]["input_tokens"] == plain["usage"]["input_tokens"] + tokens.count_json(SCHEMA)


def test_system_message_in_the_midst_of_a_conversation_is_one_more_message(sandbox):
    turns = [{"role": "user", "content": "hello"}, {"role": "system", "content": "Be brief."}]
    alone = sandbox.messages().json()["usage"]["input_tokens"]
    assert sandbox.messages(messages=turns).json()["usage"]["input_tokens"] == alone + 4 + tokens.count("Be brief.")
    wrong = sandbox.messages(messages=[*turns, {"role": "tool", "content": "x"}])
    assert wrong.status == 400
    assert "messages.2.role" in wrong.json()["error"]["message"]


def test_format_that_anthropic_has_not_is_refused(sandbox):
    assert sandbox.messages(output_config={"format": {"type": "json_object"}}).status == 400


def test_count_is_what_the_call_would_say_and_no_call(client, sandbox):
    asked = ask(system="Be brief.", tools=[TOOL])
    cap = asked.pop("max_tokens")
    before = sandbox.usage()["requests"]
    counted = client.messages.count_tokens(**asked)
    assert sandbox.usage()["requests"] == before
    assert counted.input_tokens == client.messages.create(**asked, max_tokens=cap).usage.input_tokens
    with pytest.raises(anthropic.RateLimitError):
        client.messages.count_tokens(**asked, extra_headers={"x-sandbox-fault": "status=429"})
    with pytest.raises(anthropic.BadRequestError):
        client.messages.count_tokens(model="claude-3-haiku", messages=[])
