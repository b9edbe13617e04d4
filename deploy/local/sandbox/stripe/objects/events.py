"""Owns events and webhook endpoints as requests see them."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from stripe.params._event_list_params import EventListParams
from stripe.params._event_retrieve_params import EventRetrieveParams
from stripe.params._webhook_endpoint_create_params import WebhookEndpointCreateParams
from stripe.params._webhook_endpoint_delete_params import WebhookEndpointDeleteParams
from stripe.params._webhook_endpoint_list_params import WebhookEndpointListParams
from stripe.params._webhook_endpoint_retrieve_params import WebhookEndpointRetrieveParams
from stripe.params._webhook_endpoint_update_params import WebhookEndpointUpdateParams

from deploy.local.sandbox.stripe.identifiers import new_id, random_text
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page, within
from deploy.local.sandbox.stripe.routes import Call, route

_MOST_ENDPOINTS: Final = 16
_MOST_TYPES: Final = 20
_THIS_MACHINE: Final = ("127.0.0.1", "localhost", "::1")


@route("GET", "/v1/events/{id}", EventRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One event."""
    return call.world.need("event", call.id, in_path=True)


@route("GET", "/v1/events", EventListParams, "+list type types delivery_success")
def listed(call: Call) -> Listing:
    """Events, newest first."""
    kind, kinds = call.get("type"), call.get("types")
    if kind is not None and kinds is not None:
        raise invalid("You may only specify one of these parameters: type, types.", "types")
    if kinds is not None and len(kinds) > _MOST_TYPES:
        raise invalid(f"At most {_MOST_TYPES} types at once.", "types")
    delivered = call.get("delivery_success")
    found = [
        event
        for event in call.world.all("event")
        if within(event["created"], call.get("created"))
        and (kind is None or _is_of(event["type"], kind))
        and (kinds is None or event["type"] in kinds)
        and (delivered is None or delivered == (event["pending_webhooks"] == 0))
    ]
    return page(found, call.params, "/v1/events")


def _is_of(kind: str, wanted: str) -> bool:
    return kind.startswith(wanted[:-1]) if wanted.endswith(".*") else kind == wanted


_FIELDS = "description enabled_events metadata url"


@route("POST", "/v1/webhook_endpoints", WebhookEndpointCreateParams, f"api_version {_FIELDS}")
def create_endpoint(call: Call) -> Obj:
    """Add an endpoint; its secret is in this one answer."""
    if sum(1 for _ in call.world.all("webhook_endpoint")) >= _MOST_ENDPOINTS:
        raise invalid(f"You have reached the maximum of {_MOST_ENDPOINTS} webhook endpoints.")
    _require_url(call.params["url"])
    endpoint: Obj = {
        "id": new_id("webhook_endpoint"),
        "object": "webhook_endpoint",
        "api_version": call.get("api_version"),
        "application": None,
        "created": call.world.now(),
        "description": call.get("description"),
        "enabled_events": call.params["enabled_events"],
        "livemode": False,
        "metadata": merged_metadata({}, call.get("metadata")),
        "status": "enabled",
        "url": call.params["url"],
        "_secret": f"whsec_{random_text(32)}",
    }
    call.world.add(endpoint)
    return {**endpoint, "secret": endpoint["_secret"]}


def _require_url(url: str) -> None:
    """Only this machine is called: the sandbox sends nothing out."""
    if urlsplit(url).scheme not in ("http", "https") or urlsplit(url).hostname not in _THIS_MACHINE:
        raise invalid("SANDBOX: webhooks are sent to addresses on this machine only.", "url", "url_invalid")


@route("POST", "/v1/webhook_endpoints/{id}", WebhookEndpointUpdateParams, f"disabled {_FIELDS}")
def update_endpoint(call: Call) -> Obj:
    """Change an endpoint, or switch it off and on."""
    call.world.need("webhook_endpoint", call.id, in_path=True)
    edited = call.world.edit("webhook_endpoint", call.id)
    if "url" in call.params:
        _require_url(call.params["url"])
    edited |= {name: call.params[name] for name in ("enabled_events", "url") if name in call.params}
    if "description" in call.params:
        edited["description"] = call.params["description"] or None
    edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
    if "disabled" in call.params:
        edited["status"] = "disabled" if call.params["disabled"] else "enabled"
    return edited


@route("DELETE", "/v1/webhook_endpoints/{id}", WebhookEndpointDeleteParams)
def delete_endpoint(call: Call) -> Obj:
    """Take an endpoint away."""
    call.world.need("webhook_endpoint", call.id, in_path=True)
    call.world.remove("webhook_endpoint", call.id)
    return {"id": call.id, "object": "webhook_endpoint", "deleted": True}


@route("GET", "/v1/webhook_endpoints/{id}", WebhookEndpointRetrieveParams)
def retrieve_endpoint(call: Call) -> Obj:
    """One endpoint, without its secret."""
    return call.world.need("webhook_endpoint", call.id, in_path=True)


@route("GET", "/v1/webhook_endpoints", WebhookEndpointListParams, "limit starting_after ending_before")
def listed_endpoints(call: Call) -> Listing:
    """Endpoints, newest first."""
    return page(call.world.all("webhook_endpoint"), call.params, "/v1/webhook_endpoints")
