"""Owns the pages that a person opens: a checkout, the portal, an invoice and its PDF. Plain HTML, no script."""

from __future__ import annotations

import html as markup
import re
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import orjson
from aiohttp import web

from deploy.local.sandbox.stripe import cards, pdf
from deploy.local.sandbox.stripe.engine import (
    cancellation,
    collecting,
    invoicing,
    items,
    lines,
    payments,
    standing,
    subscriptions,
)
from deploy.local.sandbox.stripe.engine.events import change
from deploy.local.sandbox.stripe.money import dollars
from deploy.local.sandbox.stripe.objects import checkout_completion, payment_methods
from deploy.local.sandbox.stripe.objects.portal import KIND as CONFIGURATION
from deploy.local.sandbox.stripe.objects.subscriptions import change_items
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid
from deploy.local.sandbox.stripe.rendering import render
from deploy.local.sandbox.stripe.world import World

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{width:100%;border-collapse:collapse}td{padding:.3rem 0;border-bottom:1px solid #ddd}"
    "td:last-child{text-align:right}input,select{display:block;width:100%;padding:.5rem;margin:.2rem 0 .8rem;"
    "box-sizing:border-box;font:inherit}button{padding:.6rem 1.2rem;font:inherit;cursor:pointer}"
    ".sandbox{background:#fff3cd;padding:.5rem 1rem;border:1px solid #e0c36a}.error{color:#a40000}form{margin:.8rem 0}"
)


def respond(world: World, method: str, path: str, form: dict[str, str], *, html: bool) -> web.Response:
    """The answer at one of the pages' addresses: HTML for a browser, JSON for a script.

    Raises:
        Refusal: there is no such page, and no browser to tell.
    """
    try:
        return _respond(world, method, path, form, html=html)
    except Refusal as refusal:
        if not refusal.effects_stay:
            world.transaction = world.transaction.fresh()
        if not html:
            return _json(refusal.body(), refusal.status)
        return _page("Not possible", f'<p class="error">{_text(refusal.message)}</p>', refusal.status)


def _respond(world: World, method: str, path: str, form: dict[str, str], *, html: bool) -> web.Response:
    if match := re.fullmatch(r"/c/pay/([^/]+)(/complete|/fail|/cancel)?", path):
        return _checkout(world, method, match[1], match[2] or "", form, html=html)
    if match := re.fullmatch(r"/p/session/([^/]+)(/[a-z_]+)?", path):
        return _portal(world, method, match[1], match[2] or "", form, html=html)
    if match := re.fullmatch(r"/i/([^/]+)(/pdf|/pay)?", path):
        return _invoice(world, method, match[1], match[2] or "", form, html=html)
    raise Refusal(HTTPStatus.NOT_FOUND, f"SANDBOX: there is no page at {path}")


# ---- checkout


def _checkout(
    world: World, method: str, identifier: str, action: str, form: dict[str, str], *, html: bool
) -> web.Response:
    session = world.need("checkout.session", identifier, in_path=True)
    if method == "GET" and not action:
        return _checkout_page(session)
    if method != "POST" or action not in ("/complete", "/fail", "/cancel"):
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "SANDBOX: POST to /complete, /fail or /cancel")
    if action == "/cancel":
        return _goes_to(session["cancel_url"], render(world, session), html=html)
    card = "4000000000000002" if action == "/fail" else form.get("card", "4242424242424242")
    try:
        done = checkout_completion.complete(
            world, identifier, card=card, email=form.get("email"), name=form.get("name")
        )
    except Refusal as refusal:
        if not html or not refusal.effects_stay:
            raise
        return _checkout_page(world.get("checkout.session", identifier), HTTPStatus.PAYMENT_REQUIRED)
    target = str(done["success_url"]).replace("{CHECKOUT_SESSION_ID}", identifier)
    return _goes_to(target, render(world, done), html=html)


def _goes_to(target: str | None, shown: Obj, *, html: bool) -> web.Response:
    """Send a browser on; tell a script where it would go."""
    if html and target:
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"location": target})
    return _json({"sandbox": True, "redirect": target, "object": shown})


def _checkout_page(session: Obj, status: int = HTTPStatus.OK) -> web.Response:
    if session["status"] != "open":
        return _page("Checkout", f"<p>This checkout is {_text(session['status'])}.</p>", HTTPStatus.GONE)
    rows = "".join(
        f"<tr><td>{_text(item['description'])} \u00d7 {item['quantity'] or 'metered'}</td>"
        f"<td>{dollars(item['amount_total'], item['currency'])}</td></tr>"
        for item in session["_lines"]
    )
    due = (
        ""
        if session["amount_total"] is None
        else f"<p>Due today: {dollars(session['amount_total'], session['currency'])}</p>"
    )
    error = f'<p class="error">{_text(session["_error"])}</p>' if session["_error"] else ""
    email = (session["customer_details"] or {}).get("email") or ""
    action = f"/c/pay/{quote(session['id'])}"
    body = (
        f"<table>{rows}</table>{due}{error}"
        f'<form method="post" action="{action}/complete"><label>E-mail<input name="email" type="email" '
        f'value="{_text(email)}"></label><label>Test card{_card_choice()}</label><button>Pay</button></form>'
        f'<form method="post" action="{action}/cancel"><button>Cancel and go back</button></form>'
    )
    return _page("Checkout", body, status)


def _card_choice() -> str:
    told = {
        "4242424242424242": "pays",
        "4000000000000002": "is declined",
        "4000000000000341": "pays now, fails on renewal",
        "4000000000009995": "has insufficient funds",
        "4000000000000259": "pays, and is disputed",
    }
    options = "".join(f'<option value="{number}">{number} — {what}</option>' for number, what in told.items())
    return f'<select name="card">{options}</select>'


# ---- portal


def _portal(world: World, method: str, secret: str, action: str, form: dict[str, str], *, html: bool) -> web.Response:
    session = next(world.all("billing_portal.session", _secret=secret), None)
    if session is None:
        raise Refusal(HTTPStatus.NOT_FOUND, "SANDBOX: there is no such portal session")
    if method == "POST":
        _act(world, session, action, form)
        if not html:
            return _json({"sandbox": True, "done": action.strip("/")})
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"location": f"/p/session/{secret}"})
    return _portal_page(world, session)


def _act(world: World, session: Obj, action: str, form: dict[str, str]) -> None:
    """Do what a customer does in the portal, where its configuration allows it."""
    features = world.get(CONFIGURATION, session["configuration"])["features"]
    customer = session["customer"]
    match action:
        case "/cancel" | "/resume":
            _require(features["subscription_cancel"]["enabled"], "cancel")
            _cancel(
                world, _own_subscription(world, customer, form), features["subscription_cancel"], action == "/cancel"
            )
        case "/card":
            _require(features["payment_method_update"]["enabled"], "change the payment method")
            _new_card(world, customer, form.get("card", ""))
        case "/switch":
            _require(features["subscription_update"]["enabled"], "change the subscription")
            _switch(world, _own_subscription(world, customer, form), features["subscription_update"], form)
        case _:
            raise Refusal(HTTPStatus.NOT_FOUND, "SANDBOX: POST to /cancel, /resume, /card or /switch")


def _require(allowed: bool, what: str) -> None:  # noqa: FBT001  (a condition to be met)
    if not allowed:
        raise Refusal(HTTPStatus.FORBIDDEN, f"The portal's configuration does not let customers {what}.")


def _own_subscription(world: World, customer: str, form: dict[str, str]) -> Obj:
    running = [s for s in world.all("subscription", customer=customer) if s["status"] not in standing.ENDED]
    wanted = form.get("subscription")
    for subscription in running:
        if wanted in (None, subscription["id"]):
            return subscription
    raise invalid("The customer has no such subscription.", "subscription")


def _cancel(world: World, subscription: Obj, feature: Obj, ends: bool) -> None:  # noqa: FBT001
    if ends and feature["mode"] == "immediately":
        prorates = feature["proration_behavior"] != "none"
        cancellation.cancel(world, subscription["id"], prorate=prorates, invoice_now=False)
        return
    now = world.now(subscription["test_clock"])
    with change(world, "subscription", subscription["id"], "customer.subscription.updated") as edited:
        # Source: docs.stripe.com/billing/subscriptions/billing-mode/compare, "Cancellations in the Customer Portal".
        edited["cancel_at_period_end"] = False
        edited["cancel_at"] = subscription["_period_end"] if ends else None
        edited["canceled_at"] = now if ends else None
        edited["cancellation_details"]["reason"] = "cancellation_requested" if ends else None
    subscriptions.plan(world, subscription["id"])


def _new_card(world: World, customer: str, number: str) -> None:
    method = payment_methods.new_method(world, cards.entered(number))["id"]
    payment_methods.attach_to(world, method, customer)
    with change(world, "customer", customer, "customer.updated") as edited:
        edited["invoice_settings"]["default_payment_method"] = method
    for subscription in list(world.all("subscription", customer=customer)):
        if subscription["status"] not in standing.ENDED and subscription["default_payment_method"] is not None:
            with change(world, "subscription", subscription["id"], "customer.subscription.updated") as held:
                held["default_payment_method"] = method


def _switch(world: World, subscription: Obj, feature: Obj, form: dict[str, str]) -> None:
    price = form.get("price", "")
    offered = {price for product in feature.get("products") or [] for price in product["prices"]}
    if price not in offered:
        raise invalid("The portal's configuration does not offer this price.", "price")
    item = subscription["_items"][0]
    params = {"items": [{"id": item, "price": price}], "proration_behavior": feature["proration_behavior"]}
    draft = change_items(world, subscription["id"], params)
    subscriptions.plan(world, subscription["id"])
    if draft is not None:
        invoicing.collect(world, draft["id"])


def _portal_page(world: World, session: Obj) -> web.Response:
    customer, address = session["customer"], f"/p/session/{session['_secret']}"
    parts = []
    for subscription in world.all("subscription", customer=customer):
        names = ", ".join(_text(lines.product_name(world, price)) for _, price in items.of(world, subscription))
        ends = subscription["cancel_at_period_end"]
        parts.append(
            f"<h2>{names}</h2><p>{_text(subscription['status'])}, until {lines.on_day(subscription['_period_end'])}</p>"
        )
        if subscription["status"] not in standing.ENDED:
            action, words = ("resume", "Do not cancel") if ends else ("cancel", "Cancel")
            parts.append(
                f'<form method="post" action="{address}/{action}"><input type="hidden" name="subscription" '
                f'value="{subscription["id"]}"><button>{words}</button></form>'
            )
    parts.append(
        f'<h2>Payment method</h2><form method="post" action="{address}/card">{_card_choice()}'
        "<button>Use this card</button></form>"
    )
    rows = "".join(
        f'<tr><td><a href="/i/{invoice["id"]}">{_text(invoice["number"] or "draft")}</a> '
        f"{_text(invoice['status'])}</td>"
        f"<td>{dollars(invoice['total'], invoice['currency'])}</td></tr>"
        for invoice in world.all("invoice", customer=customer)
    )
    back = f'<p><a href="{_text(session["return_url"])}">Back</a></p>' if session["return_url"] else ""
    return _page("Customer portal", f"{''.join(parts)}<h2>Invoices</h2><table>{rows}</table>{back}")


# ---- invoices


def _invoice(
    world: World, method: str, identifier: str, action: str, form: dict[str, str], *, html: bool
) -> web.Response:
    invoice = world.need("invoice", identifier, in_path=True)
    if invoice["status"] == "draft":
        raise Refusal(HTTPStatus.NOT_FOUND, "SANDBOX: a draft has no page yet")
    if action == "/pdf":
        headers = {
            "content-type": "application/pdf",
            "content-disposition": f'inline; filename="{invoice["number"]}.pdf"',
        }
        return web.Response(body=pdf.write(_as_text(invoice)), headers=headers)
    if action == "/pay":
        if method != "POST":
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "SANDBOX: POST to pay")
        _pay_invoice(world, invoice, form.get("card", "4242424242424242"))
        if not html:
            return _json({"sandbox": True, "object": render(world, world.get("invoice", identifier))})
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"location": f"/i/{identifier}"})
    text = "".join(f"<div>{_text(line) or '&nbsp;'}</div>" for line in _as_text(invoice))
    pays = ""
    if invoice["status"] == "open":
        pays = f'<form method="post" action="/i/{identifier}/pay">{_card_choice()}<button>Pay</button></form>'
    return _page(f"Invoice {invoice['number']}", f'{text}{pays}<p><a href="/i/{identifier}/pdf">PDF</a></p>')


def _pay_invoice(world: World, invoice: Obj, number: str) -> None:
    card = cards.entered(number)
    method = payment_methods.new_method(world, card)["id"]
    if card.decline is None:
        payment_methods.attach_to(world, method, invoice["customer"])
    decline = collecting.pay(world, invoice["id"], method=method, off_session=False, by_hand=True)
    if decline is not None:
        raise payments.card_error(world, decline)


def _as_text(invoice: Obj) -> list[str]:
    """An invoice as lines of text, for its page and its PDF."""
    currency = invoice["currency"]
    head = [
        "SANDBOX: this is no real invoice; nothing was charged.",
        "",
        f"Invoice {invoice['number']}",
        f"Date {lines.on_day(invoice['created'])}",
        f"Bill to {invoice['customer_name'] or invoice['customer_email'] or invoice['customer']}",
        f"Status {invoice['status']}",
        "",
    ]
    body = [f"{item['description']}: {dollars(item['amount'], currency)}" for item in invoice["lines"]["data"]]
    foot = ["", f"Total {dollars(invoice['total'], currency)}"]
    if invoice["starting_balance"]:
        foot.append(f"Balance before {dollars(invoice['starting_balance'], currency)}")
    foot.append(f"Amount due {dollars(invoice['amount_due'], currency)}")
    foot.append(f"Amount paid {dollars(invoice['amount_paid'], currency)}")
    return head + body + foot


# ---- parts of every page


def _page(title: str, body: str, status: int = HTTPStatus.OK) -> web.Response:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)} (sandbox)</title>'
        f'<style>{_STYLE}</style></head><body><p class="sandbox">Sandbox Stripe: no real money, no real cards.</p>'
        f"<h1>{_text(title)}</h1>{body}</body></html>"
    )
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return web.Response(status=int(status), text=text, content_type="text/html", headers=headers)


def _text(value: Any) -> str:
    return markup.escape(str(value if value is not None else ""))


def _json(value: Obj, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(status=int(status), body=orjson.dumps(value), content_type="application/json")
