"""An unmodified openai SDK, answered by a Converse server: what it sends arrives there, what it gets is OpenAI's."""

import json

import openai
import pytest
from proxy_converse import openai_server

from deploy.local.sandbox.provider import tokens
from services.proxy import converse
from services.rating import accounting

MODEL = "us.anthropic.claude-sonnet-4-20250514-v1:0"
IMAGE = "data:image/png;base64,iVBORw0KGgo="
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
PLACE = {"name": "place", "schema": CITY}


@pytest.fixture
def client(provider):
    with openai_server(provider.url) as url, openai.OpenAI(api_key="k", base_url=url, max_retries=0) as client:
        yield client


def ask(client, *content, **members):
    messages = [{"role": "user", "content": list(content) or "hello"}]
    return client.chat.completions.create(**{"model": MODEL, "messages": messages} | members)


def text(words):
    return {"type": "text", "text": words}


def test_sdk_gets_a_completion_with_its_usage(client):
    answer = ask(client, text("hello"), {"type": "image_url", "image_url": {"url": IMAGE}})
    assert answer.choices[0].message.content == tokens.DEFAULT_ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 3 + 4 + 1 + tokens.IMAGE
    assert answer.usage.completion_tokens == len(tokens.DEFAULT_TOKENS)


def test_sdk_gets_the_same_in_a_stream(client):
    with client.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": "hello"}]) as stream:
        said = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert said == ["", *tokens.DEFAULT_TOKENS]
    assert final.choices[0].message.content == tokens.DEFAULT_ANSWER
    assert final.choices[0].finish_reason == "stop"
    assert final.usage == ask(client).usage


@pytest.mark.parametrize("stream", [False, True])
def test_every_cached_token_is_billed_as_bedrock_counts_it(client, stream):
    words = "[[sandbox cached=5 cache_write=3 cache_write_1h=2]]"
    answer = ask(client, text(words), stream=stream)
    usage = list(answer)[-1].usage if stream else answer.usage
    counted = accounting.openai_chat(usage.model_dump())
    assert counted.input_tokens == 3 + 4 + tokens.count(words)
    assert (counted.cache_read_tokens, counted.cache_write_5m_tokens, counted.cache_write_1h_tokens) == (5, 3, 2)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_is_called_and_its_result_goes_back(client, stream):
    choice = {"type": "function", "function": {"name": "weather"}}
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "tools": [WEATHER]}
    if stream:
        with client.chat.completions.stream(**asked, tool_choice=choice) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**asked, tool_choice=choice).choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "sandbox"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    said = message.model_dump(exclude_none=True, exclude={"parsed"})
    said["tool_calls"] = [{"id": call.id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    answer = client.chat.completions.create(**asked | {"messages": [*asked["messages"], said, result]})
    assert answer.choices[0].message.content == tokens.DEFAULT_ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_shown_and_go_back_with_their_signature(client, stream):
    thinking = {"additionalModelRequestFields": {"thinking": {"type": "enabled", "budget_tokens": 1024}}}
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "[[sandbox reasoning=4]]"}],
        "extra_body": thinking,
    }
    if stream:
        with client.chat.completions.stream(**asked) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**asked).choices[0].message
    assert tokens.count(message.reasoning_content) == 4
    (block,) = message.reasoning_blocks
    assert block["reasoningText"]["text"] == message.reasoning_content
    said = message.model_dump(exclude_none=True, exclude={"parsed"})
    answer = client.chat.completions.create(**asked | {"messages": [*asked["messages"], said, *asked["messages"]]})
    assert answer.choices[0].message.content == message.content


def test_json_follows_the_schema(client):
    answer = ask(client, response_format={"type": "json_schema", "json_schema": PLACE})
    assert json.loads(answer.choices[0].message.content) == {"city": "sandbox"}


@pytest.mark.parametrize("stream", [False, True])
def test_output_is_cut_at_the_cap(client, stream):
    answer = ask(client, max_tokens=3, stream=stream)
    choices = [chunk.choices[0] for chunk in answer if chunk.choices] if stream else answer.choices
    assert choices[-1].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (503, openai.InternalServerError),
    ],
)
def test_errors_are_the_sdks_own(client, status, kind, stream):
    with pytest.raises(kind):
        ask(client, text(f"[[sandbox status={status}]]"), stream=stream)


def test_what_cannot_be_said_never_reaches_bedrock(client, provider):
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        ask(client, logprobs=True)
    assert provider._send("GET", "/sandbox/usage")["requests"] == 0


def test_failure_in_a_stream_is_the_sdks_own_after_what_was_said(client):
    chunks = ask(client, text("[[sandbox fault=stream-error status=429 after=2]]"), stream=True)
    said = []
    with pytest.raises(openai.APIError) as caught:
        said.extend(chunk.choices[0].delta.content for chunk in chunks)
    assert said[1:] == list(tokens.DEFAULT_TOKENS[:2])
    assert caught.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("fault", ["cut-stream after=2", "cut-event after=2"])
def test_stream_that_is_cut_has_neither_end_nor_usage(client, fault):
    chunks = list(ask(client, text(f"[[sandbox fault={fault}]]"), stream=True))
    assert not any(chunk.usage or chunk.choices[0].finish_reason for chunk in chunks)


def test_pieces_that_know_nothing_of_events_give_the_same_chunks(client):
    odd = ask(client, text("[[sandbox fault=odd-chunks]]"), stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in odd if chunk.choices)
    assert said == tokens.DEFAULT_ANSWER


def test_arns_name_the_model(client, provider):
    arn = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-3-haiku"
    assert converse.model_path(arn, False).count("/") == 2
    ask(client, model=arn)
    assert provider._send("GET", "/sandbox/usage")["records"][-1]["model"] == arn
