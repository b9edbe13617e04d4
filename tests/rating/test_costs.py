"""Owns the proof of rating's rules case by case: what a part is billed as, where a threshold begins, refusals."""

import pytest
from tollkeeper.pricing.v1 import resources_pb2

from services.rating import (
    UNLIMITED_TOKENS,
    ComponentNotPriced,
    CostTooLarge,
    InvalidPriceCard,
    InvalidUsage,
    PriceCard,
    Rate,
    Usage,
    affordable_output_tokens,
    cost,
    upper_bound,
    wire,
)

USD = 1_000_000_000


def card(*rates):
    made = (
        Rate(*(one[0], one[2] if len(one) > 2 else "standard", one[3] if len(one) > 3 else 0, one[1])) for one in rates
    )
    return PriceCard("anthropic", "claude", "chat", tuple(made), version=3)


CACHED = card(("input", 3 * USD), ("output", 15 * USD), ("cache_read", 300_000_000), ("cache_write_5m", 3_750_000_000))


def test_cached_tokens_are_billed_inside_the_input_once():
    found = cost(CACHED, Usage(input_tokens=1000, cache_read_tokens=600, cache_write_5m_tokens=100))
    assert found.cost_nanos == 300 * 3000 + 600 * 300 + 100 * 3750
    assert [part.quantity for part in found.parts] == [300, 600, 100]


def test_part_without_a_rate_is_billed_as_the_tokens_it_is_part_of():
    found = cost(CACHED, Usage(input_tokens=10, audio_input_tokens=10, output_tokens=10, reasoning_tokens=10))
    assert [(part.component, part.nanos_per_million) for part in found.parts] == [
        ("audio_input", 3 * USD),
        ("reasoning", 15 * USD),
    ]


def test_cache_write_of_an_hour_is_never_cheaper_than_of_five_minutes():
    found = cost(CACHED, Usage(input_tokens=10, cache_write_1h_tokens=10))
    assert found.parts[0].nanos_per_million == 3_750_000_000


def test_part_without_a_rate_in_a_tier_takes_that_tiers_plain_rate():
    batch = card(("input", 3 * USD), ("cache_read", 1), ("output", 1), ("input", 2 * USD, "batch"))
    found = cost(batch, Usage(input_tokens=10, cache_read_tokens=10), service_tier="batch")
    assert found.parts[0].nanos_per_million == 2 * USD


@pytest.mark.parametrize(("input_tokens", "rate"), [(200_000, 3), (200_001, 6), (500_000, 6), (500_001, 9)])
def test_whole_call_is_at_the_rate_of_its_threshold(input_tokens, rate):
    long = card(
        ("input", 3 * USD),
        ("output", 15 * USD),
        ("input", 6 * USD, "standard", 200_000),
        ("input", 9 * USD, "standard", 500_000),
        ("output", 30 * USD, "standard", 200_000),
    )
    found = cost(long, Usage(input_tokens=input_tokens, output_tokens=1))
    assert found.parts[0].nanos_per_million == rate * USD
    assert found.parts[0].quantity == input_tokens
    assert found.parts[1].nanos_per_million == (30 if input_tokens > 200_000 else 15) * USD


def test_fee_per_request_is_owed_in_every_tier():
    fee = card(("input", 1), ("output", 1), ("input", 1, "batch"), ("request", 5_000_000))
    assert cost(fee, Usage()).cost_nanos == 5
    assert cost(fee, Usage(), service_tier="batch").cost_nanos == 5
    assert upper_bound(fee, 0, 0, service_tier="batch").cost_nanos == 5
    assert cost(CACHED, Usage()).cost_nanos == 0


def test_seconds_are_counted_in_milliseconds():
    whisper = card(("second", 100_000 * 1_000_000))
    assert cost(whisper, Usage(milliseconds=1500)).cost_nanos == 150_000


@pytest.mark.parametrize(("tokens", "nanos"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_half_a_nano_goes_to_the_even_one(tokens, nanos):
    assert cost(card(("input", 500_000)), Usage(input_tokens=tokens)).cost_nanos == nanos


def test_billed_amount_is_rounded_from_the_exact_cost():
    third = card(("input", 333_333))
    found = cost(third, Usage(input_tokens=4), multiplier_millionths=1_500_000)
    assert (found.cost_nanos, found.billed_nanos) == (1, 2)


@pytest.mark.parametrize(
    ("usage", "tier", "component"),
    [
        (Usage(images=1), "standard", "image"),
        (Usage(characters=1), "standard", "character"),
        (Usage(milliseconds=1), "standard", "second"),
        (Usage(input_tokens=1), "flex", "input"),
        (Usage(input_tokens=1, cache_read_tokens=1), "flex", "cache_read"),
    ],
)
def test_component_without_a_rate_is_refused(usage, tier, component):
    with pytest.raises(ComponentNotPriced) as caught:
        cost(CACHED, usage, service_tier=tier)
    assert (caught.value.component, caught.value.service_tier) == (component, tier)


def test_output_without_a_rate_is_refused_before_the_call_too():
    embedding = card(("input", USD))
    assert upper_bound(embedding, 10, 0).cost_nanos == 10_000
    for refuse in (
        lambda: upper_bound(embedding, 10, 1),
        lambda: affordable_output_tokens(embedding, USD, 10),
        lambda: cost(embedding, Usage(output_tokens=1)),
        lambda: upper_bound(embedding, 10, 0, service_tier="batch"),
        lambda: upper_bound(embedding, 10, 0, images=1),
    ):
        with pytest.raises(ComponentNotPriced):
            refuse()


def test_audio_only_price_does_not_admit_text():
    with pytest.raises(ComponentNotPriced):
        upper_bound(card(("audio_input", USD)), 1, 0)


@pytest.mark.parametrize(
    ("usage", "field"),
    [
        (Usage(input_tokens=-1), "input_tokens"),
        (Usage(requests=-1), "requests"),
        (Usage(input_tokens=1, cache_read_tokens=2), "input_tokens"),
        (Usage(output_tokens=1, reasoning_tokens=1, audio_output_tokens=1), "output_tokens"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(usage, field):
    with pytest.raises(InvalidUsage) as caught:
        cost(CACHED, usage)
    assert caught.value.field == field


def test_cost_beyond_64_bits_is_refused():
    with pytest.raises(CostTooLarge):
        cost(CACHED, Usage(input_tokens=2**62))


def test_output_that_costs_nothing_is_unlimited_but_only_with_the_input_paid():
    free = card(("input", USD), ("output", 0))
    assert affordable_output_tokens(free, 10_000, 10) == UNLIMITED_TOKENS
    assert affordable_output_tokens(free, 9_999, 10) == 0


@pytest.mark.parametrize("nanos", [-1, 0, 1])
def test_empty_purse_affords_nothing(nanos):
    assert affordable_output_tokens(CACHED, nanos, 10) == 0


@pytest.mark.parametrize(
    ("rates", "field"),
    [
        ((), "rates"),
        ((Rate("inputs", nanos_per_million=1),), "rates[0].component"),
        ((Rate("input", "cheap", 0, 1),), "rates[0].service_tier"),
        ((Rate("input", nanos_per_million=-1),), "rates[0].nanos_per_million"),
        ((Rate("input", nanos_per_million=1), Rate("input", nanos_per_million=2)), "rates[1]"),
        ((Rate("input", above_tokens=5, nanos_per_million=1),), "rates[0].above_tokens"),
    ],
)
def test_rates_that_are_not_sound_make_no_card(rates, field):
    with pytest.raises(InvalidPriceCard) as caught:
        PriceCard("openai", "m", "chat", rates)
    assert field in [fault.field for fault in caught.value.faults]


def test_messages_and_values_pass_into_each_other_whole():
    usage = Usage(*range(1, 15))
    assert wire.usage_from_proto(resources_pb2.Usage(**usage._asdict())) == usage
    assert wire.usage_from_proto(resources_pb2.Usage()).requests == 1
    assert wire.usage_from_proto(resources_pb2.Usage(requests=0)).requests == 0
    assert wire.card_from_proto(wire.card_to_proto(CACHED)) == CACHED
    found = cost(CACHED, Usage(1000, 500))
    parts = [resources_pb2.CostPart(**part._asdict()) for part in found.parts]
    assert wire.cost_to_proto(found) == resources_pb2.Cost(**found._asdict() | {"parts": parts})


@pytest.mark.parametrize(("nanos", "tokens"), [(0, 1), (1, 2), (2, 5), (3, 6), (4, 9)])
def test_affordable_output_rounds_ties_as_the_bill_does(nanos, tokens):
    half = card(("input", 1), ("output", 500_000))
    assert affordable_output_tokens(half, nanos, 0) == tokens


def test_bound_takes_only_the_parts_that_the_call_can_have():
    cheap_hour = card(("input", 1 * USD), ("output", 1), ("cache_write_5m", 9 * USD), ("cache_write_1h", 2 * USD))
    assert upper_bound(cheap_hour, 1_000_000, 0).cost_nanos == 9 * USD
    assert upper_bound(cheap_hour, 1_000_000, 0, components={"cache_write_1h"}).cost_nanos == 2 * USD
    assert upper_bound(cheap_hour, 1_000_000, 0, components=()).cost_nanos == 1 * USD
