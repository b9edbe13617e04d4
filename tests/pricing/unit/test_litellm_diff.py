"""Owns the proof that a map's differences are told in full, largest moves first, and that large ones are noticed."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from services.pricing.litellm.diff import compare
from services.pricing.litellm.mapping import PriceMap, read_price_map
from services.pricing.model import PriceBook, PublishedPrice
from services.pricing.moves import ANY_MOVE_PERCENT, FROM_FREE, moves
from services.rating import PriceCard, Rate

NOW = datetime(2026, 11, 21, tzinfo=UTC)
EARLIER = NOW - timedelta(days=1)
INPUT, OUTPUT = "input_cost_per_token", "output_cost_per_token"


def content(entries):
    full = {key: {"litellm_provider": "acme", "mode": "chat", **fields} for key, fields in entries.items()}
    return json.dumps(full).encode()


def price_map(entries):
    return read_price_map(content(entries), NOW)


def book(entries):
    return PriceBook(read_price_map(content(entries), EARLIER, version=1).prices, 1)


def told(changes):
    return [(one.kind, one.model, one.largest_move_basis_points) for one in changes]


def test_differences_are_told_largest_moves_first_then_new_then_gone():
    before = {
        "same": {INPUT: 1e-06},
        "half": {INPUT: 1e-06, OUTPUT: 1e-06},
        "bit": {INPUT: 1e-06},
        "gone": {INPUT: 1e-06},
        "was-free": {INPUT: 0},
        "limit": {INPUT: 1e-06, "max_input_tokens": 5},
    }
    after = {
        "same": {INPUT: 1e-06},
        "half": {INPUT: 1e-06, OUTPUT: 5e-07},
        "bit": {INPUT: 1.01e-06},
        "was-free": {INPUT: 1e-09},
        "limit": {INPUT: 1e-06, "max_input_tokens": 6},
        "new": {INPUT: 1e-06},
    }
    assert told(compare(price_map(after), book(before), NOW)) == [
        ("changed", "was-free", FROM_FREE),
        ("changed", "half", 5000),
        ("changed", "bit", 100),
        ("changed", "limit", 0),
        ("new", "new", 0),
        ("gone", "gone", 0),
    ]


def test_map_against_itself_differs_in_nothing():
    entries = {
        "a": {INPUT: 1e-06, f"{INPUT}_above_200k_tokens": 2e-06, f"{INPUT}_batches": 5e-07},
        "b": {"tiered_pricing": [{"range": [0, 9], INPUT: 1e-06}, {"range": [9, 99], INPUT: 2e-06}]},
        "c": {INPUT: 0, OUTPUT: 0},
    }
    assert compare(price_map(entries), book(entries), NOW) == []


def test_entry_that_is_not_priced_any_more_is_not_gone():
    assert compare(price_map({"a": {}}), book({"a": {INPUT: 1e-06}}), NOW) == []


def test_providers_that_the_map_does_not_name_are_left_alone():
    other = PriceCard("other", "m", "chat", (Rate("input", nanos_per_million=1),), 0, 0, 1, NOW)
    catalogue = PriceBook([PublishedPrice("other", "m", 1, NOW, other, "m", "chat")], 1)
    assert told(compare(price_map({"a": {INPUT: 1e-06}}), catalogue, NOW)) == [("new", "a", 0)]


def test_what_the_map_does_not_say_is_kept_from_the_catalogue():
    card = PriceCard("acme", "a", "chat", (Rate("input", nanos_per_million=10**9),), 128_000, 4_096, 1, NOW)
    catalogue = PriceBook([PublishedPrice("acme", "a", 1, NOW, card, "Model A", "chat")], 1)
    assert compare(price_map({"a": {INPUT: 1e-06}}), catalogue, NOW) == []
    (change,) = compare(price_map({"a": {INPUT: 2e-06}}), catalogue, NOW)
    assert (change.after.display_name, change.after.card.max_input_tokens) == ("Model A", 128_000)


def test_rate_that_is_dropped_moves_to_what_the_call_then_pays():
    cached = {INPUT: 3e-06, "cache_read_input_token_cost": 3e-07}
    (change,) = compare(price_map({"a": {INPUT: 3e-06}}), book({"a": cached}), NOW)
    assert change.largest_move_basis_points == 90_000
    (change,) = compare(price_map({"a": cached}), book({"a": {INPUT: 3e-06}}), NOW)
    assert change.largest_move_basis_points == 9_000


def test_rate_that_is_dropped_moves_the_long_calls_where_only_those_then_pay_more():
    plain = {INPUT: 1.25e-06, f"{INPUT}_above_200k_tokens": 2.5e-06}
    images = plain | {"input_cost_per_image_token": 1.25e-06}  # as the map has xAI's models
    (change,) = compare(price_map({"a": plain}), book({"a": images}), NOW)
    assert change.largest_move_basis_points == 10_000
    (move,) = moves(change.before.card, change.after.card)
    assert (move.told_rate, move.told) == ("image_input, above 200,000", "+100.00 %")
    (change,) = compare(price_map({"a": images}), book({"a": plain}), NOW)
    assert change.largest_move_basis_points == 5_000


def test_threshold_that_appears_moves_the_long_calls():
    (change,) = compare(
        price_map({"a": {INPUT: 3e-06, f"{INPUT}_above_200k_tokens": 6e-06}}), book({"a": {INPUT: 3e-06}}), NOW
    )
    assert change.largest_move_basis_points == 10_000


@pytest.mark.parametrize(
    ("was", "becomes", "percent", "refused"),
    [
        (100, 120, 20, False),
        (100, 80, 20, False),
        (100_000, 120_001, 20, True),
        (100_000, 79_999, 20, True),
        (3, 4, 33, True),
        (3, 4, 34, False),
        (100, 0, 99, True),
        (100, 0, 100, False),
        (0, 1, ANY_MOVE_PERCENT - 1, True),
        (0, 1, ANY_MOVE_PERCENT, False),
        (1, 2**62, ANY_MOVE_PERCENT, False),
        (1, 2**62, ANY_MOVE_PERCENT - 1, True),
        (100, 101, 0, True),
    ],
)
def test_move_is_measured_to_the_last_nano(was, becomes, percent, refused):
    before, after = (
        PublishedPrice(
            "acme", "a", 1, EARLIER, PriceCard("acme", "a", "chat", (Rate("input", nanos_per_million=rate),))
        )
        for rate in (was, becomes)
    )
    moved = PriceMap((after,), frozenset({("acme", "a")}), (), {}, ())
    (change,) = compare(moved, PriceBook([before], 1), NOW)
    assert change.moves_more_than(percent) is refused


def test_moves_are_told_rate_by_rate():
    before = price_map({"a": {INPUT: 3e-06, OUTPUT: 0, f"{INPUT}_batches": 1e-06}}).prices[0].card
    after = price_map({"a": {INPUT: 2e-06, OUTPUT: 1e-06, f"{OUTPUT}_flex": 1e-06}}).prices[0].card
    assert [(move.told_rate, move.told) for move in moves(before, after)] == [
        ("output", "from free"),
        ("input", "-33.34 %"),
        ("input, batch", "gone"),
        ("output, flex", "new"),
    ]
