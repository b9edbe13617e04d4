"""The unmodified OpenAI SDK through Envoy: answers, exact prices, refusals as its own exceptions."""

import base64
import concurrent.futures
import contextlib
import json
from fractions import Fraction

import openai
import pydantic
import pytest

NANOS_PER_TOKEN_IN = Fraction(5 * 10**9, 10**6)  # gpt-4o: $5 and $15 for a million tokens
NANOS_PER_TOKEN_OUT = Fraction(15 * 10**9, 10**6)
PAYG_MULTIPLIER = Fraction(3, 2)
QUESTION = [{"role": "user", "content": "What is a toll?"}]
EMBEDDING_NANOS_PER_TOKEN = 20  # what the test publishes: $0.02 for a million tokens
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
TOLL = {
    "name": "get_toll",
    "description": "The toll of a bridge",
    "parameters": {"type": "object", "properties": {"bridge": {"type": "string"}}, "required": ["bridge"]},
}


@pytest.fixture
def client(suite):
    """Makes SDK clients, closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(key):
            made = openai.OpenAI(api_key=key, base_url=f"{suite.url}/v1", max_retries=0, timeout=30)
            return stack.enter_context(made)

        yield make


def price(usage):
    exact = (usage.prompt_tokens * NANOS_PER_TOKEN_IN + usage.completion_tokens * NANOS_PER_TOKEN_OUT) * PAYG_MULTIPLIER
    assert exact.denominator == 1
    return int(exact)


def test_unary_call_costs_exactly_the_price_of_its_usage(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    answer = client(customer.key).chat.completions.with_raw_response.create(model="gpt-4o", messages=QUESTION)
    completion = answer.parse()
    assert completion.choices[0].message.content
    cost = price(completion.usage)
    assert suite.available(customer.key) == 10**9 - cost
    assert float(answer.headers["x-tollkeeper-cost-credits"]) == cost / 10**7
    assert float(answer.headers["x-tollkeeper-credits-remaining"]) == (10**9 - cost) / 10**7
    assert answer.headers["x-tollkeeper-request-id"]


def test_streamed_call_costs_exactly_the_price_of_its_usage(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    chunks = list(client(customer.key).chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    last = chunks[-1]
    assert last.choices[0].finish_reason == "stop"
    cost = price(last.usage)
    assert suite.available(customer.key) == 10**9 - cost
    credit = last.model_extra["credits"]
    assert int(credit["costNanos"]) == cost


def test_chunk_without_choices_comes_only_to_who_asks_for_usage(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    call = {"model": "gpt-4o", "messages": QUESTION, "stream": True}
    stream = client(customer.key).chat.completions.create(**call, stream_options={"include_usage": True})
    *said, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said)
    assert said[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    cost = price(last.usage)
    assert int(last.model_extra["credits"]["costNanos"]) == cost == 10**9 - suite.available(customer.key)
    plain = client(customer.key).chat.completions.create(**call, stream_options={"include_usage": False})
    assert all(chunk.choices[0].delta is not None for chunk in plain)


def test_plain_loop_over_two_choices_gets_both_and_what_they_cost(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    said, reasons = {0: "", 1: ""}, {}
    for chunk in client(customer.key).chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True, n=2):
        choice = chunk.choices[0]
        said[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
        last = chunk
    assert said[0] == said[1] != ""
    assert reasons == {0: "stop", 1: "stop"}
    assert int(last.model_extra["credits"]["costNanos"]) == price(last.usage) == 10**9 - suite.available(customer.key)


def test_usage_record_says_what_was_used_and_what_it_cost(suite, client):
    customer = suite.customer(credit_nanos=10**9, workspace="web")
    usage = client(customer.key).chat.completions.create(model="gpt-4o", messages=QUESTION).usage
    (record,) = suite.get("/api/billing/usage", customer.key).body["records"]
    assert (int(record["inputTokens"]), int(record["outputTokens"])) == (usage.prompt_tokens, usage.completion_tokens)
    assert int(record["billedNanos"]) == price(usage)
    assert Fraction(int(record["costNanos"])) * PAYG_MULTIPLIER == price(usage)
    assert (record["provider"], record["model"], record["priceVersion"]) == ("openai", "gpt-4o", "1")
    assert (record["keyId"], record["workspace"], record["estimated"]) == (customer.key_id, "web", False)


def test_unknown_key_is_an_authentication_error(suite, client):
    with pytest.raises(openai.AuthenticationError):
        client("tk_live_" + "x" * 40).chat.completions.create(model="gpt-4o", messages=QUESTION)
    with pytest.raises(openai.AuthenticationError):
        client("not a key").models.list()


def test_account_without_credit_is_402_and_the_provider_is_not_called(suite, client):
    customer = suite.customer()
    before = suite.sandbox_requests()["totals"]
    with pytest.raises(openai.APIStatusError) as caught:
        client(customer.key).chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert (caught.value.status_code, caught.value.code) == (402, "insufficient_credit")
    assert suite.sandbox_requests()["totals"] == before


def test_model_without_price_or_outside_the_plan_is_permission_denied(suite, client):
    payg = suite.customer(credit_nanos=10**9)
    with pytest.raises(openai.PermissionDeniedError):
        client(payg.key).chat.completions.create(model="gpt-9-unpriced", messages=QUESTION)
    free = suite.customer(plan="free")
    with pytest.raises(openai.PermissionDeniedError):
        client(free.key).chat.completions.create(model="gpt-4o", messages=QUESTION)
    narrow = suite.customer(credit_nanos=10**9, allowedModels=["gpt-4-turbo"])
    with pytest.raises(openai.PermissionDeniedError):
        client(narrow.key).chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert suite.available(payg.key) == 10**9


def test_free_plan_calls_its_model_from_its_promotional_credit(suite, client):
    customer = suite.customer(plan="free")
    before = suite.get("/api/credits/balance", customer.key).body
    assert (before["totalCredits"], before["tier"]) == (500, "free")
    usage = client(customer.key).chat.completions.create(model="gpt-3.5-turbo", messages=QUESTION).usage
    after = suite.get("/api/credits/balance", customer.key).body
    spent = usage.prompt_tokens * 500 + usage.completion_tokens * 1500  # $0.5 and $1.5 a million, at cost
    assert int(after["availableNanos"]) == 5 * 10**9 - spent
    assert int(after["monthlyTokensUsed"]) == usage.prompt_tokens + usage.completion_tokens
    assert int(after["monthlyRequestsUsed"]) == 1


def test_month_of_usage_adds_up_to_what_was_billed(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    costs = [
        price(client(customer.key).chat.completions.create(model="gpt-4o", messages=QUESTION).usage) for _ in range(2)
    ]
    month = suite.get("/api/credits/usage", customer.key).body
    assert (month["totalRequests"], month["totalCostNanos"]) == ("2", str(sum(costs)))
    assert month["byProvider"]["openai"]["requests"] == "2"
    assert float(month["totalCost"]) == sum(costs) / 10**9
    balance = suite.get("/api/credits/balance", customer.key).body
    assert (balance["monthlyRequestsUsed"], balance["monthlyTokensUsed"]) == ("2", month["totalTokens"])
    assert suite.get("/api/credits/usage?month=2026-13", customer.key).status == 400


def test_metered_plan_pays_by_its_quotas_and_needs_no_credit(suite, client):
    customer = suite.customer(plan="metered-standard")
    usage = client(customer.key).chat.completions.create(model="gpt-4o", messages=QUESTION).usage
    assert suite.available(customer.key) == 0
    (record,) = suite.get("/api/billing/usage", customer.key).body["records"]
    assert (record["billable"], record["billedNanos"]) == (False, "0")
    assert int(record["costNanos"]) * PAYG_MULTIPLIER == price(usage)


def test_internal_key_is_recorded_and_never_billed(suite, client):
    customer = suite.customer(keyType="internal")
    client(customer.key).chat.completions.create(model="gpt-4o", messages=QUESTION)
    (record,) = suite.get("/api/billing/usage", customer.key).body["records"]
    assert (record["billable"], record["billedNanos"]) == (False, "0")


def test_key_that_reached_its_daily_cap_is_429_and_says_when_to_retry(suite, client):
    customer = suite.customer(credit_nanos=10**9, dailyLimitUsd="0.000001")
    with pytest.raises(openai.RateLimitError) as caught:
        client(customer.key).chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert suite.available(customer.key) == 10**9


def test_two_hundred_calls_at_once_on_credit_for_fifty(suite, client):
    body = {"model": "gpt-4o", "messages": QUESTION, "max_tokens": 8}
    probe = suite.customer(credit_nanos=10**9)
    cost = price(client(probe.key).chat.completions.create(**body).usage)
    customer = suite.customer(credit_nanos=50 * cost)
    caller = client(customer.key)
    before = suite.sandbox_requests()["totals"]["requests"]

    def attempt(_):
        try:
            return price(caller.chat.completions.create(**body).usage)
        except openai.APIStatusError as refusal:
            if refusal.status_code != 402:
                raise
            return None

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        costs = [paid for paid in pool.map(attempt, range(200)) if paid is not None]
    assert 1 <= suite.sandbox_requests()["totals"]["requests"] - before == len(costs) <= 50
    balance = suite.get("/api/credits/balance", customer.key).body
    assert int(balance["availableNanos"]) == 50 * cost - sum(costs) >= 0
    assert balance["heldCredits"] == 0
    listed = suite.get("/api/billing/transactions?pageSize=1000", customer.key).body["transactions"]
    assert sum(int(entry["amountNanos"]) for entry in listed) == int(balance["availableNanos"])
    assert all(sum(int(posting["amountNanos"]) for posting in entry["postings"]) == 0 for entry in listed)


def test_models_listed_are_those_the_key_may_call(suite, client):
    customer = suite.customer(plan="free")
    assert [model.id for model in client(customer.key).models.list()] == ["gpt-3.5-turbo"]


# ---------------------------------------------------------------------------------------- responses, embeddings, models


def response_price(usage):
    exact = (usage.input_tokens * NANOS_PER_TOKEN_IN + usage.output_tokens * NANOS_PER_TOKEN_OUT) * PAYG_MULTIPLIER
    return int(exact)


def test_response_costs_exactly_the_price_of_its_usage(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    answer = client(customer.key).responses.with_raw_response.create(model="gpt-4o", input="What is a toll?")
    response = answer.parse()
    assert (response.status, bool(response.output_text)) == ("completed", True)
    cost = response_price(response.usage)
    assert suite.available(customer.key) == 10**9 - cost
    assert float(answer.headers["x-tollkeeper-cost-credits"]) == cost / 10**7


def test_streamed_response_costs_exactly_the_price_of_its_usage(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    with client(customer.key).responses.stream(model="gpt-4o", input="What is a toll?") as stream:
        events = list(stream)
    last = events[-1]
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert (last.type, last.response.output_text) == ("response.completed", said)
    cost = response_price(last.response.usage)
    assert suite.available(customer.key) == 10**9 - cost
    last = list(client(customer.key).responses.create(model="gpt-4o", input="What is a toll?", stream=True))[-1]
    assert int(last.model_extra["credits"]["costNanos"]) == cost


def test_tokens_are_counted_for_nothing_as_the_response_then_says(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    asked = {"model": "gpt-4o", "input": "What is a toll?", "instructions": "Be brief."}
    counted = client(customer.key).responses.input_tokens.count(**asked)
    assert suite.available(customer.key) == 10**9
    assert client(customer.key).responses.create(**asked).usage.input_tokens == counted.input_tokens


def test_response_calls_tools_and_is_cut_at_its_cap(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    tool = {"type": "function", "strict": False, **TOLL}
    asked = {"model": "gpt-4o", "input": "What does the bridge cost?", "tools": [tool], "tool_choice": "required"}
    with client(customer.key).responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        (call,) = [item for item in stream.get_final_response().output if item.type == "function_call"]
    assert (call.name, call.arguments) == ("get_toll", "".join(deltas))
    long = "[[sandbox output_tokens=40]]"
    short = client(customer.key).responses.create(model="gpt-4o", input=long, max_output_tokens=16)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert short.usage.output_tokens == 16


def test_embeddings_cost_exactly_the_price_of_their_input(suite, client):
    rates = [{"component": "input", "nanosPerMillion": str(EMBEDDING_NANOS_PER_TOKEN * 10**6)}]
    priced = {"provider": "openai", "model": "text-embedding-3-large", "mode": "embedding", "rates": rates}
    published = {"prices": [priced], "requestId": "openai-sdk", "reason": "a test"}
    assert suite.post("/api/admin/prices", published, suite.admin_key).status == 200
    customer = suite.customer(credit_nanos=10**9)
    caller = client(customer.key)
    for asked in ({"input": "What is a toll?"}, {"input": ["What", "is a toll?"], "encoding_format": "float"}):
        before = suite.available(customer.key)
        made = caller.embeddings.create(model="text-embedding-3-large", **asked)
        assert all(isinstance(number, float) for one in made.data for number in one.embedding)
        assert len(made.data) == (2 if isinstance(asked["input"], list) else 1)
        exact = made.usage.prompt_tokens * EMBEDDING_NANOS_PER_TOKEN * PAYG_MULTIPLIER
        assert before - suite.available(customer.key) == exact


def test_one_model_is_told_and_others_are_not_found(suite, client):
    caller = client(suite.customer(plan="free").key)
    found = caller.models.retrieve("gpt-3.5-turbo")
    assert (found.id, found.owned_by) == ("gpt-3.5-turbo", "openai")
    with pytest.raises(openai.NotFoundError):
        caller.models.retrieve("gpt-4o")


# ------------------------------------------------------------------------------------------- images, schemas, tools


def test_image_is_billed_as_the_provider_counts_it(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}
    usage = client(customer.key).chat.completions.create(**asked).usage
    assert usage.prompt_tokens > 700
    assert suite.available(customer.key) == 10**9 - price(usage)


class Toll(pydantic.BaseModel):
    """What a bridge costs."""

    bridge: str


def test_answer_that_follows_a_schema_is_parsed_by_the_sdk(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    asked = {"model": "gpt-4o", "messages": QUESTION, "response_format": Toll}
    parsed = client(customer.key).chat.completions.parse(**asked)
    assert isinstance(parsed.choices[0].message.parsed, Toll)
    with client(customer.key).chat.completions.stream(**asked) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Toll)
    assert suite.available(customer.key) == 10**9 - 2 * price(parsed.usage)


def test_streamed_tool_call_comes_in_fragments_that_make_it_whole(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    tools = [{"type": "function", "function": TOLL}]
    asked = {"model": "gpt-4o", "messages": QUESTION, "tools": tools, "tool_choice": "required"}
    with client(customer.key).chat.completions.stream(**asked) as stream:
        fragments = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert len(fragments) > 1
    assert (call.function.name, call.function.arguments) == ("get_toll", "".join(fragments))
    assert set(json.loads(call.function.arguments)) == {"bridge"}
    assert suite.available(customer.key) == 10**9 - price(final.usage)


# ------------------------------------------------------------------------------------------------ /api/ai/{provider}

# A model of each provider that it is asked for, and nanos a token, in and out, of the shipped catalogue.
EVERY_PROVIDER = {
    "openai": ("gpt-4o", 5_000, 15_000),
    "anthropic": ("claude-3-haiku", 800, 4_000),
    "google": ("gemini-1.5-pro", 1_250, 5_000),
    "huggingface": ("meta-llama/Llama-3.1-8B-Instruct", 100_000, 200_000),
    "bedrock": ("claude-sonnet", 3_000, 15_000),
}


@pytest.mark.parametrize("provider", EVERY_PROVIDER)
def test_every_provider_answers_in_openais_form_with_its_credits(suite, provider):
    model, per_input, per_output = EVERY_PROVIDER[provider]
    customer = suite.customer(credit_nanos=10**9)
    answer = suite.post(f"/api/ai/{provider}", {"model": model, "messages": QUESTION}, customer.key)
    assert answer.status == 200, answer.body
    completion = openai.types.chat.ChatCompletion.model_validate(answer.body)
    assert completion.choices[0].message.content
    usage, credit = completion.usage, answer.body["credits"]
    exact = (usage.prompt_tokens * per_input + usage.completion_tokens * per_output) * PAYG_MULTIPLIER
    left = suite.available(customer.key)
    assert int(credit["costNanos"]) == 10**9 - left == round(exact)
    assert (credit["costCredits"], credit["creditsRemaining"]) == (float(exact / 10**7), left / 10**7)
    (record,) = suite.get("/api/billing/usage", customer.key).body["records"]
    assert (record["provider"], record["model"], record["endpoint"]) == (provider, model, f"/api/ai/{provider}")


@pytest.mark.parametrize("provider", EVERY_PROVIDER)
def test_every_provider_streams_in_openais_form_with_its_credits_last(suite, client, provider):
    model, per_input, per_output = EVERY_PROVIDER[provider]
    customer = suite.customer(credit_nanos=10**9)
    with openai.OpenAI(api_key=customer.key, base_url=suite.url, max_retries=0, timeout=30) as caller:
        stream = caller.post(
            f"/api/ai/{provider}",
            body={"model": model, "messages": QUESTION, "stream": True},
            cast_to=openai.types.chat.ChatCompletionChunk,
            stream=True,
            stream_cls=openai.Stream[openai.types.chat.ChatCompletionChunk],
        )
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    last = chunks[-1]
    exact = (last.usage.prompt_tokens * per_input + last.usage.completion_tokens * per_output) * PAYG_MULTIPLIER
    assert int(last.model_extra["credits"]["costNanos"]) == 10**9 - suite.available(customer.key) == round(exact)
