"""Owns the lines for metered usage: counted when the invoice is finalised, so that late events are still in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deploy.local.sandbox.stripe.engine import lines, metering
from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.world import World


def of_item(world: World, subscription: Obj, item: Obj, period: tuple[int, int]) -> list[Obj]:
    """The lines for what a metered item's meter counted in a period."""
    price = world.get("price", item["_price"])
    meter = world.get("billing.meter", price["recurring"]["meter"])
    quantity = metering.usage(world, meter, subscription["customer"], *period)
    made = lines.item_lines(world, subscription, item, quantity=quantity, period=period)
    return [{**entry, "_metered": item["id"]} for entry in made]


def refresh(world: World, invoice: str, put_lines: Callable[[Obj, Sequence[Obj]], None]) -> None:
    """Count again what a draft's metered lines bill."""
    found = world.get("invoice", invoice)
    metered = [entry for entry in found["lines"]["data"] if "_metered" in entry]
    if not metered:
        return
    fresh = []
    seen = set()
    for entry in found["lines"]["data"]:
        item = world.find("subscription_item", entry.get("_metered"))
        if item is None:
            fresh.append(dict(entry))
        elif item["id"] not in seen:
            seen.add(item["id"])
            subscription = world.get("subscription", item["subscription"])
            period = (entry["period"]["start"], entry["period"]["end"])
            fresh += of_item(world, subscription, item, period)
    put_lines(world.edit("invoice", invoice), fresh)
