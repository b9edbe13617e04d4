"""The unmodified google-genai SDK through Envoy: answers, exact prices, refusals as its own exceptions."""

import asyncio
import contextlib
import json
from fractions import Fraction

import pydantic
import pytest
from google import genai
from google.genai import errors, types

PAYG_MULTIPLIER = Fraction(3, 2)
MODEL = "gemini-1.5-pro"
IN, OUT = Fraction(1250), Fraction(5000)  # nanos a token of gemini-1.5-pro: $1.25 and $5 for a million
QUESTION = "What is a toll?"


@pytest.fixture
def client(suite):
    with contextlib.ExitStack() as stack:

        def make(key, **options):
            made = genai.Client(api_key=key, http_options=types.HttpOptions(base_url=suite.url, **options))
            stack.callback(made.close)
            return made

        yield make


def price(usage):
    exact = (usage.prompt_token_count * IN + usage.candidates_token_count * OUT) * PAYG_MULTIPLIER
    return round(exact)


def test_unary_content_costs_exactly_the_price_of_its_usage(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    answer = client(customer.key).models.generate_content(model=MODEL, contents=QUESTION)
    assert answer.text
    assert suite.available(customer.key) == 10**9 - price(answer.usage_metadata)


def test_version_without_beta_is_served_too(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    answer = client(customer.key, api_version="v1").models.generate_content(model=MODEL, contents=QUESTION)
    assert suite.available(customer.key) == 10**9 - price(answer.usage_metadata)


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_models_are_listed_and_found(suite, client, version):
    google = client(suite.customer(credit_nanos=10**9).key, api_version=version)
    listed = {model.name: model for model in google.models.list()}
    assert f"models/{MODEL}" in listed
    assert all("gemini" in name for name in listed)
    assert "generateContent" in listed[f"models/{MODEL}"].supported_actions
    assert google.models.get(model=MODEL) == listed[f"models/{MODEL}"]


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha"])
def test_what_is_not_served_is_googles_own_404(suite, client, version):
    google = client(suite.customer(credit_nanos=10**9).key, api_version=version)
    with pytest.raises(errors.ClientError) as caught:
        google.models.embed_content(model=MODEL, contents=QUESTION)
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_tokens_are_counted_for_nothing_as_the_content_then_says(suite, client, version):
    customer = suite.customer(credit_nanos=10**9)
    models = client(customer.key, api_version=version).models
    counted = models.count_tokens(model=MODEL, contents=QUESTION)
    assert suite.available(customer.key) == 10**9
    answer = models.generate_content(model=MODEL, contents=QUESTION)
    assert answer.usage_metadata.prompt_token_count == counted.total_tokens
    with pytest.raises(errors.ClientError) as caught:
        models.count_tokens(model="gemini-nobody-prices", contents=QUESTION)
    assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")


def test_streamed_content_costs_exactly_the_price_of_its_usage(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    chunks = list(client(customer.key).models.generate_content_stream(model=MODEL, contents=QUESTION))
    assert "".join(chunk.text or "" for chunk in chunks)
    assert suite.available(customer.key) == 10**9 - price(chunks[-1].usage_metadata)


def test_stream_as_an_array_is_one_json_array_with_the_credits_in_its_last_entry(suite):
    customer = suite.customer(credit_nanos=10**9)
    body = {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]}
    answer = suite.post(f"/v1beta/models/{MODEL}:streamGenerateContent", body, customer.key)
    assert answer.status == 200, answer.body
    assert isinstance(answer.body, list)
    assert int(answer.body[-1]["credits"]["costNanos"]) == 10**9 - suite.available(customer.key)


def test_tools_and_images_pass_through(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    tool = types.Tool(
        function_declarations=[
            types.FunctionDeclaration(
                name="get_toll",
                description="The toll of a bridge",
                parameters_json_schema={"type": "object", "properties": {"bridge": {"type": "string"}}},
            )
        ]
    )
    answer = client(customer.key).models.generate_content(
        model=MODEL,
        contents=[types.Part.from_bytes(data=bytes(90), mime_type="image/png"), "What does this bridge cost?"],
        config=types.GenerateContentConfig(
            tools=[tool],
            tool_config=types.ToolConfig(
                function_calling_config=types.FunctionCallingConfig(mode="ANY", allowed_function_names=["get_toll"])
            ),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        ),
    )
    assert [call.name for call in answer.function_calls] == ["get_toll"]
    assert suite.available(customer.key) == 10**9 - price(answer.usage_metadata)


def test_refusals_are_the_sdks_own_exceptions(suite, client):
    poor = suite.customer()
    with pytest.raises(errors.ClientError) as caught:
        client("tk_live_" + "x" * 40).models.generate_content(model=MODEL, contents=QUESTION)
    assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")
    with pytest.raises(errors.ClientError) as caught:
        client(poor.key).models.generate_content(model=MODEL, contents=QUESTION)
    assert caught.value.code == 402
    with pytest.raises(errors.ClientError) as caught:
        client(poor.key).models.generate_content(model="no-such-model", contents=QUESTION)
    assert caught.value.code == 403
    search = types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())])
    with pytest.raises(errors.ClientError) as caught:
        client(poor.key).models.generate_content(model=MODEL, contents=QUESTION, config=search)
    assert (caught.value.code, "googleSearch" in json.dumps(caught.value.details)) == (403, True)


class Toll(pydantic.BaseModel):
    """What a bridge costs."""

    bridge: str


def test_answer_that_follows_a_schema_is_parsed_by_the_sdk(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=Toll)
    answer = client(customer.key).models.generate_content(model=MODEL, contents=QUESTION, config=config)
    assert isinstance(answer.parsed, Toll)
    assert suite.available(customer.key) == 10**9 - price(answer.usage_metadata)


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")  # the SDK's own
def test_streamed_function_call_comes_through_the_asynchronous_client(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    schema = {"type": "object", "properties": {"bridge": {"type": "string"}}, "required": ["bridge"]}
    tool = types.FunctionDeclaration(name="get_toll", description="A toll", parameters_json_schema=schema)
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[tool])],
        tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY")),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )

    async def streamed():
        made = client(customer.key).aio
        try:
            stream = await made.models.generate_content_stream(model=MODEL, contents=QUESTION, config=config)
            return [chunk async for chunk in stream]
        finally:
            await made.aclose()

    chunks = asyncio.run(streamed())
    calls = [call for chunk in chunks for call in chunk.function_calls or ()]
    assert [(call.name, set(call.args)) for call in calls] == [("get_toll", {"bridge"})]
    assert suite.available(customer.key) == 10**9 - price(chunks[-1].usage_metadata)


def test_cached_tokens_are_billed_once_and_thoughts_as_output(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    words = "[[sandbox cached=6 reasoning=4 output_tokens=10]]"
    usage = client(customer.key).models.generate_content(model=MODEL, contents=words).usage_metadata
    assert (usage.cached_content_token_count, usage.thoughts_token_count, usage.candidates_token_count) == (6, 4, 6)
    # The model's price names no rate for either: the one is within the prompt, the other beside the candidates.
    exact = (usage.prompt_token_count * IN + 10 * OUT) * PAYG_MULTIPLIER
    assert suite.available(customer.key) == 10**9 - round(exact)


def test_providers_own_errors_are_the_sdks_own_and_cost_nothing(suite, client):
    customer = suite.customer(credit_nanos=10**9)
    for status, kind in ((400, errors.ClientError), (404, errors.ClientError)):
        with pytest.raises(kind) as caught:
            client(customer.key).models.generate_content(model=MODEL, contents=f"[[sandbox status={status}]]")
        assert caught.value.code == status
        assert caught.value.message
    assert suite.available(customer.key) == 10**9
