"""Owns setup intents: saving a payment method for later, without a payment."""

from __future__ import annotations

from stripe.params._setup_intent_cancel_params import SetupIntentCancelParams
from stripe.params._setup_intent_confirm_params import SetupIntentConfirmParams
from stripe.params._setup_intent_create_params import SetupIntentCreateParams
from stripe.params._setup_intent_list_params import SetupIntentListParams
from stripe.params._setup_intent_retrieve_params import SetupIntentRetrieveParams

from deploy.local.sandbox.stripe import cards
from deploy.local.sandbox.stripe.engine import payments
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.identifiers import new_id, random_text
from deploy.local.sandbox.stripe.objects import payment_methods
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page, within
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.world import World


@route(
    "POST",
    "/v1/setup_intents",
    SetupIntentCreateParams,
    "confirm customer description metadata payment_method payment_method_types usage "
    "automatic_payment_methods return_url",
)
def create(call: Call) -> Obj:
    """Make a setup intent, and confirm it at once if asked."""
    customer = call.get("customer")
    if customer is not None:
        call.world.need("customer", customer, "customer")
    intent = new_intent(call.world, customer, merged_metadata({}, call.get("metadata")), call.get("description"))
    method = call.get("payment_method")
    if method is not None:
        intent["payment_method"] = payment_methods.named(call.world, method, "payment_method")["id"]
        intent["status"] = "requires_confirmation"
    if call.get("confirm"):
        return _confirm(call.world, intent["id"], None)
    return intent


def new_intent(world: World, customer: str | None, metadata: dict[str, str], description: str | None = None) -> Obj:
    """Add a setup intent without a payment method. Emits `setup_intent.created`."""
    identifier = new_id("setup_intent")
    clock = world.clock_of(customer)
    intent: Obj = {
        "id": identifier,
        "object": "setup_intent",
        **dict.fromkeys(
            [
                "application",
                "automatic_payment_methods",
                "cancellation_reason",
                "customer_account",
                "excluded_payment_method_types",
                "flow_directions",
                "last_setup_error",
                "latest_attempt",
                "managed_payments",
                "mandate",
                "next_action",
                "on_behalf_of",
                "payment_method",
                "payment_method_configuration_details",
                "single_use_mandate",
            ]
        ),
        "client_secret": f"{identifier}_secret_{random_text(24)}",
        "created": world.now(clock),
        "customer": customer,
        "description": description,
        "livemode": False,
        "metadata": metadata,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "status": "requires_payment_method",
        "usage": "off_session",
        "_clock": clock,
    }
    world.add(intent)
    emit(world, "setup_intent.created", intent)
    return intent


def _confirm(world: World, identifier: str, method: str | None) -> Obj:
    chosen = method or world.get("setup_intent", identifier)["payment_method"]
    if chosen is None:
        raise invalid("You cannot confirm this SetupIntent because it's missing a payment method.", "payment_method")
    decline = settle(world, identifier, payment_methods.named(world, chosen, "payment_method")["id"])
    if decline is not None:
        raise payments.card_error(world, decline, setup_intent=world.get("setup_intent", identifier))
    return world.get("setup_intent", identifier)


def settle(world: World, identifier: str, method: str) -> cards.Decline | None:
    """Save a payment method through a setup intent: attached to its customer, or why not."""
    intent = world.edit("setup_intent", identifier)
    found = world.get("payment_method", method)
    decline = cards.CARDS[found["_number"]].decline
    if decline is not None:
        intent["last_setup_error"] = payments.error_object(decline, None, found)
        intent["status"] = "requires_payment_method"
        emit(world, "setup_intent.setup_failed", intent)
        return decline
    if intent["customer"] is not None:
        payment_methods.attach_to(world, method, intent["customer"])
    intent |= {"payment_method": method, "status": "succeeded", "last_setup_error": None}
    emit(world, "setup_intent.succeeded", intent)
    return None


@route("POST", "/v1/setup_intents/{id}/confirm", SetupIntentConfirmParams, "payment_method return_url")
def confirm(call: Call) -> Obj:
    """Confirm a setup intent."""
    found = call.world.need("setup_intent", call.id, "intent", in_path=True)
    if found["status"] in ("succeeded", "canceled"):
        raise Refusal(
            400,
            f"You cannot confirm this SetupIntent because it has a status of {found['status']}.",
            code="setup_intent_unexpected_state",
        )
    return _confirm(call.world, call.id, call.get("payment_method"))


@route("POST", "/v1/setup_intents/{id}/cancel", SetupIntentCancelParams, "cancellation_reason")
def cancel(call: Call) -> Obj:
    """Cancel a setup intent that has not succeeded."""
    found = call.world.need("setup_intent", call.id, "intent", in_path=True)
    if found["status"] in ("succeeded", "canceled"):
        raise Refusal(
            400,
            f"You cannot cancel this SetupIntent because it has a status of {found['status']}.",
            code="setup_intent_unexpected_state",
        )
    edited = call.world.edit("setup_intent", call.id)
    edited |= {"status": "canceled", "cancellation_reason": call.get("cancellation_reason")}
    emit(call.world, "setup_intent.canceled", edited)
    return edited


@route("GET", "/v1/setup_intents/{id}", SetupIntentRetrieveParams, "client_secret")
def retrieve(call: Call) -> Obj:
    """One setup intent."""
    return call.world.need("setup_intent", call.id, "intent", in_path=True)


@route("GET", "/v1/setup_intents", SetupIntentListParams, "+list customer payment_method")
def listed(call: Call) -> Listing:
    """Setup intents, newest first."""
    wanted = {name: call.params[name] for name in ("customer", "payment_method") if name in call.params}
    found = [i for i in call.world.all("setup_intent", **wanted) if within(i["created"], call.get("created"))]
    return page(found, call.params, "/v1/setup_intents")
