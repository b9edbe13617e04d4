"""The typed form: the same calls as on the wire, said and answered in messages; paid by the account that is named."""

import json
import math

import orjson
import pytest
from google.protobuf import json_format, struct_pb2
from proxy_fakes import FakePricing
from proxy_upstream import answer, scripted
from proxy_upstream import stream as sent
from proxy_wire import FORMS, RATES, dear, every_provider
from tollkeeper.proxy.v1 import generate_service_pb2 as pb
from tollkeeper.proxy.v1 import generate_service_pb2_grpc

from services.kit.identity import Identity, Role
from services.proxy.sse import event_of

PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {
    "type": "function",
    "function": {
        "name": "get_toll",
        "parameters": {"type": "object", "properties": {"bridge": {"type": "string"}}, "required": ["bridge"]},
    },
}
EVERY_PROVIDER = {
    "openai": "gpt-4o",
    "anthropic": "claude-3-haiku",
    "google": "gemini-1.5-pro",
    "huggingface": "text",
    "bedrock": "claude-sonnet",
}


def struct(value):
    return json_format.ParseDict(value, struct_pb2.Struct())


def number(value):
    """A Struct with a number that JSON has not."""
    return struct_pb2.Struct(fields={"temperature": struct_pb2.Value(number_value=value)})


def asking(text="What is a toll?", **fields):
    """A request of acme's."""
    messages = fields.pop("messages", None) or [pb.Message(role="user", text=text)]
    options = fields.pop("options", {})
    options = options if isinstance(options, struct_pb2.Struct) else struct(options)
    return pb.GenerateRequest(
        **{"account_id": "acme", "model": "gpt-4o", "messages": messages, "options": options} | fields
    )


@pytest.fixture
def pricing():
    models = {(model, provider) for model, provider, _ in FORMS.values()} | {("text", "huggingface")}
    return FakePricing([dear(model, provider, max_output=4096) for model, provider in sorted(models)])


@pytest.fixture
async def proxy(start_proxy, provider):
    return await start_proxy(**every_provider(provider.url, upstream_attempts=1))


@pytest.fixture
def stub(proxy):
    return generate_service_pb2_grpc.GenerateServiceStub(proxy.channel)


@pytest.fixture
def generate(proxy, stub):
    return lambda *words, **fields: stub.Generate(asking(*words, **fields), metadata=proxy.service)


@pytest.fixture
def stream(proxy, stub):
    """`await stream(…)`: the messages of a stream."""

    async def streamed(*words, **fields):
        request = pb.StreamGenerateRequest(
            request=asking(*words, **fields), account_id=fields.get("account_id", "acme")
        )
        call = stub.StreamGenerate(request, metadata=proxy.service)
        return [message async for message in call]

    return streamed


def cost(usage):
    return (usage.input_tokens * RATES["input"] + usage.output_tokens * RATES["output"]) * 3 // 2


async def test_generated_answer_is_paid_by_the_account_that_is_named(generate, ledger):
    got = await generate(session="session-7", workspace="web")
    assert (got.message.role, got.message.text) == ("assistant", "This is the Tollkeeper sandbox: no model was called.")
    assert (got.finish_reason, got.provider, got.model) == ("stop", "openai", "gpt-4o")
    assert got.credits.cost_nanos == cost(got.usage) == ledger.bills[0].amount_nanos > 0
    assert got.credits.remaining_nanos == ledger.accounts["acme"].available == 10_000_000_000 - cost(got.usage)
    assert (got.credits.request_id, got.credits.price_version) == (ledger.bills[0].hold_id, 1)
    usage = ledger.usages[0]
    assert (usage.endpoint, usage.session) == ("/tollkeeper.proxy.v1.GenerateService/Generate", "session-7")
    assert not got.usage.estimated


async def test_streamed_answer_ends_with_its_usage_and_credits(stream, ledger):
    *pieces, last = await stream("[[sandbox cached=4 reasoning=3 output_tokens=20]]")
    assert "".join(piece.text_delta for piece in pieces)
    assert not any(piece.HasField("credits") or piece.HasField("usage") or piece.finish_reason for piece in pieces)
    assert last.finish_reason == "stop"
    assert (last.usage.output_tokens, last.usage.cached_tokens, last.usage.reasoning_tokens) == (20, 4, 3)
    assert last.credits.cost_nanos == ledger.bills[0].amount_nanos > 0
    assert last.credits.remaining_nanos == ledger.accounts["acme"].available


@pytest.mark.parametrize("provider_name", EVERY_PROVIDER)
async def test_every_provider_is_reached(generate, stream, ledger, provider_name):
    words = {"provider": provider_name, "model": EVERY_PROVIDER[provider_name]}
    got = await generate(**words)
    *pieces, last = await stream(**words)
    assert "".join(piece.text_delta for piece in pieces) == got.message.text != ""
    assert (got.provider, got.model) == (provider_name, EVERY_PROVIDER[provider_name])
    assert last.credits.cost_nanos == got.credits.cost_nanos == ledger.bills[0].amount_nanos
    assert last.usage == got.usage


async def test_tools_are_called_and_their_results_go_back(generate, stream, ledger):
    options = {"tools": [TOOL], "tool_choice": "required"}
    got = await generate(options=options)
    (call,) = [json_format.MessageToDict(one) for one in got.message.tool_calls]
    assert (got.finish_reason, call["function"]["name"]) == ("tool_calls", "get_toll")
    *pieces, last = await stream(options=options)
    deltas = [json_format.MessageToDict(one) for piece in pieces for one in piece.tool_call_deltas]
    assert len(deltas) > 1
    arguments = "".join(delta["function"].get("arguments", "") for delta in deltas)
    assert json.loads(arguments) == json.loads(call["function"]["arguments"])
    assert last.finish_reason == "tool_calls"
    answered = [
        pb.Message(role="user", text="What does it cost?"),
        pb.Message(role="assistant", tool_calls=got.message.tool_calls),
        pb.Message(role="tool", text="five", tool_call_id=call["id"]),
    ]
    assert (await generate(messages=answered)).message.text
    assert len(ledger.settled) == 3


async def test_models_refusal_is_told_apart_from_its_text(start_proxy):
    whole = {"choices": [{"message": {"content": None, "refusal": "I cannot help."}, "finish_reason": "stop"}]}
    deltas = [{"refusal": "I cannot"}, {"refusal": " help."}, {}]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    events = [event_of(orjson.dumps(chunk)) for chunk in chunks]
    async with scripted(answer(orjson.dumps(whole)), sent(*events, event_of(b"[DONE]"))) as upstream:
        proxy = await start_proxy(**every_provider(upstream.url))
        stub = generate_service_pb2_grpc.GenerateServiceStub(proxy.channel)
        got = await stub.Generate(asking(), metadata=proxy.service)
        request = pb.StreamGenerateRequest(request=asking(), account_id="acme")
        pieces = [message async for message in stub.StreamGenerate(request, metadata=proxy.service)]
    assert (got.message.text, got.message.refusal) == ("", "I cannot help.")
    assert "".join(piece.refusal_delta for piece in pieces) == "I cannot help."
    assert not any(piece.text_delta for piece in pieces)


async def test_provider_gets_what_was_said_with_whole_numbers_and_images(start_proxy, ledger):
    async with scripted(answer(b'{"choices":[{"message":{"content":"x"}}]}')) as upstream:
        proxy = await start_proxy(**every_provider(upstream.url))
        stub = generate_service_pb2_grpc.GenerateServiceStub(proxy.channel)
        parts = [struct({"type": "text", "text": "Ä"}), struct({"type": "image_url", "image_url": {"url": PNG}})]
        options = {"temperature": 0.5, "seed": 7, "unknown": {"deep": [None, True, 1.5, 2]}}
        request = asking(messages=[pb.Message(role="user", parts=parts)], max_output_tokens=9, options=options)
        got = await stub.Generate(request, metadata=proxy.service)
        assert orjson.loads(upstream.requests[0].body) == {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": [json_format.MessageToDict(part) for part in parts]}],
            "max_completion_tokens": 9,
            **options,
        }
        assert b'"seed":7,' in upstream.requests[0].body  # and not 7.0
        assert got.usage.estimated  # since it did not count
        assert got.usage.input_tokens > 700
        assert got.credits.cost_nanos == ledger.bills[0].amount_nanos > 0


async def test_answer_may_take_as_long_as_a_model_call_may(start_proxy):
    async with scripted([0.5, answer(b'{"choices":[{"message":{"content":"x"}}]}')]) as upstream:
        proxy = await start_proxy(**every_provider(upstream.url, deadline_seconds=0.2))
        stub = generate_service_pb2_grpc.GenerateServiceStub(proxy.channel)
        assert (await stub.Generate(asking(), metadata=proxy.service)).message.text == "x"


async def test_output_cap_is_lowered_to_what_can_be_paid(generate, ledger):
    ledger.accounts["acme"].available = 8_000_000
    got = await generate("[[sandbox output_tokens=4000]]", max_output_tokens=4000)
    assert got.finish_reason == "length"
    assert 1 <= got.usage.output_tokens < 400
    assert ledger.accounts["acme"].available >= 0


async def test_same_request_id_gets_the_same_answer_charged_once(proxy, stub, ledger, provider):
    call = stub.Generate(asking(request_id="once"), metadata=proxy.service)
    first = await call
    again = stub.Generate(asking(request_id="once"), metadata=proxy.service)
    answered = await again
    assert (answered.message, answered.usage) == (first.message, first.usage)
    assert answered.credits.cost_nanos == first.credits.cost_nanos
    assert dict(await again.initial_metadata())["idempotency-replayed"] == "true"
    assert await provider.calls() == len(ledger.settled) == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"account_id": ""}, "account_id"),
        ({"model": ""}, "model"),
        ({"messages": [pb.Message(role="robot", text="x")]}, "messages[0].role"),
        ({"messages": [pb.Message(role="user", text="x", parts=[struct({"a": 1})])]}, "messages[0].parts"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"options": {"n": 5}}, "options.n"),
        ({"options": {"stream": True}}, "options.stream"),
        ({"options": {"max_tokens": 5}}, "options.max_tokens"),
        ({"options": number(math.nan)}, "options"),
        ({"options": number(math.inf)}, "options"),
        ({"messages": [pb.Message(role="user", parts=[number(math.nan)])]}, "messages[0].parts"),
        ({"messages": [pb.Message(role="assistant", tool_calls=[number(math.nan)])]}, "messages[0].tool_calls"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_wrong_field_is_named_and_nothing_is_held(generate, ledger, refused, fields, named):
    refusal = await refused(generate(**fields))
    assert [violation.field for violation in refusal.violations] == [named]
    assert not ledger.holds


@pytest.mark.parametrize("value", [2.0**53, 1e20, -1e300])
async def test_number_that_is_too_large_to_be_whole_is_the_providers_to_refuse(generate, ledger, refused, value):
    assert (await refused(generate(options={"temperature": value}))).reason == "PROVIDER_REFUSED"
    assert not ledger.open_holds


@pytest.mark.parametrize(
    "choices", [[None], "x", [{"delta": {"content": ["x"]}}], [{"delta": {"tool_calls": [1]}}]], ids=str
)
async def test_chunk_that_is_not_understood_is_no_error_of_ours_and_what_comes_is_billed(
    start_proxy, ledger, refused, eventually, choices
):
    whole = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    events = [event_of(orjson.dumps({"choices": choices})), event_of(orjson.dumps(whole)), event_of(b"[DONE]")]
    async with scripted(sent(*events)) as upstream:
        proxy = await start_proxy(**every_provider(upstream.url))
        stub = generate_service_pb2_grpc.GenerateServiceStub(proxy.channel)

        async def read():
            request = pb.StreamGenerateRequest(request=asking(), account_id="acme")
            return [message async for message in stub.StreamGenerate(request, metadata=proxy.service)]

        assert (await refused(read())).reason == "ANSWER_NOT_PASSED_ON"
        await eventually(lambda: ledger.settled)
        assert ledger.bills[0].amount_nanos > 0


@pytest.mark.parametrize(("owner", "model"), EVERY_PROVIDER.items())
async def test_every_provider_is_asked_by_its_own_id_for_a_model(start_proxy, provider, ledger, owner, model):
    proxy = await start_proxy(**every_provider(provider.url, **{f"{owner}_models": {model: "their/own:id"}}))
    stub = generate_service_pb2_grpc.GenerateServiceStub(proxy.channel)
    answered = await stub.Generate(asking(provider=owner, model=model), metadata=proxy.service)
    assert answered.usage.output_tokens > 0
    assert [(seen["provider"], seen["model"]) for seen in (await provider.usage())["records"]] == [
        (owner, "their/own:id")
    ]
    assert [(usage.provider, usage.model) for usage in ledger.usages] == [(owner, model)]


async def test_stream_has_one_payer_and_no_request_id(proxy, stub, stream, ledger, refused):
    assert [v.field for v in (await refused(stream(request_id="once"))).violations] == ["request_id"]

    async def of_two():
        request = pb.StreamGenerateRequest(request=asking(), account_id="another")
        return [message async for message in stub.StreamGenerate(request, metadata=proxy.service)]

    assert [v.field for v in (await refused(of_two())).violations] == ["request.account_id"]
    assert not ledger.holds


async def test_refusals_are_those_of_the_wire_and_call_nobody(generate, stream, ledger, provider, refused):
    ledger.accounts["acme"].available = 0
    for ask in (generate, stream):
        assert (await refused(ask())).reason == "INSUFFICIENT_CREDIT"
        assert (await refused(ask(model="no-such-model"))).reason == "MODEL_NOT_PRICED"
        assert (await refused(ask(account_id="nobody"))).reason == "ACCOUNT_NOT_FOUND"
    assert await provider.calls() == 0
    assert not ledger.open_holds


async def test_providers_refusal_charges_nothing(generate, stream, ledger, refused):
    for ask in (generate, stream):
        assert (await refused(ask("[[sandbox status=400]]"))).reason == "PROVIDER_REFUSED"
        assert (await refused(ask("[[sandbox status=429 retry_after=0]]"))).reason == "PROVIDER_RATE_LIMITED"
        assert (await refused(ask("[[sandbox status=503]]"))).reason == "PROVIDER_UNAVAILABLE"
        assert (await refused(ask("[[sandbox fault=reset]]"))).reason == "PROVIDER_UNAVAILABLE"
    assert not ledger.settled
    assert not ledger.open_holds
    assert ledger.accounts["acme"].available == 10_000_000_000


async def test_providers_rate_limit_is_told_with_its_own_retry_after(generate, provider, refused):
    for _ in range(2):  # as the provider says it, then as it is known here
        refusal = await refused(generate("[[sandbox status=429 retry_after=30]]"))
        assert (refusal.reason, refusal.trailing["x-tollkeeper-http-status"]) == ("PROVIDER_RATE_LIMITED", "429")
        assert 29 <= refusal.retry_after_seconds <= 30
    assert await provider.calls() == 1


@pytest.mark.parametrize("fault", ["cut-stream", "stream-error"])
async def test_stream_that_breaks_off_is_unavailable_after_what_was_said_and_billed_for_that(  # noqa: PLR0917 (fixtures)
    proxy, stub, ledger, refused, eventually, fault
):
    said = []

    async def read():
        request = pb.StreamGenerateRequest(request=asking(f"[[sandbox fault={fault} after=4]]"), account_id="acme")
        async for message in stub.StreamGenerate(request, metadata=proxy.service):
            said.append(message.text_delta)  # noqa: PERF401 (what was said before it breaks counts)

    assert (await refused(read())).reason == "PROVIDER_UNAVAILABLE"
    assert len([text for text in said if text]) == 4
    await eventually(lambda: ledger.settled)  # the answer does not wait for it
    assert ledger.usages[0].estimated
    assert 4 <= ledger.usages[0].output_tokens <= 6


async def test_stream_whose_caller_leaves_is_not_free(proxy, stub, ledger, eventually):
    request = pb.StreamGenerateRequest(request=asking("[[sandbox output_tokens=30 delay_ms=5]]"), account_id="acme")
    call = stub.StreamGenerate(request, metadata=proxy.service)
    async for _ in call:
        break
    call.cancel()
    await eventually(lambda: ledger.settled)
    assert (ledger.usages[0].output_tokens, ledger.usages[0].estimated) == (30, False)


async def test_customers_identity_pays_for_itself_and_for_nobody_else(proxy, stub, ledger, refused, signer):
    token = signer.sign(Identity(Role.ACCOUNT, subject="acme", account_id="acme"), 300)
    mine = (("authorization", f"Bearer {token}"),)
    assert (await stub.Generate(asking(), metadata=mine)).credits.cost_nanos > 0
    other = await refused(stub.Generate(asking(account_id="another"), metadata=mine))
    assert other.code.name == "PERMISSION_DENIED"
    assert [bill.account_id for bill in ledger.bills] == ["acme"]
