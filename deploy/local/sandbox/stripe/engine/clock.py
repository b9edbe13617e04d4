"""Owns time passing: doing what is on the agenda when it is due, by the wall clock or by a test clock."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Final

from deploy.local.sandbox.stripe.engine import periods
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid
from deploy.local.sandbox.stripe.store import Store
from deploy.local.sandbox.stripe.world import AGENDA, Settings, World

Job = Callable[[World, str, int], None]
JOBS: Final[dict[str, Job]] = {}
# What one advance of a test clock may set off at most.
_MOST_JOBS: Final = 20_000
_YEAR_SECONDS: Final = 366 * 86_400
CLOCK: Final = "test_helpers.test_clock"


def job(name: str) -> Callable[[Job], Job]:
    """Register what is done for an object when its entry on the agenda is due: `function(world, id, due)`."""

    def register(function: Job) -> Job:
        JOBS[name] = function
        return function

    return register


def _first_due(world: World, clock: str | None, until: int) -> Obj | None:
    entries = [e for e in world.transaction.all(AGENDA) if e["clock"] == clock and e["due"] <= until]
    return min(entries, key=lambda entry: int(entry["due"]), default=None)


def run_due(store: Store, settings: Settings) -> int:
    """Do what is due by the wall clock, each job in a transaction of its own; how many.

    A job that was missed while the sandbox was off is done as of the moment it was due.
    """
    for count in range(_MOST_JOBS):
        now = int(time.time())
        world = World(store.transaction(), settings)
        entry = _first_due(world, None, now)
        if entry is None:
            return count
        world.at = entry["due"]
        try:
            _do(world, entry)
        except Exception:  # noqa: BLE001  (one object's trouble does not stop time for the others)
            traceback.print_exc()
            world = World(store.transaction(), settings)
            world.remove(AGENDA, entry["id"])
        world.transaction.commit()
    return _MOST_JOBS


def _do(world: World, entry: Obj) -> None:
    world.transaction.remove(AGENDA, entry["id"])
    try:
        JOBS[entry["job"]](world, entry["target"], entry["due"])
    except Refusal as refusal:
        print(f"SANDBOX Stripe: {entry['id']}: {refusal.message}", flush=True)


def advance(world: World, clock: str, until: int) -> None:
    """Move a test clock to `until`, doing what falls due on the way, each thing at its own moment.

    Raises:
        Refusal: `until` is not ahead, or too far ahead.
    """
    found = world.get(CLOCK, clock)
    if until <= found["frozen_time"]:
        raise invalid("The new frozen time must be after the current frozen time of the test clock.", "frozen_time")
    if until > _furthest(world, clock):
        raise invalid(
            "The new frozen time cannot be more than two intervals in the future from the shortest subscription "
            "in this test clock; without subscriptions, no more than two years.",
            "frozen_time",
        )
    emit(world, "test_helpers.test_clock.advancing", {**found, "status": "advancing"})
    for _ in range(_MOST_JOBS):
        entry = _first_due(world, clock, until)
        if entry is None:
            break
        edited = world.edit(CLOCK, clock)
        edited["frozen_time"] = max(edited["frozen_time"], entry["due"])
        _do(world, entry)
    edited = world.edit(CLOCK, clock)
    edited["frozen_time"] = until
    emit(world, "test_helpers.test_clock.ready", edited)


def _furthest(world: World, clock: str) -> int:
    """Source: docs.stripe.com/api/test_clocks/advance, on `frozen_time`."""
    now = int(world.get(CLOCK, clock)["frozen_time"])
    ends = []
    for subscription in world.all("subscription", test_clock=clock):
        if subscription["status"] not in ("canceled", "incomplete_expired"):
            price = world.get("price", world.get("subscription_item", subscription["_items"][0])["_price"])
            interval, count = periods.of_price(price)
            ends.append(periods.after(now, interval, 2 * count))
    return min(ends, default=now + 2 * _YEAR_SECONDS)
