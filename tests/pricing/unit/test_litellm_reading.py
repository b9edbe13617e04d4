"""Owns the proof that a price map is read strictly: exact, whole or not at all, and never by guessing."""

import json
from datetime import UTC, datetime

import pytest

from services.pricing.litellm.mapping import read_price_map
from services.pricing.litellm.reading import MAX_ENTRIES, MAX_MAP_BYTES, PriceMapError
from services.rating import ComponentNotPriced, Usage, cost

NOW = datetime(2026, 11, 21, tzinfo=UTC)
INPUT, OUTPUT = "input_cost_per_token", "output_cost_per_token"


def read(entries):
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return read_price_map(content, NOW)


def entry(mode="chat", **fields):
    return {"litellm_provider": "acme", "mode": mode, **fields}


def card(mode="chat", **fields):
    (price,) = read({"m": entry(mode, **fields)}).prices
    return price.card


def rates(mode="chat", **fields):
    made = card(mode, **fields)
    return {
        (rate.component, *((rate.service_tier, rate.above_tokens) if rate.service_tier != "standard" else ())): (
            rate.nanos_per_million
        )
        for rate in made.rates
        if rate.above_tokens == 0
    }


def why_not(**fields):
    found = read({"m": entry(**fields)})
    assert not found.prices
    (skipped,) = found.skipped
    assert skipped.key == "m"
    return skipped.reason


# ------------------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize(
    ("figure", "rate"),
    [
        ("1.5e-07", 150_000_000),
        ("0.00000015", 150_000_000),
        ("15e-8", 150_000_000),
        ("1e-15", 1),
        ("0.000000014285714", 14_285_714),
        ("3", 3 * 10**15),
        ("0", 0),
        ("0.0", 0),
        ("0e-400", 0),
        ("1E+0", 10**15),
    ],
)
def test_figures_are_exact_decimals(figure, rate):
    found = read(f'{{"m": {{"litellm_provider": "acme", "mode": "chat", "{INPUT}": {figure}}}}}'.encode())
    assert [one.nanos_per_million for one in found.prices[0].card.rates] == [rate]
    assert not found.rounded


@pytest.mark.parametrize(
    ("figure", "rate"),
    [("4.5000000000000003e-07", 450_000_000), ("9.499999999999999e-7", 950_000_000), ("2.5e-15", 2), ("3.5e-15", 4)],
)
def test_figures_with_more_decimals_than_a_rate_are_rounded_and_told(figure, rate):
    found = read(f'{{"m": {{"litellm_provider": "acme", "mode": "chat", "{INPUT}": {figure}}}}}'.encode())
    assert [one.nanos_per_million for one in found.prices[0].card.rates] == [rate]
    assert found.rounded == (("m", INPUT),)


# -------------------------------------------------------------------------------------------------------- refused whole


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not JSON: Expecting value, line 1"),
        (b"\xff\xfe", "is not UTF-8: byte 0"),
        (b"[]", "must be a JSON object"),
        (b"{}", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"m": 5}', "m: must be an object, not a number"),
        (b'{"m": "x"}', "m: must be an object, not a text"),
        (b'{"m": {}, "m": {}}', "m: stands twice in the same object"),
        (b'{"m": {"mode": "chat", "mode": "chat"}}', "mode: stands twice"),
        (b'{"m": {\n"a": }}', "line 2, column 6"),
        (b'{"m": {"a": NaN}}', "NaN is no number"),
        (b'{"m": {"a": -Infinity}}', "-Infinity is no number"),
        (b'{"m": {"a": ' + b"9" * 5000 + b"}}", "a number that is too long"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"x" * (MAX_MAP_BYTES + 1), f"is larger than {MAX_MAP_BYTES} bytes"),
        (b"x" * MAX_MAP_BYTES, "is not JSON"),
        (b"[" + b"0," * (MAX_MAP_BYTES // 2 - 2) + b"0]", "must be a JSON object"),
        (b'"' + b"\x00" * 100 + b'"', "is not JSON"),
        (json.dumps({str(n): {} for n in range(MAX_ENTRIES + 1)}).encode(), f"more than {MAX_ENTRIES}"),
        (json.dumps({"m": dict.fromkeys(map(str, range(501)))}).encode(), "m: has more than 500 fields"),
        (
            json.dumps({str(n): {f"x{n}-{m}": 1 for m in range(11)} for n in range(91)}).encode(),
            "1001 fields that are not",
        ),
        (f'{{"m": {{"{INPUT}": -1e-07}}}}'.encode(), f"m: {INPUT}: must not be negative"),
        (f'{{"m": {{"{INPUT}": 10000}}}}'.encode(), f"m: {INPUT}: is out of range"),
        (f'{{"m": {{"{INPUT}": 1e-99999}}}}'.encode(), f"m: {INPUT}: is out of range"),
        (f'{{"m": {{"{INPUT}": 1e99999}}}}'.encode(), f"m: {INPUT}: is out of range"),
        (f'{{"m": {{"{INPUT}": 1e-16}}}}'.encode(), f"m: {INPUT}: is out of range"),
        (f'{{"m": {{"{INPUT}_batches": -0.1}}}}'.encode(), f"m: {INPUT}_batches: must not be negative"),
        (
            json.dumps({"m": {"tiered_pricing": [{"range": [0, 9], INPUT: -1}]}}).encode(),
            f"m: tiered_pricing[0].{INPUT}: must not be negative",
        ),
    ],
)
def test_what_is_no_price_map_is_refused_whole_with_its_place(content, told):
    good = {"fine": entry(**{INPUT: 1e-06})}
    with pytest.raises(PriceMapError) as caught:
        read(content)
    assert told in str(caught.value)
    assert read(good).prices  # it is not the reader that refuses everything


# ---------------------------------------------------------------------------------------------------- understanding


def test_every_kind_of_price_becomes_its_component():
    assert rates(
        **{
            INPUT: 1e-06,
            OUTPUT: 2e-06,
            "cache_read_input_token_cost": 3e-06,
            "cache_creation_input_token_cost": 4e-06,
            "cache_creation_input_token_cost_above_1hr": 5e-06,
            "output_cost_per_reasoning_token": 6e-06,
            "input_cost_per_audio_token": 7e-06,
            "output_cost_per_audio_token": 8e-06,
            "input_cost_per_image_token": 9e-06,
            "output_cost_per_image_token": 1e-05,
            "output_cost_per_image": 1.1e-05,
            "input_cost_per_character": 1.2e-05,
            "input_cost_per_second": 1.3e-05,
            "input_cost_per_request": 1.4e-05,
        }
    ) == {
        (name,): number * 10**9
        for number, name in enumerate(
            (
                "input",
                "output",
                "cache_read",
                "cache_write_5m",
                "cache_write_1h",
                "reasoning",
                "audio_input",
                "audio_output",
                "image_input",
                "image_output",
                "image",
                "character",
                "second",
                "request",
            ),
            start=1,
        )
    }


def test_cache_of_an_hour_is_a_component_and_no_threshold():
    hour = "cache_creation_input_token_cost_above_1hr"
    made = card(**{INPUT: 1e-06, hour: 2e-06, f"{hour}_above_200k_tokens": 4e-06, f"{hour}_batches": 1e-06})
    assert made.rate("cache_write_1h", "standard", 200_000) == 2 * 10**9
    assert made.rate("cache_write_1h", "standard", 200_001) == 4 * 10**9
    assert made.rate("cache_write_5m", "standard", 200_001) == 10**9
    assert made.rate("cache_write_1h", "batch", 5) == 10**9


@pytest.mark.parametrize(
    ("mode", "fields", "found"),
    [
        ("audio_transcription", {"input_cost_per_second": 1e-4, "output_cost_per_second": 0.0}, {("second",): 10**11}),
        ("audio_transcription", {"input_cost_per_second": 1e-4, "output_cost_per_second": 1e-4}, {("second",): 10**11}),
        ("chat", {"cost_per_second": 0.002, "input_cost_per_second": 0.002}, {("second",): 2 * 10**12}),
        ("video_generation", {"output_cost_per_video_per_second": 0.1}, {("second",): 10**14}),
        ("image_generation", {"output_cost_per_image": 0.04}, {("image",): 4 * 10**13}),
        ("image_generation", {"input_cost_per_image": 0.04}, {("image",): 4 * 10**13}),
        ("image_generation", {"input_cost_per_image": 0.04, "output_cost_per_image": 0.1}, {("image",): 10**14}),
        ("audio_speech", {"input_cost_per_character": 1.5e-05}, {("character",): 15 * 10**9}),
        ("rerank", {"input_cost_per_query": 0.001, INPUT: 0.0}, {("input",): 0, ("request",): 10**12}),
    ],
)
def test_units_are_priced_as_the_mode_means_them(mode, fields, found):
    assert rates(mode, **fields) == found


def test_limits_are_taken_where_they_are_whole_numbers():
    made = card(**{INPUT: 1e-06, "max_input_tokens": 128000.0, "max_output_tokens": "many"})
    assert (made.max_input_tokens, made.max_output_tokens) == (128_000, 0)


def test_prices_are_named_by_provider_and_key():
    found = read({"gemini/pro": entry(**{INPUT: 1e-06}), "sample_spec": entry(**{INPUT: "0.0"})})
    assert [(price.provider, price.model, price.mode) for price in found.prices] == [("acme", "gemini/pro", "chat")]
    assert not found.skipped


# ------------------------------------------------------------------------------------------------------- never guessed


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "has no price"),
        ({"litellm_provider": None, INPUT: 1e-06}, "has no litellm_provider"),
        ({"litellm_provider": "not a name", INPUT: 1e-06}, "litellm_provider is not an identifier"),
        ({"litellm_provider": 5, INPUT: 1e-06}, "litellm_provider is not an identifier"),
        ({INPUT: "0.1"}, f"{INPUT} is not a number"),
        ({INPUT: True}, f"{INPUT} is not a number"),
        ({INPUT: None}, "has no price"),
        ({"ocr_cost_per_page": 0.001}, "is priced by ocr_cost_per_page"),
        ({OUTPUT: 0.0, "input_cost_per_pixel": 1e-08}, "is free but for input_cost_per_pixel"),
        (
            {"output_cost_per_second": 0.1, "output_cost_per_second_1080p": 0.2},
            "is priced by output_cost_per_second_1080p, output_cost_per_second",
        ),
        ({"input_cost_per_second": 1e-4, "output_cost_per_second": 2e-4}, "is priced by input_cost_per_second, output"),
        ({f"{INPUT}_above_200k_tokens": 1e-06}, f"is priced by {INPUT}_above_200k_tokens"),
        ({f"fee_{n}": n for n in range(7)}, "is priced by fee_0, fee_1, fee_2, fee_3, fee_4 and 2 more"),
        ({"tiered_pricing": []}, "is priced by tiered_pricing"),
        ({"tiered_pricing": 5}, "is priced by tiered_pricing"),
        ({"tiered_pricing": [{"range": [0, 10], "fee": 5}]}, "is priced by tiered_pricing"),
        ({"tiered_pricing": [{"range": [5, 10], INPUT: 1}]}, "is priced by tiered_pricing"),
        ({"tiered_pricing": [{"range": [0, 10], INPUT: 1}, {"range": [11, 20], INPUT: 1}]}, "is priced by tiered"),
        ({"tiered_pricing": [{"range": [0, 10], INPUT: 1}, {"range": [10, 20], OUTPUT: 1}]}, "is priced by tiered"),
        ({"tiered_pricing": [{"range": [0, 1e300], INPUT: 1}]}, "is priced by tiered"),
        ({"tiered_pricing": [{"max_results_range": [0, 10], "input_cost_per_query": 1}]}, "is priced by tiered"),
    ],
)
def test_entry_that_is_not_understood_is_told_with_the_reason(fields, reason):
    assert why_not(**fields).startswith(reason)


def test_key_that_is_no_name_is_told_and_shown_safely():
    found = read({"bad\nname": entry(**{INPUT: 1e-06}), "x" * 300: entry(**{INPUT: 1e-06})})
    assert [one.key for one in found.skipped] == ["bad?name", "x" * 200 + "…"]


def test_field_that_is_not_understood_is_told_and_nothing_is_made_of_it():
    fields = {INPUT: 1e-06, "supports_vision": True, "source": "x", "max_tokens": 5}
    unknown = {
        "input_cost_per_token_ultrafast": 9e-06,
        "input_cost_per_token_above_200k_words": 1,
        "cost_per_moon": 3,
        "search_context_cost_per_query": {"search_context_size_low": 0.01},
        "off_peak_pricing": {INPUT: 5e-07},
        "supportsvision": True,
    }
    found = read({"m": entry(**fields, **unknown), "n": entry(**fields, cost_per_moon=4)})
    assert found.unknown == {field: ("m", "n") if field == "cost_per_moon" else ("m",) for field in sorted(unknown)}
    assert [len(price.card.rates) for price in found.prices] == [1, 1]


def test_resolution_that_costs_the_same_does_not_matter():
    assert rates("video_generation", output_cost_per_second=0.1, output_cost_per_second_1080p=0.1) == {
        ("second",): 10**14
    }


def test_price_of_zero_is_a_price_and_one_left_out_is_none():
    free = card(**{INPUT: 0, OUTPUT: 0.0})
    assert cost(free, Usage(1000, 1000)).cost_nanos == 0
    half = card(**{INPUT: 0})
    with pytest.raises(ComponentNotPriced):
        cost(half, Usage(1000, 1))
    assert [price.model for price in read({"m": entry(**{INPUT: 0}), "n": entry(**{INPUT: 1e-9})}).free] == ["m"]


def test_tier_without_a_rate_for_long_calls_takes_the_dearer_of_those_that_are_given():
    fields = {
        INPUT: 3e-06,
        f"{INPUT}_above_200k_tokens": 6e-06,
        f"{INPUT}_batches": 1.5e-06,
        f"{INPUT}_priority": 7e-06,
    }
    made = card(**fields)
    assert made.rate("input", "batch", 200_000) == 1_500_000_000
    assert made.rate("input", "batch", 200_001) == 6 * 10**9
    assert made.rate("input", "priority", 200_001) == 7 * 10**9
    own = card(**fields, **{f"{INPUT}_above_200k_tokens_batches": 3e-06})
    assert own.rate("input", "batch", 200_001) == 3 * 10**9


def test_part_priced_above_a_threshold_only_is_plain_input_below_it():
    made = card(
        **{
            INPUT: 1e-06,
            f"{INPUT}_above_128k_tokens": 2e-06,
            f"{INPUT}_above_272k_tokens": 3e-06,
            "cache_read_input_token_cost_above_272k_tokens": 5e-07,
        }
    )
    lengths = (1000, 128_001, 272_001)
    assert [made.rate("cache_read", "standard", length) for length in lengths] == [10**9, 2 * 10**9, 5 * 10**8]


def test_two_names_of_one_price_that_differ_are_not_understood():
    found = read({"m": entry(**{INPUT: 1e-06, "cache_read_input_token_cost": 1e-07, f"{INPUT}_cache_hit": 2e-07})})
    assert [rate.component for rate in found.prices[0].card.rates] == ["input"]
    assert set(found.unknown) == {"cache_read_input_token_cost", f"{INPUT}_cache_hit"}
    same = rates(**{INPUT: 1e-06, "cache_read_input_token_cost": 1e-07, f"{INPUT}_cache_hit": 1e-07})
    assert same["cache_read",] == 10**8
