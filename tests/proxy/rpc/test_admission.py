"""Which calls are admitted: each refusal in its order, before anything is held."""

import asyncio
import json

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from proxy_fakes import price
from tollkeeper.pricing.v1 import resources_pb2
from tollkeeper.proxy.v1 import entitlement_service_pb2
from tollkeeper.proxy.v1 import resources_pb2 as proxy_pb
from tollkeeper.proxy.v1 import wire_service_pb2 as pb

from services.proxy import rates

BELIEVED = {"cache_seconds": 0.1}  # how long what was known is, here
SEEN = 0.2  # seconds within which a change is seen


@pytest.fixture
async def proxy(start_proxy):
    return await start_proxy(**BELIEVED)


async def test_refusals_come_in_their_order_and_hold_nothing(proxy, key, ledger, provider, refused):
    """Each step takes away the first reason, so that the next shows; all the others hold from the start."""
    wrong = {"model": "not-priced", "max_tokens": 5000}
    plan = {"active": False, "providers": ["anthropic"], "models": ["gpt-4o"], "max_tokens_per_request": 1000}
    steps = [
        ({}, {}, "ACCOUNT_SUSPENDED", "403"),
        ({"active": True}, {}, "MODEL_NOT_ALLOWED", "403"),
        ({"models": ["*"]}, {}, "MODEL_NOT_PRICED", "403"),
        ({}, {"model": "gpt-4o"}, "PROVIDER_NOT_ALLOWED", "403"),
        ({"providers": ["openai"], "requests_per_minute": 1}, {}, "REQUEST_TOO_LARGE_FOR_PLAN", "400"),
    ]
    for changes, body, reason, status in steps:
        plan |= changes
        wrong |= body
        await proxy.entitle(**plan)
        await asyncio.sleep(SEEN)
        refusal = await refused(proxy.chat(key, **wrong))
        assert (refusal.reason, refusal.trailing["x-tollkeeper-http-status"]) == (reason, status)
    assert not ledger.holds
    # What was refused before the limit per minute has not counted against it.
    await proxy.chat(key, model="gpt-4o", max_tokens=500)
    refusal = await refused(proxy.chat(key, model="gpt-4o", max_tokens=500))
    assert refusal.reason == "RATE_LIMITED"
    assert await provider.calls() == 1


async def test_prompt_of_600_characters_fits_a_plan_of_1000_tokens(proxy, key, ledger):
    await proxy.entitle(max_tokens_per_request=1000)
    await asyncio.sleep(SEEN)
    await proxy.chat(key, text="lorem ipsum " * 50, max_tokens=800)
    await proxy.chat(key, text="lorem ipsum " * 50)
    assert len(ledger.bills) == 2


async def test_limits_per_minute_are_shared_by_replicas(start_proxy, ledger, refused):
    first, second = await start_proxy(**BELIEVED), await start_proxy(**BELIEVED)
    first.revision = second.revision = 10
    await first.entitle(requests_per_minute=6)
    key = (await first.make_key()).key
    await asyncio.sleep(SEEN)
    answers = await asyncio.gather(
        *((first, second)[number % 2].chat(key, max_tokens=5) for number in range(16)), return_exceptions=True
    )
    assert len([answer for answer in answers if not isinstance(answer, BaseException)]) == 6
    refusal = await refused(second.chat(key, max_tokens=5))
    assert (refusal.reason, refusal.trailing["x-tollkeeper-http-status"]) == ("RATE_LIMITED", "429")
    assert 1 <= int(refusal.trailing["retry-after"]) <= 120
    assert refusal.metadata["scope"] == "account"


async def test_limits_of_the_key_itself(proxy, ledger, refused):
    made = await proxy.make_key(requests_per_minute=2)
    for _ in range(2):
        await proxy.chat(made.key, max_tokens=5)
    refusal = await refused(proxy.chat(made.key, max_tokens=5))
    assert (refusal.reason, refusal.metadata["scope"], refusal.metadata["unit"]) == ("RATE_LIMITED", "key", "requests")
    by_tokens = await proxy.make_key(tokens_per_minute=100)
    # At once, since what a call took beforehand is corrected by what it used in the end.
    allowed = proxy.chat(by_tokens.key, max_tokens=60)
    _, refusal = await asyncio.gather(allowed, refused(proxy.chat(by_tokens.key, max_tokens=60)))
    assert (refusal.reason, refusal.metadata["unit"]) == ("RATE_LIMITED", "tokens")
    assert len(ledger.bills) == 3


@pytest.mark.parametrize("why", ["the provider refuses", "the provider fails", "out of credit"])
async def test_call_that_came_to_nothing_leaves_the_tokens_of_its_minute(proxy, ledger, refused, why):
    made = await proxy.make_key(tokens_per_minute=100)
    if why == "out of credit":
        balance, ledger.accounts["acme"].available = ledger.accounts["acme"].available, 0
        assert (await refused(proxy.chat(made.key, max_tokens=60))).reason == "INSUFFICIENT_CREDIT"
        ledger.accounts["acme"].available = balance
    else:
        status = 400 if why == "the provider refuses" else 503
        answered = await proxy.chat(made.key, max_tokens=60, text=f"[[sandbox status={status}]]")
        assert answered.headers["x-tollkeeper-http-status"] == str(status)
    assert (await proxy.chat(made.key, max_tokens=60)).json()["choices"]
    assert len(ledger.bills) == 1


@pytest.fixture
async def outrun(start_proxy, ledger, monkeypatch):
    """A replica that takes it for likely that a key has room in its minute; that key; the balance before all calls.

    Another replica has used the room up.
    """
    monkeypatch.setattr(rates, "_SEEN_SECONDS", 60.0)
    first, second = await start_proxy(**BELIEVED), await start_proxy(**BELIEVED)
    first.revision = second.revision = 10
    await first.entitle(requests_per_minute=6)
    key = (await first.make_key()).key
    await asyncio.sleep(SEEN)
    before = ledger.accounts["acme"].available
    await first.chat(key, max_tokens=5)
    await asyncio.gather(*(second.chat(key, max_tokens=5) for _ in range(5)))
    return first, key, before


async def test_call_that_another_replica_outran_is_refused_and_holds_nothing(outrun, ledger, provider, refused):
    replica, key, before = outrun
    refusal = await refused(replica.chat(key, max_tokens=5))
    assert (refusal.reason, refusal.trailing["x-tollkeeper-http-status"]) == ("RATE_LIMITED", "429")
    assert len(ledger.holds) == 7  # the one refused had held
    assert len(ledger.released) == 1
    assert ledger.accounts["acme"].available == before - sum(bill.amount_nanos for bill in ledger.bills)
    assert await provider.calls() == len(ledger.bills) == 6


async def test_limit_per_minute_is_told_before_what_the_ledger_refuses(outrun, ledger, refused):
    """Also where both are asked at the same time."""
    replica, key, _ = outrun
    ledger.accounts["acme"].available = 0
    refusal = await refused(replica.chat(key, max_tokens=5))
    assert refusal.reason == "RATE_LIMITED"
    assert ledger.log[-1][0] == "hold"
    assert len(ledger.holds) == 6


async def test_limits_hold_in_each_replica_while_redis_is_away(start_proxy, refused):
    proxy = await start_proxy(redis_url="redis://127.0.0.1:1")
    made = await proxy.make_key(requests_per_minute=3)
    for _ in range(3):
        await proxy.chat(made.key, max_tokens=5)
    assert (await refused(proxy.chat(made.key, max_tokens=5))).reason == "RATE_LIMITED"


async def test_ledgers_own_refusals_pass_through(proxy, key, ledger, refused):
    ledger.accounts["acme"].token_limit = 10
    refusal = await refused(proxy.chat(key, max_tokens=5))
    assert (refusal.reason, refusal.trailing["x-tollkeeper-http-status"]) == ("LIMIT_EXCEEDED", "429")
    assert refusal.metadata["limitId"] == "plan::tokens:cycle"


async def test_cap_is_lowered_to_the_tokens_that_are_left(proxy, key, ledger):
    ledger.accounts["acme"].token_limit = 400
    answer = await proxy.chat(key, text="[[sandbox output_tokens=4000]]", max_tokens=4000)
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert ledger.accounts["acme"].tokens <= 400


async def test_no_call_is_made_before_the_prices_are_known(start_proxy, pricing, ledger, refused):
    pricing.silent = True
    proxy = await start_proxy(priced=False)
    key = (await proxy.make_key()).key
    refusal = await refused(proxy.chat(key))
    assert (refusal.reason, refusal.trailing["x-tollkeeper-http-status"]) == ("CATALOGUE_UNAVAILABLE", "503")
    assert not ledger.holds


async def test_last_picture_of_prices_stays_when_the_stream_breaks(proxy, key, pricing, eventually, ledger):
    pricing.silent = True
    pricing.cut()
    await eventually(lambda: not pricing.watchers)
    await proxy.chat(key, max_tokens=5)
    await eventually(lambda: pricing.watchers)
    await proxy.chat(key, max_tokens=5)
    pricing.silent = False
    pricing.prices.append(price("gpt-new"))
    for watcher in list(pricing.watchers):
        watcher.put_nowait(None)
    assert len(ledger.bills) == 2


async def test_published_price_is_seen_within_a_second(proxy, key, pricing, ledger):
    pricing.publish(price("gpt-new", version=2))
    await asyncio.sleep(0.5)
    await proxy.chat(key, model="gpt-new", max_tokens=5)
    assert ledger.usages[0].price_version == 2


async def test_withdrawn_model_is_not_served(proxy, key, pricing, refused):
    pricing.publish(price("gpt-4o", version=2, withdrawn=True))
    await asyncio.sleep(0.5)
    assert (await refused(proxy.chat(key))).reason == "MODEL_NOT_PRICED"


async def test_price_of_the_future_is_not_used_yet(proxy, key, pricing, ledger):
    later = Timestamp(seconds=2_000_000_000)
    pricing.publish(price("gpt-4o", input_usd=500, version=2, effective_from=later))
    await asyncio.sleep(0.5)
    await proxy.chat(key, max_tokens=5)
    assert ledger.usages[0].price_version == 1


async def test_price_that_is_not_sound_is_not_served(proxy, key, pricing, refused):
    broken = price("gpt-4o", version=2)
    broken.rates.append(broken.rates[0])
    pricing.publish(broken)
    await asyncio.sleep(0.5)
    assert (await refused(proxy.chat(key))).reason == "MODEL_NOT_PRICED"


@pytest.mark.parametrize("rates", [True, False])
async def test_account_with_an_override_pays_its_own_price(proxy, key, pricing, ledger, rates):
    override = resources_pb2.PriceOverride(account_id="acme", provider="openai", model="gpt-4o", version=7)
    if rates:
        override.rates.extend(price("gpt-4o", input_usd=10, output_usd=30).rates)
    else:
        override.multiplier_millionths = 2_000_000
    pricing.publish(overrides=[override])
    await asyncio.sleep(0.5)
    await proxy.chat(key, max_tokens=5)
    usage = ledger.usages[0]
    assert usage.cost_nanos == usage.input_tokens * 10_000 + usage.output_tokens * 30_000
    assert usage.price_version == 7


async def test_model_of_a_provider_that_is_not_configured(proxy, key, refused, ledger):
    assert (await refused(proxy.chat(key, model="claude-3-haiku"))).reason == "PROVIDER_NOT_CONFIGURED"
    assert not ledger.holds


async def test_models_of_a_provider_that_is_not_configured_are_not_listed(proxy, key, refused):
    mine = (("authorization", f"Bearer {key}"),)
    listed = json.loads((await proxy.wire.ListModels(pb.ListModelsRequest(), metadata=mine)).data)
    assert {model["owned_by"] for model in listed["data"]} == {"openai"}
    one = proxy.wire.GetModel(pb.GetModelRequest(model="claude-3-haiku"), metadata=mine)
    assert (await refused(one)).reason == "MODEL_NOT_FOUND"


async def test_other_providers_are_reached_in_openais_form(start_proxy, provider, ledger):
    proxy = await start_proxy(anthropic_base_url=f"{provider.url}/anthropic/v1", anthropic_api_key="sandbox")
    key = (await proxy.make_key()).key
    await proxy.chat(key, model="claude-3-haiku", max_tokens=9)
    assert ledger.usages[0].provider == "anthropic"
    assert list((await provider.usage())["by_provider"]) == ["anthropic"]


async def test_older_entitlement_changes_nothing(proxy, refused):
    newest = await proxy.entitle(plan_id="pro")
    older = proxy_pb.Entitlement(
        account_id="acme", plan_id="old", revision=newest.revision, multiplier_millionths=1_000_000
    )
    answer = await proxy.entitlements.SetEntitlement(
        entitlement_service_pb2.SetEntitlementRequest(entitlement=older), metadata=proxy.service
    )
    assert answer.plan_id == "pro"
    got = await proxy.entitlements.GetEntitlement(
        entitlement_service_pb2.GetEntitlementRequest(account_id="acme"), metadata=proxy.service
    )
    assert got == answer
    assert (
        await refused(
            proxy.entitlements.GetEntitlement(
                entitlement_service_pb2.GetEntitlementRequest(account_id="nobody"), metadata=proxy.service
            )
        )
    ).reason == "ACCOUNT_NOT_FOUND"


async def test_entitlement_that_would_make_calls_free_is_refused(proxy, refused):
    refusal = await refused(proxy.entitle(multiplier_millionths=0, max_tokens_per_request=-1))
    assert {violation.field for violation in refusal.violations} == {
        "entitlement.multiplier_millionths",
        "entitlement.max_tokens_per_request",
    }


async def test_revision_order_decides_not_arrival(proxy):
    async def put(revision):
        wanted = proxy_pb.Entitlement(
            account_id="race", plan_id=str(revision), revision=revision, multiplier_millionths=1_000_000
        )
        request = entitlement_service_pb2.SetEntitlementRequest(entitlement=wanted)
        return await proxy.entitlements.SetEntitlement(request, metadata=proxy.service)

    await asyncio.gather(*(put(revision) for revision in (3, 9, 1, 7, 9, 2, 8)))
    assert (await put(1)).plan_id == "9"
