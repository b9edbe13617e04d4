"""Owns what a request asks to be sold: an item's price and quantity, and items that are invoiced once."""

from __future__ import annotations

from decimal import Decimal

from deploy.local.sandbox.stripe import money
from deploy.local.sandbox.stripe.engine import lines
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.objects import prices
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.world import World


def wanted_item(world: World, item: Obj, position: int) -> tuple[Obj, int | None, dict[str, str]]:
    """The price, quantity and metadata of one of a request's items.

    Raises:
        Refusal: it has no price, or a quantity that the price does not take.
    """
    path = f"items[{position}]"
    price = price_of(world, item, path)
    if price is None:
        raise invalid(f"Missing required param: {path}[price].", f"{path}[price]", "parameter_missing")
    quantity = item.get("quantity")
    if quantity is not None and quantity < 0:
        raise invalid("Invalid non-negative integer", f"{path}[quantity]", "parameter_invalid_integer")
    if quantity is not None and (price["recurring"] or {}).get("usage_type") == "metered":
        raise invalid("Quantity should not be specified where usage_type is `metered`.", f"{path}[quantity]")
    return price, quantity, merged_metadata({}, item.get("metadata"))


def price_of(world: World, item: Obj, path: str) -> Obj | None:
    """The price that an item at `path` names or describes; None where it does neither.

    Raises:
        Refusal: it does both, or the price is not there or not active.
    """
    if "price" in item and "price_data" in item:
        raise invalid("You may only specify one of these parameters: price, price_data.", path)
    if "price_data" in item:
        return prices.inline(world, item["price_data"])
    if "price" not in item:
        return None
    found = world.need("price", item["price"], f"{path}[price]")
    if not found["active"]:
        raise invalid("The price specified is inactive. This field only accepts active prices.", f"{path}[price]")
    return found


def add_invoice_items(world: World, customer: Obj, params: Obj, subscription: str | None) -> None:
    """Have the next invoice take up what `add_invoice_items` asks for. Emits `invoiceitem.created`.

    Raises:
        Refusal: a price is not there, or is no one-time price.
    """
    for position, item in enumerate(params.get("add_invoice_items") or []):
        path = f"add_invoice_items[{position}]"
        price = price_of(world, item, path)
        if price is None or price["recurring"] is not None:
            raise invalid("An invoice item takes a one-time price.", f"{path}[price]")
        now = world.now(customer["test_clock"])
        quantity = item.get("quantity", 1)
        made = lines.invoice_item(
            world,
            customer=customer,
            amount=price_amount(price, quantity),
            currency=price["currency"],
            description=lines.product_name(world, price),
            period=(now, now),
            quantity=quantity,
            price=price,
            unit_amount=price["unit_amount_decimal"],
            subscription=subscription,
            metadata=merged_metadata({}, item.get("metadata")),
        )
        emit(world, "invoiceitem.created", made)


def price_amount(price: Obj, quantity: int) -> int:
    """What so many units of a price cost, in cents."""
    return money.total(price, Decimal(quantity))
