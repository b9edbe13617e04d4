"""Owns what happens on a checkout's page: it is completed with a card, declined, or left until it expires."""

from __future__ import annotations

from typing import Final

from deploy.local.sandbox.stripe import cards
from deploy.local.sandbox.stripe.engine import invoicing, lines, payments, subscriptions
from deploy.local.sandbox.stripe.engine.clock import job
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.objects import customers, payment_methods, setup_intents
from deploy.local.sandbox.stripe.refusal import Obj, Refusal
from deploy.local.sandbox.stripe.world import World

_DAY: Final = 86_400


def no_invoice_data() -> Obj:
    """What a checkout says of an invoice about which nothing was asked."""
    return dict.fromkeys(
        ("account_tax_ids", "custom_fields", "description", "footer", "issuer", "rendering_options")
    ) | {"metadata": {}}


def expire(world: World, identifier: str) -> Obj:
    """Close an open checkout for good. Emits `checkout.session.expired`."""
    world.unschedule("expire_checkout", identifier)
    edited = world.edit("checkout.session", identifier)
    edited |= {"status": "expired", "url": None}
    emit(world, "checkout.session.expired", edited)
    return edited


@job("expire_checkout")
def _expire_due(world: World, identifier: str, _due: int) -> None:
    found = world.find("checkout.session", identifier)
    if found is not None and found["status"] == "open":
        expire(world, identifier)


def complete(world: World, identifier: str, *, card: str, email: str | None, name: str | None) -> Obj:
    """Pay (or set up) a checkout with a test card's number, as its customer would on the page.

    Raises:
        Refusal: it is not open, the number is no test card's, or the card is declined (402; the checkout stays open).
    """
    session = world.get("checkout.session", identifier)
    if session["status"] != "open":
        raise Refusal(409, f"This checkout is {session['status']}.", code="checkout_not_open")
    chosen = cards.by_name(card) or cards.entered(card)
    email = (
        email or (session["customer_details"] or {}).get("email") or session["customer_email"] or "jenny@example.com"
    )
    if chosen.decline is not None:
        # The customer sees it and may try another card; of the try only the failed payment is left.
        _declined_try(world, session, chosen.decline, chosen)
        raise payments.card_error(world, chosen.decline)
    customer = _customer(world, session, email, name)
    billing = {"email": email, "name": name}
    method = payment_methods.new_method(world, chosen, billing=billing)["id"]
    if customer is not None and (session["mode"] != "payment" or _saves(session)):
        payment_methods.attach_to(world, method, customer)
    edited = world.edit("checkout.session", identifier)
    edited |= {"customer": customer, "customer_details": _details(email, name), "_error": None}
    match session["mode"]:
        case "subscription":
            _subscribe(world, edited, method)
        case "payment":
            _pay(world, edited, method)
        case _:
            _set_up(world, edited, method)
    edited |= {"status": "complete", "url": None}
    world.unschedule("expire_checkout", identifier)
    emit(world, "checkout.session.completed", edited | {"_clock": world.clock_of(customer)})
    return edited


def _saves(session: Obj) -> bool:
    return bool(session["_data"]["payment_intent"].get("setup_future_usage"))


def _details(email: str, name: str | None) -> Obj:
    address = payments.no_address() | {"country": "US", "postal_code": "94107"}
    shown = dict.fromkeys(("business_name", "individual_name", "phone", "tax_ids"))
    return shown | {"address": address, "email": email, "name": name, "tax_exempt": "none", "tax_ids": []}


def _customer(world: World, session: Obj, email: str, name: str | None) -> str | None:
    if session["customer"] is not None:
        return str(session["customer"])
    if session["customer_creation"] != "always" and not (session["mode"] == "payment" and _saves(session)):
        return None
    return str(customers.new_customer(world, {"email": email, "name": name})["id"])


def _declined_try(world: World, session: Obj, decline: cards.Decline, card: cards.Card) -> None:
    edited = world.edit("checkout.session", session["id"])
    edited["_error"] = decline.message
    if session["mode"] != "payment":
        return
    if session["payment_intent"] is None:
        edited["payment_intent"] = _new_intent(world, session)["id"]
    method = payment_methods.new_method(world, card)
    payments.attempt(world, edited["payment_intent"], method["id"], off_session=False)


def _new_intent(world: World, session: Obj) -> Obj:
    data = session["_data"]["payment_intent"]
    return payments.new_intent(
        world,
        amount=session["amount_total"],
        currency=session["currency"],
        customer=session["customer"],
        clock=world.clock_of(session["customer"]),
        metadata=dict(data.get("metadata") or {}),
        description=data.get("description"),
        more={name: data[name] for name in ("setup_future_usage", "receipt_email") if name in data},
    )


def _pay(world: World, session: Obj, method: str) -> None:
    if session["amount_total"] == 0:
        session["payment_status"] = "no_payment_required"
        return
    if session["_invoice"] and session["customer"] is not None:
        _pay_by_invoice(world, session, method)
        return
    if session["payment_intent"] is None:
        session["payment_intent"] = _new_intent(world, session)["id"]
    intent = world.edit("payment_intent", session["payment_intent"])
    intent |= {"customer": session["customer"], "_clock": world.clock_of(session["customer"])}
    decline = payments.attempt(world, session["payment_intent"], method, off_session=False)
    assert decline is None, "cards that decline on the page were turned away before"
    session["payment_status"] = "paid"


def _pay_by_invoice(world: World, session: Obj, method: str) -> None:
    customer = world.get("customer", session["customer"])
    now = world.now(customer["test_clock"])
    for item in session["_lines"]:
        _one_time(world, customer, item, world.get("price", item["_price"]))
    contents = invoicing.pending_lines(world, customer["id"], None)
    made = invoicing.draft(world, customer=customer, reason="manual", contents=contents, period=(now, now))
    invoicing.collect(world, made["id"], method=method, off_session=False)
    session |= {"invoice": made["id"], "payment_intent": made["_intent"], "payment_status": "paid"}


def _subscribe(world: World, session: Obj, method: str) -> None:
    customer = world.get("customer", session["customer"])
    data = session["_data"]["subscription"]
    wanted = []
    for item in session["_lines"]:
        price = world.get("price", item["_price"])
        if item["_recurring"]:
            wanted.append((price, item["quantity"], dict(item["metadata"])))
        else:
            _one_time(world, customer, item, price)
    options: Obj = {"metadata": dict(data.get("metadata") or {}), "default_payment_method": method}
    options |= {name: data[name] for name in ("description", "trial_settings") if name in data}
    days = data.get("trial_period_days")
    trial_end = data.get("trial_end") or (world.now(customer["test_clock"]) + days * _DAY if days else None)
    if trial_end is not None:
        options["trial_end"] = trial_end
    subscription, invoice = subscriptions.open_subscription(world, customer, wanted, options)
    subscriptions.start(world, subscription, invoice, behavior="allow_incomplete", method=method, off_session=False)
    session |= {"subscription": subscription["id"], "invoice": invoice["id"]}
    session["payment_status"] = (
        "no_payment_required" if world.get("invoice", invoice["id"])["amount_due"] == 0 else "paid"
    )


def _one_time(world: World, customer: Obj, item: Obj, price: Obj) -> None:
    now = world.now(customer["test_clock"])
    lines.invoice_item(
        world,
        customer=customer,
        amount=item["amount_total"],
        currency=price["currency"],
        description=item["description"],
        period=(now, now),
        quantity=item["quantity"],
        price=price,
        unit_amount=price["unit_amount_decimal"],
    )


def _set_up(world: World, session: Obj, method: str) -> None:
    data = session["_data"]["setup_intent"]
    intent = setup_intents.new_intent(
        world, session["customer"], dict(data.get("metadata") or {}), data.get("description")
    )
    setup_intents.settle(world, intent["id"], method)
    session["setup_intent"] = intent["id"]
