"""Owns the proof that re-pricing holds one page of usage at a time, and reads a usage record for all it counts."""

import gc
import weakref
from datetime import UTC, datetime
from types import MappingProxyType, SimpleNamespace

import pytest
from tollkeeper.ledger.v1.resources_pb2 import UsageRecord

from services.pricing.clients import booked_call
from services.pricing.errors import LedgerNotConfigured
from services.pricing.live import Snapshot
from services.pricing.model import PriceBook
from services.pricing.overrides import OverrideBook
from services.pricing.repricing import BookedCall, Repricer
from services.pricing.shipped import load_shipped
from services.rating import COMPONENTS, Usage

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SNAPSHOT = Snapshot(1, PriceBook(load_shipped().prices, 1), OverrideBook(), MappingProxyType({}))
LIVE = SimpleNamespace(current=lambda: SNAPSHOT, refresh=lambda: SNAPSHOT)


class Page(list):
    """A list that can be watched."""


class Ledger:
    """Usage without end but for its number of pages; knows how many of them anybody still holds."""

    def __init__(self, pages):
        self._pages = pages
        self.most_held = 0
        self._given = []

    def account_ids(self):
        yield "acme"

    def calls(self, _account_id, _start, _end):
        for _ in range(self._pages):
            gc.collect()
            self.most_held = max(self.most_held, sum(page() is not None for page in self._given))
            page = Page([BookedCall("openai", "gpt-4o", "", Usage(input_tokens=1), 1, NOW)] * 10)
            self._given.append(weakref.ref(page))
            yield page
            del page


def test_no_more_than_a_page_is_held():
    ledger = Ledger(20)
    found = Repricer(LIVE, ledger).reprice(NOW, NOW, 1)
    assert (found.total("requests"), found.total("cost_nanos")) == (200, 200)
    assert ledger.most_held <= 1


def test_without_a_ledger_there_is_nothing_to_price():
    with pytest.raises(LedgerNotConfigured):
        Repricer(LIVE, None).reprice(NOW, NOW, 1)


def test_every_component_can_be_a_unit():
    record = UsageRecord(units=dict.fromkeys(COMPONENTS, 7))
    usage = booked_call(record).usage
    assert usage == Usage(*[7] * 14)


def test_unit_that_is_no_component_leaves_the_call_unpriced():
    assert booked_call(UsageRecord(units={"input": 1, "web_search": 1})).usage is None


@pytest.mark.parametrize(
    ("units", "five_minutes", "hour"),
    [({}, 10, 0), ({"cache_write_1h": 4}, 6, 4), ({"cache_write_1h": 4, "cache_write_5m": 6}, 6, 4)],
)
def test_cache_writes_are_told_apart_by_their_unit(units, five_minutes, hour):
    usage = booked_call(UsageRecord(cache_write_tokens=10, units=units)).usage
    assert (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == (five_minutes, hour)
