"""The life of a model call: what is held, called, billed and answered."""

import asyncio
import json

import orjson
import pytest
from proxy_fakes import Account, price
from tollkeeper.proxy.v1 import wire_service_pb2

from services.proxy.upstream.attempt import Opened

MULTIPLIER = 1.5
IN, OUT = 5_000, 15_000  # nanos a token of gpt-4o


def billed(usage):
    return round((usage["prompt_tokens"] * IN + usage["completion_tokens"] * OUT) * MULTIPLIER)


async def test_unary_call_costs_exactly_its_usage(proxy, key, ledger):
    answer = await proxy.chat(key, max_tokens=50)
    cost = billed(answer.json()["usage"])
    assert [bill.amount_nanos for bill in ledger.bills] == [cost]
    assert ledger.accounts["acme"].available == 10_000_000_000 - cost
    assert not ledger.open_holds
    assert answer.content_type.startswith("application/json")
    assert answer.headers["x-tollkeeper-request-id"] == next(iter(ledger.settled))
    assert answer.headers["x-tollkeeper-cost-credits"] == str(cost / 10_000_000)
    assert float(answer.headers["x-tollkeeper-credits-remaining"]) == (10_000_000_000 - cost) / 10_000_000
    usage = ledger.usages[0]
    assert (usage.provider, usage.model, usage.endpoint) == ("openai", "gpt-4o", "/v1/chat/completions")
    assert (usage.status, usage.estimated, usage.price_version) == ("ok", False, 1)
    assert usage.cost_nanos * 3 == cost * 2


async def test_client_is_answered_before_its_call_is_put_away(proxy, key, ledger, monkeypatch):
    put_away, close = asyncio.Event(), Opened.close

    async def close_later(opened):
        await put_away.wait()
        await close(opened)

    monkeypatch.setattr(Opened, "close", close_later)
    try:
        answer = await asyncio.wait_for(proxy.chat(key, max_tokens=50), 10)
    finally:
        put_away.set()
    assert [bill.amount_nanos for bill in ledger.bills] == [billed(answer.json()["usage"])]


async def test_stream_is_one_message_an_event_and_ends_with_its_credits(proxy, key, ledger):
    answer = await proxy.chat(key, stream=True, max_tokens=50)
    events = answer.events()
    assert answer.content_type.startswith("text/event-stream")
    assert events[-1] == "[DONE]"
    last = events[-2]
    cost = billed(last["usage"])
    assert last["credits"] == {
        "costCredits": cost / 10_000_000,
        "creditsRemaining": (10_000_000_000 - cost) / 10_000_000,
        "requestId": next(iter(ledger.settled)),
        "costNanos": str(cost),
    }
    assert [bill.amount_nanos for bill in ledger.bills] == [cost]
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events[:-1])
    assert text == "This is the Tollkeeper sandbox: no model was called."
    assert not ledger.open_holds


async def test_upstream_is_never_called_without_a_hold(proxy, key, ledger, provider, refused):
    ledger.down.add("hold")
    refusal = await refused(proxy.chat(key))
    assert refusal.reason == "LEDGER_UNAVAILABLE"
    assert refusal.trailing["x-tollkeeper-http-status"] == "503"
    ledger.down.clear()
    ledger.accounts["acme"].available = 0
    refusal = await refused(proxy.chat(key))
    assert refusal.reason == "INSUFFICIENT_CREDIT"
    assert refusal.trailing["x-tollkeeper-http-status"] == "402"
    assert await provider.calls() == 0
    assert not ledger.settled


async def test_hold_whose_answer_was_lost_is_asked_for_again_and_held_once(proxy, key, ledger):
    ledger.lose["hold"] = 1
    await proxy.chat(key, max_tokens=5)
    assert [kind for kind, _ in ledger.log] == ["hold", "hold", "settle"]
    assert len(ledger.holds) == 1
    assert not ledger.open_holds


async def test_hold_that_may_stand_is_released_when_the_ledger_comes_back(start_proxy, ledger, refused, eventually):
    proxy = await start_proxy()
    key = (await proxy.make_key()).key
    ledger.lose["hold"] = 10
    assert (await refused(proxy.chat(key))).reason == "LEDGER_UNAVAILABLE"
    ledger.lose.clear()
    await eventually(lambda: ledger.holds and not ledger.open_holds)
    assert ledger.accounts["acme"].available == 10_000_000_000


@pytest.mark.parametrize("stream", [False, True])
async def test_failed_call_charges_nothing_and_shows_the_providers_own_error(proxy, key, ledger, stream):
    answer = await proxy.chat(key, text="[[sandbox status=429 retry_after=7]]", stream=stream)
    assert answer.headers["x-tollkeeper-http-status"] == "429"
    assert answer.headers["retry-after"] == "7"
    assert "x-tollkeeper-reason" not in answer.headers
    assert answer.json()["error"]["message"]
    assert not ledger.settled
    assert not ledger.open_holds
    assert ledger.accounts["acme"].available == 10_000_000_000


@pytest.mark.parametrize("stream", [False, True])
async def test_providers_limit_on_a_model_is_a_429_and_concerns_no_other_model(proxy, key, ledger, refused, stream):
    keys = [key]
    for account in ("another", "a-third", "a-fourth"):
        ledger.accounts[account] = Account(available=10_000_000_000)
        await proxy.entitle(account)
        keys.append((await proxy.make_key(account)).key)
    for one in keys[:3]:  # what three meet is for all
        await proxy.chat(one, text="[[sandbox status=429 retry_after=30]]", stream=stream)
    for one in keys:
        refusal = await refused(proxy.chat(one, stream=stream))
        assert (refusal.reason, refusal.trailing["x-tollkeeper-http-status"]) == ("PROVIDER_RATE_LIMITED", "429")
        assert refusal.trailing["retry-after"] in {"28", "29", "30"}
        answer = await proxy.chat(one, model="gpt-3.5-turbo", stream=stream)
        assert "x-tollkeeper-http-status" not in answer.headers
    assert [usage.model for usage in ledger.usages] == ["gpt-3.5-turbo"] * 4
    assert not ledger.open_holds


async def test_model_over_its_providers_limit_is_answered_by_its_fallback_without_a_call(start_proxy, provider):
    proxy = await start_proxy(fallbacks={"gpt-4o": ["openai/gpt-3.5-turbo"]})
    key = (await proxy.make_key()).key
    await provider.arm("status=429 retry_after=30", match={"model": "gpt-4o"}, count=None)
    for _ in range(2):
        assert (await proxy.chat(key)).headers["x-tollkeeper-fallback"] == "openai/gpt-3.5-turbo"
    assert await provider.calls() == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_provider_that_resets_the_connection_charges_nothing(proxy, key, ledger, stream, refused):
    refusal = await refused(proxy.chat(key, text="[[sandbox fault=reset]]", stream=stream))
    assert refusal.reason == "PROVIDER_UNAVAILABLE"
    assert not ledger.settled
    assert not ledger.open_holds


async def test_provider_that_is_not_there_is_503_and_charges_nothing(start_proxy, ledger, refused):
    proxy = await start_proxy(openai_base_url="http://127.0.0.1:1/v1")
    key = (await proxy.make_key()).key
    refusal = await refused(proxy.chat(key))
    assert refusal.reason == "PROVIDER_UNAVAILABLE"
    assert refusal.trailing["x-tollkeeper-http-status"] == "503"
    assert not ledger.open_holds


async def test_provider_refusing_the_operators_key_is_not_the_customers_401(proxy, key, ledger, refused):
    refusal = await refused(proxy.chat(key, text="[[sandbox status=401]]"))
    assert refusal.reason == "PROVIDER_CREDENTIAL_REFUSED"
    assert refusal.trailing["x-tollkeeper-http-status"] == "503"
    assert not ledger.open_holds


async def test_events_go_out_as_they_come(proxy, key):
    begun = asyncio.get_running_loop().time()
    call = proxy.start_chat(key, text="[[sandbox output_tokens=20 delay_ms=100]]", stream=True)
    async for _ in call:
        break
    assert asyncio.get_running_loop().time() - begun < 1
    call.cancel()


async def test_disconnected_stream_is_read_to_its_end_and_billed(proxy, key, ledger, provider, eventually):
    call = proxy.start_chat(key, text="[[sandbox output_tokens=40 delay_ms=5]]", stream=True, max_tokens=100)
    seen = 0
    async for _ in call:
        seen += 1
        if seen == 3:
            break
    call.cancel()
    await eventually(lambda: ledger.settled)
    usage = ledger.usages[0]
    assert (usage.output_tokens, usage.estimated, usage.status) == (40, False, "ok")
    assert (await provider.usage())["totals"]["output_tokens"] == 40
    assert not ledger.open_holds


async def test_disconnected_stream_under_policy_cancel_is_billed_for_what_came(
    start_proxy, ledger, provider, eventually
):
    proxy = await start_proxy(disconnect_policy="cancel")
    key = (await proxy.make_key()).key
    call = proxy.start_chat(key, text="[[sandbox output_tokens=400 delay_ms=10]]", stream=True, max_tokens=500)
    async for _ in call:
        break
    call.cancel()
    await eventually(lambda: ledger.settled)
    usage = ledger.usages[0]
    assert usage.estimated
    assert usage.status == "cut"
    assert 1 <= usage.output_tokens < 400


async def test_provider_is_let_go_under_policy_cancel_when_the_client_leaves_and_not_with_its_next_words(
    start_proxy, ledger, provider, eventually
):
    proxy = await start_proxy(disconnect_policy="cancel")
    key = (await proxy.make_key()).key
    call = proxy.start_chat(key, text="[[sandbox output_tokens=50 delay_ms=8000]]", stream=True, max_tokens=500)
    async for _ in call:
        break
    left = asyncio.get_running_loop().time()
    call.cancel()
    await eventually(lambda: ledger.settled)

    async def let_go():
        return (await provider.usage())["aborted_by_client"] == 1

    await eventually(let_go)
    assert asyncio.get_running_loop().time() - left < 4
    usage = ledger.usages[0]
    assert (usage.estimated, usage.status) == (True, "cut")
    assert usage.input_tokens > 0
    assert 1 <= usage.output_tokens <= 2
    assert not ledger.open_holds


async def test_stream_cut_by_the_provider_is_billed_for_what_came(proxy, key, ledger):
    answer = await proxy.chat(key, text="[[sandbox fault=cut-stream after=5]]", stream=True)
    events = answer.events()
    assert events[-1]["error"]["code"] == "provider_stream_broken"
    usage = ledger.usages[0]
    assert (usage.estimated, usage.status) == (True, "cut")
    assert 5 <= usage.output_tokens <= 7
    assert usage.input_tokens > 0
    assert events[-1]["credits"]["costNanos"] == str(ledger.bills[0].amount_nanos)
    assert ledger.bills[0].amount_nanos > 0


async def test_answer_cut_by_the_provider_charges_nothing(proxy, key, ledger, refused):
    assert (await refused(proxy.chat(key, text="[[sandbox fault=cut-stream]]"))).reason == "PROVIDER_UNAVAILABLE"
    assert not ledger.settled
    assert not ledger.open_holds


async def test_error_inside_a_stream_passes_through_and_what_came_is_billed(proxy, key, ledger):
    answer = await proxy.chat(key, text="[[sandbox fault=stream-error after=3]]", stream=True)
    assert "error" in answer.events()[-1]
    assert ledger.usages[0].status == "failed"
    assert 3 <= ledger.usages[0].output_tokens <= 5


@pytest.mark.parametrize("stream", [False, True])
async def test_missing_usage_is_estimated_and_never_free(proxy, key, ledger, stream):
    answer = await proxy.chat(key, text="[[sandbox usage=none output_tokens=30]]", stream=stream)
    usage = ledger.usages[0]
    assert usage.estimated
    assert usage.status == "ok"
    assert usage.output_tokens >= 10
    assert ledger.bills[0].amount_nanos > 0
    if stream:
        last = answer.events()[-2]
        assert last["credits"]["costNanos"] == str(ledger.bills[0].amount_nanos)
        assert last["usage"]["completion_tokens"] == usage.output_tokens
        assert last["id"].startswith("chatcmpl-sandbox")


async def test_odd_chunking_gives_the_same_events(proxy, key):
    plain = await proxy.chat(key, text="[[sandbox output_tokens=20]] ÄÖ€𝄞", stream=True)
    odd = await proxy.chat(key, text="[[sandbox output_tokens=20 fault=odd-chunks]] ÄÖ€𝄞", stream=True)

    def said(answer):
        return [e if e == "[DONE]" else e["choices"] for e in answer.events()]

    assert said(odd) == said(plain)
    assert len(odd.events()) == len(plain.events())


async def test_usage_above_the_hold_is_settled_as_it_is(proxy, key, ledger):
    await proxy.chat(key, text="[[sandbox fault=ignore-cap output_tokens=600]]", max_tokens=2)
    hold = next(iter(ledger.holds.values())).hold
    assert ledger.usages[0].output_tokens == 600
    assert ledger.bills[0].amount_nanos > hold.amount_nanos


async def test_cached_and_reasoning_tokens_are_counted_once(proxy, key, ledger):
    await proxy.chat(key, text="[[sandbox cached=4 output_tokens=20 reasoning=5]]", max_tokens=50)
    usage = ledger.usages[0]
    assert (usage.cached_tokens, usage.reasoning_tokens, usage.output_tokens) == (4, 5, 20)
    assert usage.cost_nanos == usage.input_tokens * IN + 20 * OUT


async def test_cap_is_lowered_to_what_can_be_paid(proxy, key, ledger, provider):
    ledger.accounts["acme"].available = 6_000_000
    answer = await proxy.chat(key, text="[[sandbox output_tokens=4000]]", max_tokens=4000)
    usage = answer.json()["usage"]
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert 1 <= usage["completion_tokens"] < 300
    assert ledger.accounts["acme"].available >= 0


async def test_cap_is_added_where_the_client_gave_none(proxy, key, ledger):
    await proxy.entitle(max_tokens_per_request=100)
    await asyncio.sleep(1)
    answer = await proxy.chat(key, text="[[sandbox output_tokens=4000]]")
    usage = answer.json()["usage"]
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert 60 < usage["completion_tokens"] <= 100


async def test_lost_settlement_goes_to_the_outbox_and_is_delivered_once(proxy, key, ledger, eventually):
    ledger.down.add("settle")
    answer = await proxy.chat(key, max_tokens=20)
    assert answer.json()["usage"]
    assert "x-tollkeeper-credits-remaining" not in answer.headers
    assert answer.headers["x-tollkeeper-cost-credits"]
    assert not ledger.settled
    ledger.down.clear()
    ledger.lose["settle"] = 1  # taken, and the answer lost: it is sent again and booked once
    await eventually(lambda: len([1 for kind, _ in ledger.log if kind == "settle"]) >= 2)
    assert ledger.accounts["acme"].spent == billed(answer.json()["usage"])
    assert len(ledger.settled) == 1
    await asyncio.sleep(0.5)
    assert len([1 for kind, _ in ledger.log if kind == "settle"]) == 2


async def test_settlement_waits_in_the_outbox_over_a_restart(start_proxy, ledger, eventually):
    first = await start_proxy()
    key = (await first.make_key()).key
    ledger.down.add("settle")
    await first.chat(key, max_tokens=20)
    await first.server.stop()
    assert not ledger.settled
    ledger.down.clear()
    await start_proxy()
    await eventually(lambda: ledger.settled)
    assert not ledger.open_holds


async def test_two_hundred_calls_at_once_never_overspend(proxy, key, ledger, provider):
    # Each call can cost at most what its hold says; the account can pay for 50 of those.
    await proxy.chat(key, max_tokens=10)
    each = next(iter(ledger.holds.values())).hold.amount_nanos
    ledger.accounts["acme"].available = 50 * each
    provider.reset()
    ledger.delay_seconds = 0.02
    results = await asyncio.gather(
        *(proxy.chat(key, text="Hello, world", max_tokens=10) for _ in range(200)), return_exceptions=True
    )
    answered = [r for r in results if not isinstance(r, BaseException)]
    assert len(answered) + len([r for r in results if "out of credit" in str(r)]) == 200
    assert await provider.calls() == len(answered)
    assert ledger.accounts["acme"].available >= 0
    assert not ledger.open_holds
    assert max(len(kinds) for kinds in ledger.applies) > 10  # they went in batches


async def test_internal_key_is_recorded_and_not_billed(proxy, ledger):
    ledger.accounts["acme"].available = 0
    made = await proxy.make_key(key_type="internal")
    answer = await proxy.chat(made.key, max_tokens=20)
    assert answer.headers["x-tollkeeper-cost-credits"] == "0"
    hold = next(body for kind, body in ledger.log if kind == "hold")
    assert (hold.billable, hold.amount_nanos, hold.key_id) == (False, 0, made.key_id)
    assert ledger.bills[0].amount_nanos == 0
    assert ledger.usages[0].cost_nanos > 0
    assert ledger.usages[0].internal


async def test_the_provider_gets_the_body_as_it_came(proxy, key, ledger):
    # What the provider does not know it refuses by name, so it has seen what was sent.
    answer = await proxy.chat(key, messages=[{"role": "user", "content": "x"}], temperature="warm")
    assert "temperature" in answer.json()["error"]["message"]


async def test_price_in_force_at_admission_prices_the_settlement(proxy, key, ledger, pricing, eventually):
    call = proxy.start_chat(key, text="[[sandbox output_tokens=5 first_byte_ms=400]]", max_tokens=9)
    await eventually(lambda: ledger.holds)
    pricing.publish(price("gpt-4o", input_usd=50, output_usd=150, version=2))
    async for _ in call:
        pass
    assert ledger.usages[0].price_version == 1
    await proxy.chat(key, max_tokens=9)
    assert ledger.usages[1].price_version == 2


async def test_running_call_settles_when_the_proxy_stops(start_proxy, ledger, eventually):
    proxy = await start_proxy()
    key = (await proxy.make_key()).key
    task = asyncio.ensure_future(proxy.chat(key, text="[[sandbox output_tokens=30 delay_ms=20]]", stream=True))
    await eventually(lambda: ledger.holds)
    await proxy.server.stop()
    answer = await task
    assert answer.events()[-1] == "[DONE]"
    assert ledger.usages[0].output_tokens == 30


async def test_call_that_outlasts_the_grace_is_settled_at_what_came(start_proxy, ledger, eventually):
    proxy = await start_proxy(grace_seconds=0.5)
    key = (await proxy.make_key()).key
    task = asyncio.ensure_future(proxy.chat(key, text="[[sandbox output_tokens=900 delay_ms=20]]", stream=True))
    await eventually(lambda: ledger.holds)
    await proxy.server.stop()
    with pytest.raises(Exception):  # noqa: B017, PT011
        await task
    assert ledger.usages[0].status == "cut"
    assert ledger.usages[0].estimated
    assert not ledger.open_holds


async def test_hold_of_a_long_call_is_extended(start_proxy, ledger):
    proxy = await start_proxy(hold_ttl_seconds=4)
    key = (await proxy.make_key()).key
    await proxy.chat(key, text="[[sandbox output_tokens=2 delay_ms=3500]]", max_tokens=9)
    assert [kind for kind, _ in ledger.log] == ["hold", "extend", "settle"]


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b'"x"', "body"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":7,"messages":[{"role":"user","content":"x"}]}', "model"),
        (orjson.dumps({"model": "m" * 10_000, "messages": [{}]}), "model"),
        (b'{"model":"gpt-4o"}', "messages"),
        (b'{"model":"gpt-4o","messages":[]}', "messages"),
        (b'{"model":"gpt-4o","messages":["x"]}', "messages[0]"),
        (b'{"model":"gpt-4o","messages":[{"role":"user","content":5}]}', "messages[0].content"),
        *(
            (orjson.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], name: value}), name)
            for name, value in [
                ("stream", "yes"),
                ("max_tokens", "many"),
                ("max_tokens", 1.5),
                ("max_tokens", True),
                ("max_tokens", 0),
                ("max_tokens", -5),
                ("max_completion_tokens", 2**40),
                ("n", 0),
                ("n", 129),
                ("n", 2.0),
                ("stream_options", "usage"),
                ("service_tier", 3),
            ]
        ),
    ],
)
async def test_bad_body_names_its_field_and_nothing_is_held(  # noqa: PLR0917
    proxy, key, ledger, provider, refused, raw, field
):
    refusal = await refused(proxy.chat(key, raw=raw))
    assert refusal.trailing["x-tollkeeper-http-status"] == "400"
    assert [violation.field for violation in refusal.violations][:1] == [field]
    assert not ledger.holds
    assert await provider.calls() == 0


async def test_models_are_those_that_are_priced_entitled_and_allowed(start_proxy, refused):
    proxy = await start_proxy(anthropic_api_key="sandbox")
    key = (await proxy.make_key()).key

    async def listed(secret):
        answer = await proxy.wire.ListModels(wire_service_pb2.ListModelsRequest(), metadata=(("x-api-key", secret),))
        return [model["id"] for model in json.loads(answer.data)["data"]]

    assert await listed(key) == ["claude-3-haiku", "gpt-3.5-turbo", "gpt-4o"]
    own = await proxy.make_key(allowed_models=["gpt-4o", "not-priced"])
    assert await listed(own.key) == ["gpt-4o"]
    await proxy.entitle(providers=["openai"], models=["gpt-3.5-turbo"])
    await asyncio.sleep(1)
    assert await listed(key) == ["gpt-3.5-turbo"]
    refusal = await refused(
        proxy.wire.GetModel(wire_service_pb2.GetModelRequest(model="gpt-4o"), metadata=(("x-api-key", key),))
    )
    assert refusal.reason == "MODEL_NOT_FOUND"


async def test_model_that_is_priced_by_the_image_alone_is_not_listed_since_no_call_takes_it(
    proxy, pricing, key, refused
):
    drawing = price("drawing", version=2)
    del drawing.rates[:]
    drawing.rates.add(component="image", nanos_per_million=10_000_000_000_000)
    pricing.publish(drawing, price("gpt-new", version=2))
    credential = (("x-api-key", key),)
    while True:
        answer = await proxy.wire.ListModels(wire_service_pb2.ListModelsRequest(), metadata=credential)
        listed = [model["id"] for model in json.loads(answer.data)["data"]]
        if "gpt-new" in listed:  # both were published at once
            break
        await asyncio.sleep(0.01)
    assert "drawing" not in listed
    assert (await refused(proxy.chat(key, model="drawing"))).reason == "MODEL_NOT_PRICED"
    one = proxy.wire.GetModel(wire_service_pb2.GetModelRequest(model="drawing"), metadata=credential)
    assert (await refused(one)).reason == "MODEL_NOT_FOUND"
