"""Owns the proof that of all prices ever published the right one is found, by moment and by version."""

from datetime import UTC, datetime, timedelta

import pytest

from services.pricing.model import PriceBook, PublishedPrice
from services.rating import PriceCard, Rate

START = datetime(2026, 1, 1, tzinfo=UTC)


def published(version, days, *, withdrawn=False):
    moment = START + timedelta(days=days)
    card = None if withdrawn else PriceCard("openai", "m", "chat", (Rate("input"),), version=version)
    return PublishedPrice("openai", "m", version, moment, card)


def version_at(book, days):
    found = book.in_force("openai", "m", START + timedelta(days=days))
    return found and found.version


def test_price_set_for_later_takes_over_from_one_published_after_it():
    book = PriceBook([published(1, 0), published(2, 30), published(3, 10)], 3)
    assert [version_at(book, days) for days in (-1, 0, 9, 10, 29, 30)] == [None, 1, 1, 3, 3, 2]


def test_of_two_versions_for_the_same_moment_the_later_holds():
    assert version_at(PriceBook([published(2, 5), published(1, 5)], 2), 5) == 2


def test_call_admitted_before_its_proxy_saw_a_price_is_not_priced_by_it():
    book = PriceBook([published(1, 0), published(2, 5), published(3, 5), published(4, 6, withdrawn=True)], 4)
    found = [book.in_force("openai", "m", START + timedelta(days=7), known_by) for known_by in (0, 1, 2, 3, 4)]
    assert [price and price.version for price in found] == [None, 1, 2, 3, None]


def test_withdrawal_holds_until_the_next_price():
    book = PriceBook([published(1, 0), published(2, 5, withdrawn=True), published(3, 9)], 3)
    assert [version_at(book, days) for days in (4, 5, 8, 9)] == [1, None, None, 3]


@pytest.mark.parametrize(("version", "found"), [(1, None), (2, 2), (3, 2), (4, 4), (9, 4)])
def test_version_prices_by_the_last_publication_until_then(version, found):
    book = PriceBook([published(2, 30), published(4, 0)], 9)
    price = book.of_version("openai", "m", version)
    assert (price and price.version) == found


def test_picture_from_now_on_leaves_out_what_is_past():
    book = PriceBook([published(1, 0), published(2, 10), published(3, 20)], 3)
    now = START + timedelta(days=15)
    assert [price.version for price in book.from_now_on(now)] == [2, 3]
    assert [price.version for price in book.published_after(1)] == [2, 3]
