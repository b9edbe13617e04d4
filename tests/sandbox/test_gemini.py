"""Gemini: the unmodified SDK sees Google, over server-sent events and the JSON array, with Google's way of counting."""

from __future__ import annotations

import json

import pytest
from google import genai
from google.genai import errors, types

from deploy.local.sandbox.provider import tokens

MODEL = "gemini-1.5-pro"
HELLO_TOKENS = 3 + 4 + 1
GENERATE = f"/v1beta/models/{MODEL}:generateContent"
STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent"


@pytest.fixture
def client(sandbox):
    client = genai.Client(api_key=sandbox.key, http_options=types.HttpOptions(base_url=sandbox.url))
    yield client
    client.close()


def hello(**members):
    return {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]} | members


def test_unary_usage_is_the_count_of_what_was_sent_and_said(client):
    config = types.GenerateContentConfig(system_instruction="Be brief.")
    answer = client.models.generate_content(model=MODEL, contents="hello", config=config)
    usage = answer.usage_metadata
    assert answer.text == tokens.DEFAULT_ANSWER
    assert answer.candidates[0].finish_reason is types.FinishReason.STOP
    assert usage.prompt_token_count == HELLO_TOKENS + 4 + tokens.count("Be brief.")
    assert usage.candidates_token_count == tokens.count(answer.text)
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count
    assert answer.model_version == MODEL


def test_stream_counts_up_to_the_whole_and_says_last_why_it_ends(client):
    chunks = list(client.models.generate_content_stream(model=MODEL, contents="hello"))
    counts = [chunk.usage_metadata.candidates_token_count for chunk in chunks]
    assert counts == list(range(1, len(tokens.DEFAULT_TOKENS) + 1))
    assert "".join(chunk.text for chunk in chunks) == tokens.DEFAULT_ANSWER
    assert [chunk.candidates[0].finish_reason for chunk in chunks[-2:]] == [None, types.FinishReason.STOP]


def test_without_alt_sse_the_stream_is_one_json_array(sandbox):
    array = sandbox.call("POST", STREAM, hello(), x_goog_api_key="k")
    sse = sandbox.call("POST", f"{STREAM}?alt=sse", hello(), x_goog_api_key="k")
    assert array.headers["content-type"] == "application/json"
    assert sse.headers["content-type"] == "text/event-stream"

    def without_id(pieces):
        return [{name: value for name, value in piece.items() if name != "responseId"} for piece in pieces]

    assert without_id(array.json()) == without_id(sse.events())
    assert len(array.json()) == len(tokens.DEFAULT_TOKENS)


def test_output_is_cut_at_the_cap(client):
    config = types.GenerateContentConfig(max_output_tokens=3)
    unary = client.models.generate_content(model=MODEL, contents="hello", config=config)
    *_, last = client.models.generate_content_stream(model=MODEL, contents="hello", config=config)
    assert unary.text == "".join(tokens.DEFAULT_TOKENS[:3])
    for answer in (unary, last):
        assert answer.candidates[0].finish_reason is types.FinishReason.MAX_TOKENS
        assert answer.usage_metadata.candidates_token_count == 3


def test_thoughts_are_counted_apart_and_cached_tokens_within_the_prompt(client):
    text = "[[sandbox reasoning=10 cached=6]]"
    for config, parts in ((None, [None]), ({"thinking_config": {"include_thoughts": True}}, [True, None])):
        unary = client.models.generate_content(model=MODEL, contents=text, config=config)
        chunks = list(client.models.generate_content_stream(model=MODEL, contents=text, config=config))
        assert [part.thought for part in unary.candidates[0].content.parts] == parts
        for answer in (unary, chunks[-1]):
            usage = answer.usage_metadata
            assert usage.thoughts_token_count == 10
            assert usage.candidates_token_count == len(tokens.DEFAULT_TOKENS)
            assert usage.cached_content_token_count == 6
            assert usage.prompt_token_count == 3 + 4 + tokens.count(text)
            assert usage.total_token_count == usage.prompt_token_count + 10 + len(tokens.DEFAULT_TOKENS)


def test_any_mode_calls_an_allowed_function(client):
    schema = types.Schema(type="OBJECT", properties={"city": types.Schema(type="STRING")}, required=["city"])
    functions = [types.FunctionDeclaration(name=name, parameters=schema) for name in ("first", "second")]
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=functions)],
        tool_config={"function_calling_config": {"mode": "ANY", "allowed_function_names": ["second"]}},
    )
    unary = client.models.generate_content(model=MODEL, contents="hello", config=config)
    (chunk,) = client.models.generate_content_stream(model=MODEL, contents="hello", config=config)
    for answer in (unary, chunk):
        call = answer.function_calls[0]
        assert (call.name, call.args) == ("second", {"city": "sandbox"})
        assert answer.usage_metadata.candidates_token_count == tokens.count("second") + tokens.count(
            '{"city":"sandbox"}'
        )


def test_images_and_structured_output(client):
    image = types.Part.from_bytes(data=b"\x89PNG", mime_type="image/png")
    schema = {"type": "OBJECT", "properties": {"total": {"type": "INTEGER"}}}
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=schema)
    answer = client.models.generate_content(model=MODEL, contents=["hello", image], config=config)
    assert json.loads(answer.text) == {"total": 1}
    assert answer.usage_metadata.prompt_token_count > HELLO_TOKENS + 765


def test_candidates_are_all_counted(client):
    config = types.GenerateContentConfig(candidate_count=2)
    answer = client.models.generate_content(model=MODEL, contents="hello", config=config)
    assert len(answer.candidates) == 2
    assert answer.usage_metadata.candidates_token_count == 2 * len(tokens.DEFAULT_TOKENS)


def test_proto_names_are_taken_as_well_as_json_names(sandbox):
    body = hello(system_instruction={"parts": [{"text": "Be brief."}]}, generation_config={"max_output_tokens": 2})
    answer = sandbox.call("POST", GENERATE, body, x_goog_api_key="k").json()
    assert answer["usageMetadata"]["candidatesTokenCount"] == 2
    assert answer["usageMetadata"]["promptTokenCount"] == HELLO_TOKENS + 4 + tokens.count("Be brief.")


@pytest.mark.parametrize(
    ("status", "expected", "word"),
    [
        (400, errors.ClientError, "INVALID_ARGUMENT"),
        (403, errors.ClientError, "PERMISSION_DENIED"),
        (429, errors.ClientError, "RESOURCE_EXHAUSTED"),
        (500, errors.ServerError, "INTERNAL"),
        (503, errors.ServerError, "UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_error_statuses_become_the_sdks_exceptions(client, status, expected, word, stream):
    text = f"[[sandbox status={status} retry_after=2]]"
    call = client.models.generate_content_stream if stream else client.models.generate_content
    with pytest.raises(expected) as raised:
        list(call(model=MODEL, contents=text))
    assert (raised.value.code, raised.value.status) == (status, word)
    assert raised.value.details["error"]["details"][-1]["retryDelay"] == "2s"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"contents": []},
        {"contents": "hello"},
        {"contents": [{"role": "user"}]},
        {"contents": [{"role": "robot", "parts": [{"text": "x"}]}]},
        hello(generationConfig={"maxOutputTokens": 0}),
        hello(generationConfig={"maxOutputTokens": "ten"}),
        hello(tools=[5]),
    ],
)
def test_bad_requests_are_refused_in_googles_shape(sandbox, body):
    answer = sandbox.call("POST", GENERATE, body, x_goog_api_key="k")
    assert answer.status == 400
    error = answer.json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert error["message"]


def test_models_are_listed_in_googles_form(client):
    assert f"models/{MODEL}" in {model.name for model in client.models.list()}
    assert client.models.get(model=MODEL).output_token_limit == 200_000
    with pytest.raises(errors.ClientError, match="NOT_FOUND"):
        client.models.get(model="gemini-none")
