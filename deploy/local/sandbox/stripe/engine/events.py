"""Owns events: what happened, as an object of its own, with a snapshot of the thing it happened to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from deploy.local.sandbox.stripe.engine import deliveries
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.rendering import render
from deploy.local.sandbox.stripe.world import World

API_VERSION: Final = "2026-10-28.endive"


def emit(world: World, kind: str, obj: Obj, *, previous: Obj | None = None) -> Obj:
    """Record that `kind` happened to `obj`, and lay a delivery of it in wait for every endpoint that wants it."""
    clock = obj.get("test_clock") or obj.get("_clock")
    # The clock itself is gone when `test_clock.deleted` is told of.
    event: Obj = {
        "id": new_id("event"),
        "object": "event",
        "api_version": API_VERSION,
        "created": world.now(clock if world.find("test_helpers.test_clock", clock) else None),
        "data": {"object": render(world, obj)} | ({} if previous is None else {"previous_attributes": previous}),
        "livemode": False,
        "pending_webhooks": 0,
        "request": {"id": world.request_id, "idempotency_key": world.idempotency_key},
        "type": kind,
    }
    event["pending_webhooks"] = deliveries.plan(world, event)
    return world.add(event)


@contextlib.contextmanager
def change(world: World, kind: str, identifier: str, event: str) -> Iterator[Obj]:
    """Edit an object; where that changed what is seen of it, emit `event` with what it was before."""
    before = render(world, world.get(kind, identifier))
    obj = world.edit(kind, identifier)
    yield obj
    after = render(world, obj)
    previous = difference(before, after)
    if previous:
        emit(world, event, obj, previous=previous)


def difference(before: Obj, after: Obj) -> Obj:
    """The values that fields had before, of those that changed; objects are compared field by field."""
    changed: Obj = {}
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        nested = isinstance(old, dict) and isinstance(new, dict) and old.get("object") != "list"
        changed[name] = difference(old, new) if nested else old  # type: ignore[arg-type]
    return changed
