"""Owns making invoices: drafted with their lines, finalised with a number, handed on to be collected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deploy.local.sandbox.stripe import cards
from deploy.local.sandbox.stripe.engine import balances, collecting, lines, payments, standing, usage_lines
from deploy.local.sandbox.stripe.engine.clock import job
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.identifiers import new_id, random_text
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import embedded_list, includes, render
from deploy.local.sandbox.stripe.world import World

_DAY: Final = 86_400
# Stripe charges no less in dollars; a smaller due is added to the customer's balance.
SMALLEST_CHARGE: Final = 50
_NULLS: Final = [
    "account_name",
    "account_tax_ids",
    "amount_paid_off_stripe",
    "application",
    "automatically_finalizes_at",
    "custom_fields",
    "customer_account",
    "customer_address",
    "customer_phone",
    "customer_shipping",
    "default_payment_method",
    "default_source",
    "description",
    "due_date",
    "effective_at",
    "ending_balance",
    "footer",
    "from_invoice",
    "hosted_invoice_url",
    "invoice_pdf",
    "last_finalization_error",
    "latest_revision",
    "next_payment_attempt",
    "number",
    "on_behalf_of",
    "parent",
    "receipt_number",
    "shipping_cost",
    "shipping_details",
    "statement_descriptor",
    "test_clock",
    "webhooks_delivered_at",
]


def draft(
    world: World,
    *,
    customer: Obj,
    reason: str,
    contents: Sequence[Obj],
    period: tuple[int, int],
    subscription: Obj | None = None,
    currency: str = "usd",
    auto_advance: bool = True,
    proration_date: int | None = None,
    more: Obj | None = None,
) -> Obj:
    """Add a draft of the given lines; `more` replaces fields. Emits `invoice.created`."""
    clock = customer["test_clock"]
    source = subscription or {}
    invoice: Obj = {
        "id": new_id("invoice"),
        "object": "invoice",
        **dict.fromkeys(_NULLS),
        "account_country": "US",
        "amount_overpaid": 0,
        "amount_shipping": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": auto_advance,
        "automatic_tax": dict.fromkeys(("disabled_reason", "liability", "provider", "status")) | {"enabled": False},
        "billing_reason": reason,
        "collection_method": source.get("collection_method", "charge_automatically"),
        "created": world.now(clock),
        "currency": currency,
        "customer": customer["id"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_tax_rates": [],
        "discounts": [],
        "issuer": {"type": "self"},
        "lines": None,
        "livemode": False,
        "metadata": {},
        "parent": _parent(subscription, proration_date),
        "payment_settings": dict.fromkeys(("default_mandate", "payment_method_options", "payment_method_types")),
        "period_start": period[0],
        "period_end": period[1],
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "rendering": None,
        "starting_balance": customer["balance"],
        "status": "draft",
        "status_transitions": dict.fromkeys(("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")),
        "test_clock": clock,
        "total_discount_amounts": [],
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "_paid_cents": 0,
        **(more or {}),
    }
    if invoice["collection_method"] == "send_invoice" and invoice["due_date"] is None:
        invoice["due_date"] = invoice["created"] + (source.get("days_until_due") or 30) * _DAY
    put_lines(invoice, contents)
    world.add(invoice)
    for taken in contents:
        if "_invoice_item" in taken:
            world.edit("invoiceitem", taken["_invoice_item"])["invoice"] = invoice["id"]
    emit(world, "invoice.created", invoice)
    return invoice


def _parent(subscription: Obj | None, proration_date: int | None) -> Obj | None:
    if subscription is None:
        return None
    details: Obj = {"metadata": dict(subscription["metadata"]), "subscription": subscription["id"]}
    if proration_date is not None:
        details["subscription_proration_date"] = proration_date
    return {"quote_details": None, "subscription_details": details, "type": "subscription_details"}


def put_lines(invoice: Obj, contents: Sequence[Obj]) -> None:
    """Give an invoice these lines, and add them up."""
    for item in contents:
        item["invoice"] = invoice["id"]
    invoice["lines"] = embedded_list(contents, f"/v1/invoices/{invoice['id']}/lines")
    total = sum(item["amount"] for item in contents)
    invoice |= {
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "total": total,
        "total_excluding_tax": total,
        "amount_due": max(0, total + invoice["starting_balance"]) if total > 0 else 0,
        "amount_paid": 0,
    }
    invoice["amount_remaining"] = invoice["amount_due"]


def pending_lines(world: World, customer: str, subscription: str | None) -> list[Obj]:
    """Lines of the invoice items that wait for the next invoice of a subscription, or of a customer without one."""
    found = []
    for waiting in world.all("invoiceitem", customer=customer, invoice=None):
        details = (waiting["parent"] or {}).get("subscription_details") or {}
        if details.get("subscription") in (None, subscription):
            found.append(lines.from_invoice_item(waiting))
    return found


def finalize(world: World, invoice: str) -> Obj:
    """Give a draft its number, apply the customer's balance, and have it paid where nothing is due.

    Raises:
        Refusal: it is not a draft.
    """
    found = world.get("invoice", invoice)
    if found["status"] != "draft":
        raise invalid(
            "This invoice is already finalized, you can't re-finalize a non-draft invoice.", code="invoice_not_editable"
        )
    world.unschedule("finalize", invoice)
    usage_lines.refresh(world, invoice, put_lines)
    edited = world.edit("invoice", invoice)
    now = world.now(edited["test_clock"])
    _apply_balance(world, edited)
    base = f"{world.settings.base_url}/i/{invoice}"
    edited |= {
        "number": _number(world, edited["customer"]),
        "status": "open",
        "effective_at": now,
        "hosted_invoice_url": base,
        "invoice_pdf": f"{base}/pdf",
        "automatically_finalizes_at": None,
    }
    edited["status_transitions"]["finalized_at"] = now
    emit(world, "invoice.finalized", edited)
    if edited["amount_due"] == 0:
        collecting.mark_paid(world, invoice, by_charge=False)
    else:
        _ask_for_payment(world, edited)
    return world.get("invoice", invoice)


def _apply_balance(world: World, invoice: Obj) -> None:
    customer = world.get("customer", invoice["customer"])
    invoice["starting_balance"] = balance = customer["balance"]
    due = invoice["total"] + balance
    if invoice["total"] <= 0 or due < 0:
        ending, asked = (balance + invoice["total"], 0) if invoice["total"] < 0 or due < 0 else (balance, 0)
    elif 0 < due < SMALLEST_CHARGE:
        ending, asked = due, 0
    else:
        ending, asked = 0, due
    invoice |= {"ending_balance": ending, "amount_due": asked, "amount_remaining": asked}
    if ending != balance:
        kind = "applied_to_invoice"
        balances.move(world, customer["id"], ending - balance, kind=kind, invoice=invoice["id"])


def _number(world: World, customer: str) -> str:
    edited = world.edit("customer", customer)
    sequence = edited["next_invoice_sequence"]
    edited["next_invoice_sequence"] = sequence + 1
    return f"{edited['invoice_prefix']}-{sequence:04d}"


def _ask_for_payment(world: World, invoice: Obj) -> None:
    """Make the payment intent of a finalised invoice, and what joins the two."""
    intent = payments.new_intent(
        world,
        amount=invoice["amount_due"],
        currency=invoice["currency"],
        customer=invoice["customer"],
        clock=invoice["test_clock"],
        description=_description(invoice),
        more={"setup_future_usage": "off_session", "automatic_payment_methods": None},
    )
    joined: Obj = {
        "id": new_id("invoice_payment"),
        "object": "invoice_payment",
        "amount_paid": None,
        "amount_requested": invoice["amount_due"],
        "created": intent["created"],
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": True,
        "livemode": False,
        "payment": {"payment_intent": intent["id"], "type": "payment_intent"},
        "status": "open",
        "status_transitions": {"canceled_at": None, "paid_at": None},
        "_clock": invoice["test_clock"],
    }
    world.add(joined)
    invoice["_intent"], invoice["_payment"] = intent["id"], joined["id"]


def _description(invoice: Obj) -> str:
    reasons = {"subscription_create": "Subscription creation", "subscription_update": "Subscription update"}
    return reasons.get(invoice["billing_reason"], f"Payment for Invoice {invoice['number']}")


def collect(world: World, invoice: str, *, method: str | None = None, off_session: bool = True) -> cards.Decline | None:
    """Finalise a draft and, unless the customer is sent the invoice, charge it at once."""
    finalized = finalize(world, invoice)
    if finalized["status"] == "open" and finalized["collection_method"] == "charge_automatically":
        return collecting.pay(world, invoice, method=method, off_session=off_session)
    return None


def finalize_later(world: World, invoice: str, due: int) -> None:
    """Have a draft finalised and collected by itself."""
    edited = world.edit("invoice", invoice)
    edited["automatically_finalizes_at"] = due
    world.schedule("finalize", invoice, due, edited["test_clock"])


@job("finalize")
def _finalize_due(world: World, invoice: str, _due: int) -> None:
    found = world.find("invoice", invoice)
    if found is None or found["status"] != "draft" or not found["auto_advance"]:
        return
    pause = standing.pause_of(world, standing.subscription_of(found))
    if pause is None:
        collect(world, invoice)
        return
    finalized = finalize(world, invoice)
    if finalized["status"] == "open":
        collecting.void(world, invoice) if pause == "void" else collecting.write_off(world, invoice)


@includes("invoice", "payments")
def _payments(world: World, invoice: Obj) -> Obj:
    found = [render(world, joined) for joined in world.all("invoice_payment", invoice=invoice["id"])]
    return embedded_list(found[::-1], f"/v1/invoice_payments?invoice={invoice['id']}")


@includes("invoice", "confirmation_secret")
def _confirmation_secret(world: World, invoice: Obj) -> Obj | None:
    intent = world.find("payment_intent", invoice.get("_intent"))
    return None if intent is None else {"client_secret": intent["client_secret"], "type": "payment_intent"}


def invoice_prefix() -> str:
    """What a customer's invoice numbers begin with."""
    return random_text(8).upper()
