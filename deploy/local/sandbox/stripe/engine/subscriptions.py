"""Owns a subscription's life: opened, billed at each period's end, out of trial, paused, resumed, cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from deploy.local.sandbox.stripe import cards
from deploy.local.sandbox.stripe.engine import (
    collecting,
    invoicing,
    items,
    lines,
    payments,
    periods,
    proration,
    standing,
    usage_lines,
)
from deploy.local.sandbox.stripe.engine.clock import job
from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.refusal import Obj, Refusal
from deploy.local.sandbox.stripe.world import World

_DAY: Final = 86_400
_TRIAL_NOTICE: Final = 3 * _DAY
_INCOMPLETE_SECONDS: Final = 23 * 3600
_NULLS: Final = [
    "application",
    "application_fee_percent",
    "billing_cycle_anchor_config",
    "billing_thresholds",
    "cancel_at",
    "canceled_at",
    "customer_account",
    "days_until_due",
    "default_payment_method",
    "default_source",
    "description",
    "ended_at",
    "latest_invoice",
    "managed_payments",
    "next_pending_invoice_item_invoice",
    "on_behalf_of",
    "pause_collection",
    "pending_invoice_item_interval",
    "pending_setup_intent",
    "pending_update",
    "schedule",
    "transfer_data",
    "trial_end",
    "trial_start",
]
Wanted = tuple[Obj, int | None, dict[str, str]]  # a price, a quantity, metadata


def open_subscription(world: World, customer: Obj, wanted: Sequence[Wanted], options: Obj) -> tuple[Obj, Obj]:
    """Add a subscription and the draft of its first invoice. `options` replaces fields; `trial_end` begins a trial.

    Raises:
        Refusal: the prices do not go together.
    """
    items.require_together([price for price, _, _ in wanted])
    now = world.now(customer["test_clock"])
    trial_end = options.get("trial_end")
    anchor = trial_end or options.pop("_anchor", None) or now
    prorates = options.pop("_prorates", True)
    interval = periods.of_price(wanted[0][0])
    end = anchor if anchor > now else periods.after(anchor, interval[0], interval[1])
    invoice = new_id("invoice")
    subscription = _new(customer, now, anchor, (now, end), wanted[0][0]["currency"])
    subscription |= options | {
        "latest_invoice": invoice,
        "status": "trialing" if trial_end else "incomplete",
        "trial_start": now if trial_end else None,
    }
    world.add(subscription)
    made = [items.add(world, subscription, price, count, more) for price, count, more in wanted]
    subscription["_items"] = [item["id"] for item in made]
    if subscription["cancel_at_period_end"]:
        subscription |= {"cancel_at": end, "canceled_at": now}
    emit(world, "customer.subscription.created", subscription)
    world.edit("customer", customer["id"])["currency"] = subscription["currency"]
    whole = (periods.after(end, interval[0], -interval[1]), end)
    contents = _first_lines(world, subscription, whole if prorates else None)
    contents += invoicing.pending_lines(world, customer["id"], subscription["id"])
    first = invoicing.draft(
        world,
        customer=world.get("customer", customer["id"]),
        reason="subscription_create",
        contents=contents,
        period=(now, now),
        subscription=subscription,
        currency=subscription["currency"],
        more={"id": invoice},
    )
    _plan(world, subscription)
    return subscription, first


def _new(customer: Obj, now: int, anchor: int, period: tuple[int, int], currency: str) -> Obj:
    return {
        "id": new_id("subscription"),
        "object": "subscription",
        **dict.fromkeys(_NULLS),
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": anchor,
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible"},
        "billing_schedules": [],
        "cancel_at_period_end": False,
        "cancellation_details": {"comment": None, "feedback": None, "feedback_option": None, "reason": None},
        "collection_method": "charge_automatically",
        "created": now,
        "currency": currency,
        "customer": customer["id"],
        "default_tax_rates": [],
        "discounts": [],
        "invoice_settings": {
            "account_tax_ids": None,
            "custom_fields": None,
            "description": None,
            "footer": None,
            "issuer": {"type": "self"},
        },
        "livemode": False,
        "metadata": {},
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "start_date": now,
        "status_details": None,
        "test_clock": customer["test_clock"],
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "_items": [],
        "_period_start": period[0],
        "_period_end": period[1],
    }


def _first_lines(world: World, subscription: Obj, whole: tuple[int, int] | None) -> list[Obj]:
    """The first invoice's lines: the trial, the period, or (before a later anchor) its share of the period `whole`."""
    period = (subscription["_period_start"], subscription["_period_end"])
    contents: list[Obj] = []
    for item, price in items.of(world, subscription):
        if subscription["status"] == "trialing":
            contents.append(lines.trial_line(world, subscription, item, price))
        elif items.is_metered(price):
            continue
        elif whole == period or subscription["billing_cycle_anchor"] == period[0]:
            contents += bill_period(world, subscription, item["id"], period)
        elif whole is not None:
            part = proration.charge_for(items.full_amount(item, price), whole, period[0])
            made = lines.item_lines(world, subscription, item, quantity=Decimal(item["quantity"]), period=period)[0]
            made |= {
                "amount": part.amount,
                "subtotal": part.amount,
                "parent": lines.item_parent(item, proration={"credited_items": None}),
            }
            world.edit("subscription_item", item["id"])["_debits"] = [proration.debit(part.amount, *period)]
            contents.append(made)
    return contents


def bill_period(world: World, subscription: Obj, item: str, period: tuple[int, int]) -> list[Obj]:
    """The lines of a licensed item for a whole period, which it is now debited for."""
    edited = world.edit("subscription_item", item)
    made = lines.item_lines(world, subscription, edited, quantity=Decimal(edited["quantity"]), period=period)
    amount = sum(entry["amount"] for entry in made)
    edited["_debits"] = [proration.debit(amount, *period, None, [entry["id"] for entry in made])]
    return made


def start(
    world: World, subscription: Obj, invoice: Obj, *, behavior: str, method: str | None = None, off_session: bool = True
) -> None:
    """Collect the first invoice; what follows from a refusal is as `behavior` (payment_behavior) says.

    Raises:
        Refusal: the payment failed and the behavior is error_if_incomplete.
    """
    identifier, clock = subscription["id"], subscription["test_clock"]
    remember_invoice(world, identifier, invoice)
    if subscription["collection_method"] == "send_invoice":
        if subscription["status"] == "incomplete":
            _activate(world, identifier)
        invoicing.finalize_later(world, invoice["id"], world.now(clock) + world.settings.draft_seconds)
        return
    if behavior == "default_incomplete":
        invoicing.finalize(world, invoice["id"])
    else:
        decline = invoicing.collect(world, invoice["id"], method=method, off_session=off_session)
        if decline is not None and behavior == "error_if_incomplete":
            raise _payment_error(world, decline, invoice["id"])
    if world.get("subscription", identifier)["status"] == "incomplete":
        world.schedule("expire", identifier, world.now(clock) + _INCOMPLETE_SECONDS, clock)


def _payment_error(world: World, decline: cards.Decline, invoice: str) -> Refusal:
    intent = world.get("payment_intent", world.get("invoice", invoice)["_intent"])
    refusal = payments.card_error(world, decline, payment_intent=intent)
    refusal.effects_stay = False
    return refusal


def remember_invoice(world: World, subscription: str, invoice: Obj) -> None:
    """Note on the items' debits which invoice they are on, so that later credits can name it."""
    numbers = {entry["id"] for entry in invoice["lines"]["data"]}
    for identifier in world.get("subscription", subscription)["_items"]:
        item = world.get("subscription_item", identifier)
        if any(entry["invoice"] is None and numbers & set(entry["lines"]) for entry in item["_debits"]):
            for entry in world.edit("subscription_item", identifier)["_debits"]:
                if entry["invoice"] is None and numbers & set(entry["lines"]):
                    entry["invoice"] = invoice["id"]


def _activate(world: World, subscription: str) -> None:
    with change(world, "subscription", subscription, "customer.subscription.updated") as edited:
        edited["status"] = "active"


def _plan(world: World, subscription: Obj) -> None:
    """Put what is to come for a subscription on the agenda."""
    identifier, clock, end = subscription["id"], subscription["test_clock"], subscription["_period_end"]
    now = world.now(clock)
    world.schedule("renew", identifier, end, clock)
    world.unschedule("upcoming", identifier)
    notice = end - world.settings.upcoming_days * _DAY
    if notice > subscription["_period_start"] and not ends_with_period(subscription):
        world.schedule("upcoming", identifier, max(notice, now), clock)
    world.unschedule("trial_will_end", identifier)
    if subscription["status"] == "trialing" and subscription["trial_end"] is not None:
        world.schedule("trial_will_end", identifier, max(subscription["trial_end"] - _TRIAL_NOTICE, now), clock)
    world.unschedule("cancel", identifier)
    if subscription["cancel_at"] is not None and subscription["cancel_at"] != end:
        world.schedule("cancel", identifier, subscription["cancel_at"], clock)


def ends_with_period(subscription: Obj) -> bool:
    """Whether there is no period after the present one, whichever way that was said."""
    cancel_at = subscription["cancel_at"]
    return bool(subscription["cancel_at_period_end"] or (cancel_at and cancel_at <= subscription["_period_end"]))


def plan(world: World, subscription: str) -> None:
    """Put what is to come for a subscription on the agenda anew, after a change."""
    found = world.get("subscription", subscription)
    if found["status"] not in (*standing.ENDED, "paused"):
        _plan(world, found)


def set_period(world: World, subscription: Obj, start_at: int, end: int) -> None:
    """Move a subscription (a private copy) and its items into a period."""
    subscription["_period_start"], subscription["_period_end"] = start_at, end
    for identifier in subscription["_items"]:
        item = world.edit("subscription_item", identifier)
        item["current_period_start"], item["current_period_end"] = start_at, end


def next_period(world: World, subscription: Obj, moment: int) -> tuple[int, int]:
    """The billing period that `moment` lies in, counted from the anchor."""
    _, price = items.of(world, subscription)[0]
    return periods.around(subscription["billing_cycle_anchor"], *periods.of_price(price), moment)


def usage_so_far(world: World, subscription: Obj, end: int) -> list[Obj]:
    """Lines for the metered items' usage that no invoice has billed, up to `end`; from there on it counts anew."""
    made: list[Obj] = []
    for item, price in items.of(world, subscription):
        if items.is_metered(price) and item["_usage_from"] < end:
            made += usage_lines.of_item(world, subscription, item, (item["_usage_from"], end))
            world.edit("subscription_item", item["id"])["_usage_from"] = end
    return made


def renewal(world: World, identifier: str, due: int) -> Obj:
    """Enter the next period and draft its invoice."""
    before = world.get("subscription", identifier)
    old = (before["_period_start"], before["_period_end"])
    invoice = new_id("invoice")
    with change(world, "subscription", identifier, "customer.subscription.updated") as edited:
        contents = invoicing.pending_lines(world, edited["customer"], identifier)
        contents += usage_so_far(world, edited, due)
        set_period(world, edited, *next_period(world, edited, due))
        edited["latest_invoice"] = invoice
        if edited["status"] == "trialing":
            edited["status"] = "active"
    period = (edited["_period_start"], edited["_period_end"])
    for item, price in items.of(world, edited):
        if not items.is_metered(price):
            contents += bill_period(world, edited, item["id"], period)
    unpaid = edited["status"] == "unpaid"
    behavior = standing.pause_of(world, identifier)
    made = invoicing.draft(
        world,
        customer=world.get("customer", edited["customer"]),
        reason="subscription_cycle",
        contents=contents,
        period=old,
        subscription=edited,
        currency=edited["currency"],
        auto_advance=not unpaid and behavior != "keep_as_draft",
        more={"id": invoice},
    )
    remember_invoice(world, identifier, made)
    if made["auto_advance"]:
        invoicing.finalize_later(world, invoice, due + world.settings.draft_seconds)
    return made


@job("renew")
def _renew(world: World, identifier: str, due: int) -> None:
    found = world.find("subscription", identifier)
    if found is None or found["status"] in (*standing.ENDED, "incomplete", "paused"):
        return
    if ends_with_period(found):
        bill_rest(world, identifier)
        standing.end(world, identifier, reason="cancellation_requested")
        return
    if found["status"] == "trialing" and _method_of(world, found) is None:
        what = found["trial_settings"]["end_behavior"]["missing_payment_method"]
        if what == "cancel":
            standing.end(world, identifier, reason="payment_failed")
            return
        if what == "pause":
            pause(world, identifier)
            return
    renewal(world, identifier, due)
    plan(world, identifier)


def _method_of(world: World, subscription: Obj) -> str | None:
    customer = world.get("customer", subscription["customer"])
    found = subscription["default_payment_method"] or customer["invoice_settings"]["default_payment_method"]
    return None if found is None else str(found)


def pause(world: World, identifier: str) -> None:
    """Stop a subscription and its billing until it is resumed."""
    for planned in ("renew", "upcoming", "trial_will_end", "cancel"):
        world.unschedule(planned, identifier)
    with change(world, "subscription", identifier, "customer.subscription.updated") as edited:
        edited["status"] = "paused"
    emit(world, "customer.subscription.paused", edited)


def bill_rest(world: World, identifier: str, *, credits_only: bool = False) -> Obj | None:
    """Invoice what a subscription that ends still owes: usage and pending items. None where there is nothing."""
    found = world.get("subscription", identifier)
    contents = invoicing.pending_lines(world, found["customer"], identifier)
    contents = [entry for entry in contents if entry["subscription"] == identifier] if credits_only else contents
    contents += usage_so_far(world, found, world.now(found["test_clock"]))
    if not contents or all(entry["amount"] == 0 and "_metered" in entry for entry in contents):
        return None
    made = invoicing.draft(
        world,
        customer=world.get("customer", found["customer"]),
        reason="subscription_cycle",
        contents=contents,
        period=(found["_period_start"], found["_period_end"]),
        subscription=found,
        currency=found["currency"],
    )
    world.edit("subscription", identifier)["latest_invoice"] = made["id"]
    invoicing.finalize_later(world, made["id"], world.now(found["test_clock"]) + world.settings.draft_seconds)
    return made


@job("trial_will_end")
def _trial_will_end(world: World, identifier: str, _due: int) -> None:
    found = world.find("subscription", identifier)
    if found is not None and found["status"] == "trialing":
        emit(world, "customer.subscription.trial_will_end", found)


@job("expire")
def _expire(world: World, identifier: str, _due: int) -> None:
    found = world.find("subscription", identifier)
    if found is None or found["status"] != "incomplete":
        return
    invoice = world.find("invoice", found["latest_invoice"])
    standing.end(world, identifier, reason="payment_failed", status="incomplete_expired")
    if invoice is not None and invoice["status"] == "open":
        collecting.void(world, invoice["id"])


@job("resume_collection")
def _resume_collection(world: World, identifier: str, _due: int) -> None:
    with change(world, "subscription", identifier, "customer.subscription.updated") as edited:
        edited["pause_collection"] = None
