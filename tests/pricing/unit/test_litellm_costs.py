"""Owns the proof that what a price map is read as costs what its own figures multiply out to, exactly.

The figures are read here in another way: straight from the map's fields, for one call at a time, in fractions. Small
maps are made here; the public one is used where it lies beside the repository.
"""

import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from services.pricing.litellm.mapping import read_price_map
from services.rating import ComponentNotPriced, Usage, cost

PUBLIC_MAP = Path(__file__).parents[4] / "shared" / "data" / "litellm_model_prices.json"
NOW = datetime(2026, 11, 21, tzinfo=UTC)
SUFFIXES = {"standard": "", "batch": "_batches", "flex": "_flex", "priority": "_priority"}
TOKEN_MODES = ("chat", "embedding", "responses")

INPUT, OUTPUT = "input_cost_per_token", "output_cost_per_token"
FIVE_MINUTES = "cache_creation_input_token_cost"
# Each count, the fields that price it (best first), and the whole that it is taken from.
PARTS = {
    "cache_read_tokens": (["cache_read_input_token_cost", "input_cost_per_token_cache_hit", INPUT], "input_tokens"),
    "cache_write_5m_tokens": ([FIVE_MINUTES, INPUT], "input_tokens"),
    "cache_write_1h_tokens": ([f"{FIVE_MINUTES}_above_1hr", FIVE_MINUTES, INPUT], "input_tokens"),
    "audio_input_tokens": (["input_cost_per_audio_token", INPUT], "input_tokens"),
    "image_input_tokens": (["input_cost_per_image_token", INPUT], "input_tokens"),
    "reasoning_tokens": (["output_cost_per_reasoning_token", OUTPUT], "output_tokens"),
    "audio_output_tokens": (["output_cost_per_audio_token", OUTPUT], "output_tokens"),
    "image_output_tokens": (["output_cost_per_image_token", OUTPUT], "output_tokens"),
}


def thresholds(entry):
    """Every number of input tokens above which something of an entry costs something else."""
    return _thresholds(tuple(entry), tuple(int(one["range"][0]) for one in entry.get("tiered_pricing", ())))


@cache
def _thresholds(fields, starts):
    found = {int(number) * 1000 for field in fields for number in re.findall(r"_above_(\d+)k_tokens", field)}
    return (found | set(starts)) - {0}


def own_price(entry, field, suffix, input_tokens):
    """What a field says of a call in a tier; None where it says nothing of such a call."""
    said = {}
    for above in (0, *thresholds(entry)):
        name = f"{field}_above_{above // 1000}k_tokens{suffix}" if above else field + suffix
        if isinstance(entry.get(name), int | Decimal):
            said[above] = Fraction(entry[name])
    if not suffix:
        for one in entry.get("tiered_pricing", ()):
            if field in one:
                said[int(one["range"][0])] = Fraction(one[field])
    passed = [above for above in said if above == 0 or input_tokens > above]
    found = said[max(passed)] if passed else None
    # A tier that says nothing of long calls, where the standard one does: the dearer of the two.
    if suffix and said.keys() == {0} and (input_tokens > min(thresholds(entry), default=input_tokens)):
        standard = {a: entry.get(f"{field}_above_{a // 1000}k_tokens") for a in thresholds(entry) if input_tokens > a}
        longer = {above: value for above, value in standard.items() if value is not None}
        if longer:
            found = max(found, Fraction(longer[max(longer)]))
    return found


def expected_nanos(entry, usage, tier):
    """The cost by the map's own figures, unrounded; None where one of them is not there."""
    plain = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    asked = []
    for name, (fields, whole) in PARTS.items():
        plain[whole] -= getattr(usage, name)
        asked.append((getattr(usage, name), fields))
    asked += [(plain["input_tokens"], [INPUT]), (plain["output_tokens"], [OUTPUT])]
    total = Fraction(0)
    for quantity, fields in asked:
        prices = (own_price(entry, field, SUFFIXES[tier], usage.input_tokens) for field in fields)
        price = next((found for found in prices if found is not None), None)
        if quantity and price is None:
            return None
        total += quantity * (price or 0) * 10**9
    fee = entry.get("input_cost_per_query", entry.get("input_cost_per_request"))
    return total + Fraction(fee or 0) * usage.requests * 10**9


def calls_of(entry):
    """Usages that reach every figure of an entry: plain, cached, of every kind of token, around every threshold."""
    lengths = [1234, *(length for above in sorted(thresholds(entry)) for length in (above, above + 1, above + 98_765))]
    for tokens in lengths:
        yield Usage(input_tokens=tokens, output_tokens=567)
        yield Usage(
            input_tokens=tokens,
            output_tokens=567,
            cache_read_tokens=611,
            cache_write_5m_tokens=103,
            cache_write_1h_tokens=57,
        )
        yield Usage(input_tokens=tokens, output_tokens=567, audio_input_tokens=301, image_input_tokens=77)
        yield Usage(
            input_tokens=tokens,
            output_tokens=567,
            reasoning_tokens=233,
            audio_output_tokens=101,
            image_output_tokens=31,
        )
        yield Usage(input_tokens=tokens)


def check(content, modes):
    """Compare every call of every entry; how many there were, and how many of them were refused as not priced."""
    price_map = read_price_map(content, NOW)
    raw = json.loads(content, parse_float=Decimal)
    rounded = {key for key, _ in price_map.rounded}
    checked = refused = 0
    for price in price_map.prices:
        entry = {field: value for field, value in raw[price.model].items() if value is not None}
        if entry.get("mode") not in modes:
            continue
        offered = [tier for tier, suffix in SUFFIXES.items() if any(field.endswith(suffix) for field in entry)]
        for number, usage in enumerate(calls_of(entry)):
            for tier in offered if number else SUFFIXES:
                exact = expected_nanos(entry, usage, tier)
                checked += 1
                if exact is None:
                    refused += 1
                    with pytest.raises(ComponentNotPriced):
                        cost(price.card, usage, service_tier=tier)
                    continue
                found = cost(price.card, usage, service_tier=tier).cost_nanos
                # A figure with more decimals than a rate has is rounded to those first.
                allowed = 1 if price.model in rounded else 0
                assert abs(found - round(exact)) <= allowed, (price.model, tier, usage)
    return checked, refused


SMALL = {
    "plain": {INPUT: 1.5e-07, OUTPUT: 6e-07},
    "cached": {INPUT: 3e-06, OUTPUT: 1.5e-05, "cache_read_input_token_cost": 3e-07, FIVE_MINUTES: 3.75e-06},
    "an-hour": {INPUT: 3e-06, OUTPUT: 1.5e-05, FIVE_MINUTES: 3.75e-06, f"{FIVE_MINUTES}_above_1hr": 6e-06},
    "long": {
        INPUT: 3e-06,
        OUTPUT: 1.5e-05,
        "cache_read_input_token_cost": 3e-07,
        f"{INPUT}_above_200k_tokens": 6e-06,
        f"{OUTPUT}_above_200k_tokens": 2.25e-05,
        f"{FIVE_MINUTES}_above_1hr_above_200k_tokens": 1.2e-05,
    },
    "tiers": {
        INPUT: 1e-05,
        OUTPUT: 5e-05,
        f"{INPUT}_batches": 5e-06,
        f"{OUTPUT}_batches": 2.5e-05,
        f"{INPUT}_flex": 5e-06,
        f"{OUTPUT}_flex": 2.5e-05,
        f"{INPUT}_priority": 2e-05,
        f"{OUTPUT}_priority": 0.0001,
        "cache_read_input_token_cost": 1e-06,
        "cache_read_input_token_cost_priority": 2e-06,
        f"{INPUT}_above_128k_tokens": 2e-05,
        f"{INPUT}_above_272k_tokens": 3e-05,
        f"{OUTPUT}_above_272k_tokens": 7.5e-05,
        f"{INPUT}_above_272k_tokens_priority": 6e-05,
        f"{OUTPUT}_above_272k_tokens_priority": 0.00015,
    },
    "ranges": {
        "tiered_pricing": [
            {"range": [0, 32000.0], INPUT: 1.2e-06, OUTPUT: 6e-06, "cache_read_input_token_cost": 1e-07},
            {"range": [32000.0, 128000.0], INPUT: 2.4e-06, OUTPUT: 1.2e-05, "cache_read_input_token_cost": 2e-07},
            {"range": [128000.0, 252000.0], INPUT: 3e-06, OUTPUT: 1.5e-05, "cache_read_input_token_cost": 3e-07},
        ]
    },
    "many-kinds": {
        INPUT: 4.3e-07,
        OUTPUT: 2.5e-06,
        "input_cost_per_audio_token": 1e-06,
        "output_cost_per_audio_token": 1.2e-05,
        "input_cost_per_image_token": 7.7e-07,
        "output_cost_per_image_token": 3e-05,
        "output_cost_per_reasoning_token": 3.5e-06,
    },
    "input-only-in-batch": {INPUT: 1.5e-07, OUTPUT: 6e-07, f"{INPUT}_batches": 7.5e-08},
    "fee": {INPUT: 1e-06, OUTPUT: 2e-06, "input_cost_per_request": 0.005},
    "free": {INPUT: 0, OUTPUT: 0.0},
    "half-nanos": {INPUT: 5e-10, OUTPUT: 2.5e-10},
}


def test_small_maps_cost_what_their_figures_multiply_out_to():
    content = json.dumps(
        {name: {"litellm_provider": "acme", "mode": "chat", **fields} for name, fields in SMALL.items()}
    )
    checked, refused = check(content.encode(), {"chat"})
    assert checked > 4 * 5 * len(SMALL)
    assert 0 < refused < checked * 0.8


present = pytest.mark.skipif(not PUBLIC_MAP.exists(), reason="the public map does not lie beside the repository")


@present
def test_public_chat_models_cost_what_the_maps_figures_multiply_out_to():
    checked, refused = check(PUBLIC_MAP.read_bytes(), {"chat", "completion", "responses"})
    assert checked > 30_000
    assert refused < checked * 0.8  # most models have no price in batch, flex and priority


@present
def test_every_entry_of_the_public_map_is_priced_or_told_with_the_reason():
    content = PUBLIC_MAP.read_bytes()
    price_map = read_price_map(content, NOW)
    keys = json.loads(content).keys() - {"sample_spec"}
    priced = {price.model for price in price_map.prices}
    told = {one.key for one in price_map.skipped}
    assert priced | told == keys
    assert not priced & told
    assert all(one.reason for one in price_map.skipped)
    assert len(priced) / len(keys) > 0.94


@present
def test_public_token_models_are_priced_in_all_their_token_components_and_tiers():
    content = PUBLIC_MAP.read_bytes()
    price_map = read_price_map(content, NOW)
    entries = {key: entry for key, entry in json.loads(content).items() if entry.get("mode") in TOKEN_MODES}
    priced = {price.model for price in price_map.prices}
    # Whatever names tokens and was not understood: a component, a tier, or hours of the day at another price.
    partly = {
        key
        for field, keys in price_map.unknown.items()
        if "token" in field or field in ("tiered_pricing", "off_peak_pricing")
        for key in keys
    }
    whole = [key for key in entries if key in priced and key not in partly]
    assert len(whole) / len(entries) >= 0.95


@present
def test_public_map_is_read_as_exact_decimals():
    prices = {price.model: price for price in read_price_map(PUBLIC_MAP.read_bytes(), NOW).prices}
    mini = prices["gpt-4o-mini"].card
    assert mini.rate("input", "standard", 0) == 150_000_000
    assert mini.rate("input", "batch", 0) == 75_000_000
