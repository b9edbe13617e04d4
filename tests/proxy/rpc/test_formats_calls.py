"""What holds for calls of every wire format alike: refusals, caps, idempotency, holds, and bodies as they came."""

import asyncio
import base64
import json
import os

import grpc
import orjson
import pytest
from proxy_fakes import FakePricing
from proxy_upstream import answer, scripted
from proxy_wire import FORMS, HELLO, STREAMED, ask, dear, every_provider, saying, start
from tollkeeper.proxy.v1 import wire_service_pb2 as pb

GEMINI = {
    "name": "models/gemini-1.5-pro",
    "displayName": "gemini-1.5-pro",
    "outputTokenLimit": 8192,
    "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
}
PIXEL = base64.b64encode(os.urandom(30_000)).decode()
SCHEMA = {"type": "object", "properties": {"bridge": {"type": "string", "description": "Which bridge " * 40}}}
NUMBERS = b'{"exact":1.10,"large":123456789012345678901,"small":1e-7}'

WAYS = [*((form, False) for form in FORMS), *((form, True) for form in STREAMED)]
# By form: where its output cap stands, and what such a request's answer is where nothing is said.
CAPS = {
    "chat": lambda sent: sent["max_completion_tokens"],
    "responses": lambda sent: sent["max_output_tokens"],
    "messages": lambda sent: sent["max_tokens"],
    "gemini": lambda sent: sent["generationConfig"]["maxOutputTokens"],
    "converse": lambda sent: sent["inferenceConfig"]["maxTokens"],
}
CAPPED = {
    "chat": {"max_completion_tokens": 4000},
    "responses": {"max_output_tokens": 4000},
    "messages": {"max_tokens": 4000},
    "gemini": {"generationConfig": {"maxOutputTokens": 4000, "temperature": 0.5}},
    "converse": {"max_tokens": 4000},
}


@pytest.fixture
def pricing():
    models = {(model, provider) for model, provider, _ in FORMS.values()}
    return FakePricing([dear(model, provider, max_output=8192) for model, provider in sorted(models)])


@pytest.fixture
async def proxy(start_proxy, provider):
    """Against the sandbox, which answers in every form."""
    return await start_proxy(**every_provider(provider.url))


@pytest.fixture
async def upstream():
    """A provider that shows what reached it, and answers nothing that is understood."""
    async with scripted(answer(b'{"seen":true}')) as provider:
        yield provider


@pytest.fixture
async def shown(start_proxy, upstream):
    """`await shown(form, body)`: what reaches the provider."""
    proxy = await start_proxy(**every_provider(upstream.url))
    key = (await proxy.make_key()).key

    async def sent(form, body, *, stream=False):
        try:
            await ask(proxy, key, form, body, stream=stream)
        except Exception:  # noqa: BLE001 (a Converse answer that is none)
            assert form == "converse"
        return upstream.requests[-1].body

    return sent


# -------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("rpc", ["ListGoogleModels", "ListModels"])
async def test_googles_sdk_gets_the_models_that_it_can_ask_in_googles_form(proxy, key, rpc):
    async def listed(**metadata):
        request = {"ListModels": pb.ListModelsRequest, "ListGoogleModels": pb.ListGoogleModelsRequest}[rpc]()
        answer = await getattr(proxy.wire, rpc)(request, metadata=tuple(metadata.items()))
        return json.loads(answer.data)

    assert await listed(**{"x-goog-api-key": key}) == {"models": [GEMINI]}
    both = await listed(**{"authorization": f"Bearer {key}", "x-goog-api-key": key})
    assert ("models" in both) is (rpc == "ListGoogleModels")
    narrow = (await proxy.make_key(allowed_models=["gpt-4o"])).key
    assert await listed(**{"x-goog-api-key": narrow}) == {"models": []}


async def test_googles_sdk_gets_one_model_in_googles_form(proxy, key, refused):
    google = (("x-goog-api-key", key),)
    for rpc, kind in (("GetModel", pb.GetModelRequest), ("GetGoogleModel", pb.GetGoogleModelRequest)):
        get = getattr(proxy.wire, rpc)
        assert json.loads((await get(kind(model="gemini-1.5-pro"), metadata=google)).data) == GEMINI
        assert (await refused(get(kind(model="gpt-4o"), metadata=google))).reason == "MODEL_NOT_FOUND"


CLAUDE = {
    "type": "model",
    "id": "claude-3-haiku",
    "display_name": "claude-3-haiku",
    "created_at": "1970-01-01T00:00:00Z",
    "max_input_tokens": None,
    "max_tokens": 8192,
}


async def test_anthropics_sdk_gets_the_models_that_it_can_ask_in_anthropics_form(proxy, key, refused):
    anthropic = (("x-api-key", key), ("anthropic-version", "2023-06-01"))
    listed = json.loads((await proxy.wire.ListModels(pb.ListModelsRequest(), metadata=anthropic)).data)
    ends = {"first_id": "claude-3-haiku", "last_id": "claude-3-haiku"}
    assert listed == {"data": [CLAUDE], "has_more": False, **ends}
    got = await proxy.wire.GetModel(pb.GetModelRequest(model="claude-3-haiku"), metadata=anthropic)
    assert json.loads(got.data) == CLAUDE
    other = proxy.wire.GetModel(pb.GetModelRequest(model="gpt-4o"), metadata=anthropic)
    assert (await refused(other)).reason == "MODEL_NOT_FOUND"
    narrow = ("x-api-key", (await proxy.make_key(allowed_models=["gpt-4o"])).key)
    none = json.loads((await proxy.wire.ListModels(pb.ListModelsRequest(), metadata=(narrow, anthropic[1]))).data)
    assert none == {"data": [], "has_more": False, "first_id": None, "last_id": None}


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(("form", "stream"), WAYS)
async def test_every_form_is_refused_before_a_provider_is_called(  # noqa: PLR0917 (fixtures)
    proxy, ledger, provider, refused, form, stream
):
    key = (await proxy.make_key()).key
    unpriced = await refused(ask(proxy, key, form, model="no-such-model", stream=stream))
    assert (unpriced.reason, unpriced.trailing["x-tollkeeper-http-status"]) == ("MODEL_NOT_PRICED", "403")
    narrow = (await proxy.make_key(allowed_models=["another"])).key
    assert (await refused(ask(proxy, narrow, form, stream=stream))).reason == "MODEL_NOT_ALLOWED"
    ledger.accounts["acme"].available = 0
    broke = await refused(ask(proxy, key, form, stream=stream))
    assert (broke.reason, broke.trailing["x-tollkeeper-http-status"]) == ("INSUFFICIENT_CREDIT", "402")
    for credential in ("tk_live_" + "x" * 40, "nonsense"):
        unknown = await refused(ask(proxy, credential, form, stream=stream))
        assert (unknown.reason, unknown.code) == ("API_KEY_INVALID", grpc.StatusCode.UNAUTHENTICATED)
    assert await provider.calls() == 0
    assert not ledger.settled
    assert not ledger.open_holds


@pytest.mark.parametrize("form", FORMS)
async def test_body_that_is_wrong_is_refused_by_its_field(proxy, key, ledger, refused, form):
    fields = {"gemini": "contents", "responses": "input", "embeddings": "input"}
    refusal = await refused(ask(proxy, key, form, {fields.get(form, "messages"): 7}))
    assert refusal.reason == "INVALID_ARGUMENT"
    assert [violation.field for violation in refusal.violations] == [fields.get(form, "messages")]
    broken = await refused(ask(proxy, key, form, b'{"model": '))
    assert [violation.field for violation in broken.violations] == ["body"]
    assert not ledger.holds


# --------------------------------------------------------------------------------------------------- bodies and caps


@pytest.mark.parametrize("form", [form for form in FORMS if form != "converse"])
async def test_unknown_fields_reach_the_provider_as_they_came(shown, form):
    body = saying(form, "ÄÖ€𝄞 \u2028", unknown={"deep": [None, {"a": -0.0}]}) | CAPPED.get(form, {})
    sent = orjson.loads(await shown(form, body))
    assert sent == ({"model": FORMS[form][0]} if form != "gemini" else {}) | body
    assert list(sent) == list(({"model": 0} if form != "gemini" else {}) | body)  # in their order


@pytest.mark.parametrize("form", CAPS)
async def test_cap_is_added_where_there_is_none_and_nothing_else_is_changed(shown, form):
    body = FORMS[form][2] if form != "messages" else {"messages": FORMS[form][2]["messages"]}
    sent = orjson.loads(await shown(form, body))
    assert CAPS[form](sent) == 8192
    if form not in {"converse", "gemini"}:
        cap = {"chat": "max_completion_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}[form]
        assert sent == {"model": FORMS[form][0], **body, cap: 8192}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("form", CAPS)
async def test_cap_is_lowered_to_what_can_be_paid_in_every_form(proxy, key, ledger, form, stream):
    ledger.accounts["acme"].available = 8_000_000
    await ask(proxy, key, form, saying(form, "[[sandbox output_tokens=4000]]") | CAPPED[form], stream=stream)
    usage = ledger.usages[0]
    assert 16 <= usage.output_tokens < 400
    assert not usage.estimated
    assert 0 <= ledger.accounts["acme"].available < 8_000_000


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_message_that_only_fills_the_cache_is_held_and_billed_for_its_input(proxy, key, ledger, stream):
    body = saying("messages", "[[sandbox cache_write=9]]", max_tokens=0)
    answered = await ask(proxy, key, "messages", body, stream=stream)
    assert answered.status == 200
    (hold,) = [body for kind, body in ledger.log if kind == "hold"]
    assert hold.tokens == hold.minimum_tokens
    assert hold.amount_nanos == hold.minimum_amount_nanos
    (usage,) = ledger.usages
    assert usage.input_tokens > usage.units["cache_write_5m"] == 9
    assert (usage.output_tokens, usage.estimated) == (0, False)


async def test_neither_of_two_caps_is_raised(shown, ledger):
    body = saying("chat", HELLO, max_completion_tokens=5000, max_tokens=7)
    ledger.accounts["acme"].available = 8_000_000
    sent = orjson.loads(await shown("chat", body))
    assert sent["max_tokens"] == 7
    assert sent["max_completion_tokens"] < 5000


@pytest.mark.parametrize(
    ("form", "body", "least"),
    [
        ("responses", {"input": HELLO}, 16),
        (
            "messages",
            FORMS["messages"][2] | {"max_tokens": 4000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
            1025,
        ),
    ],
    ids=["responses", "messages that think"],
)
async def test_cap_that_the_provider_would_not_take_is_402_and_not_its_400(  # noqa: PLR0917 (fixtures)
    proxy, key, ledger, provider, refused, form, body, least
):
    await ask(proxy, key, form, body)
    hold = next(body for kind, body in ledger.log if kind == "hold")
    ledger.accounts["acme"].available = hold.minimum_amount_nanos - 1
    assert (await refused(ask(proxy, key, form, body))).reason == "INSUFFICIENT_CREDIT"
    assert hold.minimum_tokens - least < hold.tokens - least
    ledger.accounts["acme"].available = hold.minimum_amount_nanos
    assert (await ask(proxy, key, form, body)).status == 200
    assert await provider.calls() == 2


# ---------------------------------------------------------------------------------------------------------------- holds

_IMAGES = {
    "chat": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}],
    "responses": [{"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}],
    "messages": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}],
    "gemini": [{"inlineData": {"mimeType": "image/png", "data": PIXEL}}],
    "converse": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}],
}
_TOOLS = {
    "chat": [{"type": "function", "function": {"name": "get_toll", "parameters": SCHEMA}}],
    "responses": [{"type": "function", "name": "get_toll", "strict": False, "parameters": SCHEMA}],
    "messages": [{"name": "get_toll", "input_schema": SCHEMA}],
    "gemini": [{"functionDeclarations": [{"name": "get_toll", "parametersJsonSchema": SCHEMA}]}],
    "converse": [{"type": "function", "function": {"name": "get_toll", "parameters": SCHEMA}}],
}


def with_image(form):
    if form == "gemini":
        return {"contents": [{"role": "user", "parts": _IMAGES[form]}]}
    name = "input" if form == "responses" else "messages"
    return FORMS[form][2] | {name: [{"role": "user", "content": _IMAGES[form]}]}


async def held_for(proxy, key, ledger, form, body):
    """What was held for a call: its tokens without the output cap; with what it used."""
    await ask(proxy, key, form, {**body, **CAPPED[form]})
    hold = [body for kind, body in ledger.log if kind == "hold"][-1]
    return hold.tokens - 4000, ledger.usages[-1]


@pytest.mark.parametrize("form", CAPS)
async def test_tools_and_images_are_held_for(proxy, key, ledger, form):
    plain, _ = await held_for(proxy, key, ledger, form, FORMS[form][2])
    tools, used = await held_for(proxy, key, ledger, form, FORMS[form][2] | {"tools": _TOOLS[form]})
    assert plain + 100 < tools
    assert used.input_tokens <= tools
    image, used = await held_for(proxy, key, ledger, form, with_image(form))
    # As an image, not as the text that its base64 would be.
    assert 765 <= used.input_tokens <= image < len(PIXEL) / 2
    assert not ledger.open_holds


@pytest.mark.parametrize("form", CAPS)
async def test_image_is_counted_where_the_provider_does_not_count(proxy, key, ledger, form):
    words = "[[sandbox usage=none]]"
    part = {"responses": {"type": "input_text", "text": words}, "gemini": {"text": words}}
    body = json.loads(json.dumps(with_image(form)))
    if form == "gemini":
        parts = body["contents"][0]["parts"]
    else:
        parts = body["input" if form == "responses" else "messages"][0]["content"]
    parts.append(part.get(form, {"type": "text", "text": words}))
    await ask(proxy, key, form, body)
    assert ledger.usages[0].estimated
    assert ledger.usages[0].input_tokens >= 765


# ---------------------------------------------------------------------------------------------------------- idempotency


@pytest.mark.parametrize("form", FORMS)
async def test_same_idempotency_key_gets_the_same_answer_charged_once_in_every_form(  # noqa: PLR0917 (fixtures)
    proxy, key, ledger, provider, refused, form
):
    once = (("idempotency-key", "once"),)
    first = await ask(proxy, key, form, metadata=once)
    again = await ask(proxy, key, form, metadata=once)
    assert (again.body, again.content_type) == (first.body, first.content_type)
    assert again.headers["x-tollkeeper-cost-credits"] == first.headers["x-tollkeeper-cost-credits"]
    assert again.headers["idempotency-replayed"] == "true"
    assert await provider.calls() == len(ledger.settled) == 1
    other = await refused(ask(proxy, key, form, saying(form, "Something else"), metadata=once))
    assert other.trailing["x-tollkeeper-http-status"] == "409"
    if form in STREAMED:
        streamed = await refused(ask(proxy, key, form, metadata=once, stream=True))
        assert [violation.field for violation in streamed.violations] == ["idempotency-key"]


# ----------------------------------------------------------------------------------------------- providers' own ids

THEIRS = {
    "gpt-4o": "gpt-4o-2024-11-20",
    "text-embedding-3-small": "org/embedding:small",
    "claude-3-haiku": "claude-3-haiku-20240307",
    "gemini-1.5-pro": "gemini-1.5-pro-002",
    "claude-sonnet": "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-v1:0",
}
MAPPED = {
    f"{provider}_models": {model: THEIRS[model] for model, owner, _ in FORMS.values() if owner == provider}
    for provider in ("openai", "anthropic", "google", "bedrock")
}


@pytest.mark.parametrize(("form", "stream"), [*((form, False) for form in FORMS), *((form, True) for form in STREAMED)])
async def test_provider_is_asked_by_its_own_id_and_the_bill_has_the_catalogues_name(
    start_proxy, provider, ledger, form, stream
):
    proxy = await start_proxy(**every_provider(provider.url, **MAPPED))
    key = (await proxy.make_key(allowed_models=list(THEIRS))).key
    got = await ask(proxy, key, form, stream=stream)
    assert got.status == 200
    model, owner, _ = FORMS[form]
    (seen,) = (await provider.usage())["records"]
    assert (seen["provider"], seen["model"]) == (owner, THEIRS[model])
    assert [(usage.provider, usage.model) for usage in ledger.usages] == [(owner, model)]
    assert ledger.bills[0].amount_nanos > 0


@pytest.mark.parametrize("form", FORMS)
async def test_fallback_is_asked_by_its_own_id(start_proxy, pricing, provider, ledger, form):
    model, owner, _ = FORMS[form]
    fallback = FALLBACKS[model][0].partition("/")[2]
    pricing.prices.append(dear(fallback, owner))
    mapped = {f"{owner}_models": {model: THEIRS[model], fallback: "the-fallback"}}
    proxy = await start_proxy(**every_provider(provider.url, upstream_attempts=1, fallbacks=FALLBACKS, **mapped))
    key = (await proxy.make_key()).key
    await provider.arm("status=500", match={"model": THEIRS[model]}, count=None)
    got = await ask(proxy, key, form)
    assert got.headers["x-tollkeeper-fallback"] == f"{owner}/{fallback}"
    assert [seen["model"] for seen in (await provider.usage())["records"]] == [THEIRS[model], "the-fallback"]
    assert [usage.model for usage in ledger.usages] == [fallback]


async def test_providers_id_is_no_name_that_a_customer_can_call(start_proxy, provider, refused):
    proxy = await start_proxy(**every_provider(provider.url, **MAPPED))
    key = (await proxy.make_key()).key
    assert (await refused(ask(proxy, key, "chat", model=THEIRS["gpt-4o"]))).reason == "MODEL_NOT_PRICED"
    assert await provider.calls() == 0


async def test_what_bedrock_takes_of_a_model_is_told_by_its_own_id(start_proxy, provider):
    tools = [{"type": "function", "function": {"name": "toll", "parameters": {"type": "object"}}}]
    body = saying("converse", "hello", tools=tools, parallel_tool_calls=False)
    proxy = await start_proxy(**every_provider(provider.url, **MAPPED))
    assert (await ask(proxy, (await proxy.make_key()).key, "converse", body)).status == 200


# ------------------------------------------------------------------------------------ failures, fallbacks, left streams


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("form", STREAMED)
async def test_missing_usage_is_estimated_in_every_form(proxy, key, ledger, form, stream):
    await ask(proxy, key, form, saying(form, "[[sandbox usage=none output_tokens=30]]"), stream=stream)
    usage = ledger.usages[0]
    assert (usage.estimated, usage.status) == (True, "ok")
    assert usage.output_tokens >= 10
    assert ledger.bills[0].amount_nanos > 0


@pytest.mark.parametrize("form", STREAMED)
async def test_provider_is_let_go_under_policy_cancel_when_the_client_leaves_in_every_form(
    start_proxy, provider, ledger, eventually, form
):
    proxy = await start_proxy(**every_provider(provider.url, disconnect_policy="cancel"))
    body = saying(form, "[[sandbox output_tokens=50 delay_ms=8000]]")
    call = start(proxy, (await proxy.make_key()).key, form, body, stream=True)
    await anext(aiter(call))
    left = asyncio.get_running_loop().time()
    call.cancel()
    await eventually(lambda: ledger.settled)

    async def let_go():
        return (await provider.usage())["aborted_by_client"] == 1

    await eventually(let_go)
    assert asyncio.get_running_loop().time() - left < 4
    assert [(usage.estimated, usage.status) for usage in ledger.usages] == [(True, "cut")]
    assert ledger.bills[0].amount_nanos > 0


@pytest.mark.parametrize("form", STREAMED)
async def test_stream_cut_by_the_provider_is_billed_for_what_came_in_every_form(proxy, key, ledger, form):
    got = await ask(proxy, key, form, saying(form, "[[sandbox fault=cut-stream after=5]]"), stream=True)
    usage, last = ledger.usages[0], got.objects()[-1]
    assert (usage.estimated, usage.status) == (True, "cut")
    assert 5 <= usage.output_tokens <= 9
    assert usage.input_tokens > 0
    assert last["credits"]["costNanos"] == str(ledger.bills[0].amount_nanos) != "0"
    assert last.get("error") or last["type"] == "error"


FALLBACKS = {
    "gpt-4o": ["openai/gpt-4o-mini"],
    "text-embedding-3-small": ["openai/text-embedding-3-large"],
    "claude-3-haiku": ["anthropic/claude-3-sonnet"],
    "gemini-1.5-pro": ["google/gemini-1.5-flash"],
    "claude-sonnet": ["bedrock/claude-haiku"],
}


@pytest.mark.parametrize("form", FORMS)
async def test_fallback_is_admitted_and_held_anew_in_every_form(start_proxy, pricing, provider, ledger, form):
    model, owner, _ = FORMS[form]
    fallback = FALLBACKS[model][0].partition("/")[2]
    pricing.prices.append(dear(fallback, owner))
    proxy = await start_proxy(**every_provider(provider.url, upstream_attempts=1, fallbacks=FALLBACKS))
    key = (await proxy.make_key()).key
    await provider.arm("status=500", match={"model": model}, count=None)
    got = await ask(proxy, key, form)
    assert got.status == 200
    assert got.headers["x-tollkeeper-fallback"] == f"{owner}/{fallback}"
    first, second = (body.hold_id for kind, body in ledger.log if kind == "hold")
    assert (ledger.released, list(ledger.settled)) == ([first], [second])
    assert ledger.usages[0].model == fallback
