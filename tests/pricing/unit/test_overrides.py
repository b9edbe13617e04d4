"""Owns the proof that of an account's overrides the right one is found, and that it prices as the proxy does by it."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb

from services.pricing import wire
from services.pricing.model import ANY, PublishedPrice
from services.pricing.overrides import Override, OverrideBook, OverrideEnd, overridden, override_faults
from services.proxy.catalogue import Catalogue
from services.rating import COMPONENTS, PriceCard, Rate, Usage, cost

START = datetime(2026, 1, 1, tzinfo=UTC)
BIG = 2**63 - 1


def at(days):
    return START + timedelta(days=days)


def override(version, start, end=None, model="m", account="acme", **price):
    price = price or {"multiplier_millionths": 500_000}
    return Override(account, "openai", model, version, at(start), None if end is None else at(end), **price)


def end(version, day, model="m"):
    return OverrideEnd("acme", "openai", model, version, at(day))


def held(book, day, known_by=BIG, account="acme", model="m"):
    found = book.in_force(account, "openai", model, at(day), known_by)
    return found and found.version


def test_last_set_holds_and_the_one_beneath_again_when_it_is_over():
    book = OverrideBook([override(2, 0), override(3, 5, 8)])
    assert [held(book, day) for day in (-1, 0, 5, 7, 8)] == [None, 2, 3, 3, 2]


def test_one_for_the_model_goes_before_one_for_all_of_the_provider():
    book = OverrideBook([override(2, 0), override(3, 0, model=ANY)])
    assert (held(book, 1), held(book, 1, model="other"), held(book, 1, account="umbrella")) == (2, 3, None)


def test_end_ends_all_that_was_set_before_it_and_none_set_later():
    book = OverrideBook([override(2, 0), override(3, 9), override(5, 7)], [end(4, 6)])
    assert [held(book, day) for day in (5, 6, 7, 9)] == [2, None, 5, 5]


def test_end_of_a_model_leaves_the_provider_wide_one():
    book = OverrideBook([override(2, 0, model=ANY), override(3, 0)], [end(4, 6)])
    assert [held(book, day) for day in (5, 6)] == [3, 2]


def test_usage_row_is_priced_the_same_whatever_was_set_or_ended_since():
    before = OverrideBook([override(2, 0), override(3, 5, 8)])
    after = OverrideBook([override(2, 0), override(3, 5, 8), override(7, 10), override(8, 11)], [end(6, 10)])
    for day in (-1, 1, 5, 9):
        assert held(before, day) == held(after, day, known_by=5)


def test_call_admitted_before_its_proxy_saw_an_override_is_not_priced_by_it():
    book = OverrideBook([override(2, 0), override(7, 10)])
    assert (held(book, 10), held(book, 10, known_by=6)) == (7, 2)


def test_version_alone_gives_what_stood_with_it_whenever_in_force():
    book = OverrideBook([override(3, 50)], [end(5, 60)])

    def found(version, day=None):
        one = book.of_version("acme", "openai", "m", version, None if day is None else at(day))
        return one and one.version

    assert [found(version) for version in (2, 3, 4, 5)] == [None, 3, 3, None]
    assert found(4, day=0) == 3
    agreed = OverrideBook([override(3, 0, 10)])
    assert agreed.of_version("acme", "openai", "m", 9, at(9)) is not None
    assert agreed.of_version("acme", "openai", "m", 9, at(10)) is None


def test_changes_after_a_version_are_what_it_set_and_what_it_ended():
    book = OverrideBook([override(2, 0), override(3, 0), override(5, 0)], [end(4, 1)])
    assert [one.version for one in book.changed_after(3)] == [2, 3, 5]
    assert [one.version for one in book.changed_after(4)] == [5]
    assert [one.version for one in book.from_now_on(at(1))] == [5]


@pytest.mark.parametrize(
    ("price", "field"),
    [
        ({"multiplier_millionths": 0}, "multiplier_millionths"),
        ({"multiplier_millionths": -1}, "multiplier_millionths"),
        ({"multiplier_millionths": 10**9 + 1}, "multiplier_millionths"),
        ({"multiplier_millionths": 1, "rates": (Rate("input"),)}, "multiplier_millionths"),
        ({"rates": (Rate("inputs"),)}, "rates[0].component"),
        ({"rates": (Rate("input", nanos_per_million=-1),)}, "rates[0].nanos_per_million"),
    ],
)
def test_bad_override_is_told_by_field(price, field):
    assert [fault.field for fault in override_faults(override(1, 0, **price))] == [field]


@pytest.mark.parametrize("end", [0, -1])
def test_override_that_ends_before_it_begins_is_refused(end):
    assert [fault.field for fault in override_faults(override(1, 0, end))] == ["effective_until"]


def test_multiplier_is_applied_to_each_rate_rounded_half_even():
    card = PriceCard("openai", "m", "chat", (Rate("input", nanos_per_million=5), Rate("output", nanos_per_million=7)))
    found = overridden(PublishedPrice("openai", "m", 1, START, card), override(2, 0))
    assert [rate.nanos_per_million for rate in found.card.rates] == [2, 4]  # 2.5 and 3.5
    assert (found.version, found.card.version, found.effective_from) == (2, 2, START)


def test_price_newer_than_the_override_gives_the_version():
    card = PriceCard("openai", "m", "chat", (Rate("input"),), version=9)
    found = overridden(PublishedPrice("openai", "m", 9, at(3), card), override(2, 0))
    assert (found.version, found.card.version, found.effective_from) == (9, 9, at(3))


def test_rate_that_would_not_fit_is_no_price_rather_than_a_wrong_one():
    card = PriceCard("openai", "m", "chat", (Rate("input", nanos_per_million=BIG),))
    price = PublishedPrice("openai", "m", 1, START, card)
    assert overridden(price, override(2, 0, multiplier_millionths=1_000_001)) is None


rates = st.lists(
    st.tuples(st.sampled_from(COMPONENTS), st.integers(0, 10**15)), min_size=1, max_size=8, unique_by=lambda one: one[0]
).map(lambda found: tuple(Rate(component, nanos_per_million=nanos) for component, nanos in found))


@given(rates, st.one_of(rates, st.integers(1, 10**9)), st.integers(0, 10**6), st.integers(0, 10**6))
def test_pricing_and_proxy_charge_the_same_by_an_override(own, given_price, tokens_in, tokens_out):
    price = {"multiplier_millionths": given_price} if isinstance(given_price, int) else {"rates": given_price}
    card = PriceCard("openai", "m", "chat", (*_missing(own), *own), version=1, effective_from=START)
    published = PublishedPrice("openai", "m", 1, START, card, "m", "chat")
    one = override(2, 0, **price)
    catalogue = Catalogue()
    catalogue.take_in(
        pb.CatalogueChange(prices=[wire.price_to_proto(published)], price_overrides=[wire.override_to_proto(one)])
    )
    ours = overridden(published, one).card
    theirs = catalogue.card("acme", "openai", "m", at(1))
    assert (ours.rates, ours.version) == (theirs.rates, theirs.version)
    assert catalogue.card("umbrella", "openai", "m", at(1)) == card
    usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out)
    if {"input", "output"} <= {rate.component for rate in ours.rates}:
        assert cost(ours, usage, multiplier_millionths=1_500_000) == cost(
            theirs, usage, multiplier_millionths=1_500_000
        )


def _missing(found):
    """Rates of plain tokens, where there are none."""
    named = {rate.component for rate in found}
    return tuple(Rate(component, nanos_per_million=3) for component in ("input", "output") if component not in named)
