"""The unmodified Anthropic SDK through Envoy: answers, exact prices, refusals as its own exceptions."""

import base64
import contextlib
import json
from fractions import Fraction

import anthropic
import pytest

PAYG_MULTIPLIER = Fraction(3, 2)
IN, OUT = Fraction(800), Fraction(4000)  # nanos a token of claude-3-haiku: $0.80 and $4 for a million
QUESTION = [{"role": "user", "content": "What is a toll?"}]
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
TOOL = {
    "name": "get_toll",
    "description": "The toll of a bridge",
    "input_schema": {"type": "object", "properties": {"bridge": {"type": "string"}}},
}


@pytest.fixture
def client(suite):
    with contextlib.ExitStack() as stack:

        def make(key, **words):
            made = anthropic.Anthropic(base_url=suite.url, max_retries=0, timeout=30, **({"api_key": key} | words))
            return stack.enter_context(made)

        yield make


def price(usage):
    exact = (usage.input_tokens * IN + usage.output_tokens * OUT) * PAYG_MULTIPLIER
    assert exact.denominator == 1
    return int(exact)


def test_message_that_only_fills_the_cache_costs_its_input(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    message = client(customer.key).messages.create(model="claude-3-haiku", max_tokens=0, messages=QUESTION)
    assert (message.content, message.usage.output_tokens) == ([], 0)
    assert suite.available(customer.key) == 10**9 - price(message.usage)


def test_tokens_are_counted_for_nothing_as_the_message_then_says(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    asked = {"model": "claude-3-haiku", "messages": QUESTION, "tools": [TOOL]}
    counted = client(customer.key).messages.count_tokens(**asked)
    assert client(customer.key).beta.messages.count_tokens(**asked).input_tokens == counted.input_tokens
    assert suite.available(customer.key) == 10**9
    assert client(customer.key).messages.create(**asked, max_tokens=9).usage.input_tokens == counted.input_tokens
    with pytest.raises(anthropic.AuthenticationError):
        client("tk_live_nobody").messages.count_tokens(**asked)
    with pytest.raises(anthropic.BadRequestError, match="at least one message"):
        client(customer.key).messages.count_tokens(model="claude-3-haiku", messages=[])
    with pytest.raises(anthropic.PermissionDeniedError):
        client(customer.key).messages.count_tokens(model="claude-nobody-prices", messages=QUESTION)


def test_models_are_listed_as_anthropic_does(suite, client):
    models = client(suite.customer().key).models
    listed = {model.id: model for model in models.list(limit=1000)}
    assert "claude-3-haiku" in listed
    assert not [name for name in listed if name.startswith(("gpt", "gemini"))]
    one = models.retrieve("claude-3-haiku")
    assert (one.type, one.display_name, one.created_at) == ("model", "Claude 3 Haiku", listed[one.id].created_at)
    assert one.created_at.year >= 1970
    with pytest.raises(anthropic.NotFoundError):
        models.retrieve("gpt-4o")


def test_unary_message_costs_exactly_the_price_of_its_usage(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    answer = client(customer.key).messages.with_raw_response.create(
        model="claude-3-haiku", max_tokens=100, messages=QUESTION
    )
    message = answer.parse()
    assert message.content[0].text
    assert message._request_id == answer.headers["x-request-id"]
    cost = price(message.usage)
    assert suite.available(customer.key) == 10**9 - cost
    assert float(answer.headers["x-tollkeeper-cost-credits"]) == cost / 10**7


def test_streamed_message_costs_exactly_the_price_of_its_usage(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    call = {"model": "claude-3-haiku", "max_tokens": 100, "messages": QUESTION}
    with client(customer.key).messages.stream(**call) as stream:
        message = stream.get_final_message()
    assert message.content[0].text
    cost = price(message.usage)
    assert suite.available(customer.key) == 10**9 - cost
    last = list(client(customer.key).messages.create(**call, stream=True))[-1]
    assert last.type == "message_stop"
    assert int(last.model_extra["credits"]["costNanos"]) == cost
    assert suite.available(customer.key) == 10**9 - 2 * cost


def test_bearer_is_taken_as_well(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    made = client(None, auth_token=customer.key)
    assert made.messages.create(model="claude-3-haiku", max_tokens=9, messages=QUESTION).usage.output_tokens <= 9


def test_tools_and_images_pass_through(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    message = client(customer.key).messages.create(
        model="claude-3-haiku",
        max_tokens=200,
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "get_toll"},
        messages=[{"role": "user", "content": [image, {"type": "text", "text": "What does this bridge cost?"}]}],
    )
    assert message.stop_reason == "tool_use"
    assert [block.name for block in message.content if block.type == "tool_use"] == ["get_toll"]
    assert suite.available(customer.key) == 10**9 - price(message.usage)


def test_refusals_are_the_sdks_own_exceptions(suite, client):
    poor = suite.customer()
    call = {"model": "claude-3-haiku", "max_tokens": 10, "messages": QUESTION}
    with pytest.raises(anthropic.AuthenticationError):
        client("tk_live_" + "x" * 40).messages.create(**call)
    with pytest.raises(anthropic.APIStatusError) as caught:
        client(poor.key).messages.create(**call)
    assert caught.value.status_code == 402
    with pytest.raises(anthropic.PermissionDeniedError):
        client(poor.key).messages.create(**call | {"model": "no-such-model"})
    with pytest.raises(anthropic.BadRequestError) as caught:
        client(poor.key).messages.create(**call | {"messages": []})
    assert "messages" in caught.value.message
    with pytest.raises(anthropic.PermissionDeniedError) as caught:
        client(poor.key).messages.create(**call, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert "web_search" in caught.value.message


def test_streamed_tool_call_comes_in_fragments_that_make_it_whole(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    call = {"model": "claude-3-haiku", "max_tokens": 200, "messages": QUESTION}
    asked = call | {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_toll"}}
    with client(customer.key).messages.stream(**asked) as stream:
        fragments = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    (block,) = [block for block in message.content if block.type == "tool_use"]
    assert len(fragments) > 1
    assert (block.name, block.input) == ("get_toll", json.loads("".join(fragments)))
    assert suite.available(customer.key) == 10**9 - price(message.usage)


def test_every_cached_token_is_billed_once(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    words = "[[sandbox cached=5 cache_write=3 cache_write_1h=2 output_tokens=7]]"
    call = {"model": "claude-3-haiku", "max_tokens": 100, "messages": [{"role": "user", "content": words}]}
    with client(customer.key).messages.stream(**call) as stream:
        streamed = stream.get_final_message().usage
    usage = client(customer.key).messages.create(**call).usage
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (5, 5)
    # This model's price names no rate for caches, so they are input; Anthropic counts them beside the others.
    everything = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    cost = (everything * IN + usage.output_tokens * OUT) * PAYG_MULTIPLIER
    assert suite.available(customer.key) == 10**9 - 2 * cost
    assert streamed.output_tokens == usage.output_tokens == 7
    newest, _ = suite.get("/api/billing/usage", customer.key).body["records"]
    assert (newest["inputTokens"], newest["cachedTokens"], newest["outputTokens"]) == (str(everything), "5", "7")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_providers_own_errors_are_the_sdks_own_and_cost_nothing(suite, client, stream):
    customer = suite.customer(credit_nanos=10**9)
    for status, kind in (
        (400, anthropic.BadRequestError),
        (404, anthropic.NotFoundError),
        (413, anthropic.APIStatusError),
    ):
        messages = [{"role": "user", "content": f"[[sandbox status={status}]]"}]
        with pytest.raises(kind) as caught:
            client(customer.key).messages.create(model="claude-3-haiku", max_tokens=9, messages=messages, stream=stream)
        assert caught.value.status_code == status
        assert caught.value.body["error"]["message"]
    assert suite.available(customer.key) == 10**9


def test_error_within_a_stream_is_raised_after_what_was_said_and_that_is_billed(suite, client, eventually):
    customer = suite.customer(credit_nanos=10**9)
    messages = [{"role": "user", "content": "[[sandbox fault=stream-error after=4]]"}]
    said = []
    call = {"model": "claude-3-haiku", "max_tokens": 50, "messages": messages}
    events = client(customer.key).messages.create(**call, stream=True)
    with pytest.raises(anthropic.APIStatusError):
        said.extend(event.delta.text for event in events if event.type == "content_block_delta")
    assert len(said) == 4
    # The provider's error goes out as it comes; the bill follows.
    eventually(lambda: suite.get("/api/billing/usage", customer.key).body["records"])
    (record,) = suite.get("/api/billing/usage", customer.key).body["records"]
    assert (record["status"], record["estimated"]) == ("failed", True)
    assert 10**9 - suite.available(customer.key) == int(record["billedNanos"]) > 0
