"""Owns which deliveries of events are due: planned with the event, held, released, tried again, given up."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import Any, Final

from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.store import Transaction
from deploy.local.sandbox.stripe.world import World

DELIVERY: Final = "_delivery"
DELIVERED: Final = "_delivered"
CONTROL: Final = "_delivery_control"
START_ENDPOINT: Final = "we_sandbox_start"
# Seconds from a failed attempt to the next; after the last the delivery has failed.
BACKOFF_SECONDS: Final = (0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800, 3600, 3600, 3600)
_MOST_DELIVERED: Final = 10_000
_MOST_EVENTS: Final = 100_000


def endpoints(world: World) -> Iterable[Obj]:
    """Every endpoint that is to hear of events: the one given at the start, and those made through the API."""
    if world.settings.webhook_url is not None:
        yield {
            "id": START_ENDPOINT,
            "url": world.settings.webhook_url,
            "_secret": world.settings.webhook_secret,
            "enabled_events": ["*"],
        }
    yield from world.all("webhook_endpoint", status="enabled")


def plan(world: World, event: Obj) -> int:
    """Lay a delivery in wait for each endpoint that wants `event`; how many."""
    held = _holds(world, event["type"])
    count = 0
    for endpoint in endpoints(world):
        if {"*", event["type"]} & set(endpoint["enabled_events"]):
            count += 1
            _lay(world, event["id"], event["type"], endpoint["id"], "held" if held else "pending")
    return count


def _lay(world: World, event: str, kind: str, endpoint: str, state: str) -> Obj:
    control = _control(world)
    control["last"] += 1
    delivery: Obj = {
        "id": str(control["last"]),
        "event": event,
        "type": kind,
        "endpoint": endpoint,
        "state": state,
        "attempts": 0,
        "due": time.time(),
        "last_status": None,
        "last_error": None,
    }
    return world.transaction.put(DELIVERY, delivery)


def _control(world: World) -> Obj:
    if world.transaction.get(CONTROL, CONTROL) is None:
        return world.transaction.put(CONTROL, {"id": CONTROL, "last": 0, "hold": None})
    return world.transaction.edit(CONTROL, CONTROL)


def _holds(world: World, kind: str) -> bool:
    control = world.transaction.get(CONTROL, CONTROL)
    hold = None if control is None else control["hold"]
    return hold is not None and ("*" in hold or kind in hold)


def hold(world: World, types: list[str]) -> None:
    """Hold back, from now on, the deliveries of events of these types; `*` means all."""
    _control(world)["hold"] = types


def release(world: World, *, order: str, seed: int, copies: int, types: list[str] | None) -> list[str]:
    """Hold back no more, and let go what was held; in which order, and how often each. Gives the events' types.

    Raises:
        Refusal: an order that is not one.
    """
    if types is None:
        _control(world)["hold"] = None
    held = [d for d in world.transaction.all(DELIVERY) if d["state"] == "held"]
    held = [d for d in held if types is None or d["type"] in types]
    chosen = [d for d in held for _ in range(copies)]
    if order == "shuffled":
        random.Random(seed).shuffle(chosen)  # noqa: S311  (a test's order is to be repeatable)
    elif order == "reversed":
        chosen.reverse()
    elif order != "given":
        raise invalid("order must be given, reversed or shuffled", "order")
    for delivery in held:
        world.transaction.remove(DELIVERY, delivery["id"])
    for delivery in chosen:
        _lay(world, delivery["event"], delivery["type"], delivery["endpoint"], "pending")
    return [delivery["type"] for delivery in chosen]


def again(world: World, identifier: str) -> Obj | None:
    """Deliver the event of a delivery once more; None where there is no such delivery."""
    delivery = world.find(DELIVERY, identifier) or world.find(DELIVERED, identifier)
    if delivery is None:
        return None
    return _lay(world, delivery["event"], delivery["type"], delivery["endpoint"], "pending")


def again_event(world: World, event: Obj) -> int:
    """Deliver an event once more to every endpoint that wants it; how many."""
    count = 0
    for endpoint in endpoints(world):
        if {"*", event["type"]} & set(endpoint["enabled_events"]):
            _lay(world, event["id"], event["type"], endpoint["id"], "pending")
            count += 1
    return count


def due(transaction: Transaction, now: float) -> list[Obj]:
    """The pending deliveries whose time has come, in their order."""
    found = [d for d in transaction.all(DELIVERY) if d["state"] == "pending" and d["due"] <= now]
    return sorted(found, key=lambda delivery: int(delivery["id"]))


def next_due(transaction: Transaction) -> float | None:
    """When the next pending delivery is to be tried; None where there is none."""
    return min((d["due"] for d in transaction.all(DELIVERY) if d["state"] == "pending"), default=None)


def record(transaction: Transaction, identifier: str, status: int | None, error: str | None) -> None:
    """Keep how an attempt went: delivered with any 2xx, else again later, or failed after the last."""
    if transaction.get(DELIVERY, identifier) is None:
        return  # forgotten meanwhile
    delivery = transaction.edit(DELIVERY, identifier)
    delivery["attempts"] += 1
    delivery["last_status"], delivery["last_error"] = status, error
    if status is not None and 200 <= status < 300:  # noqa: PLR2004
        delivery["state"] = "delivered"
        transaction.remove(DELIVERY, identifier)
        transaction.put(DELIVERED, delivery)
        if (event := transaction.get("event", delivery["event"])) is not None:
            transaction.edit("event", event["id"])["pending_webhooks"] = max(0, event["pending_webhooks"] - 1)
    elif delivery["attempts"] > len(BACKOFF_SECONDS):
        delivery["state"] = "failed"
    else:
        delivery["due"] = time.time() + BACKOFF_SECONDS[delivery["attempts"] - 1]


def forget(transaction: Transaction) -> None:
    """Let go of the oldest events and deliveries made, so that neither grows without end."""
    for kind, most in ((DELIVERED, _MOST_DELIVERED), ("event", _MOST_EVENTS)):
        kept = list(transaction.all(kind))
        for old in kept[: max(0, len(kept) - most)]:
            transaction.remove(kind, old["id"])


def retry_now(world: World) -> int:
    """Have every pending delivery tried at once, and the failed ones again; how many."""
    count = 0
    for delivery in list(world.transaction.all(DELIVERY)):
        if delivery["state"] in ("pending", "failed"):
            edited = world.transaction.edit(DELIVERY, delivery["id"])
            edited["due"], edited["state"], edited["attempts"] = 0.0, "pending", 0
            count += 1
    return count


def listing(transaction: Transaction, wanted: dict[str, str], limit: int) -> list[dict[str, Any]]:
    """The latest deliveries with these fields, oldest first."""
    both = sorted((*transaction.all(DELIVERED), *transaction.all(DELIVERY)), key=lambda delivery: int(delivery["id"]))
    return [d for d in both if all(d[name] == value for name, value in wanted.items())][-limit:]
