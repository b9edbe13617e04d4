"""Owns subscription items: their shape, what they cost, and the checks on the prices they may hold."""

from __future__ import annotations

from decimal import Decimal

from deploy.local.sandbox.stripe import money
from deploy.local.sandbox.stripe.engine import periods
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.refusal import Obj, invalid, not_built
from deploy.local.sandbox.stripe.rendering import embeds, render
from deploy.local.sandbox.stripe.world import World

MOST_ITEMS = 20


def add(world: World, subscription: Obj, price: Obj, quantity: int | None, metadata: dict[str, str]) -> Obj:
    """Add an item to a subscription. Metered prices have no quantity."""
    now = world.now(subscription["test_clock"])
    item: Obj = {
        "id": new_id("subscription_item"),
        "object": "subscription_item",
        "billed_until": None,
        "billing_thresholds": None,
        "created": now,
        "current_period_end": subscription["_period_end"],
        "current_period_start": subscription["_period_start"],
        "discounts": [],
        "metadata": metadata,
        "quantity": None if is_metered(price) else (1 if quantity is None else quantity),
        "subscription": subscription["id"],
        "tax_rates": [],
        "_price": price["id"],
        "_debits": [],
        "_usage_from": now,
    }
    return world.add(item)


def is_metered(price: Obj) -> bool:
    """Whether a price is billed by what its meter counted."""
    return bool(price["recurring"]["usage_type"] == "metered")


def of(world: World, subscription: Obj) -> list[tuple[Obj, Obj]]:
    """A subscription's items, each with its price. Not to be changed."""
    found = [world.get("subscription_item", identifier) for identifier in subscription["_items"]]
    return [(item, world.get("price", item["_price"])) for item in found]


def full_amount(item: Obj, price: Obj) -> int:
    """What a licensed item costs for a whole period, in cents; nothing for a metered one."""
    return 0 if is_metered(price) else money.total(price, Decimal(item["quantity"]))


def require_together(prices: list[Obj]) -> None:
    """See that one subscription may hold these prices.

    Raises:
        Refusal: too many, not recurring, of several intervals or currencies.
    """
    if not 1 <= len(prices) <= MOST_ITEMS:
        raise invalid(f"A subscription needs 1 to {MOST_ITEMS} items with active plans.", "items")
    for position, price in enumerate(prices):
        if price["recurring"] is None:
            raise invalid(
                f"The price specified is set to `type=one_time` but this field only accepts prices with "
                f"`type=recurring`: {price['id']}",
                f"items[{position}][price]",
            )
    if len({price["currency"] for price in prices}) > 1:
        raise invalid("All prices on a subscription must have the same currency.", "items")
    if len({periods.of_price(price) for price in prices}) > 1:
        raise not_built("a subscription with prices of several billing intervals", "items")
    if len({price["id"] for price in prices}) < len(prices):
        raise invalid("Cannot add multiple subscription items with the same plan.", "items")


@embeds("subscription_item")
def _shown(world: World, item: Obj) -> Obj:
    price = render(world, world.get("price", item["_price"]))
    return {"price": price, "plan": _plan(price)}


def _plan(price: Obj) -> Obj:
    """The older form of a price, which items still carry."""
    recurring = price["recurring"]
    same = [
        "active",
        "billing_scheme",
        "created",
        "currency",
        "id",
        "livemode",
        "metadata",
        "nickname",
        "product",
        "tiers_mode",
    ]
    return {
        **{name: price[name] for name in same},
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "interval": recurring["interval"],
        "interval_count": recurring["interval_count"],
        "meter": recurring["meter"],
        "object": "plan",
        "transform_usage": price["transform_quantity"],
        "trial_period_days": recurring["trial_period_days"],
        "usage_type": recurring["usage_type"],
    }


@embeds("subscription")
def _subscription_shown(world: World, subscription: Obj) -> Obj:
    data = [render(world, world.get("subscription_item", identifier)) for identifier in subscription["_items"]]
    url = f"/v1/subscription_items?subscription={subscription['id']}"
    return {
        "items": {"object": "list", "data": data, "has_more": False, "total_count": len(data), "url": url},
        "plan": data[0]["plan"] if len(data) == 1 else None,
        "quantity": data[0]["quantity"] if len(data) == 1 else None,
    }
