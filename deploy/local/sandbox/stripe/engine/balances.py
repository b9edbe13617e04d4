"""Owns the customer's balance: a credit (negative) or what the next invoice adds, and its history."""

from __future__ import annotations

from deploy.local.sandbox.stripe.engine.events import change
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.world import World


def move(
    world: World,
    customer: str,
    amount: int,
    *,
    kind: str,
    invoice: str | None = None,
    description: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Obj:
    """Add `amount` cents to a customer's balance and to its history."""
    with change(world, "customer", customer, "customer.updated") as edited:
        edited["balance"] += amount
    movement: Obj = {
        "id": new_id("customer_balance_transaction"),
        "object": "customer_balance_transaction",
        "amount": amount,
        "checkout_session": None,
        "created": world.now(edited["test_clock"]),
        "credit_note": None,
        "currency": edited["currency"] or "usd",
        "customer": customer,
        "customer_account": None,
        "description": description,
        "ending_balance": edited["balance"],
        "invoice": invoice,
        "livemode": False,
        "metadata": metadata or {},
        "type": kind,
    }
    return world.add(movement)
