"""The pure rule of admission: prices, caps and what a hold pays for."""

from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy_fakes import USD, price
from tollkeeper.pricing.v1 import pricing_service_pb2

from services import rating
from services.proxy import admission
from services.proxy.catalogue import Catalogue
from services.proxy.entitlements.model import Entitlement
from services.proxy.errors import ModelAmbiguous, ModelNotPriced, ProviderNotAllowed, RequestTooLargeForPlan
from services.proxy.formats.openai_chat import ChatRequest
from services.proxy.formats.openai_embeddings import EmbeddingsRequest
from services.proxy.keys.model import Key
from services.rating.wire import card_from_proto

NOW = datetime(2026, 11, 21, tzinfo=UTC)
KEY = Key("key-1", "acme", "", "standard", "tk_", "abcd", "", frozenset(), 0, 0, 0, 0, NOW)
PLAN = Entitlement("acme", "payg", 1, True, frozenset("*"), frozenset("*"), 0, 0, 0, 1_500_000, NOW)
CARD = card_from_proto(price("gpt-4o", max_output=4096))


def request(text="x", **body):
    return ChatRequest.read(orjson.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": text}]} | body))


def catalogue(*prices):
    made = Catalogue()
    made.take_in(pricing_service_pb2.CatalogueChange(prices=prices, complete=True))
    return made


@given(
    cap=st.integers(1, 100_000),
    choices=st.integers(1, 128),
    share=st.floats(0, 1),
    multiplier=st.integers(1, 5_000_000),
    text=st.text(max_size=300),
)
def test_lowered_cap_never_costs_more_than_what_is_held(cap, choices, share, multiplier, text):
    plan = replace(PLAN, multiplier_millionths=multiplier)
    asked = request(text, max_tokens=cap, n=choices)
    admitted = admission.admit(KEY, plan, CARD, asked, default_cap=4096)
    span = admitted.amount_nanos - admitted.minimum_amount_nanos
    held = admitted.minimum_amount_nanos + int(span * share)
    lowered = admitted.cap_within(held, admitted.tokens)
    assert 1 <= lowered <= cap
    used = rating.Usage(input_tokens=admitted.input_bound, output_tokens=lowered * choices)
    assert rating.cost(CARD, used, multiplier_millionths=multiplier).billed_nanos <= held
    tokens = admitted.minimum_tokens + int((admitted.tokens - admitted.minimum_tokens) * share)
    by_tokens = admitted.cap_within(admitted.amount_nanos, tokens)
    assert 1 <= by_tokens <= cap
    assert admitted.input_bound + by_tokens * choices <= tokens


@pytest.mark.parametrize(
    ("plan_tokens", "model_output", "cap"),
    [(0, 0, 777), (0, 4096, 4096), (1000, 4096, 996), (1000, 100, 100), (32_000, 0, 31_996)],
)
def test_cap_that_is_not_given_is_what_fits(plan_tokens, model_output, cap):
    card = card_from_proto(price("gpt-4o", max_output=model_output))
    asked = request()
    admitted = admission.admit(KEY, replace(PLAN, max_tokens_per_request=plan_tokens), card, asked, default_cap=777)
    assert admitted.cap == (plan_tokens - asked.input_guess if cap in {996, 31_996} else cap)


def test_cap_that_does_not_fit_the_plan_is_refused_and_the_edge_is_not():
    asked = request()
    plan = replace(PLAN, max_tokens_per_request=1000)
    room = 1000 - asked.input_guess
    assert admission.admit(KEY, plan, CARD, request(max_tokens=room), default_cap=1).cap == room
    with pytest.raises(RequestTooLargeForPlan):
        admission.admit(KEY, plan, CARD, request(max_tokens=room + 1), default_cap=1)
    with pytest.raises(RequestTooLargeForPlan):
        admission.admit(KEY, plan, CARD, request(max_tokens=room // 2 + 1, n=2), default_cap=1)
    with pytest.raises(RequestTooLargeForPlan):
        admission.admit(KEY, plan, CARD, request("word " * 1000), default_cap=1)


def test_internal_key_holds_no_money_but_its_tokens():
    admitted = admission.admit(replace(KEY, key_type="internal"), PLAN, CARD, request(max_tokens=9), default_cap=1)
    assert (admitted.amount_nanos, admitted.minimum_amount_nanos, admitted.billable) == (0, 0, False)
    assert admitted.tokens > 9
    assert admitted.cap_within(0, admitted.tokens) == 9


def test_tier_without_a_price_is_not_served():
    with pytest.raises(ModelNotPriced):
        admission.admit(KEY, PLAN, CARD, request(service_tier="priority"), default_cap=1)


def tiered(**usd):
    """A card whose input and output cost so many USD for a million tokens in these tiers."""
    rates = [rating.Rate(part, tier, 0, each * USD) for tier, each in usd.items() for part in ("input", "output")]
    return replace(CARD, rates=tuple(rates))


@pytest.mark.parametrize(
    ("asked", "card", "held"),
    [
        ("flex", tiered(standard=10, flex=5), "standard"),
        ("batch", tiered(standard=10, batch=5), "standard"),
        ("priority", tiered(standard=10, priority=20), "priority"),
        ("flex", tiered(flex=5), "flex"),
        ("default", tiered(standard=10, flex=5), "standard"),
    ],
    ids=["flex", "batch", "priority", "flex-alone", "default"],
)
def test_cheaper_tier_is_held_for_as_if_the_provider_had_not_heard_of_it(asked, card, held):
    admitted = admission.admit(KEY, PLAN, card, request(service_tier=asked, max_tokens=100), default_cap=1)
    assert admitted.service_tier == held
    most = rating.upper_bound(
        card, admitted.input_bound, 100, service_tier=held, multiplier_millionths=PLAN.multiplier_millionths
    )
    assert admitted.amount_nanos == most.billed_nanos


@pytest.mark.parametrize("model", ["gpt-4o-mini-search-preview-2025-03-11", "gpt-5-search-api", "sonar-pro"])
def test_model_that_searches_in_every_call_is_not_served_without_a_price_per_call(model):
    card = replace(CARD, model=model)
    with pytest.raises(ModelNotPriced) as caught:
        admission.admit(KEY, PLAN, card, request(), default_cap=1)
    assert caught.value.metadata["component"] == "request"
    fee = replace(card, rates=(*card.rates, rating.Rate("request", nanos_per_million=25_000 * USD)))
    admitted = admission.admit(KEY, PLAN, fee, request(), default_cap=1)
    assert admitted.minimum_amount_nanos > 25_000_000 * 1.5


def choose(made, plan=PLAN, **fields):
    return admission.choose_card(KEY, plan, made, "m", NOW, owner="openai", **fields).provider


def test_provider_of_a_model_name():
    both = catalogue(price("m", "anthropic"), price("m", "openai"))
    others = catalogue(price("m", "anthropic"), price("m", "bedrock"))
    assert choose(both) == "openai"
    assert choose(both, replace(PLAN, providers=frozenset({"anthropic"}))) == "anthropic"
    assert choose(both, provider="anthropic") == "anthropic"
    assert choose(others, askable={"bedrock"}) == "bedrock"
    with pytest.raises(ModelAmbiguous):
        choose(others)
    with pytest.raises(ModelAmbiguous):
        choose(others, askable={"bedrock", "anthropic"})
    with pytest.raises(ProviderNotAllowed):
        choose(others, replace(PLAN, providers=frozenset({"openai"})))
    with pytest.raises(ModelNotPriced):
        choose(others, provider="openai")


def test_embedding_holds_its_input_and_has_no_cap():
    asked = EmbeddingsRequest.read(orjson.dumps({"model": "gpt-4o", "input": ["one", "two"]}))
    admitted = admission.admit(KEY, PLAN, CARD, asked, default_cap=4096)
    assert (admitted.cap, admitted.cap_within(admitted.amount_nanos, admitted.tokens)) == (0, 0)
    assert admitted.amount_nanos == admitted.minimum_amount_nanos > 0
    assert admitted.tokens == asked.input_bound
