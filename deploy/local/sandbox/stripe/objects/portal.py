"""Owns the customer portal as requests see it: its configurations, and sessions with their page."""

from __future__ import annotations

from typing import Any

from stripe.params.billing_portal._configuration_create_params import ConfigurationCreateParams
from stripe.params.billing_portal._configuration_list_params import ConfigurationListParams
from stripe.params.billing_portal._configuration_retrieve_params import ConfigurationRetrieveParams
from stripe.params.billing_portal._configuration_update_params import ConfigurationUpdateParams
from stripe.params.billing_portal._session_create_params import SessionCreateParams

from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.identifiers import new_id, random_text
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.world import World

KIND = "billing_portal.configuration"
_FIELDS = "business_profile default_return_url features login_page metadata name"


@route("POST", "/v1/billing_portal/configurations", ConfigurationCreateParams, _FIELDS)
def create_configuration(call: Call) -> Obj:
    """Add a configuration: what customers may do in the portal."""
    made = _new(call.world, call.params, is_default=False)
    emit(call.world, "billing_portal.configuration.created", made)
    return made


def _new(world: World, params: Obj, *, is_default: bool) -> Obj:
    now = world.now()
    made: Obj = {
        "id": new_id(KIND),
        "object": KIND,
        "active": True,
        "application": None,
        "business_profile": {
            "headline": None,
            "privacy_policy_url": None,
            "terms_of_service_url": None,
            **(params.get("business_profile") or {}),
        },
        "created": now,
        "default_return_url": params.get("default_return_url"),
        "features": _features(params.get("features") or {}),
        "is_default": is_default,
        "livemode": False,
        "login_page": {"enabled": False, "url": None},
        "metadata": merged_metadata({}, params.get("metadata")),
        "name": params.get("name"),
        "updated": now,
    }
    return world.add(made)


def _features(given: Obj) -> Obj:
    """Every feature, off where it was not asked for."""
    cancel = given.get("subscription_cancel") or {"enabled": False}
    reasons = {"enabled": False, "options": []} | (cancel.get("cancellation_reason") or {})
    switch = given.get("subscription_update") or {"enabled": False}
    changes: dict[str, Any] = {
        "billing_cycle_anchor": None,
        "default_allowed_updates": [],
        "proration_behavior": "none",
        "schedule_at_period_end": {"conditions": []},
        "trial_update_behavior": "end_trial",
    }
    method = given.get("payment_method_update") or {"enabled": False}
    return {
        "customer_update": {"allowed_updates": [], "enabled": False} | (given.get("customer_update") or {}),
        "invoice_history": given.get("invoice_history") or {"enabled": False},
        "payment_method_update": {"payment_method_configuration": None, **method},
        "subscription_cancel": {
            "mode": "at_period_end",
            "proration_behavior": "none",
            **cancel,
            "cancellation_reason": reasons,
        },
        "subscription_pause": {"duration": {"interval_options": [], "type": "indefinite"}, "enabled": False}
        | (given.get("subscription_pause") or {}),
        "subscription_update": changes | switch,
    }


@route("POST", "/v1/billing_portal/configurations/{id}", ConfigurationUpdateParams, f"active {_FIELDS}")
def update_configuration(call: Call) -> Obj:
    """Change a configuration."""
    call.world.need(KIND, call.id, "configuration", in_path=True)
    with change(call.world, KIND, call.id, "billing_portal.configuration.updated") as edited:
        if "active" in call.params:
            edited["active"] = call.params["active"]
        if "features" in call.params:
            edited["features"] = _features({**edited["features"], **call.params["features"]})
        edited["business_profile"] |= call.get("business_profile") or {}
        for name in ("default_return_url", "name"):
            if name in call.params:
                edited[name] = call.params[name] or None
        edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
        edited["updated"] = call.world.now()
    return edited


@route("GET", "/v1/billing_portal/configurations/{id}", ConfigurationRetrieveParams)
def retrieve_configuration(call: Call) -> Obj:
    """One configuration."""
    return call.world.need(KIND, call.id, "configuration", in_path=True)


@route(
    "GET",
    "/v1/billing_portal/configurations",
    ConfigurationListParams,
    "limit starting_after ending_before active is_default",
)
def listed_configurations(call: Call) -> Listing:
    """Configurations, newest first."""
    wanted = {name: call.params[name] for name in ("active", "is_default") if name in call.params}
    return page(call.world.all(KIND, **wanted), call.params, "/v1/billing_portal/configurations")


@route("POST", "/v1/billing_portal/sessions", SessionCreateParams, "customer configuration return_url locale flow_data")
def create_session(call: Call) -> Obj:
    """Open the portal for a customer; without a configuration, the default one is made."""
    world = call.world
    if "customer" not in call.params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    world.need("customer", call.params["customer"], "customer")
    configuration = call.get("configuration")
    if configuration is not None:
        world.need(KIND, configuration, "configuration")
    else:
        everything = {
            "customer_update": {"allowed_updates": ["email"], "enabled": True},
            "invoice_history": {"enabled": True},
            "payment_method_update": {"enabled": True},
            "subscription_cancel": {"enabled": True},
        }
        found = next(world.all(KIND, is_default=True), None)
        configuration = (found or _new(world, {"features": everything}, is_default=True))["id"]
    secret = random_text(24)
    made: Obj = {
        "id": new_id("billing_portal.session"),
        "object": "billing_portal.session",
        "configuration": configuration,
        "created": world.now(),
        "customer": call.params["customer"],
        "customer_account": None,
        "flow": _flow(call.get("flow_data")),
        "livemode": False,
        "locale": call.get("locale"),
        "on_behalf_of": None,
        "return_url": call.get("return_url") or world.get(KIND, configuration)["default_return_url"],
        "url": f"{world.settings.base_url}/p/session/{secret}",
        "_secret": secret,
    }
    world.add(made)
    emit(world, "billing_portal.session.created", made)
    return made


def _flow(given: Obj | None) -> Obj | None:
    if given is None:
        return None
    empty = dict.fromkeys(("subscription_cancel", "subscription_update", "subscription_update_confirm"))
    after = {"hosted_confirmation": None, "redirect": None, "type": "portal_homepage"} | (
        given.get("after_completion") or {}
    )
    return {**empty, **given, "after_completion": after}
