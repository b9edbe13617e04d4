"""Owns changes of a running subscription's items: what is credited, what is charged, and when it is invoiced."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import Decimal

from deploy.local.sandbox.stripe import money
from deploy.local.sandbox.stripe.engine import invoicing, items, lines, periods, proration, subscriptions
from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid, no_such
from deploy.local.sandbox.stripe.world import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What is wanted of one item: a new one where `item` is None."""

    item: str | None = None
    price: Obj | None = None
    quantity: int | None = None
    metadata: Obj | str | None = None
    deleted: bool = False
    clear_usage: bool = False
    position: int = 0


def apply(
    world: World,
    identifier: str,
    wanted: Sequence[Change],
    *,
    behavior: str,
    at: int | None = None,
    reset_anchor: bool = False,
) -> Obj | None:
    """Change a subscription's items. The draft of the invoice that is due at once, or None.

    Args:
        world: where it happens.
        identifier: the subscription's id.
        wanted: what is to change.
        behavior: proration_behavior: create_prorations, always_invoice or none.
        at: the moment that prorations count from (now).
        reset_anchor: begin a new period now whatever the prices are.

    Raises:
        Refusal: an item is not the subscription's, the prices do not go together, or `at` is outside the period.
    """
    before = world.get("subscription", identifier)
    now = world.now(before["test_clock"])
    if at is not None and not before["_period_start"] <= at <= before["_period_end"]:
        raise invalid("The proration date must be within the current billing period.", "proration_date")
    at = now if at is None else at
    old = items.of(world, before)
    resets = reset_anchor or _resets(before, old, wanted)
    trialing = before["status"] == "trialing"
    prorates = behavior != "none" and not trialing
    touched = [
        entry for entry in old if resets or entry[0]["id"] in {change.item for change in wanted if _bills(change)}
    ]
    if prorates:
        for item, price in touched:
            credit_unused(world, before, item, price, at)
    usage = (
        subscriptions.usage_so_far(world, before, now)
        if resets and not trialing
        else _usage_of_removed(world, before, wanted, now)
    )
    for entry in usage:
        _as_pending(world, before, entry)
    with change(world, "subscription", identifier, "customer.subscription.updated") as edited:
        changed = _edit_items(world, edited, wanted)
        if resets and not trialing:
            _new_period(world, edited, now)
    if resets and not trialing:
        return _invoice_period(world, identifier)
    if prorates:
        for changed_item in changed:
            _charge_rest(world, identifier, changed_item, at)
    if behavior == "always_invoice" and not trialing:
        return _invoice_pending(world, identifier, at)
    return None


def _bills(wanted: Change) -> bool:
    return wanted.price is not None or wanted.quantity is not None or wanted.deleted


def _resets(subscription: Obj, old: Sequence[tuple[Obj, Obj]], wanted: Sequence[Change]) -> bool:
    """Whether the change begins a new period: another interval, or from free to paid."""
    prices = {item["id"]: price for item, price in old}
    counts = {item["id"]: item["quantity"] for item, _ in old}
    for change_ in wanted:
        key = change_.item or f"new {change_.position}"
        if change_.deleted:
            prices.pop(key, None)
            continue
        prices[key] = change_.price or prices.get(key) or {}
        counts[key] = change_.quantity if change_.quantity is not None else counts.get(key) or 1
    kept = [price for price in prices.values() if price]
    items.require_together(kept)
    if periods.of_price(kept[0]) != periods.of_price(old[0][1]):
        return True
    free = all(items.full_amount(item, price) == 0 and not items.is_metered(price) for item, price in old)
    paid = any(
        not items.is_metered(price) and money.total(price, Decimal(counts[key])) > 0
        for key, price in prices.items()
        if price
    )
    return free and paid and subscription["status"] != "trialing"


def credit_unused(world: World, subscription: Obj, item: Obj, price: Obj, at: int) -> None:
    """Add the invoice items that give back an item's unused time from `at` on; it is debited no more."""
    words = f"Unused time on {_what(world, item, price)}"
    for part in proration.credits_for(item["_debits"], at):
        _proration_item(world, subscription, item, part, words=words, at=at)
    edited = world.edit("subscription_item", item["id"])
    edited["_debits"] = []


def _what(world: World, item: Obj, price: Obj) -> str:
    name = lines.product_name(world, price)
    return name if item["quantity"] in (None, 1) else f"{item['quantity']} \u00d7 {name}"


def _proration_item(world: World, subscription: Obj, item: Obj, part: proration.Part, *, words: str, at: int) -> Obj:
    price = world.get("price", item["_price"])
    customer = world.get("customer", subscription["customer"])
    made = lines.invoice_item(
        world,
        customer=customer,
        amount=part.amount,
        currency=price["currency"],
        description=f"{words} after {lines.on_day(at)}",
        period=(part.start, part.end),
        quantity=item["quantity"] or 1,
        price=price,
        unit_amount=str(part.amount) if item["quantity"] in (None, 1) else None,
        subscription=subscription["id"],
        item=item["id"],
        proration=True,
        credits_items={"credited_items": part.credited},
    )
    emit(world, "invoiceitem.created", made)
    return made


def _charge_rest(world: World, identifier: str, item: str, at: int) -> None:
    """Add the invoice item for an item's remaining time from `at` on."""
    subscription = world.get("subscription", identifier)
    edited = world.edit("subscription_item", item)
    price = world.get("price", edited["_price"])
    if items.is_metered(price):
        return
    period = (subscription["_period_start"], subscription["_period_end"])
    part = proration.charge_for(items.full_amount(edited, price), period, at)
    words = f"Remaining time on {_what(world, edited, price)}"
    _proration_item(world, subscription, edited, part, words=words, at=at)
    edited["_debits"] = [proration.debit(part.amount, part.start, part.end)]


def _edit_items(world: World, subscription: Obj, wanted: Sequence[Change]) -> list[str]:
    """Carry out the changes on the items; the ids of those that are billed differently and stay."""
    changed = []
    for entry in wanted:
        if entry.item is None:
            assert entry.price is not None
            metadata = merged_metadata({}, entry.metadata)
            made = items.add(world, subscription, entry.price, entry.quantity, metadata)
            subscription["_items"] = [*subscription["_items"], made["id"]]
            changed.append(made["id"])
            continue
        if entry.item not in subscription["_items"]:
            raise no_such("subscription item", entry.item, f"items[{entry.position}][id]")
        if entry.deleted:
            subscription["_items"] = [kept for kept in subscription["_items"] if kept != entry.item]
            continue
        _edit_item(world, entry)
        if _bills(entry):
            changed.append(entry.item)
    return changed


def _edit_item(world: World, wanted: Change) -> None:
    item = world.edit("subscription_item", str(wanted.item))
    if wanted.price is not None:
        counted = items.is_metered(wanted.price)
        item["quantity"] = None if counted else 1 if item["quantity"] is None else item["quantity"]
        item["_price"] = wanted.price["id"]
    if wanted.quantity is not None:
        item["quantity"] = wanted.quantity
    if wanted.metadata is not None:
        item["metadata"] = merged_metadata(item["metadata"], wanted.metadata)


def _usage_of_removed(world: World, subscription: Obj, wanted: Sequence[Change], now: int) -> list[Obj]:
    """What the metered items that go, or change their price, have counted and nobody has billed."""
    going = {c.item for c in wanted if c.item and (c.deleted or c.price is not None)}
    dropped = {c.item for c in wanted if c.clear_usage}
    made: list[Obj] = []
    for item, price in items.of(world, subscription):
        if item["id"] in going and items.is_metered(price):
            if item["id"] not in dropped:
                made += subscriptions.usage_so_far(world, {**subscription, "_items": [item["id"]]}, now)
            world.edit("subscription_item", item["id"])["_usage_from"] = now
    return made


def _as_pending(world: World, subscription: Obj, entry: Obj) -> None:
    """Turn a line for usage into an invoice item, which the next invoice takes up."""
    if entry["amount"] == 0:
        return
    lines.invoice_item(
        world,
        customer=world.get("customer", subscription["customer"]),
        amount=entry["amount"],
        currency=entry["currency"],
        description=entry["description"],
        period=(entry["period"]["start"], entry["period"]["end"]),
        quantity=entry["quantity"] or 1,
        price={
            "id": entry["pricing"]["price_details"]["price"],
            "product": entry["pricing"]["price_details"]["product"],
        },
        unit_amount=entry["pricing"]["unit_amount_decimal"],
        subscription=subscription["id"],
        item=entry["parent"]["subscription_item_details"]["subscription_item"],
    )


def _new_period(world: World, subscription: Obj, now: int) -> None:
    _, price = items.of(world, subscription)[0]
    subscription["billing_cycle_anchor"] = now
    end = periods.after(now, *periods.of_price(price))
    subscriptions.set_period(world, subscription, now, end)
    if subscription["cancel_at_period_end"]:
        subscription["cancel_at"] = end


def _invoice_period(world: World, identifier: str) -> Obj:
    """Draft the invoice of a period that began just now, credits included."""
    subscription = world.get("subscription", identifier)
    period = (subscription["_period_start"], subscription["_period_end"])
    contents = invoicing.pending_lines(world, subscription["customer"], identifier)
    for item, price in items.of(world, subscription):
        if not items.is_metered(price):
            contents += subscriptions.bill_period(world, subscription, item["id"], period)
    return _draft(world, identifier, contents, None)


def _invoice_pending(world: World, identifier: str, at: int) -> Obj | None:
    """Draft an invoice of what is pending, or None where nothing is."""
    subscription = world.get("subscription", identifier)
    contents = invoicing.pending_lines(world, subscription["customer"], identifier)
    return _draft(world, identifier, contents, at) if contents else None


def _draft(world: World, identifier: str, contents: list[Obj], at: int | None) -> Obj:
    subscription = world.get("subscription", identifier)
    now = world.now(subscription["test_clock"])
    made = invoicing.draft(
        world,
        customer=world.get("customer", subscription["customer"]),
        reason="subscription_update",
        contents=contents,
        period=(subscription["_period_start"], now),
        subscription=subscription,
        currency=subscription["currency"],
        proration_date=at,
    )
    with change(world, "subscription", identifier, "customer.subscription.updated") as edited:
        edited["latest_invoice"] = made["id"]
    subscriptions.remember_invoice(world, identifier, made)
    _remember_prorations(world, identifier, made)
    return made


def _remember_prorations(world: World, identifier: str, invoice: Obj) -> None:
    """Note on which invoice and line each item's prorated debit stands."""
    for entry in invoice["lines"]["data"]:
        details = (entry["parent"] or {}).get("subscription_item_details")
        if details is None or not details["proration"] or entry["amount"] < 0:
            continue
        if details["subscription_item"] in world.get("subscription", identifier)["_items"]:
            for debit in world.edit("subscription_item", details["subscription_item"])["_debits"]:
                if debit["invoice"] is None and debit["end"] == entry["period"]["end"]:
                    debit["invoice"], debit["lines"] = invoice["id"], [entry["id"]]
