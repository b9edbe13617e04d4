"""Owns a subscription's items as requests of their own."""

from __future__ import annotations

from stripe.params._subscription_item_create_params import SubscriptionItemCreateParams
from stripe.params._subscription_item_delete_params import SubscriptionItemDeleteParams
from stripe.params._subscription_item_list_params import SubscriptionItemListParams
from stripe.params._subscription_item_retrieve_params import SubscriptionItemRetrieveParams
from stripe.params._subscription_item_update_params import SubscriptionItemUpdateParams

from deploy.local.sandbox.stripe.engine import invoicing, subscriptions
from deploy.local.sandbox.stripe.objects.subscriptions import change_items
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, no_such
from deploy.local.sandbox.stripe.rendering import Listing, page
from deploy.local.sandbox.stripe.routes import Call, route

_FIELDS = "price price_data quantity metadata proration_behavior proration_date"


def _apply(call: Call, subscription: str, item: Obj) -> None:
    kept: Obj = {name: call.params[name] for name in ("proration_behavior", "proration_date") if name in call.params}
    draft = change_items(call.world, subscription, {"items": [item], **kept})
    subscriptions.plan(call.world, subscription)
    if draft is not None:
        invoicing.collect(call.world, draft["id"])


def _item(params: Obj) -> Obj:
    return {
        name: params[name] for name in ("price", "price_data", "quantity", "metadata", "clear_usage") if name in params
    }


@route("POST", "/v1/subscription_items", SubscriptionItemCreateParams, f"subscription {_FIELDS}")
def create(call: Call) -> Obj:
    """Add an item to a subscription."""
    found = call.world.need("subscription", call.params["subscription"], "subscription")
    _apply(call, found["id"], _item(call.params))
    return call.world.get("subscription_item", call.world.get("subscription", found["id"])["_items"][-1])


def _need(call: Call) -> Obj:
    found = call.world.need("subscription_item", call.id, "item", in_path=True)
    if call.id not in call.world.get("subscription", found["subscription"])["_items"]:
        raise no_such("subscription_item", call.id, "item", in_path=True)
    return found


@route("POST", "/v1/subscription_items/{id}", SubscriptionItemUpdateParams, _FIELDS)
def update(call: Call) -> Obj:
    """Change an item."""
    found = _need(call)
    if set(call.params) <= {"metadata", "expand"}:
        edited = call.world.edit("subscription_item", call.id)
        edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
        return edited
    _apply(call, found["subscription"], {"id": call.id, **_item(call.params)})
    return call.world.get("subscription_item", call.id)


@route(
    "DELETE",
    "/v1/subscription_items/{id}",
    SubscriptionItemDeleteParams,
    "clear_usage proration_behavior proration_date",
)
def delete(call: Call) -> Obj:
    """Take an item out of its subscription."""
    found = _need(call)
    _apply(call, found["subscription"], {"id": call.id, "deleted": True, **_item(call.params)})
    return {"id": call.id, "object": "subscription_item", "deleted": True}


@route("GET", "/v1/subscription_items/{id}", SubscriptionItemRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One item."""
    return _need(call)


@route("GET", "/v1/subscription_items", SubscriptionItemListParams, "subscription limit starting_after ending_before")
def listed(call: Call) -> Listing:
    """A subscription's items, in their order."""
    found = call.world.need("subscription", call.params["subscription"], "subscription")
    items = [call.world.get("subscription_item", identifier) for identifier in found["_items"]]
    return page(items[::-1], call.params, "/v1/subscription_items")
