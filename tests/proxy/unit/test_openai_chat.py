"""What is read of a chat completion: the bound on its input, its cap, its usage."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy_fakes import upstream_provider

from deploy.local.sandbox.provider import tokens as sandbox_tokens
from deploy.local.sandbox.provider.refusal import Dialect, Provider
from deploy.local.sandbox.provider.routes import Endpoint, Route
from deploy.local.sandbox.provider.wire.openai_chat import ChatCompletions
from services.kit.refusals import InvalidArgument
from services.proxy.formats import tokens
from services.proxy.formats.openai_chat import ChatReader, ChatRequest

ROUTE = Route(Provider.OPENAI, Endpoint.CHAT, Dialect.OPENAI)

texts = st.text(max_size=200)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(
        lambda data, detail: {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + "A" * data, "detail": detail},
        },
        st.integers(0, 5000),
        st.sampled_from(["low", "high", "auto"]),
    ),
    st.builds(
        lambda data: {"type": "input_audio", "input_audio": {"data": "A" * data, "format": "wav"}},
        st.integers(0, 5000),
    ),
    st.builds(lambda data: {"type": "file", "file": {"file_data": "A" * data}}, st.integers(0, 5000)),
)
messages = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user"]),
    st.one_of(texts, st.lists(parts, max_size=4)),
)
tools = st.builds(
    lambda name, text: {"type": "function", "function": {"name": name, "description": text, "parameters": {}}},
    st.from_regex(r"[a-z]{1,20}", fullmatch=True),
    texts,
)


@given(st.lists(messages, min_size=1, max_size=6), st.lists(tools, max_size=3), st.booleans())
def test_bound_is_never_below_the_real_count(conversation, definitions, ascii_only):
    body = {"model": "gpt-4o", "messages": conversation, **({"tools": definitions} if definitions else {})}
    raw = json.dumps(body, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    real = ChatCompletions().read(orjson.loads(raw), ROUTE).input_tokens
    assert ChatRequest.read(raw).input_bound >= real


@given(texts)
def test_no_byte_tokenizer_makes_more_tokens_than_the_bound(text):
    raw = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": text}]})
    assert ChatRequest.read(raw).input_bound >= len(text.encode())


def test_file_by_name_may_fill_the_window():
    content = [{"type": "file", "file": {"file_id": "file-1"}}]
    raw = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": content}]})
    assert ChatRequest.read(raw).input_bound > 200_000


def sent_to_openai(request, cap):
    return request.outgoing(cap, upstream_provider("openai", "chat", cap_field="max_completion_tokens")).body


def usage_of(usage):
    reader = ChatReader()
    reader.take_whole(orjson.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}))
    return reader.usage


def read(**body):
    return ChatRequest.read(orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]} | body))


def test_body_that_needs_no_change_is_sent_as_it_was_read():
    raw = b'{ "model":"m",  "messages":[{"role":"user","content":"\\u00e9"}], "max_tokens": 5, "x":null }'
    assert orjson.loads(sent_to_openai(ChatRequest.read(raw), 5)) == orjson.loads(raw)


def test_name_that_stands_twice_is_sent_as_it_was_checked():
    raw = b'{"model":"dear","model":"cheap","n":100,"n":1,"max_tokens":5,"messages":[{"role":"user","content":"x"}]}'
    request = ChatRequest.read(raw)
    assert (request.model, request.choices) == ("cheap", 1)
    sent = sent_to_openai(request, 5)
    assert sent.count(b'"model"') == sent.count(b'"n"') == 1
    assert orjson.loads(sent)["model"] == "cheap"


@pytest.mark.parametrize(
    ("body", "cap", "sent"),
    [
        ({}, 7, {"max_completion_tokens": 7}),
        ({"max_tokens": None}, 7, {"max_tokens": None, "max_completion_tokens": 7}),
        # A cap by its newer name is refused beside a prediction: OpenAI's guide "Predicted Outputs", limitations.
        ({"prediction": {"content": "x"}}, 7, {"prediction": {"content": "x"}, "max_tokens": 7}),
        ({"max_tokens": 9}, 7, {"max_tokens": 7}),
        ({"max_tokens": 9}, 9, {"max_tokens": 9}),
        ({"max_completion_tokens": 9}, 7, {"max_completion_tokens": 7}),
        ({"stream": True, "max_tokens": 5}, 5, {"max_tokens": 5, "stream_options": {"include_usage": True}}),
        (
            {"stream": True, "max_tokens": 5, "stream_options": {"include_usage": False, "x": 1}},
            5,
            {"max_tokens": 5, "stream_options": {"include_usage": True, "x": 1}},
        ),
        (
            {"stream": False, "max_tokens": 5, "unknown": [1, {"a": None}]},
            5,
            {"max_tokens": 5, "unknown": [1, {"a": None}]},
        ),
    ],
)
def test_only_cap_and_usage_are_changed(body, cap, sent):
    request = read(**body)
    base = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    stream = {"stream": body["stream"]} if "stream" in body else {}
    assert orjson.loads(sent_to_openai(request, cap)) == base | stream | sent


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({}, {"max_tokens": 7}),
        ({"max_tokens": 9}, {"max_tokens": 7}),
        ({"max_completion_tokens": 9}, {"max_tokens": 7}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 9, "max_tokens": 5}, {"max_completion_tokens": 7, "max_tokens": 5}),
    ],
)
def test_cap_goes_by_the_name_that_the_provider_reads(body, sent):
    request = read(**body)
    made = request.outgoing(7, upstream_provider("huggingface", "chat", cap_field="max_tokens")).body
    assert orjson.loads(made) == {"model": "m", "messages": [{"role": "user", "content": "x"}]} | sent


@pytest.mark.parametrize(
    ("model", "least"), [("gpt-5.6-mini", 30_000), ("openai/gpt-6-astra", 30_000), ("gpt-5.4", 10_000), ("m", 5_000)]
)
def test_image_is_bounded_by_what_its_model_may_make_of_it(model, least):
    content = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    raw = orjson.dumps({"model": model, "messages": [{"role": "user", "content": content}]})
    assert least <= ChatRequest.read(raw).input_bound < 2 * least


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(InvalidArgument) as caught:
        ChatRequest.read(b'{"messages": 5, "stream": 1, "n": "x", "max_tokens": []}')
    assert {v.field for v in caught.value.violations} == {"model", "messages", "stream", "n", "max_tokens"}


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        {},
        {"prompt_tokens": 5},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": -1, "completion_tokens": 5},
        {"prompt_tokens": "5", "completion_tokens": 5},
        {"prompt_tokens": 5.5, "completion_tokens": 5},
        {"prompt_tokens": True, "completion_tokens": 5},
        {"prompt_tokens": 2**40, "completion_tokens": 5},
    ],
)
def test_usage_that_cannot_be_believed_is_none(usage):
    assert usage_of(usage) is None


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_count_without_output_of_an_answer_that_says_something_is_of_its_input_alone(streamed):
    reader, usage = ChatReader(), {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12}
    if streamed:
        reader.take_event(b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n')
        reader.take_event(b'data: {"choices":[],"usage":' + orjson.dumps(usage) + b"}\n\n")
        reader.take_event(b"data: [DONE]\n\n")
    else:
        reader.take_whole(orjson.dumps({"choices": [{"message": {"content": "hello"}}], "usage": usage}))
    assert reader.estimated
    assert (reader.partial.input_tokens, reader.said) == (12, ["hello"])


def test_count_before_the_end_is_not_the_calls():
    reader, usage = ChatReader(), {"prompt_tokens": 12, "completion_tokens": 1}
    said = b'data: {"choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":%s}]}\n\n'
    reader.take_event(said % b"null")
    reader.take_event(b'data: {"choices":[],"usage":' + orjson.dumps(usage) + b"}\n\n")
    assert reader.usage is not None
    reader.take_event(said % b'"stop"')
    reader.take_event(b"data: [DONE]\n\n")
    assert (reader.usage, reader.partial.output_tokens, reader.pieces) == (None, 1, 2)


def test_thoughts_without_an_answer_are_counted_by_the_total():
    assert usage_of({"prompt_tokens": 21, "total_tokens": 81}).output_tokens == 60
    assert usage_of({"prompt_tokens": 21, "total_tokens": 21}) is None


def test_guess_is_near_the_count_of_plain_words():
    text = "The quick brown fox jumps over the lazy dog, again and again. " * 20
    assert 0.5 < tokens.guessed(text) / sandbox_tokens.count(text) < 2


@pytest.mark.parametrize("tier", ["ultrafast", 7, ""])
def test_tier_that_has_no_known_price_is_refused(tier):
    with pytest.raises(InvalidArgument) as caught:
        read(service_tier=tier)
    assert [v.field for v in caught.value.violations] == ["service_tier"]
