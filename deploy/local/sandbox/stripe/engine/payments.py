"""Owns payments: intents, the charges that attempt them, declines, refunds, and what Stripe keeps as its fee."""

from __future__ import annotations

from typing import Final

from deploy.local.sandbox.stripe import cards
from deploy.local.sandbox.stripe.engine import disputes
from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.identifiers import new_id, random_text
from deploy.local.sandbox.stripe.money import dollars
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid
from deploy.local.sandbox.stripe.rendering import render
from deploy.local.sandbox.stripe.world import World

_NO_ADDRESS: Final = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))
# Stripe's fee for a card: 2.9 % and 30 cents.
_FEE_PER_MILLE: Final = 29
_FEE_CENTS: Final = 30
_SETTLING_SECONDS: Final = 2 * 86_400


def new_intent(
    world: World,
    *,
    amount: int,
    currency: str,
    customer: str | None,
    clock: str | None,
    metadata: dict[str, str] | None = None,
    description: str | None = None,
    more: Obj | None = None,
) -> Obj:
    """A payment intent that waits for a payment method; `more` replaces fields."""
    identifier = new_id("payment_intent")
    intent: Obj = {
        "id": identifier,
        "object": "payment_intent",
        **dict.fromkeys(
            [
                "application",
                "application_fee_amount",
                "canceled_at",
                "cancellation_reason",
                "customer_account",
                "excluded_payment_method_types",
                "last_payment_error",
                "latest_charge",
                "managed_payments",
                "next_action",
                "on_behalf_of",
                "payment_method",
                "payment_method_configuration_details",
                "processing",
                "receipt_email",
                "review",
                "setup_future_usage",
                "shipping",
                "source",
                "statement_descriptor",
                "statement_descriptor_suffix",
                "transfer_data",
                "transfer_group",
            ]
        ),
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "automatic_payment_methods": None,
        "capture_method": "automatic",
        "client_secret": f"{identifier}_secret_{random_text(24)}",
        "confirmation_method": "automatic",
        "created": world.now(clock),
        "currency": currency,
        "customer": customer,
        "description": description,
        "livemode": False,
        "metadata": metadata or {},
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}},
        "payment_method_types": ["card"],
        "status": "requires_payment_method",
        "_clock": clock,
        **(more or {}),
    }
    world.add(intent)
    emit(world, "payment_intent.created", intent)
    return intent


def attempt(world: World, intent: str, method: str | None, *, off_session: bool) -> cards.Decline | None:
    """Try to pay an intent with a payment method. None where it is paid, else why not."""
    found = world.get("payment_intent", intent)
    if method is None:
        return _NO_METHOD
    pay_with = world.get("payment_method", method)
    card = cards.CARDS[pay_with["_number"]]
    decline = card.decline or (card.decline_off_session if off_session else None)
    charge = _charge(world, found, pay_with, decline)
    if decline is not None:
        emit(world, "charge.failed", charge)
        return _refused(world, intent, charge, decline, pay_with)
    _settle(world, charge, kind="charge", amount=charge["amount"], fee=_fee(charge["amount"]))
    emit(world, "charge.succeeded", charge)
    edited = world.edit("payment_intent", intent)
    edited |= {
        "status": "succeeded",
        "payment_method": method,
        "latest_charge": charge["id"],
        "amount_received": edited["amount"],
        "last_payment_error": None,
        "next_action": None,
    }
    emit(world, "payment_intent.succeeded", edited)
    if card.disputed:
        disputes.open_dispute(world, charge["id"], amount=charge["amount"], reason="fraudulent")
    return None


_NO_METHOD: Final = cards.Decline(
    code="payment_intent_payment_attempt_failed", message="There is no payment method to pay with."
)


def _refused(world: World, intent: str, charge: Obj, decline: cards.Decline, method: Obj) -> cards.Decline:
    edited = world.edit("payment_intent", intent)
    edited |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "latest_charge": charge["id"],
        "last_payment_error": error_object(decline, charge, method),
    }
    emit(world, "payment_intent.payment_failed", edited)
    return decline


def error_object(decline: cards.Decline, charge: Obj | None, method: Obj | None) -> Obj:
    """A decline as objects keep it."""
    error: Obj = {
        "code": decline.code,
        "doc_url": f"https://docs.stripe.com/error-codes#{decline.code.replace('_', '-')}",
        "message": decline.message,
        "type": "card_error",
    }
    if charge is not None:
        error["charge"] = charge["id"]
    if decline.decline_code is not None:
        error["decline_code"] = decline.decline_code
    if method is not None:
        error["payment_method"] = dict(method)
    return error


def card_error(world: World, decline: cards.Decline, **about: Obj) -> Refusal:
    """The 402 of a decline; what it did stays."""
    more: Obj = {name: render(world, obj) for name, obj in about.items()}
    if decline.decline_code is not None:
        more["decline_code"] = decline.decline_code
    intent = about.get("payment_intent")
    if intent is not None and intent["latest_charge"] is not None:
        more["charge"] = intent["latest_charge"]
    return Refusal(402, decline.message, kind="card_error", code=decline.code, effects_stay=True, more=more)


def _fee(amount: int) -> int:
    return (amount * _FEE_PER_MILLE + 500) // 1000 + _FEE_CENTS


def _charge(world: World, intent: Obj, method: Obj, decline: cards.Decline | None) -> Obj:
    """Add the charge of one attempt."""
    paid = decline is None
    identifier = new_id("charge")
    charge: Obj = {
        "id": identifier,
        "object": "charge",
        **dict.fromkeys(
            [
                "application",
                "application_fee",
                "application_fee_amount",
                "balance_transaction",
                "failure_balance_transaction",
                "on_behalf_of",
                "receipt_number",
                "review",
                "shipping",
                "source",
                "source_transfer",
                "statement_descriptor",
                "statement_descriptor_suffix",
                "transfer_data",
                "transfer_group",
            ]
        ),
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if paid else 0,
        "amount_refunded": 0,
        "billing_details": method["billing_details"],
        "calculated_statement_descriptor": "SANDBOX",
        "captured": paid,
        "created": world.now(intent["_clock"]),
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": False,
        "failure_code": None if decline is None else decline.code,
        "failure_message": None if decline is None else decline.message,
        "fraud_details": {},
        "livemode": False,
        "metadata": dict(intent["metadata"]),
        "outcome": _outcome(decline),
        "paid": paid,
        "payment_intent": intent["id"],
        "payment_method": method["id"],
        "payment_method_details": {"card": _card_details(method, intent["amount"]), "type": "card"},
        "receipt_email": intent["receipt_email"],
        "receipt_url": f"{world.settings.base_url}/sandbox/receipts/{identifier}" if paid else None,
        "refunded": False,
        "status": "succeeded" if paid else "failed",
        "_clock": intent["_clock"],
    }
    return world.add(charge)


def _outcome(decline: cards.Decline | None) -> Obj:
    outcome: Obj = dict.fromkeys(("advice_code", "network_advice_code", "network_decline_code"))
    if decline is None:
        return outcome | {
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "seller_message": "Payment complete.",
            "type": "authorized",
        }
    return outcome | {
        "network_status": "declined_by_network",
        "reason": decline.decline_code or decline.code,
        "risk_level": "normal",
        "seller_message": "The bank did not return any further details with this decline.",
        "type": "issuer_declined",
    }


def _card_details(method: Obj, amount: int) -> Obj:
    card = method["card"]
    taken = ("brand", "checks", "country", "exp_month", "exp_year", "fingerprint", "funding", "last4")
    return {
        **{name: card[name] for name in taken},
        **dict.fromkeys(
            ["authorization_code", "installments", "mandate", "network_transaction_id", "three_d_secure", "wallet"]
        ),
        "amount_authorized": amount,
        "extended_authorization": {"status": "disabled"},
        "incremental_authorization": {"status": "unavailable"},
        "multicapture": {"status": "unavailable"},
        "network": card["brand"],
        "network_token": {"used": False},
        "overcapture": {"maximum_amount_capturable": amount, "status": "unavailable"},
        "regulated_status": "unregulated",
    }


def _settle(world: World, source: Obj, *, kind: str, amount: int, fee: int) -> None:
    """Add the balance transaction of a charge or a refund, and name it there."""
    now = world.now(source["_clock"])
    details = [{"amount": fee, "application": None, "currency": source["currency"], "type": "stripe_fee"}]
    transaction: Obj = {
        "id": new_id("balance_transaction"),
        "object": "balance_transaction",
        "amount": amount,
        "available_on": now + _SETTLING_SECONDS,
        "balance_type": "payments",
        "created": now,
        "currency": source["currency"],
        "description": source.get("description"),
        "exchange_rate": None,
        "fee": fee,
        "fee_details": [{**detail, "description": "Stripe processing fees"} for detail in details] if fee else [],
        "net": amount - fee,
        "reporting_category": kind,
        "source": source["id"],
        "status": "pending",
        "type": kind,
    }
    world.add(transaction)
    source["balance_transaction"] = transaction["id"]


def refund(world: World, charge: str, *, amount: int | None, reason: str | None, metadata: dict[str, str]) -> Obj:
    """Give back a charge, or a part of it.

    Raises:
        Refusal: it is not paid, given back already, disputed, or more is asked for than is left.
    """
    found = world.get("charge", charge)
    left = found["amount"] - found["amount_refunded"]
    if not found["paid"]:
        raise invalid(f"Charge {charge} has not been paid, so it cannot be refunded.", "charge")
    if left <= 0:
        raise invalid(f"Charge {charge} has already been refunded.", code="charge_already_refunded")
    if found["disputed"]:
        raise invalid(f"Charge {charge} has been charged back; cannot issue a refund.", code="charge_disputed")
    amount = left if amount is None else amount
    if amount <= 0:
        raise invalid("Invalid positive integer", "amount", "parameter_invalid_integer")
    if amount > left:
        raise invalid(
            f"Refund amount ({dollars(amount)}) is greater than unrefunded amount on charge ({dollars(left)})",
            "amount",
        )
    made = _new_refund(world, found, amount, reason, metadata)
    _settle(world, made, kind="refund", amount=-amount, fee=0)
    world.add(made)
    emit(world, "refund.created", made)
    with change(world, "charge", charge, "charge.refunded") as edited:
        edited["amount_refunded"] += amount
        edited["refunded"] = edited["amount_refunded"] == edited["amount"]
    return made


def _new_refund(world: World, charge: Obj, amount: int, reason: str | None, metadata: dict[str, str]) -> Obj:
    return {
        "id": new_id("refund"),
        "object": "refund",
        **dict.fromkeys(["balance_transaction", "receipt_number", "source_transfer_reversal", "transfer_reversal"]),
        "amount": amount,
        "charge": charge["id"],
        "created": world.now(charge["_clock"]),
        "currency": charge["currency"],
        "destination_details": {
            "card": {
                "reference": "sandbox",
                "reference_status": "available",
                "reference_type": "acquirer_reference_number",
                "type": "refund",
            },
            "type": "card",
        },
        "customer": charge["customer"],
        "customer_account": None,
        "metadata": metadata,
        "payment_intent": charge["payment_intent"],
        "payment_method": charge["payment_method"],
        "reason": reason,
        "status": "succeeded",
        "_clock": charge["_clock"],
    }


def no_address() -> Obj:
    """An address of which nothing is known."""
    return dict(_NO_ADDRESS)
