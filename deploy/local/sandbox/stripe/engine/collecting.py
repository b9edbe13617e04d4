"""Owns collecting invoices: paid, tried again, voided, written off, and what then becomes of the subscription."""

from __future__ import annotations

from typing import Final

from deploy.local.sandbox.stripe import cards
from deploy.local.sandbox.stripe.engine import balances, payments, standing
from deploy.local.sandbox.stripe.engine.clock import job
from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.world import World

_DAY: Final = 86_400


def pay(
    world: World,
    invoice: str,
    *,
    method: str | None = None,
    off_session: bool = True,
    out_of_band: bool = False,
    by_hand: bool = False,
) -> cards.Decline | None:
    """Try to collect an open invoice with `method`, or its default. None where it is paid, else why not.

    The first attempt is counted and followed by others as planned, whoever makes it; one made `by_hand` later is not
    (source: docs.stripe.com/api/invoices/object, on `attempt_count`).

    Raises:
        Refusal: it is not open.
    """
    found = world.get("invoice", invoice)
    if found["status"] not in ("open", "uncollectible"):
        words = {"paid": "Invoice is already paid", "draft": "The invoice is not finalized"}
        raise invalid(words.get(found["status"], f"Invoice is {found['status']}"), code="invoice_not_editable")
    if out_of_band:
        intent = world.edit("payment_intent", found["_intent"])
        intent |= {"status": "canceled", "canceled_at": world.now(found["test_clock"])}
        world.edit("invoice_payment", found["_payment"])["status"] = "canceled"
        emit(world, "payment_intent.canceled", intent)
        mark_paid(world, invoice, by_charge=False)
        return None
    edited = world.edit("invoice", invoice)
    beside_the_plan = by_hand and edited["attempted"]
    edited["attempted"] = True
    edited["attempt_count"] += 0 if beside_the_plan else 1
    chosen = method or default_method(world, edited)
    decline = payments.attempt(world, edited["_intent"], chosen, off_session=off_session)
    if decline is None:
        mark_paid(world, invoice, by_charge=True)
        return None
    if beside_the_plan:
        emit(world, "invoice.payment_failed", world.edit("invoice", invoice))
    else:
        _failed(world, invoice)
    return decline


def default_method(world: World, invoice: Obj) -> str | None:
    """The payment method that an invoice is to be paid with: its own, its subscription's, its customer's."""
    subscription = world.find("subscription", standing.subscription_of(invoice)) or {}
    customer = world.get("customer", invoice["customer"])
    found = (
        invoice["default_payment_method"]
        or subscription.get("default_payment_method")
        or customer.get("invoice_settings", {}).get("default_payment_method")
    )
    return None if found is None else str(found)


def mark_paid(world: World, invoice: str, *, by_charge: bool) -> None:
    """Note that nothing is owed any more. Emits `invoice.paid`; the subscription follows."""
    edited = world.edit("invoice", invoice)
    world.unschedule("retry", invoice)
    now = world.now(edited["test_clock"])
    edited |= {
        "status": "paid",
        "amount_paid": edited["amount_due"],
        "amount_remaining": 0,
        "attempted": True,
        "auto_advance": False,
        "next_payment_attempt": None,
    }
    edited["status_transitions"]["paid_at"] = now
    if by_charge:
        joined = world.edit("invoice_payment", edited["_payment"])
        joined |= {"status": "paid", "amount_paid": edited["amount_due"]}
        joined["status_transitions"]["paid_at"] = now
        emit(world, "invoice_payment.paid", joined)
    standing.after_paid(world, edited, standing.subscription_of(edited))
    emit(world, "invoice.paid", edited)
    emit(world, "invoice.payment_succeeded", edited)


def _failed(world: World, invoice: str) -> None:
    """Plan the next attempt, or say that there is none."""
    edited = world.edit("invoice", invoice)
    waits = world.settings.retry_days
    tried = edited["attempt_count"] - 1
    first = edited["billing_reason"] == "subscription_create"
    again = edited["auto_advance"] and not first and tried < len(waits)
    edited["next_payment_attempt"] = None
    if again:
        due = world.now(edited["test_clock"]) + waits[tried] * _DAY
        edited["next_payment_attempt"] = due
        world.schedule("retry", invoice, due, edited["test_clock"])
    emit(world, "invoice.payment_failed", edited)
    exhausted = bool(edited["auto_advance"]) and not again and not first
    standing.after_failed(world, standing.subscription_of(edited), exhausted=exhausted)


def void(world: World, invoice: str) -> Obj:
    """Take an open invoice back; what it took of the customer's balance returns.

    Raises:
        Refusal: it is neither open nor uncollectible.
    """
    found = world.get("invoice", invoice)
    if found["status"] not in ("open", "uncollectible"):
        raise invalid(f"You can only pass in open or uncollectible invoices. This invoice is {found['status']}.")
    world.unschedule("retry", invoice)
    with change(world, "invoice", invoice, "invoice.updated") as edited:
        edited |= {"status": "void", "auto_advance": False, "next_payment_attempt": None}
        edited["status_transitions"]["voided_at"] = world.now(edited["test_clock"])
    emit(world, "invoice.voided", edited)
    used = edited["starting_balance"] - edited["ending_balance"]
    if used:
        balances.move(world, edited["customer"], used, kind="unapplied_from_invoice", invoice=invoice)
    if (intent := edited.get("_intent")) is not None:
        canceled = world.edit("payment_intent", intent)
        canceled |= {
            "status": "canceled",
            "cancellation_reason": "void_invoice",
            "canceled_at": world.now(edited["test_clock"]),
        }
        emit(world, "payment_intent.canceled", canceled)
    return world.get("invoice", invoice)


def write_off(world: World, invoice: str) -> Obj:
    """Mark an open invoice as one that will not be paid.

    Raises:
        Refusal: it is not open.
    """
    found = world.get("invoice", invoice)
    if found["status"] != "open":
        raise invalid(f"You can only mark an open invoice as uncollectible. This invoice is {found['status']}.")
    world.unschedule("retry", invoice)
    edited = world.edit("invoice", invoice)
    edited |= {"status": "uncollectible", "auto_advance": False, "next_payment_attempt": None}
    edited["status_transitions"]["marked_uncollectible_at"] = world.now(edited["test_clock"])
    emit(world, "invoice.marked_uncollectible", edited)
    return edited


@job("retry")
def _retry_due(world: World, invoice: str, _due: int) -> None:
    found = world.find("invoice", invoice)
    if found is not None and found["status"] == "open":
        pay(world, invoice)
