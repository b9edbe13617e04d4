"""Owns customers, and the history of their balances."""

from __future__ import annotations

from stripe.params._customer_balance_transaction_create_params import CustomerBalanceTransactionCreateParams
from stripe.params._customer_balance_transaction_list_params import CustomerBalanceTransactionListParams
from stripe.params._customer_create_params import CustomerCreateParams
from stripe.params._customer_delete_params import CustomerDeleteParams
from stripe.params._customer_list_params import CustomerListParams
from stripe.params._customer_retrieve_params import CustomerRetrieveParams
from stripe.params._customer_search_params import CustomerSearchParams
from stripe.params._customer_update_params import CustomerUpdateParams

from deploy.local.sandbox.stripe.engine import balances, invoicing, standing
from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.objects import payment_methods
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import Listing, embedded_list, includes, page, render, within
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.search import results
from deploy.local.sandbox.stripe.world import World

_FIELDS = (
    "address balance description email invoice_prefix "
    "invoice_settings.default_payment_method invoice_settings.footer metadata "
    "name next_invoice_sequence phone preferred_locales shipping"
)
_LONGEST_EMAIL = 512


@route("POST", "/v1/customers", CustomerCreateParams, f"payment_method test_clock tax_exempt {_FIELDS}")
def create(call: Call) -> Obj:
    """Add a customer, with a first payment method and under a test clock if asked."""
    customer = new_customer(call.world, call.params)
    if (method := call.get("payment_method")) is not None:
        payment_methods.attach_to(call.world, method, customer["id"])
    _set_default_method(call.world, customer, call.params)
    return call.world.get("customer", customer["id"])


def new_customer(world: World, params: Obj) -> Obj:
    """Add a customer as requested. Emits `customer.created`.

    Raises:
        Refusal: no such test clock, or a bad e-mail address.
    """
    clock = params.get("test_clock")
    if clock is not None:
        world.need("test_helpers.test_clock", clock, "test_clock")
    _require_email(params)
    customer: Obj = {
        "id": new_id("customer"),
        "object": "customer",
        "address": params.get("address") or None,
        "balance": params.get("balance", 0),
        "created": world.now(clock),
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": params.get("description"),
        "discount": None,
        "email": params.get("email"),
        "invoice_prefix": params.get("invoice_prefix") or invoicing.invoice_prefix(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": (params.get("invoice_settings") or {}).get("footer"),
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": merged_metadata({}, params.get("metadata")),
        "name": params.get("name"),
        "next_invoice_sequence": params.get("next_invoice_sequence", 1),
        "phone": params.get("phone"),
        "preferred_locales": params.get("preferred_locales") or [],
        "shipping": params.get("shipping") or None,
        "tax_exempt": params.get("tax_exempt") or "none",
        "test_clock": clock,
    }
    world.add(customer)
    emit(world, "customer.created", customer)
    return customer


def _require_email(params: Obj) -> None:
    email = params.get("email")
    if email and ("@" not in email or len(email) > _LONGEST_EMAIL or " " in email):
        raise invalid(f"Invalid email address: {email[:_LONGEST_EMAIL]}", "email", "email_invalid")


def _set_default_method(world: World, customer: Obj, params: Obj) -> None:
    method = (params.get("invoice_settings") or {}).get("default_payment_method")
    if method is None:
        return
    if method:
        payment_methods.require_owned(world, method, customer["id"], "invoice_settings[default_payment_method]")
    world.edit("customer", customer["id"])["invoice_settings"]["default_payment_method"] = method or None


@route("POST", "/v1/customers/{id}", CustomerUpdateParams, _FIELDS + " tax_exempt")
def update(call: Call) -> Obj:
    """Change a customer."""
    found = call.world.need("customer", call.id, in_path=True)
    if found.get("deleted"):
        raise invalid(f"No such customer: '{call.id}'; it was deleted.", "id", "resource_missing")
    _require_email(call.params)
    with change(call.world, "customer", call.id, "customer.updated") as edited:
        for name, value in call.params.items():
            if name == "metadata":
                edited["metadata"] = merged_metadata(edited["metadata"], value)
            elif name == "invoice_settings":
                _set_default_method(call.world, edited, call.params)
                if "footer" in value:
                    edited["invoice_settings"]["footer"] = value["footer"] or None
            elif name != "expand":
                edited[name] = None if value == "" else value
    return edited


@route("GET", "/v1/customers/{id}", CustomerRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One customer; a deleted one says so."""
    return call.world.need("customer", call.id, in_path=True)


@route("DELETE", "/v1/customers/{id}", CustomerDeleteParams)
def delete(call: Call) -> Obj:
    """Delete a customer for good, and end its subscriptions."""
    found = call.world.need("customer", call.id, in_path=True)
    if not found.get("deleted"):
        remove(call.world, found)
    return call.world.get("customer", call.id)


def remove(world: World, customer: Obj) -> None:
    """End a customer's subscriptions, detach its cards and leave its tombstone."""
    for subscription in list(world.all("subscription", customer=customer["id"])):
        if subscription["status"] not in standing.ENDED:
            standing.end(world, subscription["id"], reason="cancellation_requested")
    for invoice in list(world.all("invoice", customer=customer["id"])):
        if invoice["status"] in ("draft", "open"):
            world.unschedule("finalize", invoice["id"])
            world.unschedule("retry", invoice["id"])
            world.edit("invoice", invoice["id"])["auto_advance"] = False
    for method in list(world.all("payment_method", customer=customer["id"])):
        world.edit("payment_method", method["id"])["customer"] = None
    emit(world, "customer.deleted", customer)
    world.remove("customer", customer["id"])
    tombstone = {"id": customer["id"], "object": "customer", "deleted": True, "test_clock": customer["test_clock"]}
    # What is left of it still answers for its invoices' clock and balance.
    world.add({**{f"_{name}": value for name, value in customer.items()}, **tombstone})


@route("GET", "/v1/customers", CustomerListParams, "+list email test_clock")
def listed(call: Call) -> Listing:
    """Customers, newest first; those of test clocks only where the clock is named."""
    email, clock = call.get("email"), call.get("test_clock")
    found = [
        customer
        for customer in call.world.all("customer")
        if not customer.get("deleted")
        and customer["test_clock"] == clock
        and (email is None or customer["email"] == email)
        and within(customer["created"], call.get("created"))
    ]
    return page(found, call.params, "/v1/customers")


@route("GET", "/v1/customers/search", CustomerSearchParams, "query limit page")
def search(call: Call) -> Listing:
    """Customers that a query finds."""
    return results(call, "customer")


@route(
    "POST",
    "/v1/customers/{id}/balance_transactions",
    CustomerBalanceTransactionCreateParams,
    "amount currency description metadata",
)
def adjust_balance(call: Call) -> Obj:
    """Add an amount to a customer's balance: below zero is a credit of the customer's."""
    call.world.need("customer", call.id, "customer", in_path=True)
    metadata = merged_metadata({}, call.get("metadata"))
    description = call.get("description") or None
    world = call.world
    if world.get("customer", call.id)["currency"] is None:
        world.edit("customer", call.id)["currency"] = call.params["currency"]
    return balances.move(
        world, call.id, call.params["amount"], kind="adjustment", description=description, metadata=metadata
    )


@route("GET", "/v1/customers/{id}/balance_transactions", CustomerBalanceTransactionListParams, "+list invoice")
def balance_history(call: Call) -> Listing:
    """A customer's balance movements, newest first."""
    call.world.need("customer", call.id, "customer", in_path=True)
    found = list(call.world.all("customer_balance_transaction", customer=call.id))
    return page(found, call.params, f"/v1/customers/{call.id}/balance_transactions")


@includes("customer", "subscriptions")
def _subscriptions(world: World, customer: Obj) -> Obj:
    found = [
        render(world, subscription)
        for subscription in world.all("subscription", customer=customer["id"])
        if subscription["status"] not in standing.ENDED
    ]
    return embedded_list(found[::-1], f"/v1/customers/{customer['id']}/subscriptions")
