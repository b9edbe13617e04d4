"""Owns payment methods: test cards, attached to customers."""

from __future__ import annotations

from stripe.params._customer_payment_method_list_params import CustomerPaymentMethodListParams
from stripe.params._payment_method_attach_params import PaymentMethodAttachParams
from stripe.params._payment_method_create_params import PaymentMethodCreateParams
from stripe.params._payment_method_detach_params import PaymentMethodDetachParams
from stripe.params._payment_method_list_params import PaymentMethodListParams
from stripe.params._payment_method_retrieve_params import PaymentMethodRetrieveParams
from stripe.params._payment_method_update_params import PaymentMethodUpdateParams

from deploy.local.sandbox.stripe import cards
from deploy.local.sandbox.stripe.engine import payments
from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid, no_such
from deploy.local.sandbox.stripe.rendering import Listing, page
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.world import World


@route(
    "POST",
    "/v1/payment_methods",
    PaymentMethodCreateParams,
    "allow_redisplay billing_details card.number card.exp_month card.exp_year card.cvc card.token metadata type",
)
def create(call: Call) -> Obj:
    """Make a payment method of a test card, given by number or token."""
    given = call.get("card") or {}
    if call.get("type", "card") != "card" or not given:
        raise invalid("The sandbox takes cards only: pass type=card and card.", "type")
    name = str(given.get("token") or given.get("number") or "")
    card = cards.by_name(name) if "token" in given else cards.by_number(name)
    if card is None:
        raise invalid(
            "Your card number is incorrect: the sandbox takes Stripe's test cards only.",
            "card[number]",
            "incorrect_number",
        )
    return new_method(
        call.world, card, billing=call.get("billing_details"), metadata=merged_metadata({}, call.get("metadata"))
    )


def new_method(
    world: World, card: cards.Card, *, billing: Obj | None = None, metadata: dict[str, str] | None = None
) -> Obj:
    """Add a payment method of a test card, attached to nobody."""
    details = {
        "address": payments.no_address(),
        **dict.fromkeys(("email", "name", "phone", "tax_id")),
        **(billing or {}),
    }
    details["address"] = payments.no_address() | (details["address"] or {})
    method: Obj = {
        "id": new_id("payment_method"),
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": details,
        "card": card.shape(),
        "created": world.now(),
        "customer": None,
        "customer_account": None,
        "livemode": False,
        "metadata": metadata or {},
        "type": "card",
        "_number": card.number,
    }
    return world.add(method)


def named(world: World, identifier: str, param: str) -> Obj:
    """The payment method of an id; for `pm_card_visa` and the like a new one.

    Raises:
        Refusal: there is no such payment method.
    """
    found = world.find("payment_method", identifier)
    if found is not None:
        return found
    card = cards.by_name(identifier)
    if card is None:
        raise no_such("payment_method", identifier, param)
    return new_method(world, card)


def require_owned(world: World, identifier: str, customer: str, param: str) -> Obj:
    """A payment method that is attached to `customer`.

    Raises:
        Refusal: there is none, or it is not attached to this customer.
    """
    found = world.find("payment_method", identifier)
    if found is None:
        raise no_such("payment_method", identifier, param)
    if found["customer"] != customer:
        raise invalid(
            f"The customer does not have a payment method with the ID {identifier}. "
            "The payment method must be attached to the customer.",
            param,
            "resource_missing",
        )
    return found


def attach_to(world: World, identifier: str, customer: str) -> Obj:
    """Attach a payment method to a customer.

    Raises:
        Refusal: it is attached already, or the card is declined.
    """
    found = named(world, identifier, "payment_method")
    if found["customer"] == customer:
        return found
    if found["customer"] is not None:
        raise invalid("The payment method you provided has already been attached to a customer.", "payment_method")
    decline = cards.CARDS[found["_number"]].decline
    if decline is not None:
        refusal = payments.card_error(world, decline)
        refusal.effects_stay = False
        raise refusal
    edited = world.edit("payment_method", found["id"])
    edited["customer"] = customer
    edited["_clock"] = world.clock_of(customer)
    emit(world, "payment_method.attached", edited)
    return edited


@route("POST", "/v1/payment_methods/{id}/attach", PaymentMethodAttachParams, "customer")
def attach(call: Call) -> Obj:
    """Attach a payment method to a customer."""
    if "customer" not in call.params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    call.world.need("customer", call.params["customer"], "customer")
    return attach_to(call.world, call.id, call.params["customer"])


@route("POST", "/v1/payment_methods/{id}/detach", PaymentMethodDetachParams)
def detach(call: Call) -> Obj:
    """Detach a payment method from its customer, for good."""
    found = call.world.need("payment_method", call.id, "payment_method", in_path=True)
    customer = found["customer"]
    if customer is None:
        raise invalid("The payment method you provided is not attached to a customer so detachment is impossible.")
    edited = call.world.edit("payment_method", call.id)
    edited["customer"] = None
    settings = call.world.get("customer", customer).get("invoice_settings") or {}
    if settings.get("default_payment_method") == call.id:
        call.world.edit("customer", customer)["invoice_settings"]["default_payment_method"] = None
    for subscription in list(call.world.all("subscription", default_payment_method=call.id)):
        call.world.edit("subscription", subscription["id"])["default_payment_method"] = None
    emit(call.world, "payment_method.detached", edited, previous={"customer": customer})
    return edited


@route("POST", "/v1/payment_methods/{id}", PaymentMethodUpdateParams, "allow_redisplay billing_details metadata")
def update(call: Call) -> Obj:
    """Change what is known about a payment method's holder."""
    call.world.need("payment_method", call.id, "payment_method", in_path=True)
    with change(call.world, "payment_method", call.id, "payment_method.updated") as edited:
        edited["billing_details"] |= call.get("billing_details") or {}
        edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
    return edited


@route("GET", "/v1/payment_methods/{id}", PaymentMethodRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One payment method."""
    return call.world.need("payment_method", call.id, "payment_method", in_path=True)


@route("GET", "/v1/payment_methods", PaymentMethodListParams, "+list customer type")
def listed(call: Call) -> Listing:
    """A customer's payment methods, newest first."""
    found = (
        list(call.world.all("payment_method", customer=call.params["customer"])) if "customer" in call.params else []
    )
    return page(found, call.params, "/v1/payment_methods")


@route("GET", "/v1/customers/{id}/payment_methods", CustomerPaymentMethodListParams, "+list type allow_redisplay")
def listed_of_customer(call: Call) -> Listing:
    """A customer's payment methods, newest first."""
    call.world.need("customer", call.id, "customer", in_path=True)
    found = list(call.world.all("payment_method", customer=call.id))
    return page(found, call.params, f"/v1/customers/{call.id}/payment_methods")
