"""OpenAI responses: one object or its typed events, rebuilt by the unmodified SDK."""

from __future__ import annotations

import json

import openai
import pytest

from deploy.local.sandbox.provider import tokens

TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
HELLO_TOKENS = 3 + 4 + 1


@pytest.fixture
def client(sandbox):
    with openai.OpenAI(base_url=f"{sandbox.url}/v1", api_key=sandbox.key, max_retries=0) as client:
        yield client


def test_unary_usage_is_the_count_of_what_was_sent_and_said(client):
    response = client.responses.create(model="gpt-4o", input="hello", instructions="Be brief.", temperature=0.5)
    assert response.status == "completed"
    assert response.output_text == tokens.DEFAULT_ANSWER
    assert response.usage.input_tokens == HELLO_TOKENS + 4 + tokens.count("Be brief.")
    assert response.usage.output_tokens == tokens.count(response.output_text)
    assert response.temperature == 0.5
    assert response.instructions == "Be brief."


def test_items_and_images_are_counted(client):
    turn = [
        {"type": "input_text", "text": "hello"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"},
    ]
    output = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
    response = client.responses.create(model="gpt-4o", input=[{"role": "user", "content": turn}, output])
    assert response.usage.input_tokens == HELLO_TOKENS + 85 + 4 + tokens.count_json(output)


def test_stream_events_are_numbered_in_order_and_end_with_the_usage(client):
    with client.responses.create(model="gpt-4o", input="hello", stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == tokens.DEFAULT_ANSWER
    assert events[0].response.usage is None
    assert events[-1].response.usage.output_tokens == tokens.count(said)
    assert events[-1].response.output_text == said


def test_sdk_stream_helper_rebuilds_the_response(client):
    with client.responses.stream(model="gpt-4o", input="hello") as stream:
        response = stream.get_final_response()
    assert response.output_text == tokens.DEFAULT_ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_output_cut_at_the_cap_is_incomplete(client, stream):
    asked = {"model": "gpt-4o", "input": "[[sandbox output_tokens=50]]", "max_output_tokens": 16}
    if stream:
        with client.responses.create(**asked, stream=True) as events:
            last = list(events)[-1]
        assert last.type == "response.incomplete"
        response = last.response
    else:
        response = client.responses.create(**asked)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == tokens.count(response.output_text) == 16


@pytest.mark.parametrize("stream", [False, True])
def test_required_tool_is_called(client, stream):
    asked = {"model": "gpt-4o", "input": "hello", "tools": [TOOL], "tool_choice": "required"}
    if stream:
        with client.responses.create(**asked, stream=True) as events:
            seen = list(events)
        assert [event.type for event in seen[-3:]] == [
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
        deltas = [event.delta for event in seen if event.type == "response.function_call_arguments.delta"]
        assert json.loads("".join(deltas)) == {"city": "sandbox"}
        response = seen[-1].response
    else:
        response = client.responses.create(**asked)
    call = response.output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "sandbox"})
    assert response.usage.output_tokens == tokens.count("get_weather") + tokens.count(call.arguments)


def test_reasoning_is_an_item_before_the_message_and_counted(client):
    response = client.responses.create(model="o3", input="[[sandbox reasoning=10 cached=4]]")
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.usage.output_tokens_details.reasoning_tokens == 10
    assert response.usage.input_tokens_details.cached_tokens == 4
    assert response.usage.output_tokens == 10 + tokens.count(response.output_text)


def test_structured_output_follows_its_schema(client):
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}
    text = {"format": {"type": "json_schema", "name": "sum", "schema": schema}}
    response = client.responses.create(model="gpt-4o", input="hello", text=text)
    assert json.loads(response.output_text) == {"total": 1}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"input": None}, "missing_required_parameter"),
        ({"input": 7}, "invalid_type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "invalid_value"),
        ({"max_output_tokens": 5}, "integer_below_min_value"),
        ({"previous_response_id": "resp_1"}, "previous_response_not_found"),
    ],
)
def test_bad_requests_are_refused_in_openais_shape(sandbox, changes, code):
    body = {"model": "gpt-4o", "input": "hello"} | changes
    answer = sandbox.call("POST", "/v1/responses", body, authorization="Bearer k")
    assert answer.status == 400
    assert answer.json()["error"]["code"] == code


def test_stream_that_fails_midway_says_so_in_an_event(client):
    with client.responses.create(model="gpt-4o", input="[[sandbox fault=stream-error after=2]]", stream=True) as stream:
        events = list(stream)
    assert events[-1].type == "error"
    assert "server had an error" in events[-1].message
