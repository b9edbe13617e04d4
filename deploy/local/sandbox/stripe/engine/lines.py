"""Owns invoice lines and invoice items: their shape, and how a price's charges, a proration or a trial become lines."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

from deploy.local.sandbox.stripe import money
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.world import World


def line(
    *,
    amount: int,
    currency: str,
    description: str | None,
    period: tuple[int, int],
    quantity: int | None,
    parent: Obj | None,
    price: Obj | None,
    unit_amount: str | None,
    subscription: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Obj:
    """One line, not yet on an invoice. Amounts in cents; `period` from and to, in seconds since 1970."""
    details = None if price is None else {"price": price["id"], "product": price["product"]}
    return {
        "id": new_id("line_item"),
        "object": "line_item",
        "amount": amount,
        "currency": currency,
        "description": description,
        "discount_amounts": [],
        "discountable": not (parent or {}).get("_proration", False),
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": metadata or {},
        "parent": parent,
        "period": {"start": period[0], "end": period[1]},
        "pretax_credit_amounts": [],
        "pricing": {"price_details": details, "type": "price_details", "unit_amount_decimal": unit_amount},
        "quantity": quantity,
        "quantity_decimal": None if quantity is None else str(quantity),
        "subscription": subscription,
        "subtotal": amount,
        "taxes": [],
    }


def item_parent(item: Obj, *, proration: Obj | None = None, invoice_item: str | None = None) -> Obj:
    """Says that a line comes from a subscription's item; `proration` what it credits, where it is a proration."""
    return {
        "invoice_item_details": None,
        "subscription_item_details": {
            "invoice_item": invoice_item,
            "proration": proration is not None,
            "proration_details": {"credited_items": None} if proration is None else proration,
            "subscription": item["subscription"],
            "subscription_item": item["id"],
        },
        "type": "subscription_item_details",
        "_proration": proration is not None,
    }


def product_name(world: World, price: Obj) -> str:
    """What a line calls the price's product."""
    found = world.find("product", price["product"])
    return price["product"] if found is None else str(found["name"])


def item_lines(world: World, subscription: Obj, item: Obj, *, quantity: Decimal, period: tuple[int, int]) -> list[Obj]:
    """The lines for a subscription item's `quantity` in a period, one for each tier that is reached."""
    price = world.get("price", item["_price"])
    name = product_name(world, price)
    interval, count = price["recurring"]["interval"], price["recurring"]["interval_count"]
    every = interval if count == 1 else f"{count} {interval}s"
    made = []
    for charge in money.charges(price, quantity):
        tier = f"Tier {charge.tier} " if charge.tier is not None else ""
        unit = money.unit(charge.unit_amount, price["currency"])
        flat = f"{tier}flat fee, {name}, {unit} / {every}"
        made.append(
            line(
                amount=charge.amount,
                currency=price["currency"],
                description=flat if charge.flat else f"{charge.quantity} \u00d7 {name} ({tier}at {unit} / {every})",
                period=period,
                quantity=charge.quantity,
                parent=item_parent(item),
                price=price,
                unit_amount=money.plain(charge.unit_amount),
                subscription=subscription["id"],
                metadata=dict(subscription["metadata"]),
            )
        )
    return made


def trial_line(world: World, subscription: Obj, item: Obj, price: Obj) -> Obj:
    """The line of nothing that a trial is billed."""
    return line(
        amount=0,
        currency=price["currency"],
        description=f"Trial period for {product_name(world, price)}",
        period=(subscription["_period_start"], subscription["_period_end"]),
        quantity=item["quantity"],
        parent=item_parent(item),
        price=price,
        unit_amount="0",
        subscription=subscription["id"],
        metadata=dict(subscription["metadata"]),
    )


def from_invoice_item(invoice_item: Obj) -> Obj:
    """The line that an invoice item becomes."""
    subscription = (invoice_item["parent"] or {}).get("subscription_details") or {}
    price = invoice_item["pricing"]["price_details"] if invoice_item["pricing"] else None
    made = line(
        amount=invoice_item["amount"],
        currency=invoice_item["currency"],
        description=invoice_item["description"],
        period=(invoice_item["period"]["start"], invoice_item["period"]["end"]),
        quantity=invoice_item["quantity"],
        parent=_parent_of(invoice_item, subscription),
        price=None if price is None else {"id": price["price"], "product": price["product"]},
        unit_amount=invoice_item["pricing"]["unit_amount_decimal"] if invoice_item["pricing"] else None,
        subscription=subscription.get("subscription"),
        metadata=dict(invoice_item["metadata"]),
    )
    return made | {"_invoice_item": invoice_item["id"]}


def _parent_of(invoice_item: Obj, subscription: Obj) -> Obj:
    if invoice_item["_item"] is not None:
        return item_parent(
            {"id": invoice_item["_item"], "subscription": subscription["subscription"]},
            proration=invoice_item["_credits"] if invoice_item["proration"] else None,
            invoice_item=invoice_item["id"],
        )
    return {
        "invoice_item_details": {
            "invoice_item": invoice_item["id"],
            "proration": invoice_item["proration"],
            "proration_details": {"credited_items": None},
            "subscription": subscription.get("subscription"),
        },
        "subscription_item_details": None,
        "type": "invoice_item_details",
    }


def invoice_item(
    world: World,
    *,
    customer: Obj,
    amount: int,
    currency: str,
    description: str | None,
    period: tuple[int, int],
    quantity: int,
    price: Obj | None,
    unit_amount: str | None,
    subscription: str | None = None,
    item: str | None = None,
    metadata: dict[str, str] | None = None,
    proration: bool = False,
    credits_items: Obj | None = None,
) -> Obj:
    """Add an invoice item: an amount that the next invoice of its customer or subscription takes up."""
    parent = {
        "subscription_details": {"subscription": subscription, "subscription_item": item},
        "type": "subscription_details",
    }
    details = None if price is None else {"price": price["id"], "product": price["product"]}
    made: Obj = {
        "id": new_id("invoiceitem"),
        "object": "invoiceitem",
        "amount": amount,
        "currency": currency,
        "customer": customer["id"],
        "customer_account": None,
        "date": world.now(customer["test_clock"]),
        "description": description,
        "discountable": not proration,
        "discounts": [],
        "invoice": None,  # until one takes it up
        "livemode": False,
        "metadata": metadata or {},
        "net_amount": amount,
        "parent": parent if subscription is not None else None,
        "period": {"start": period[0], "end": period[1]},
        "pricing": {
            "price_details": details,
            "type": "price_details",
            "unit_amount_decimal": unit_amount if unit_amount is not None else money.plain(Decimal(amount) / quantity),
        },
        "proration": proration,
        "proration_details": {"credited_items": None, "discount_amounts": []} if proration else None,
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "tax_rates": [],
        "test_clock": customer["test_clock"],
        "_item": item,
        "_credits": credits_items if credits_items is not None else {"credited_items": None},
    }
    return world.add(made)


def on_day(moment: int) -> str:
    """A day as descriptions name it: `21 Nov 2026`."""
    return f"{dt.datetime.fromtimestamp(moment, dt.UTC):%d %b %Y}"
