"""Owns the proof of rating's arithmetic on any price and usage, against exact fractions worked out in another way."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rating_strategies import INPUT_PARTS, OUTPUT_PARTS, cards, counts, multipliers, tiers, token_usages, usages

from services.rating import (
    UNLIMITED_TOKENS,
    PriceCard,
    Rate,
    RatingError,
    Usage,
    affordable_output_tokens,
    cost,
    half_even,
    most_billed,
    upper_bound,
)
from services.rating.card import MAX_NANOS, TOKEN_COMPONENTS

# The component of each count, and the plain component it is billed as without a rate of its own.
_PARTS = {
    "cache_read_tokens": ["cache_read", "input"],
    "cache_write_5m_tokens": ["cache_write_5m", "input"],
    "cache_write_1h_tokens": ["cache_write_1h", "cache_write_5m", "input"],
    "audio_input_tokens": ["audio_input", "input"],
    "image_input_tokens": ["image_input", "input"],
    "reasoning_tokens": ["reasoning", "output"],
    "audio_output_tokens": ["audio_output", "output"],
    "image_output_tokens": ["image_output", "output"],
}


def _rate(card, names, tier, input_tokens):
    """A rate by reading all of the card's rates, as a person would."""
    for name in names:
        own = [rate for rate in card.rates if (rate.component, rate.service_tier) == (name, tier)]
        if own:
            return max((r for r in own if r.above_tokens == 0 or input_tokens > r.above_tokens), key=_above)
    return None


def _above(rate):
    return rate.above_tokens


def exact_cost(card, usage, tier):
    """The unrounded cost in nanos."""
    million = Fraction(1, 1_000_000)
    plain_input = usage.input_tokens - sum(getattr(usage, name) for name in INPUT_PARTS)
    plain_output = usage.output_tokens - sum(getattr(usage, name) for name in OUTPUT_PARTS)
    quantities = [(["input"], Fraction(plain_input)), (["output"], Fraction(plain_output))]
    quantities += [(names, Fraction(getattr(usage, field))) for field, names in _PARTS.items()]
    quantities += [(["image"], Fraction(usage.images)), (["character"], Fraction(usage.characters))]
    quantities += [(["second"], Fraction(usage.milliseconds, 1000))]
    total = Fraction(0)
    for names, quantity in quantities:
        if quantity:
            total += quantity * _rate(card, names, tier, usage.input_tokens).nanos_per_million * million
    per_request = _rate(card, ["request"], tier, usage.input_tokens) or _rate(
        card, ["request"], "standard", usage.input_tokens
    )
    return total + (per_request.nanos_per_million * usage.requests * million if per_request else 0)


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**20))
def test_half_even_is_what_fractions_round_to(numerator, denominator):
    assert half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@given(cards(), usages(), tiers, multipliers)
def test_cost_is_the_exact_sum_rounded_once(card, usage, tier, multiplier):
    exact = exact_cost(card, usage, tier)
    found = cost(card, usage, service_tier=tier, multiplier_millionths=multiplier)
    assert found.cost_nanos == round(exact)
    assert found.billed_nanos == round(exact * multiplier / 1_000_000)
    assert abs(found.input_cost_nanos + found.output_cost_nanos - found.cost_nanos) <= 1
    assert found.price_version == 7


@given(cards(), usages(), tiers)
def test_parts_make_up_the_cost(card, usage, tier):
    found = cost(card, usage, service_tier=tier)
    exact = sum(
        Fraction(part.quantity * part.nanos_per_million, 10**9 if part.component == "second" else 10**6)
        for part in found.parts
    )
    assert round(exact) == found.cost_nanos
    assert all(part.quantity > 0 for part in found.parts)


_UNITS = ["images", "characters", "milliseconds", "requests"]


@given(
    cards(rising=True), usages(), tiers, st.sampled_from([*_PARTS, "input_tokens", "output_tokens", *_UNITS]), counts
)
def test_more_use_never_costs_less(card, usage, tier, field, more):
    grown = {field: getattr(usage, field) + more}
    if field in INPUT_PARTS:
        grown["input_tokens"] = usage.input_tokens + more
    elif field in OUTPUT_PARTS:
        grown["output_tokens"] = usage.output_tokens + more
    after = usage._replace(**grown)
    before_cost = cost(card, usage, service_tier=tier)
    assert cost(card, after, service_tier=tier).cost_nanos >= before_cost.cost_nanos


@given(cards(), usages(), usages(), tiers)
def test_cost_is_additive_up_to_one_rounding(card, one, other, tier):
    both = Usage(*(a + b for a, b in zip(one, other, strict=True)))
    # A threshold looks at the whole call, so calls add up only where none is passed in between.
    bands = {rate.above_tokens for rate in card.rates}
    assume(all(len({u.input_tokens > above for u in (one, other, both)}) == 1 for above in bands if above))
    apart = cost(card, one, service_tier=tier).cost_nanos + cost(card, other, service_tier=tier).cost_nanos
    assert abs(cost(card, both, service_tier=tier).cost_nanos - apart) <= 1


@given(cards(), st.lists(usages(), min_size=1, max_size=8), tiers)
def test_splitting_a_batch_moves_its_cost_by_at_most_a_nano_a_line(card, lines, tier):
    flat = replace(card, rates=tuple(rate for rate in card.rates if rate.above_tokens == 0))
    whole = Usage(*map(sum, zip(*lines, strict=True)))
    apart = sum(cost(flat, line, service_tier=tier).cost_nanos for line in lines)
    assert abs(apart - cost(flat, whole, service_tier=tier).cost_nanos) <= len(lines)


@given(cards(), usages(), tiers)
def test_card_answers_the_same_whatever_it_was_asked_before(card, usage, tier):
    for other in ("standard", "batch", "flex", "priority"):
        cost(card, usage, service_tier=other)
    assert cost(card, usage, service_tier=tier) == cost(replace(card), usage, service_tier=tier)


@given(cards(), token_usages(), st.tuples(counts, counts), tiers, multipliers)
def test_no_cost_is_above_its_bound(card, usage, more, tier, multiplier):
    more_input, more_output = more
    bound = upper_bound(
        card,
        usage.input_tokens + more_input,
        usage.output_tokens + more_output,
        images=usage.images,
        requests=usage.requests,
        service_tier=tier,
        multiplier_millionths=multiplier,
    )
    found = cost(card, usage, service_tier=tier, multiplier_millionths=multiplier)
    assert found.cost_nanos <= bound.cost_nanos
    assert found.billed_nanos <= bound.billed_nanos


@given(cards(), counts, counts, tiers)
def test_bound_is_reached_by_the_dearest_call(card, input_tokens, output_tokens, tier):
    # The bound is not idle caution: with one band, some call within it costs exactly that.
    flat = replace(card, rates=tuple(rate for rate in card.rates if rate.above_tokens == 0))
    bound = upper_bound(flat, input_tokens, output_tokens, service_tier=tier)
    calls = [
        cost(flat, _all_of(input_tokens, output_tokens, of_input, of_output), service_tier=tier).cost_nanos
        for of_input in (None, *INPUT_PARTS)
        for of_output in (None, *OUTPUT_PARTS)
    ]
    assert max(calls) == bound.cost_nanos


def _all_of(input_tokens, output_tokens, of_input, of_output):
    parts = {name: count for name, count in ((of_input, input_tokens), (of_output, output_tokens)) if name}
    return Usage(input_tokens=input_tokens, output_tokens=output_tokens, **parts)


@given(
    cards(),
    counts,
    st.lists(counts, min_size=1, max_size=3),
    st.fixed_dictionaries(
        {
            "service_tier": tiers,
            "multiplier_millionths": multipliers,
            "components": st.none() | st.frozensets(st.sampled_from(TOKEN_COMPONENTS)),
        }
    ),
)
def test_most_billed_is_what_the_bound_of_each_bills(card, input_tokens, outputs, how):
    expected = tuple(upper_bound(card, input_tokens, output, **how).billed_nanos for output in outputs)
    assert most_billed(card, input_tokens, outputs, **how) == expected


@pytest.mark.parametrize(
    ("card", "outputs"),
    [
        (PriceCard("openai", "m", "chat", (Rate("input", nanos_per_million=1),)), (1, 0)),
        (PriceCard("openai", "m", "chat", (Rate("output", nanos_per_million=1),)), (0, 0)),
        (PriceCard("openai", "m", "chat", (Rate("input"), Rate("output", nanos_per_million=MAX_NANOS))), (1, 10**7)),
    ],
    ids=["no rate of output", "no rate of input", "more than can be counted"],
)
def test_most_billed_refuses_what_the_bound_refuses(card, outputs):
    with pytest.raises(RatingError) as expected:
        _ = [upper_bound(card, 5, output) for output in outputs]
    with pytest.raises(expected.type) as caught:
        most_billed(card, 5, outputs)
    assert str(caught.value) == str(expected.value)


@given(cards(), counts, st.integers(0, 10**13), tiers, multipliers)
def test_affordable_output_is_maximal(card, input_tokens, nanos, tier, multiplier):
    how = {"service_tier": tier, "multiplier_millionths": multiplier}
    tokens = affordable_output_tokens(card, nanos, input_tokens, **how)
    if tokens > 0:
        assert upper_bound(card, input_tokens, tokens, **how).billed_nanos <= nanos
    if tokens < UNLIMITED_TOKENS:
        assert upper_bound(card, input_tokens, tokens + 1, **how).billed_nanos > nanos


@given(cards(), token_usages(), tiers)
def test_bound_for_a_call_without_dear_parts_holds_for_such_calls(card, usage, tier):
    plain = usage._replace(**dict.fromkeys(_PARTS, 0))
    bound = upper_bound(
        card,
        plain.input_tokens,
        plain.output_tokens,
        images=plain.images,
        requests=plain.requests,
        service_tier=tier,
        components=(),
    )
    found = cost(card, plain, service_tier=tier)
    assert found.cost_nanos <= bound.cost_nanos
    if not any(rate.above_tokens for rate in card.rates):
        assert found.cost_nanos == bound.cost_nanos
