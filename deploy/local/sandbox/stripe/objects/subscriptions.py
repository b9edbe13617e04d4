"""Owns subscriptions and their items as requests see them."""

from __future__ import annotations

from typing import Final

from stripe.params._subscription_cancel_params import SubscriptionCancelParams
from stripe.params._subscription_create_params import SubscriptionCreateParams
from stripe.params._subscription_list_params import SubscriptionListParams
from stripe.params._subscription_resume_params import SubscriptionResumeParams
from stripe.params._subscription_retrieve_params import SubscriptionRetrieveParams
from stripe.params._subscription_search_params import SubscriptionSearchParams
from stripe.params._subscription_update_params import SubscriptionUpdateParams

from deploy.local.sandbox.stripe import cards
from deploy.local.sandbox.stripe.engine import (
    cancellation,
    changes,
    collecting,
    invoicing,
    payments,
    standing,
    subscriptions,
)
from deploy.local.sandbox.stripe.engine.events import change
from deploy.local.sandbox.stripe.objects import payment_methods
from deploy.local.sandbox.stripe.objects.wanted_items import add_invoice_items, price_of, wanted_item
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid, not_built
from deploy.local.sandbox.stripe.rendering import Listing, page, within
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.search import results
from deploy.local.sandbox.stripe.world import World

_DAY: Final = 86_400
_MOST_TRIAL_SECONDS: Final = 730 * _DAY
_ITEM: Final = "price price_data quantity metadata"
_CREATED_ITEM: Final = " ".join(f"items.{name}" for name in _ITEM.split())
_CHANGED_ITEM: Final = f"{_CREATED_ITEM} items.id items.deleted items.clear_usage"
_BOTH: Final = (
    "metadata description default_payment_method cancel_at cancel_at_period_end "
    "collection_method days_until_due off_session "
    "payment_behavior proration_behavior trial_end trial_settings add_invoice_items.price add_invoice_items.price_data "
    "add_invoice_items.quantity add_invoice_items.metadata payment_settings.save_default_payment_method "
    "payment_settings.payment_method_types automatic_tax.enabled"
)


@route(
    "POST",
    "/v1/subscriptions",
    SubscriptionCreateParams,
    f"customer trial_period_days billing_cycle_anchor billing_mode.type currency {_BOTH} {_CREATED_ITEM}",
)
def create(call: Call) -> Obj:
    """Open a subscription and, unless told otherwise, collect its first invoice at once."""
    world, params = call.world, call.params
    if "customer" not in params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = world.need("customer", params["customer"], "customer")
    subscription, invoice = open_for(world, customer, params)
    behavior = params.get("payment_behavior", "allow_incomplete")
    charged = subscription["collection_method"] == "charge_automatically" and invoice["amount_due"] > 0
    if charged and behavior != "default_incomplete" and collecting.default_method(world, invoice) is None:
        raise invalid(
            "This customer has no attached payment source or default payment method. "
            "Please consider adding a default payment method.",
            code="resource_missing",
        )
    subscriptions.start(world, subscription, invoice, behavior=behavior, off_session=True)
    return world.get("subscription", subscription["id"])


def open_for(world: World, customer: Obj, params: Obj) -> tuple[Obj, Obj]:
    """Open the subscription that parameters ask for: it, and the draft of its first invoice.

    Raises:
        Refusal: the parameters contradict each other or name what is not there.
    """
    refuse_tax(params)
    options = _options(world, customer, params)
    found = [wanted_item(world, item, position) for position, item in enumerate(params.get("items") or [])]
    add_invoice_items(world, customer, params, None)
    return subscriptions.open_subscription(world, customer, found, options)


def refuse_tax(params: Obj) -> None:
    """Say that taxes are not computed, where a request wants them."""
    if (params.get("automatic_tax") or {}).get("enabled"):
        raise not_built("automatic tax", "automatic_tax[enabled]")


def _options(world: World, customer: Obj, params: Obj) -> Obj:
    """The fields of a new subscription that its parameters decide."""
    now = world.now(customer["test_clock"])
    options: Obj = {"metadata": merged_metadata({}, params.get("metadata"))}
    trial_end = params.get("trial_end")
    if "trial_period_days" in params:
        if trial_end is not None:
            raise invalid("You may only specify one of these parameters: trial_end, trial_period_days.", "trial_end")
        trial_end = now + params["trial_period_days"] * _DAY
    if trial_end not in (None, "now", now):
        options["trial_end"] = _future(trial_end, now, "trial_end")
    if "trial_settings" in params:
        options["trial_settings"] = params["trial_settings"]
    if (anchor := params.get("billing_cycle_anchor")) is not None:
        options["_anchor"] = _future(anchor, now, "billing_cycle_anchor")
        options["_prorates"] = params.get("proration_behavior") != "none"
    if (method := params.get("default_payment_method")) is not None:
        payment_methods.require_owned(world, method, customer["id"], "default_payment_method")
    kept = "description default_payment_method cancel_at_period_end collection_method days_until_due"
    options |= {name: params[name] for name in kept.split() if name in params}
    if isinstance(params.get("cancel_at"), int):
        options["cancel_at"] = params["cancel_at"]
    if options.get("collection_method") == "send_invoice" and "days_until_due" not in params:
        raise invalid("You must pass `days_until_due` when `collection_method` is `send_invoice`.", "days_until_due")
    return options


def _future(moment: int, now: int, name: str) -> int:
    if not now < moment <= now + _MOST_TRIAL_SECONDS:
        raise invalid(f"`{name}` must be in the future, and at most two years ahead.", name)
    return moment


@route(
    "POST",
    "/v1/subscriptions/{id}",
    SubscriptionUpdateParams,
    f"billing_cycle_anchor pause_collection proration_date cancellation_details {_BOTH} {_CHANGED_ITEM}",
)
def update(call: Call) -> Obj:
    """Change a subscription: its items with proration, its end, its trial, its collection."""
    world, params = call.world, call.params
    found = world.need("subscription", call.id, in_path=True)
    if found["status"] in standing.ENDED and set(params) - {"metadata", "cancellation_details", "expand"}:
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.", "id")
    refuse_tax(params)
    _update_fields(world, found, params)
    draft = change_items(world, call.id, params)
    subscriptions.plan(world, call.id)
    if draft is not None:
        behavior = params.get("payment_behavior", "allow_incomplete")
        if behavior in {"default_incomplete", "pending_if_incomplete"}:
            raise not_built(f"payment_behavior={behavior} on a change of a subscription", "payment_behavior")
        decline = invoicing.collect(world, draft["id"])
        if decline is not None and behavior == "error_if_incomplete":
            raise _undone(world, decline, draft["id"])
    return world.get("subscription", call.id)


def _undone(world: World, decline: cards.Decline, invoice: str) -> Refusal:
    intent = world.get("payment_intent", world.get("invoice", invoice)["_intent"])
    refusal = payments.card_error(world, decline, payment_intent=intent)
    refusal.effects_stay = False
    return refusal


def change_items(world: World, identifier: str, params: Obj) -> Obj | None:
    """Carry out the part of a change that bills: items, the anchor, the end of a trial. The draft due now, or None."""
    found = world.get("subscription", identifier)
    now = world.now(found["test_clock"])
    customer = world.get("customer", found["customer"])
    add_invoice_items(world, customer, params, identifier)
    ends_trial = params.get("trial_end") == "now" and found["status"] == "trialing"
    resets = (params.get("billing_cycle_anchor") or {}).get("type") == "now" or ends_trial
    if ends_trial:
        with change(world, "subscription", identifier, "customer.subscription.updated") as edited:
            edited |= {"status": "active", "trial_end": now}
    if "items" not in params and not resets:
        return None
    return changes.apply(
        world,
        identifier,
        [_change(world, found, item, position) for position, item in enumerate(params.get("items") or [])],
        behavior=params.get("proration_behavior", "create_prorations"),
        at=params.get("proration_date"),
        reset_anchor=resets,
    )


def _change(world: World, subscription: Obj, item: Obj, position: int) -> changes.Change:
    path = f"items[{position}]"
    identifier = item.get("id")
    price = price_of(world, item, path)
    quantity = item.get("quantity")
    if identifier is None and price is None:
        raise invalid(f"Missing required param: {path}[price].", f"{path}[price]", "parameter_missing")
    if identifier is not None and identifier not in subscription["_items"]:
        raise invalid(f"No such subscription item: '{identifier}'", f"{path}[id]", "resource_missing")
    if quantity is not None and quantity < 0:
        raise invalid("Invalid non-negative integer", f"{path}[quantity]", "parameter_invalid_integer")
    if identifier is not None and price is not None:
        current = world.get("subscription_item", identifier)
        if price["id"] == current["_price"] and quantity in (None, current["quantity"]):
            price = None  # it has it already
    if identifier is not None and quantity == world.get("subscription_item", identifier)["quantity"] and price is None:
        quantity = None
    return changes.Change(
        item=identifier,
        price=price,
        quantity=quantity,
        metadata=item.get("metadata"),
        deleted=item.get("deleted", False),
        clear_usage=item.get("clear_usage", False),
        position=position,
    )


def _update_fields(world: World, found: Obj, params: Obj) -> None:
    now = world.now(found["test_clock"])
    identifier = found["id"]
    with change(world, "subscription", identifier, "customer.subscription.updated") as edited:
        if "metadata" in params:
            edited["metadata"] = merged_metadata(edited["metadata"], params["metadata"])
        if params.get("default_payment_method"):
            payment_methods.require_owned(
                world, params["default_payment_method"], found["customer"], "default_payment_method"
            )
        for name in ("description", "default_payment_method", "collection_method", "days_until_due", "trial_settings"):
            if name in params:
                edited[name] = params[name] if params[name] != "" else None
        edited["cancellation_details"] |= {
            name: value or None for name, value in (params.get("cancellation_details") or {}).items()
        }
        _update_end(edited, params, now)
        _update_trial(world, edited, params, now)
        _update_pause(world, edited, params)


def _update_end(edited: Obj, params: Obj, now: int) -> None:
    """The helpers of `cancel_at` are moments at once, and say nothing of periods; it is taken back as it was set.

    Source: docs.stripe.com/changelog/basil/2025-05-28/cancel-at-enums.
    """
    end = edited["_period_end"]
    wanted = params.get("cancel_at")
    by_period = params.get("cancel_at_period_end")
    if by_period is True or wanted in ("min_period_end", "max_period_end"):
        edited |= {"cancel_at_period_end": by_period is True, "cancel_at": end, "canceled_at": now}
        edited["cancellation_details"]["reason"] = "cancellation_requested"
    elif isinstance(wanted, int):
        if wanted <= now:
            raise invalid("`cancel_at` must be in the future.", "cancel_at")
        edited |= {"cancel_at_period_end": False, "cancel_at": wanted, "canceled_at": now}
        edited["cancellation_details"]["reason"] = "cancellation_requested"
        edited["_cancel_prorates"] = params.get("proration_behavior", "create_prorations") != "none"
    elif (by_period is False and edited["cancel_at_period_end"]) or wanted == "":
        edited |= {"cancel_at_period_end": False, "cancel_at": None, "canceled_at": None}
        edited["cancellation_details"] |= {"reason": None, "comment": None, "feedback": None}


def _update_trial(world: World, edited: Obj, params: Obj, now: int) -> None:
    trial_end = params.get("trial_end")
    if trial_end in (None, "now"):
        return
    if edited["status"] != "trialing":
        raise not_built("a trial for a subscription that is not in one", "trial_end")
    end = _future(trial_end, now, "trial_end")
    edited |= {"trial_end": end, "billing_cycle_anchor": end}
    subscriptions.set_period(world, edited, edited["_period_start"], end)


def _update_pause(world: World, edited: Obj, params: Obj) -> None:
    if "pause_collection" not in params:
        return
    wanted = params["pause_collection"]
    world.unschedule("resume_collection", edited["id"])
    edited["pause_collection"] = None if wanted == "" else {"resumes_at": None, **wanted}
    if wanted and wanted.get("resumes_at") is not None:
        world.schedule("resume_collection", edited["id"], wanted["resumes_at"], edited["test_clock"])


@route("DELETE", "/v1/subscriptions/{id}", SubscriptionCancelParams, "cancellation_details invoice_now prorate")
def cancel(call: Call) -> Obj:
    """End a subscription now."""
    call.world.need("subscription", call.id, in_path=True)
    return cancellation.cancel(
        call.world,
        call.id,
        prorate=call.get("prorate", False),
        invoice_now=call.get("invoice_now", False),
        details=call.get("cancellation_details"),
    )


@route(
    "POST",
    "/v1/subscriptions/{id}/resume",
    SubscriptionResumeParams,
    "billing_cycle_anchor proration_behavior payment_behavior proration_date",
)
def resume(call: Call) -> Obj:
    """Resume a paused subscription: a new period begins and is invoiced; it is active once that is paid."""
    found = call.world.need("subscription", call.id, in_path=True)
    if found["status"] != "paused":
        raise invalid("Only paused subscriptions can be resumed.", "id")
    if (call.get("billing_cycle_anchor") or {}).get("type") == "unchanged":
        raise not_built("resuming without a new billing cycle", "billing_cycle_anchor[type]")
    call.world.edit("subscription", call.id)["_resuming"] = True
    draft = changes.apply(call.world, call.id, [], behavior="none", reset_anchor=True)
    assert draft is not None
    invoicing.collect(call.world, draft["id"])
    subscriptions.plan(call.world, call.id)
    return call.world.get("subscription", call.id)


@route("GET", "/v1/subscriptions/{id}", SubscriptionRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One subscription."""
    return call.world.need("subscription", call.id, in_path=True)


@route(
    "GET",
    "/v1/subscriptions",
    SubscriptionListParams,
    "+list customer price status collection_method current_period_end current_period_start test_clock",
)
def listed(call: Call) -> Listing:
    """Subscriptions, newest first; ended ones only where `status` asks for them."""
    found = [s for s in call.world.all("subscription") if _is_wanted(call, s)]
    return page(found, call.params, "/v1/subscriptions")


def _is_wanted(call: Call, subscription: Obj) -> bool:
    params, status = call.params, call.get("status")
    if status is None and subscription["status"] == "canceled":
        return False
    if status == "ended":
        if subscription["status"] not in standing.ENDED:
            return False
    elif status not in (None, "all", subscription["status"]):
        return False
    if "price" in params:
        held = {call.world.get("subscription_item", item)["_price"] for item in subscription["_items"]}
        if params["price"] not in held:
            return False
    if (
        subscription["test_clock"] is not None
        and "customer" not in params
        and params.get("test_clock") != subscription["test_clock"]
    ):
        return False
    return (
        all(subscription[name] == params[name] for name in ("customer", "collection_method") if name in params)
        and within(subscription["created"], params.get("created"))
        and within(subscription["_period_start"], params.get("current_period_start"))
        and within(subscription["_period_end"], params.get("current_period_end"))
    )


@route("GET", "/v1/subscriptions/search", SubscriptionSearchParams, "query limit page")
def search(call: Call) -> Listing:
    """Subscriptions that a query finds."""
    return results(call, "subscription")
