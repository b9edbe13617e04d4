"""Owns credit notes: what of a final invoice is given up before it is paid, or given back after.

Source: docs.stripe.com/api/credit_notes/create: what is still to be paid goes first; the rest is given back in the
three ways together, exactly.
"""

from __future__ import annotations

import dataclasses

from deploy.local.sandbox.stripe.engine import balances, collecting, payments
from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import embedded_list
from deploy.local.sandbox.stripe.world import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class Back:
    """What is given back of what was paid, in cents: to the card, to the customer's balance, outside of Stripe."""

    refund: int
    balance: int
    out_of_band: int


def issue(world: World, invoice: str, amount: int, back: Back, more: Obj) -> Obj:
    """Credit so many cents of an invoice. Emits `credit_note.created`.

    Raises:
        Refusal: the invoice is neither open nor paid, or the amounts are not those that can be credited.
    """
    found = world.get("invoice", invoice)
    if found["status"] not in ("open", "paid"):
        raise invalid(f"Credit notes are for open and paid invoices. This invoice is {found['status']}.", "invoice")
    credited = found["pre_payment_credit_notes_amount"] + found["post_payment_credit_notes_amount"]
    if not 0 < amount <= found["total"] - credited:
        raise invalid("The amount of a credit note must be positive, and within what is left of the invoice.", "amount")
    before = min(amount, found["amount_remaining"])
    if back.refund + back.balance + back.out_of_band != amount - before:
        raise invalid("The sum of refund, credit and out of band amounts must equal the post payment amount.")
    refunds = _refunded(world, found, back.refund)
    movement = None
    if back.balance:
        moved = balances.move(world, found["customer"], -back.balance, kind="credit_note", invoice=invoice)
        movement = moved["id"]
    more |= {"customer_balance_transaction": movement, "out_of_band_amount": back.out_of_band or None}
    note = world.add(_new(world, found, amount, before) | {"refunds": refunds} | more)
    with change(world, "invoice", invoice, "invoice.updated") as edited:
        edited["pre_payment_credit_notes_amount"] += before
        edited["post_payment_credit_notes_amount"] += amount - before
        edited["amount_due"] -= before
        edited["amount_remaining"] -= before
        if before:
            world.edit("payment_intent", edited["_intent"])["amount"] = edited["amount_due"]
    if before and edited["amount_remaining"] == 0:
        collecting.mark_paid(world, invoice, by_charge=False)
    emit(world, "credit_note.created", world.get("credit_note", note["id"]))
    return world.get("credit_note", note["id"])


def _refunded(world: World, invoice: Obj, amount: int) -> list[Obj]:
    if not amount:
        return []
    charge = world.get("payment_intent", invoice["_intent"])["latest_charge"]
    made = payments.refund(world, charge, amount=amount, reason=None, metadata={})
    return [{"amount_refunded": amount, "payment_record_refund": None, "refund": made["id"], "type": "refund"}]


def _new(world: World, invoice: Obj, amount: int, before: int) -> Obj:
    identifier = new_id("credit_note")
    now = world.now(invoice["test_clock"])
    issued = sum(1 for _ in world.all("credit_note", invoice=invoice["id"]))
    return {
        "id": identifier,
        "object": "credit_note",
        "amount": amount,
        "amount_shipping": 0,
        "created": now,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "customer_account": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "effective_at": now,
        "invoice": invoice["id"],
        "lines": embedded_list([], f"/v1/credit_notes/{identifier}/lines"),
        "livemode": False,
        "number": f"{invoice['number']}-CN-{issued + 1:02}",
        "pdf": f"{world.settings.base_url}/credit_notes/{identifier}/pdf",
        "post_payment_amount": amount - before,
        "pre_payment_amount": before,
        "pretax_credit_amounts": [],
        "shipping_cost": None,
        "status": "issued",
        "subtotal": amount,
        "subtotal_excluding_tax": amount,
        "total": amount,
        "total_excluding_tax": amount,
        "total_taxes": [],
        "type": "post_payment" if not before else "pre_payment" if before == amount else "mixed",
        "voided_at": None,
    }


def void(world: World, note: str) -> Obj:
    """Take a credit note back. Emits `credit_note.voided`.

    Raises:
        Refusal: it is void, or its invoice is not open any more.
    """
    found = world.get("credit_note", note)
    invoice = world.get("invoice", found["invoice"])
    if found["status"] != "issued" or invoice["status"] != "open":
        raise invalid("You can only void an issued credit note of an open invoice.")
    with change(world, "invoice", found["invoice"], "invoice.updated") as edited:
        edited["pre_payment_credit_notes_amount"] -= found["amount"]
        edited["amount_due"] += found["amount"]
        edited["amount_remaining"] += found["amount"]
        world.edit("payment_intent", edited["_intent"])["amount"] = edited["amount_due"]
    voided = world.edit("credit_note", note)
    voided |= {"status": "void", "voided_at": world.now(invoice["test_clock"])}
    emit(world, "credit_note.voided", voided)
    return voided
