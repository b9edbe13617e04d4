"""Owns payment intents: payments that a request makes, apart from invoices and checkouts."""

from __future__ import annotations

from typing import Final

from stripe.params._payment_intent_cancel_params import PaymentIntentCancelParams
from stripe.params._payment_intent_confirm_params import PaymentIntentConfirmParams
from stripe.params._payment_intent_create_params import PaymentIntentCreateParams
from stripe.params._payment_intent_list_params import PaymentIntentListParams
from stripe.params._payment_intent_retrieve_params import PaymentIntentRetrieveParams
from stripe.params._payment_intent_search_params import PaymentIntentSearchParams
from stripe.params._payment_intent_update_params import PaymentIntentUpdateParams

from deploy.local.sandbox.stripe.engine import payments
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.engine.invoicing import SMALLEST_CHARGE
from deploy.local.sandbox.stripe.objects import payment_methods
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page, within
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.search import results
from deploy.local.sandbox.stripe.world import World

_LARGEST: Final = 99_999_999
_FINAL: Final = ("succeeded", "canceled")


@route(
    "POST",
    "/v1/payment_intents",
    PaymentIntentCreateParams,
    "amount currency customer payment_method payment_method_types confirm off_session "
    "metadata description receipt_email "
    "setup_future_usage automatic_payment_methods error_on_requires_action return_url statement_descriptor "
    "statement_descriptor_suffix confirmation_method",
)
def create(call: Call) -> Obj:
    """Make a payment intent, and confirm it at once if asked."""
    _require_amount(call.params["amount"])
    customer = call.get("customer")
    if customer is not None:
        call.world.need("customer", customer, "customer")
    if call.get("off_session") and not call.get("confirm"):
        raise invalid("You can only set `off_session` when `confirm` is true.", "off_session")
    kept = ["receipt_email", "setup_future_usage", "statement_descriptor", "statement_descriptor_suffix"]
    more: Obj = {name: call.params[name] for name in kept if name in call.params}
    more["automatic_payment_methods"] = {
        "allow_redirects": "always",
        "enabled": "payment_method_types" not in call.params,
    }
    intent = payments.new_intent(
        call.world,
        amount=call.params["amount"],
        currency=call.params["currency"].lower(),
        customer=customer,
        clock=call.world.clock_of(customer),
        metadata=merged_metadata({}, call.get("metadata")),
        description=call.get("description"),
        more=more,
    )
    if (method := call.get("payment_method")) is not None:
        _put_method(call.world, intent, method)
    if call.get("confirm"):
        return _confirm(call.world, intent["id"], off_session=call.get("off_session") in (True, "one_off", "recurring"))
    return intent


def _require_amount(amount: int) -> None:
    if amount < SMALLEST_CHARGE:
        small = amount < 1
        code = "parameter_invalid_integer" if small else "amount_too_small"
        raise invalid("Invalid positive integer" if small else "Amount must be at least $0.50 usd", "amount", code)
    if amount > _LARGEST:
        raise invalid("Amount must be no more than $999,999.99", "amount", "amount_too_large")


def _put_method(world: World, intent: Obj, method: str) -> None:
    found = payment_methods.named(world, method, "payment_method")
    if found["customer"] is not None and found["customer"] != intent["customer"]:
        raise invalid(
            "The provided PaymentMethod belongs to another customer; a PaymentMethod may be used with its own only.",
            "payment_method",
        )
    intent |= {"payment_method": found["id"], "status": "requires_confirmation"}


def _confirm(world: World, identifier: str, *, off_session: bool) -> Obj:
    intent = world.get("payment_intent", identifier)
    if intent["payment_method"] is None:
        raise invalid(
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            "payment_method",
            "payment_intent_unexpected_state",
        )
    method = world.get("payment_method", intent["payment_method"])
    away = off_session or method["customer"] is not None
    decline = payments.attempt(world, identifier, method["id"], off_session=away)
    if decline is not None:
        raise payments.card_error(
            world, decline, payment_intent=world.get("payment_intent", identifier), payment_method=method
        )
    customer = intent["customer"]
    if intent["setup_future_usage"] and customer is not None and method["customer"] is None:
        payment_methods.attach_to(world, method["id"], customer)
    return world.get("payment_intent", identifier)


@route(
    "POST",
    "/v1/payment_intents/{id}/confirm",
    PaymentIntentConfirmParams,
    "payment_method off_session return_url error_on_requires_action",
)
def confirm(call: Call) -> Obj:
    """Try to pay an intent."""
    _require_unfinished(call, "confirm")
    if (method := call.get("payment_method")) is not None:
        _put_method(call.world, call.world.edit("payment_intent", call.id), method)
    return _confirm(call.world, call.id, off_session=call.get("off_session") in (True, "one_off", "recurring"))


def _require_unfinished(call: Call, what: str) -> Obj:
    found = call.world.need("payment_intent", call.id, "intent", in_path=True)
    if found["status"] in _FINAL:
        raise Refusal(
            400,
            f"You cannot {what} this PaymentIntent because it has a status of {found['status']}.",
            code="payment_intent_unexpected_state",
        )
    return found


@route("POST", "/v1/payment_intents/{id}/cancel", PaymentIntentCancelParams, "cancellation_reason")
def cancel(call: Call) -> Obj:
    """Give up an intent that has not succeeded."""
    found = _require_unfinished(call, "cancel")
    if any(call.world.all("invoice", _intent=call.id, status="open")):
        raise invalid("You cannot cancel a PaymentIntent created by an invoice: void the invoice.")
    edited = call.world.edit("payment_intent", call.id)
    edited |= {
        "status": "canceled",
        "canceled_at": call.world.now(found["_clock"]),
        "cancellation_reason": call.get("cancellation_reason"),
    }
    emit(call.world, "payment_intent.canceled", edited)
    return edited


@route(
    "POST",
    "/v1/payment_intents/{id}",
    PaymentIntentUpdateParams,
    "amount description metadata receipt_email payment_method setup_future_usage",
)
def update(call: Call) -> Obj:
    """Change an intent; no event, as at Stripe."""
    if set(call.params) - {"metadata", "description", "expand"}:
        _require_unfinished(call, "update")
    call.world.need("payment_intent", call.id, "intent", in_path=True)
    edited = call.world.edit("payment_intent", call.id)
    if "amount" in call.params:
        _require_amount(call.params["amount"])
    if (method := call.get("payment_method")) is not None:
        _put_method(call.world, edited, method)
    for name in ("amount", "description", "receipt_email", "setup_future_usage"):
        if name in call.params:
            edited[name] = None if call.params[name] == "" else call.params[name]
    edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
    return edited


@route("GET", "/v1/payment_intents/{id}", PaymentIntentRetrieveParams, "client_secret")
def retrieve(call: Call) -> Obj:
    """One payment intent."""
    return call.world.need("payment_intent", call.id, "intent", in_path=True)


@route("GET", "/v1/payment_intents", PaymentIntentListParams, "+list customer")
def listed(call: Call) -> Listing:
    """Payment intents, newest first."""
    wanted = {name: call.params[name] for name in ("customer",) if name in call.params}
    found = [i for i in call.world.all("payment_intent", **wanted) if within(i["created"], call.get("created"))]
    return page(found, call.params, "/v1/payment_intents")


@route("GET", "/v1/payment_intents/search", PaymentIntentSearchParams, "query limit page")
def search(call: Call) -> Listing:
    """Payment intents that a query finds."""
    return results(call, "payment_intent")
