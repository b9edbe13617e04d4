"""Owns what payments do to a subscription's status: active when paid, past due when not, ended when given up."""

from __future__ import annotations

from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.world import World

ENDED = ("canceled", "incomplete_expired")


def after_paid(world: World, invoice: Obj, subscription: str | None) -> None:
    """A paid invoice makes its subscription active, unless it is over, in trial, or another invoice is still owed."""
    found = world.find("subscription", subscription)
    if found is None or found["status"] not in ("incomplete", "past_due", "unpaid", "paused"):
        return
    if found["status"] == "paused" and not found.get("_resuming"):
        return
    owed = [i for i in _open_invoices(world, found["id"]) if i["id"] != invoice["id"]]
    if found["latest_invoice"] != invoice["id"] and owed:
        return
    was_paused = found["status"] == "paused"
    with change(world, "subscription", found["id"], "customer.subscription.updated") as edited:
        edited["status"] = "active"
        edited.pop("_resuming", None)
        edited["status_details"] = None
    world.unschedule("expire", found["id"])
    if was_paused:
        emit(world, "customer.subscription.resumed", edited)


def _open_invoices(world: World, subscription: str) -> list[Obj]:
    return [i for i in world.all("invoice", status="open") if subscription_of(i) == subscription]


def after_failed(world: World, subscription: str | None, *, exhausted: bool) -> None:
    """A failed payment makes an active subscription past due; the last attempt ends it as the settings say."""
    found = world.find("subscription", subscription)
    if found is None or found["status"] not in ("active", "trialing", "past_due", "unpaid"):
        return
    action = world.settings.after_retries if exhausted else "past_due"
    if action == "canceled":
        end(world, found["id"], reason="payment_failed")
    elif found["status"] != action and found["status"] != "unpaid":
        with change(world, "subscription", found["id"], "customer.subscription.updated") as edited:
            edited["status"] = action


def end(world: World, subscription: str, *, reason: str, status: str = "canceled") -> Obj:
    """End a subscription now; nothing that was planned for it happens. Emits `customer.subscription.deleted`."""
    for planned in ("renew", "upcoming", "trial_will_end", "resume_collection", "cancel", "expire"):
        world.unschedule(planned, subscription)
    edited = world.edit("subscription", subscription)
    now = world.now(edited["test_clock"])
    before = edited["status"]
    edited |= {"status": status, "ended_at": now, "pending_update": None}
    if edited["canceled_at"] is None:
        edited["canceled_at"] = now
    if edited["cancellation_details"]["reason"] is None:
        edited["cancellation_details"]["reason"] = reason
    if status == "canceled":
        emit(world, "customer.subscription.deleted", edited)
    else:
        emit(world, "customer.subscription.updated", edited, previous={"status": before})
    return edited


def pause_of(world: World, subscription: str | None) -> str | None:
    """What is to become of a subscription's invoices while their collection is paused; None where it is not."""
    found = world.find("subscription", subscription)
    if found is None or found["pause_collection"] is None:
        return None
    return str(found["pause_collection"]["behavior"])


def subscription_of(invoice: Obj) -> str | None:
    """The id of the subscription that an invoice bills, or None."""
    details = (invoice["parent"] or {}).get("subscription_details")
    return None if details is None else str(details["subscription"])
