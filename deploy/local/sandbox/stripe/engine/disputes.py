"""Owns disputes: a cardholder's bank takes a charge back, and the case is won or lost."""

from __future__ import annotations

from typing import Final

from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.world import World

_FEE_CENTS: Final = 1500
_DAYS_TO_ANSWER: Final = 9
_EVIDENCE: Final = [
    "access_activity_log",
    "billing_address",
    "cancellation_policy",
    "cancellation_policy_disclosure",
    "cancellation_rebuttal",
    "customer_communication",
    "customer_email_address",
    "customer_name",
    "customer_purchase_ip",
    "customer_signature",
    "duplicate_charge_documentation",
    "duplicate_charge_explanation",
    "duplicate_charge_id",
    "product_description",
    "receipt",
    "refund_policy",
    "refund_policy_disclosure",
    "refund_refusal_explanation",
    "service_date",
    "service_documentation",
    "shipping_address",
    "shipping_carrier",
    "shipping_date",
    "shipping_documentation",
    "shipping_tracking_number",
    "uncategorized_file",
    "uncategorized_text",
]
OPEN: Final = ("needs_response", "under_review", "warning_needs_response", "warning_under_review")


def open_dispute(world: World, charge: str, *, amount: int, reason: str) -> Obj:
    """Dispute a charge; its money is withdrawn at once.

    Raises:
        Refusal: it is not a paid charge, is disputed already, or the amount is not a part of it.
    """
    found = world.get("charge", charge)
    if not found["paid"] or found["disputed"]:
        raise invalid(f"Charge {charge} is {'disputed already' if found['paid'] else 'not paid'}.", "charge")
    if not 0 < amount <= found["amount"]:
        raise invalid(f"The amount must be from 1 to {found['amount']} cents.", "amount")
    dispute: Obj = _new_dispute(world, found, amount, reason)
    world.add(dispute)
    world.edit("charge", charge)["disputed"] = True
    dispute["balance_transactions"] = [_movement(world, dispute, -amount, _FEE_CENTS)]
    emit(world, "charge.dispute.created", dispute)
    emit(world, "charge.dispute.funds_withdrawn", dispute)
    return dispute


def _new_dispute(world: World, charge: Obj, amount: int, reason: str) -> Obj:
    now = world.now(charge["_clock"])
    return {
        "id": new_id("dispute"),
        "object": "dispute",
        "amount": amount,
        "charge": charge["id"],
        "created": now,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {**dict.fromkeys(_EVIDENCE), "enhanced_evidence": {}},
        "evidence_details": {
            "due_by": now + _DAYS_TO_ANSWER * 86_400,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
            "submission_method": "not_submitted",
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "payment_method_details": {
            "card": {
                "brand": charge["payment_method_details"]["card"]["brand"],
                "case_type": "chargeback",
                "network": charge["payment_method_details"]["card"]["network"],
                "network_reason_code": "10.4",
            },
            "type": "card",
        },
        "reason": reason,
        "status": "needs_response",
        "_clock": charge["_clock"],
    }


def close(world: World, dispute: str, *, status: str) -> Obj:
    """End a dispute: `won` gives the money back, `lost` does not.

    Raises:
        Refusal: it is closed already.
    """
    found = world.get("dispute", dispute)
    if found["status"] not in OPEN:
        raise invalid(f"This dispute is already closed: it was {found['status']}.", "dispute")
    edited = world.edit("dispute", dispute)
    before = edited["status"]
    edited["status"] = status
    if status == "won":
        edited["balance_transactions"] = [
            *edited["balance_transactions"],
            _movement(world, edited, edited["amount"], 0),
        ]
    emit(world, "charge.dispute.closed", edited, previous={"status": before})
    if status == "won":
        emit(world, "charge.dispute.funds_reinstated", edited)
    return edited


def submit(world: World, dispute: str) -> None:
    """Hand the evidence to the bank."""
    with change(world, "dispute", dispute, "charge.dispute.updated") as edited:
        edited["status"] = "under_review"
        edited["evidence_details"]["has_evidence"] = True
        edited["evidence_details"]["submission_count"] += 1
        edited["evidence_details"]["submission_method"] = "manual"


def _movement(world: World, dispute: Obj, amount: int, fee: int) -> Obj:
    now = world.now(dispute["_clock"])
    detail = {
        "amount": fee,
        "application": None,
        "currency": dispute["currency"],
        "description": "Dispute fee",
        "type": "stripe_fee",
    }
    movement: Obj = {
        "id": new_id("balance_transaction"),
        "object": "balance_transaction",
        "amount": amount,
        "available_on": now,
        "balance_type": "payments",
        "created": now,
        "currency": dispute["currency"],
        "description": f"Chargeback {'withdrawal' if amount < 0 else 'reversal'} for {dispute['charge']}",
        "exchange_rate": None,
        "fee": fee,
        "fee_details": [detail] if fee else [],
        "net": amount - fee,
        "reporting_category": "dispute" if amount < 0 else "dispute_reversal",
        "source": dispute["id"],
        "status": "available",
        "type": "adjustment",
    }
    return world.add(movement)
