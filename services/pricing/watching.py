"""Owns watches of the catalogue: the whole picture first, then what each revision brings; only so many at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import grpc
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb

from services.pricing import wire
from services.pricing.errors import TooManyWatchers
from services.pricing.live import LiveCatalogue, Snapshot
from services.pricing.model import Plan, PublishedPrice
from services.pricing.overrides import Override

# So many entries make a message of well under a megabyte.
_ENTRIES_PER_MESSAGE = 500
_RETRY_AFTER_SECONDS = 5

_T = TypeVar("_T")


class Draining(Protocol):
    """Says whether the server takes no more calls."""

    def is_set(self) -> bool:
        """Whether it is draining."""
        ...


class Watches:
    """The watches that this process serves. Each holds a thread for as long as it lasts, so their number is bounded."""

    def __init__(self, live: LiveCatalogue, limit: int, draining: Draining) -> None:
        self._live = live
        self._limit = limit
        self._draining = draining
        self._places = threading.BoundedSemaphore(limit)

    def watch(self, context: grpc.ServicerContext) -> Iterator[pb.CatalogueChange]:
        """The whole catalogue, then each change, until the caller goes or the server drains. Raises TooManyWatchers."""
        if not self._places.acquire(blocking=False):
            raise TooManyWatchers(
                f"this process serves its {self._limit} watches already",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        try:
            yield from self._changes(context)
        finally:
            self._places.release()

    def _changes(self, context: grpc.ServicerContext) -> Iterator[pb.CatalogueChange]:
        def ended() -> bool:
            return self._draining.is_set() or not context.is_active()

        snapshot = self._live.current()
        yield from _whole(snapshot)
        while True:
            newer = self._live.newer_than(snapshot.revision, ended)
            if newer is None:
                return
            yield from _difference(snapshot, newer)
            snapshot = newer


def _whole(snapshot: Snapshot) -> Iterator[pb.CatalogueChange]:
    """Prices and overrides in force and to come, and plans, in messages of which the last is `complete`."""
    now = datetime.now(UTC)
    prices, overrides = list(snapshot.book.from_now_on(now)), list(snapshot.overrides.from_now_on(now))
    yield from _messages(prices, overrides, snapshot.newest_plans(), snapshot, whole=True)


def _difference(before: Snapshot, after: Snapshot) -> Iterator[pb.CatalogueChange]:
    """What is new since `before`. Every message is `complete`; the version is named when all of it has been sent."""
    prices = sorted(
        after.book.published_after(before.book.latest_version),
        key=lambda price: (price.version, price.provider, price.model),
    )
    overrides = sorted(after.overrides.changed_after(before.book.latest_version), key=lambda override: override.version)
    plans = [plan for plan in after.newest_plans() if before.plans.get(plan.plan_id) != after.plans[plan.plan_id]]
    yield from _messages(prices, overrides, plans, after, whole=False, version_before=before.book.latest_version)


def _messages(
    prices: Sequence[PublishedPrice],
    overrides: Sequence[Override],
    plans: Sequence[Plan],
    snapshot: Snapshot,
    *,
    whole: bool,
    version_before: int = 0,
) -> Iterator[pb.CatalogueChange]:
    price_pages, override_pages, plan_pages = _pages(prices), _pages(overrides), _pages(plans)
    count = max(len(price_pages), len(override_pages), len(plan_pages), 1)
    for number in range(count):
        last = number == count - 1
        yield pb.CatalogueChange(
            prices=map(wire.price_to_proto, _page(price_pages, number)),
            price_overrides=map(wire.override_to_proto, _page(override_pages, number)),
            plans=map(wire.plan_to_proto, _page(plan_pages, number)),
            version=snapshot.book.latest_version if last else version_before,
            complete=last or not whole,
        )


def _pages(entries: Sequence[_T]) -> list[Sequence[_T]]:
    return [entries[start : start + _ENTRIES_PER_MESSAGE] for start in range(0, len(entries), _ENTRIES_PER_MESSAGE)]


def _page(pages: list[Sequence[_T]], number: int) -> Sequence[_T]:
    return pages[number] if number < len(pages) else ()
