"""OpenAI chat completions: the unmodified SDK sees OpenAI, and usage is the count of what went over the wire."""

from __future__ import annotations

import json

import openai
import pytest

from deploy.local.sandbox.provider import tokens

ARGUMENTS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "note": {"type": "string"}},
    "required": ["city", "days"],
}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": ARGUMENTS}}
USER = [{"role": "user", "content": "hello"}]
HELLO_TOKENS = 3 + 4 + 1


@pytest.fixture
def client(sandbox):
    with openai.OpenAI(base_url=f"{sandbox.url}/v1", api_key=sandbox.key, max_retries=0) as client:
        yield client


def say(text):
    return [{"role": "user", "content": text}]


def test_unary_usage_is_the_count_of_what_was_sent_and_said(client):
    completion = client.chat.completions.create(model="gpt-4o", messages=USER)
    said = completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.prompt_tokens == HELLO_TOKENS
    assert completion.usage.completion_tokens == tokens.count(said)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert "sandbox" in said
    assert "sandbox" in completion.id


def test_stream_ends_with_the_usage_of_the_pieces_it_sent(client):
    options = {"include_usage": True}
    with client.chat.completions.create(model="gpt-4o", messages=USER, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == tokens.count(said) == len(tokens.DEFAULT_TOKENS)
    assert chunks[-1].usage.prompt_tokens == HELLO_TOKENS
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "stop"]


def test_stream_has_no_usage_unless_asked_for(sandbox):
    answer = sandbox.chat(stream=True)
    events = answer.events()
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "[DONE]"
    assert all("usage" not in event for event in events[:-1])


def test_sdk_stream_helper_rebuilds_the_whole_completion(client):
    with client.chat.completions.stream(
        model="gpt-4o", messages=USER, stream_options={"include_usage": True}
    ) as stream:
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == tokens.DEFAULT_ANSWER
    assert completion.usage.completion_tokens == len(tokens.DEFAULT_TOKENS)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [False, True])
def test_output_is_cut_at_the_cap(client, name, stream):
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = client.chat.completions.create(model="gpt-4o", messages=USER, stream=stream, **{name: 4}, **options)
    if stream:
        with answer:
            *chunks, last = list(answer)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        finish, usage = chunks[-1].choices[0].finish_reason, last.usage
    else:
        said, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
        usage = answer.usage
    assert said == "".join(tokens.DEFAULT_TOKENS[:4])
    assert finish == "length"
    assert usage.completion_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_required_tool_is_called_with_arguments_that_follow_its_schema(client, stream):
    if stream:
        with client.chat.completions.stream(
            model="gpt-4o", messages=USER, tools=[TOOL], tool_choice="required", stream_options={"include_usage": True}
        ) as events:
            completion = events.get_final_completion()
    else:
        completion = client.chat.completions.create(model="gpt-4o", messages=USER, tools=[TOOL], tool_choice="required")
    choice = completion.choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "sandbox", "days": 1}
    said = tokens.count("get_weather") + tokens.count(call.function.arguments)
    assert completion.usage.completion_tokens == said
    assert completion.usage.prompt_tokens == HELLO_TOKENS + tokens.count_json(TOOL)


def test_named_tool_is_the_one_called(client):
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
    choice = {"type": "function", "function": {"name": "get_weather"}}
    completion = client.chat.completions.create(model="gpt-4o", messages=USER, tools=[other, TOOL], tool_choice=choice)
    assert completion.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_tools_offered_but_not_required_leave_the_answer_text(client):
    completion = client.chat.completions.create(model="gpt-4o", messages=USER, tools=[TOOL])
    assert completion.choices[0].message.tool_calls is None
    asked = client.chat.completions.create(model="gpt-4o", messages=say("[[sandbox tool=get_weather]]"), tools=[TOOL])
    assert asked.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_tool_arguments_cut_at_the_cap_are_left_unclosed(client):
    completion = client.chat.completions.create(
        model="gpt-4o", messages=USER, tools=[TOOL], tool_choice="required", max_tokens=6
    )
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 6
    with pytest.raises(json.JSONDecodeError):
        json.loads(completion.choices[0].message.tool_calls[0].function.arguments)


def test_tool_conversation_is_counted_with_its_calls_and_results(client):
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}
    history = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    completion = client.chat.completions.create(model="gpt-4o", messages=history)
    called = tokens.count("get_weather") + tokens.count('{"city":"Rome"}')
    assert completion.usage.prompt_tokens == HELLO_TOKENS + (4 + called) + (4 + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices_are_all_answered_and_all_counted(client, stream):
    if stream:
        with client.chat.completions.stream(
            model="gpt-4o", messages=USER, n=3, stream_options={"include_usage": True}
        ) as events:
            completion = events.get_final_completion()
    else:
        completion = client.chat.completions.create(model="gpt-4o", messages=USER, n=3)
    said = [choice.message.content for choice in completion.choices]
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert completion.usage.completion_tokens == sum(tokens.count(text) for text in said)
    assert completion.usage.prompt_tokens == HELLO_TOKENS


def test_json_answers_are_json_of_the_asked_schema(client):
    free = client.chat.completions.create(model="gpt-4o", messages=USER, response_format={"type": "json_object"})
    assert isinstance(json.loads(free.choices[0].message.content), dict)
    strict = {"name": "weather", "strict": True, "schema": ARGUMENTS}
    shaped = client.chat.completions.create(
        model="gpt-4o", messages=USER, response_format={"type": "json_schema", "json_schema": strict}
    )
    assert json.loads(shaped.choices[0].message.content) == {"city": "sandbox", "days": 1}
    filled = client.chat.completions.create(
        model="gpt-4o", messages=say("[[sandbox output_tokens=200]]"), response_format={"type": "json_object"}
    )
    assert filled.usage.completion_tokens == 200
    assert isinstance(json.loads(filled.choices[0].message.content), dict)


def test_images_are_accepted_and_counted(client):
    def ask(*parts):
        messages = [{"role": "user", "content": [{"type": "text", "text": "hello"}, *parts]}]
        return client.chat.completions.create(model="gpt-4o", messages=messages).usage.prompt_tokens

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    low = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}
    assert ask() == HELLO_TOKENS
    assert ask(image) == HELLO_TOKENS + 765
    assert ask(image, low) == HELLO_TOKENS + 765 + 85


def test_cached_and_reasoning_tokens_are_parts_of_the_totals(client):
    messages = say("[[sandbox cached=5 cache_write=2 reasoning=10 output_tokens=30]]")
    completion = client.chat.completions.create(model="gpt-4o", messages=messages)
    usage = completion.usage
    assert usage.prompt_tokens_details.cached_tokens == 5
    assert usage.prompt_tokens_details.cache_write_tokens == 2
    assert usage.prompt_tokens == 3 + 4 + tokens.count(messages[0]["content"])
    assert usage.completion_tokens_details.reasoning_tokens == 10
    assert usage.completion_tokens == 30
    assert tokens.count(completion.choices[0].message.content) == 20


def test_reasoning_uses_up_the_cap_before_anything_is_said(client):
    completion = client.chat.completions.create(
        model="o3", messages=say("[[sandbox reasoning=50]]"), max_completion_tokens=20
    )
    assert completion.choices[0].finish_reason == "length"
    assert completion.choices[0].message.content == ""
    assert completion.usage.completion_tokens == completion.usage.completion_tokens_details.reasoning_tokens == 20


def test_stop_text_ends_the_answer_before_it(client):
    completion = client.chat.completions.create(model="gpt-4o", messages=USER, stop=["nowhere", " sandbox"])
    assert completion.choices[0].message.content == "This is the Tollkeeper"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens == tokens.count("This is the Tollkeeper")


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"messages": None}, None, None),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": [1]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0].type", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": "ten"}, "max_tokens", "invalid_type"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "invalid_parameter_combination"),
        ({"model": "o3", "max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"temperature": 3}, "temperature", "decimal_out_of_range"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ],
)
def test_bad_requests_are_refused_in_openais_shape(sandbox, changes, param, code):
    body = {"model": "gpt-4o", "messages": USER} | changes
    if body["messages"] is None:
        del body["messages"]
        param, code = "messages", "missing_required_parameter"
    answer = sandbox.call("POST", "/v1/chat/completions", body, authorization="Bearer k")
    assert answer.status == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"]
    record = sandbox.last_record()
    assert (record["status"], record["input_tokens"], record["output_tokens"]) == (400, 0, 0)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"model":', b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_a_400(sandbox, raw):
    answer = sandbox.call("POST", "/v1/chat/completions", raw, authorization="Bearer k")
    assert answer.status == 400
    assert "could not parse the JSON body" in answer.json()["error"]["message"]


def test_missing_model_is_a_400(sandbox):
    answer = sandbox.call("POST", "/v1/chat/completions", {"messages": USER}, authorization="Bearer k")
    assert answer.json()["error"]["message"] == "you must provide a model parameter"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_error_statuses_become_the_sdks_exceptions(client, status, expected, stream):
    with pytest.raises(expected) as raised:
        client.chat.completions.create(model="gpt-4o", messages=say(f"[[sandbox status={status}]]"), stream=stream)
    assert raised.value.status_code == status
    assert raised.value.body["message"]


def test_rate_limit_says_when_to_retry(client):
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model="gpt-4o", messages=say("[[sandbox status=429 retry_after=7]]"))
    assert raised.value.response.headers["retry-after"] == "7"
    assert raised.value.code == "rate_limit_exceeded"


def test_models_are_listed(client):
    names = {model.id for model in client.models.list()}
    assert "gpt-4o" in names
    assert client.models.retrieve("gpt-4o").owned_by == "sandbox-openai"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-none")
