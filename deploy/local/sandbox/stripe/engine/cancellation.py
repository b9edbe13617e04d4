"""Owns ending a subscription before its period is over, with or without a credit for the rest."""

from __future__ import annotations

from typing import Any

from deploy.local.sandbox.stripe.engine import changes, invoicing, items, standing, subscriptions
from deploy.local.sandbox.stripe.engine.clock import job
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.world import World


def cancel(
    world: World, identifier: str, *, prorate: bool, invoice_now: bool, details: dict[str, Any] | None = None
) -> Obj:
    """End a subscription now. `prorate` credits the unused time, `invoice_now` bills usage and credits at once.

    Raises:
        Refusal: it has ended.
    """
    found = world.get("subscription", identifier)
    if found["status"] in standing.ENDED:
        raise invalid(
            f"A canceled subscription can only update its cancellation_details and metadata: {identifier}", "id"
        )
    now = world.now(found["test_clock"])
    if prorate and found["status"] != "trialing":
        for item, price in items.of(world, found):
            changes.credit_unused(world, found, item, price, now)
    edited = world.edit("subscription", identifier)
    edited["cancellation_details"] |= {name: value or None for name, value in (details or {}).items()}
    if invoice_now:
        made = subscriptions.bill_rest(world, identifier, credits_only=True)
        if made is not None:
            world.unschedule("finalize", made["id"])
            invoicing.collect(world, made["id"])
    for invoice in [i for i in world.all("invoice", status="open") if standing.subscription_of(i) == identifier]:
        world.unschedule("retry", invoice["id"])
        world.edit("invoice", invoice["id"])["auto_advance"] = False
    return standing.end(world, identifier, reason="cancellation_requested")


@job("cancel")
def _cancel_due(world: World, identifier: str, _due: int) -> None:
    found = world.find("subscription", identifier)
    if found is not None and found["status"] not in standing.ENDED:
        cancel(world, identifier, prorate=found.get("_cancel_prorates", True), invoice_now=True)
