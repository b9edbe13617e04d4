"""Owns checkout sessions as requests see them; what happens on their page is the engine's."""

from __future__ import annotations

from typing import Final

from stripe.params.checkout._session_create_params import SessionCreateParams
from stripe.params.checkout._session_expire_params import SessionExpireParams
from stripe.params.checkout._session_line_item_list_params import SessionLineItemListParams
from stripe.params.checkout._session_list_params import SessionListParams
from stripe.params.checkout._session_retrieve_params import SessionRetrieveParams
from stripe.params.checkout._session_update_params import SessionUpdateParams

from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.objects import checkout_completion as checkout
from deploy.local.sandbox.stripe.objects.subscriptions import refuse_tax
from deploy.local.sandbox.stripe.objects.wanted_items import price_amount, wanted_item
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid
from deploy.local.sandbox.stripe.rendering import Listing, embedded_list, embeds, includes, page, render, within
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.world import World

_DAY: Final = 86_400
_SHORTEST_SECONDS: Final = 30 * 60
_NULLS: Final = [
    "adaptive_pricing",
    "after_expiration",
    "allow_promotion_codes",
    "billing_address_collection",
    "cancel_url",
    "client_reference_id",
    "client_secret",
    "collected_information",
    "consent",
    "consent_collection",
    "currency_conversion",
    "customer",
    "customer_account",
    "customer_email",
    "discounts",
    "integration_identifier",
    "invoice",
    "invoice_creation",
    "locale",
    "managed_payments",
    "origin_context",
    "payment_intent",
    "payment_link",
    "payment_method_collection",
    "payment_method_configuration_details",
    "permissions",
    "recovered_from",
    "saved_payment_method_options",
    "setup_intent",
    "shipping_address_collection",
    "shipping_cost",
    "submit_type",
    "subscription",
    "success_url",
    "wallet_options",
]


@route(
    "POST",
    "/v1/checkout/sessions",
    SessionCreateParams,
    "mode success_url cancel_url customer customer_email client_reference_id metadata expires_at currency locale "
    "customer_creation payment_method_collection payment_method_types allow_promotion_codes billing_address_collection "
    "submit_type saved_payment_method_options automatic_tax.enabled ui_mode customer_update "
    "line_items.price line_items.price_data line_items.quantity line_items.metadata "
    "subscription_data.metadata subscription_data.description subscription_data.trial_period_days "
    "subscription_data.trial_end subscription_data.trial_settings subscription_data.billing_mode.type "
    "payment_intent_data.metadata payment_intent_data.description payment_intent_data.setup_future_usage "
    "payment_intent_data.receipt_email setup_intent_data.metadata "
    "setup_intent_data.description invoice_creation.enabled",
)
def create(call: Call) -> Obj:
    """Open a checkout and its page."""
    world, params = call.world, call.params
    mode = params.get("mode", "payment" if "line_items" in params else "setup")
    _require_sense(world, params, mode)
    identifier = f"{new_id('checkout.session')}{new_id('item')[-12:]}"
    contents = [_line_item(world, item, position) for position, item in enumerate(params.get("line_items") or [])]
    _require_prices(contents, mode)
    total = sum(item["amount_total"] for item in contents)
    trial = "trial_period_days" in (params.get("subscription_data") or {}) or "trial_end" in (
        params.get("subscription_data") or {}
    )
    due = 0 if trial else sum(i["amount_total"] for i in contents if not i["_metered"])
    session = _new(world, identifier, params, mode)
    session |= {
        "amount_subtotal": None if mode == "setup" else (0 if trial else total),
        "amount_total": None if mode == "setup" else due,
        "currency": contents[0]["currency"] if contents else params.get("currency"),
        "total_details": None if mode == "setup" else {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "_lines": contents,
    }
    world.add(session)
    world.schedule("expire_checkout", identifier, session["expires_at"], world.clock_of(session["customer"]))
    return session


def _require_sense(world: World, params: Obj, mode: str) -> None:
    refuse_tax(params)
    if params.get("ui_mode", "hosted_page") not in ("hosted", "hosted_page"):
        raise invalid("SANDBOX: only hosted checkout pages are built.", "ui_mode", "sandbox_not_built")
    if "success_url" not in params:
        raise invalid("Missing required param: success_url.", "success_url", "parameter_missing")
    _require_urls(params)
    if mode != "setup" and not params.get("line_items"):
        raise invalid("Missing required param: line_items.", "line_items", "parameter_missing")
    if mode == "setup" and params.get("line_items"):
        raise invalid("`line_items` cannot be passed in `setup` mode.", "line_items")
    if "customer" in params:
        if "customer_email" in params or "customer_creation" in params:
            raise invalid("You may only specify one of these parameters: customer, customer_email.", "customer_email")
        world.need("customer", params["customer"], "customer")
    for name, wanted in (
        ("subscription_data", "subscription"),
        ("payment_intent_data", "payment"),
        ("setup_intent_data", "setup"),
    ):
        if name in params and mode != wanted:
            raise invalid(f"You can not pass `{name}` in `{mode}` mode.", name)


def _require_urls(params: Obj) -> None:
    for name in ("success_url", "cancel_url"):
        if name in params and not params[name].startswith(("http://", "https://")):
            raise invalid("Not a valid URL", name, "url_invalid")


def _require_prices(contents: list[Obj], mode: str) -> None:
    recurring = [item["_recurring"] for item in contents]
    if mode == "payment" and any(recurring):
        raise invalid(
            "You must provide at least one non-recurring price in `payment` mode, and no recurring ones; "
            "for those use `subscription` mode.",
            "mode",
        )
    if mode == "subscription" and not any(recurring):
        raise invalid("You must provide at least one recurring price in `subscription` mode when using prices.", "mode")


def _line_item(world: World, item: Obj, position: int) -> Obj:
    path = f"line_items[{position}]"
    try:
        price, quantity, metadata = wanted_item(world, item, position)
    except Refusal as refusal:
        refusal.param = (refusal.param or "").replace("items[", "line_items[", 1) or None
        raise
    metered = (price["recurring"] or {}).get("usage_type") == "metered"
    if quantity is None and not metered:
        raise invalid(f"Quantity is required. Add `quantity` to `{path}`.", f"{path}[quantity]", "parameter_missing")
    amount = 0 if metered else price_amount(price, quantity or 0)
    product = world.get("product", price["product"])
    return {
        "id": new_id("item"),
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": product["name"],
        "metadata": metadata,
        "quantity": quantity,
        "_price": price["id"],
        "_metered": metered,
        "_recurring": price["recurring"] is not None,
    }


@embeds("item")
def _shown_item(world: World, item: Obj) -> Obj:
    return {"price": render(world, world.get("price", item["_price"]))}


def _new(world: World, identifier: str, params: Obj, mode: str) -> Obj:
    customer = params.get("customer")
    now = world.now(world.clock_of(customer))
    expires = params.get("expires_at", now + _DAY)
    if not now + _SHORTEST_SECONDS - 60 <= expires <= now + _DAY + 60:
        raise invalid(
            "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation.",
            "expires_at",
        )
    email = params.get("customer_email") or (world.get("customer", customer)["email"] if customer else None)
    kept = (
        "allow_promotion_codes billing_address_collection cancel_url client_reference_id "
        "customer customer_email locale "
        "payment_method_collection saved_payment_method_options submit_type success_url"
    )
    return {
        "id": identifier,
        "object": "checkout.session",
        **dict.fromkeys(_NULLS),
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "created": now,
        "custom_fields": [],
        "custom_text": dict.fromkeys(("after_submit", "shipping_address", "submit", "terms_of_service_acceptance")),
        "customer_creation": None
        if customer
        else params.get("customer_creation", "always" if mode == "subscription" else "if_required"),
        "customer_details": {
            **dict.fromkeys(("address", "business_name", "individual_name", "name", "phone")),
            "email": email,
            "tax_exempt": "none",
            "tax_ids": None,
        }
        if email
        else None,
        "expires_at": expires,
        "invoice_creation": {"enabled": False, "invoice_data": checkout.no_invoice_data()}
        if mode == "payment"
        else None,
        "livemode": False,
        "metadata": merged_metadata({}, params.get("metadata")),
        "mode": mode,
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}},
        "payment_method_types": params.get("payment_method_types") or ["card"],
        "payment_status": "no_payment_required" if mode == "setup" else "unpaid",
        "phone_number_collection": {"enabled": False},
        "shipping_options": [],
        "status": "open",
        "ui_mode": "hosted_page",
        "url": f"{world.settings.base_url}/c/pay/{identifier}",
        **{name: params[name] for name in kept.split() if name in params},
        "_data": {
            name: params.get(f"{name}_data") or {} for name in ("subscription", "payment_intent", "setup_intent")
        },
        "_invoice": (params.get("invoice_creation") or {}).get("enabled", False),
        "_error": None,
    }


def _need(call: Call) -> Obj:
    return call.world.need("checkout.session", call.id, "session", in_path=True)


@route("POST", "/v1/checkout/sessions/{id}/expire", SessionExpireParams)
def expire(call: Call) -> Obj:
    """Close an open checkout."""
    found = _need(call)
    if found["status"] != "open":
        raise invalid(
            'Only Checkout Sessions with a status in ["open"] can be expired. '
            f"This Checkout Session has a status of {found['status']}."
        )
    return checkout.expire(call.world, call.id)


@route("POST", "/v1/checkout/sessions/{id}", SessionUpdateParams, "metadata")
def update(call: Call) -> Obj:
    """Change a checkout's metadata."""
    _need(call)
    edited = call.world.edit("checkout.session", call.id)
    edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
    return edited


@route("GET", "/v1/checkout/sessions/{id}", SessionRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One checkout."""
    return _need(call)


@route("GET", "/v1/checkout/sessions", SessionListParams, "+list customer payment_intent subscription status")
def listed(call: Call) -> Listing:
    """Checkouts, newest first."""
    names = ("customer", "payment_intent", "subscription", "status")
    wanted = {name: call.params[name] for name in names if name in call.params}
    found = [s for s in call.world.all("checkout.session", **wanted) if within(s["created"], call.get("created"))]
    return page(found, call.params, "/v1/checkout/sessions")


@route("GET", "/v1/checkout/sessions/{id}/line_items", SessionLineItemListParams, "limit starting_after ending_before")
def line_items(call: Call) -> Listing:
    """What a checkout sells, in its order."""
    contents = _need(call)["_lines"]
    params = {"limit": 100, **call.params}
    return page(contents[::-1], params, f"/v1/checkout/sessions/{call.id}/line_items")


@includes("checkout.session", "line_items")
def _line_items(world: World, session: Obj) -> Obj:
    data = [render(world, item) for item in world.get("checkout.session", session["id"])["_lines"]]
    return embedded_list(data, f"/v1/checkout/sessions/{session['id']}/line_items")
