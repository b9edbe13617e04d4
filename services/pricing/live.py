"""Owns the catalogue as this process holds it: all of it in memory, at most one poll of the database old.

A cost is computed without a query. Each write raises a revision in the database; a thread asks for it every quarter of
a second, reads what is new, and wakes those who watch. What was read last stays in force while the database is away or
holds what cannot be read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from sqlalchemy import Engine

from services.kit.logs import get_logger
from services.pricing import store
from services.pricing.errors import CatalogueStale
from services.pricing.model import Plan, PriceBook, PublishedPrice
from services.pricing.overrides import Override, OverrideBook, OverrideEnd

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole catalogue as of one revision. `plans` holds every version of each plan, oldest first."""

    revision: int
    book: PriceBook
    overrides: OverrideBook
    plans: MappingProxyType[str, tuple[Plan, ...]]

    def newest_plans(self) -> list[Plan]:
        """Each plan in its newest version."""
        return [versions[-1] for versions in self.plans.values()]


class LiveCatalogue:
    """The catalogue in memory, kept current by a thread. Safe to share between threads."""

    def __init__(self, engine: Engine, poll_seconds: float) -> None:
        self._engine = engine
        self._poll_seconds = poll_seconds
        self._snapshot: Snapshot | None = None
        self._prices: list[PublishedPrice] = []
        self._overrides: list[Override] = []
        self._override_ends: list[OverrideEnd] = []
        self._reading = threading.Lock()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_current, name="catalogue", daemon=True)
        self._failing = False

    def start(self) -> None:
        """Read the catalogue, then keep it current. Raises what the database raises."""
        self.refresh()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wake all who wait."""
        self._stopping.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join()

    def current(self) -> Snapshot:
        """The catalogue as last read. Raises CatalogueStale before it was read at all."""
        if self._snapshot is None:
            raise CatalogueStale("the catalogue has not been read yet", retry_after_seconds=1)
        return self._snapshot

    def refresh(self) -> Snapshot:
        """Read what is new, if anything: afterwards this process sees every write that was committed before."""
        with self._reading:
            known = self._snapshot
            # One snapshot of the database for all reads, or a version could be seen without its prices.
            with self._engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
                state = store.read_state(connection)
                if known is not None and state.revision == known.revision:
                    return known
                seen = known.book.latest_version if known else 0
                prices = self._prices + store.read_prices(connection, after_version=seen)
                overrides = self._overrides + store.read_overrides(connection, after_version=seen)
                ends = self._override_ends + store.read_override_ends(connection, after_version=seen)
                versions = {plan_id: list(found) for plan_id, found in known.plans.items()} if known else {}
                for plan in store.read_plans(connection, after_revision=known.revision if known else 0):
                    versions.setdefault(plan.plan_id, []).append(plan)
            snapshot = Snapshot(
                state.revision,
                PriceBook(prices, state.latest_version),
                OverrideBook(overrides, ends),
                MappingProxyType({plan_id: tuple(found) for plan_id, found in sorted(versions.items())}),
            )
            self._prices, self._overrides, self._override_ends = prices, overrides, ends
            self._snapshot = snapshot
        self._wake()
        return snapshot

    def newer_than(self, revision: int, ended: Callable[[], bool]) -> Snapshot | None:
        """Wait for a revision above this one; None once stopped or `ended`, which is asked at every poll."""
        with self._changed:
            while not self._stopping.is_set() and not ended():
                snapshot = self.current()
                if snapshot.revision > revision:
                    return snapshot
                self._changed.wait(self._poll_seconds)
        return None

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _keep_current(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                self.refresh()
            except Exception as error:  # noqa: BLE001 (prices that stay for ever as they were at one error are worse)
                if not self._failing:
                    _log.warning("catalogue not refreshed, serving what was read last", error=repr(error))
                self._failing = True
            else:
                if self._failing:
                    _log.info("catalogue refreshed again")
                self._failing = False
