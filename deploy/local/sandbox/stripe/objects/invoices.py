"""Owns invoices, their lines and their payments as requests see them, and previews of invoices to come."""

from __future__ import annotations

from stripe.params._invoice_create_params import InvoiceCreateParams
from stripe.params._invoice_create_preview_params import InvoiceCreatePreviewParams
from stripe.params._invoice_delete_params import InvoiceDeleteParams
from stripe.params._invoice_finalize_invoice_params import InvoiceFinalizeInvoiceParams
from stripe.params._invoice_line_item_list_params import InvoiceLineItemListParams
from stripe.params._invoice_list_params import InvoiceListParams
from stripe.params._invoice_mark_uncollectible_params import InvoiceMarkUncollectibleParams
from stripe.params._invoice_pay_params import InvoicePayParams
from stripe.params._invoice_payment_list_params import InvoicePaymentListParams
from stripe.params._invoice_payment_retrieve_params import InvoicePaymentRetrieveParams
from stripe.params._invoice_retrieve_params import InvoiceRetrieveParams
from stripe.params._invoice_search_params import InvoiceSearchParams
from stripe.params._invoice_send_invoice_params import InvoiceSendInvoiceParams
from stripe.params._invoice_update_params import InvoiceUpdateParams
from stripe.params._invoice_void_invoice_params import InvoiceVoidInvoiceParams

from deploy.local.sandbox.stripe.engine import (
    cancellation,
    collecting,
    invoicing,
    payments,
    previews,
    standing,
    subscriptions,
)
from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.objects import payment_methods
from deploy.local.sandbox.stripe.objects.subscriptions import change_items, open_for
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page, within
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.search import results
from deploy.local.sandbox.stripe.world import World

_DAY = 86_400
_ITEM = " ".join(
    f"subscription_details.items.{name}"
    for name in ["id", "price", "price_data", "quantity", "deleted", "clear_usage", "metadata"]
)


@route(
    "POST",
    "/v1/invoices",
    InvoiceCreateParams,
    "customer subscription auto_advance collection_method days_until_due due_date description metadata currency footer "
    "pending_invoice_items_behavior default_payment_method",
)
def create(call: Call) -> Obj:
    """Draft an invoice of what is pending for a customer, or of nothing yet."""
    world = call.world
    subscription = (
        world.need("subscription", call.params["subscription"], "subscription")
        if "subscription" in call.params
        else None
    )
    holder = call.get("customer") or (subscription or {}).get("customer")
    if holder is None:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = world.need("customer", holder, "customer")
    takes = call.get("pending_invoice_items_behavior", "include" if subscription else "exclude") == "include"
    contents = invoicing.pending_lines(world, holder, subscription["id"] if subscription else None) if takes else []
    if subscription is not None and not contents:
        raise Refusal(400, "Nothing to invoice for subscription", code="invoice_no_subscription_line_items")
    more: Obj = {"metadata": merged_metadata({}, call.get("metadata"))}
    more |= {
        name: call.params[name] for name in ("description", "footer", "default_payment_method") if name in call.params
    }
    if call.get("collection_method") == "send_invoice":
        if "days_until_due" not in call.params and "due_date" not in call.params:
            raise invalid("You must pass `days_until_due` or `due_date`.", "days_until_due")
        now = world.now(customer["test_clock"])
        more |= {
            "collection_method": "send_invoice",
            "due_date": call.get("due_date", now + call.get("days_until_due", 0) * _DAY),
        }
    now = world.now(customer["test_clock"])
    made = invoicing.draft(
        world,
        customer=customer,
        reason="manual",
        contents=contents,
        period=(now, now),
        subscription=subscription,
        currency=call.get("currency") or customer["currency"] or "usd",
        auto_advance=call.get("auto_advance", False),
        more=more,
    )
    if made["auto_advance"]:
        invoicing.finalize_later(world, made["id"], now + world.settings.draft_seconds)
    return made


def _need(call: Call) -> Obj:
    return call.world.need("invoice", call.id, "invoice", in_path=True)


@route(
    "POST",
    "/v1/invoices/{id}",
    InvoiceUpdateParams,
    "auto_advance description metadata footer default_payment_method",
)
def update(call: Call) -> Obj:
    """Change an invoice; a finalised one keeps its contents."""
    found = _need(call)
    if method := call.get("default_payment_method"):
        payment_methods.require_owned(call.world, method, found["customer"], "default_payment_method")
    with change(call.world, "invoice", call.id, "invoice.updated") as edited:
        for name in ("auto_advance", "description", "footer", "default_payment_method"):
            if name in call.params:
                edited[name] = None if call.params[name] == "" else call.params[name]
        if "metadata" in call.params:
            edited["metadata"] = merged_metadata(edited["metadata"], call.params["metadata"])
    if found["status"] == "draft" and call.get("auto_advance"):
        now = call.world.now(found["test_clock"])
        invoicing.finalize_later(call.world, call.id, now + call.world.settings.draft_seconds)
    return call.world.get("invoice", call.id)


@route("POST", "/v1/invoices/{id}/finalize", InvoiceFinalizeInvoiceParams, "auto_advance")
def finalize(call: Call) -> Obj:
    """Finalise a draft; with auto_advance it is charged soon after, as at Stripe."""
    found = _need(call)
    if "auto_advance" in call.params:
        call.world.edit("invoice", call.id)["auto_advance"] = call.params["auto_advance"]
    finalized = invoicing.finalize(call.world, found["id"])
    if (
        finalized["status"] == "open"
        and finalized["auto_advance"]
        and finalized["collection_method"] == "charge_automatically"
    ):
        call.world.schedule("retry", call.id, call.world.now(found["test_clock"]) + 1, found["test_clock"])
    return finalized


@route("POST", "/v1/invoices/{id}/pay", InvoicePayParams, "payment_method paid_out_of_band off_session")
def pay(call: Call) -> Obj:
    """Pay an invoice now; a draft is finalised first. A refused payment is a 402."""
    world, found = call.world, _need(call)
    if found["status"] == "draft":
        found = invoicing.finalize(world, call.id)
        if found["status"] == "paid":
            return found
    method = call.get("payment_method")
    if method is not None:
        method = payment_methods.require_owned(world, method, found["customer"], "payment_method")["id"]
    if method is None and not call.get("paid_out_of_band") and collecting.default_method(world, found) is None:
        raise invalid(
            "There is no `default_payment_method` set on this Customer or Invoice. Please set one prior to paying.",
            "payment_method",
        )
    decline = collecting.pay(
        world,
        call.id,
        method=method,
        off_session=call.get("off_session", True),
        out_of_band=call.get("paid_out_of_band", False),
        by_hand=True,
    )
    if decline is not None:
        raise payments.card_error(world, decline, payment_intent=world.get("payment_intent", found["_intent"]))
    return world.get("invoice", call.id)


@route("POST", "/v1/invoices/{id}/void", InvoiceVoidInvoiceParams)
def void(call: Call) -> Obj:
    """Take an invoice back."""
    return collecting.void(call.world, _need(call)["id"])


@route("POST", "/v1/invoices/{id}/mark_uncollectible", InvoiceMarkUncollectibleParams)
def mark_uncollectible(call: Call) -> Obj:
    """Write an invoice off."""
    return collecting.write_off(call.world, _need(call)["id"])


@route("POST", "/v1/invoices/{id}/send", InvoiceSendInvoiceParams)
def send(call: Call) -> Obj:
    """Finalise an invoice if need be, and say that it was sent. No e-mail leaves the sandbox."""
    found = _need(call)
    if found["status"] == "draft":
        found = invoicing.finalize(call.world, call.id)
    emit(call.world, "invoice.sent", found)
    return found


@route("DELETE", "/v1/invoices/{id}", InvoiceDeleteParams)
def delete(call: Call) -> Obj:
    """Delete a draft; what it took up is pending again."""
    found = _need(call)
    if found["status"] != "draft":
        raise invalid("You can only delete draft invoices.", code="invoice_not_editable")
    for item in list(call.world.all("invoiceitem", invoice=call.id)):
        call.world.edit("invoiceitem", item["id"])["invoice"] = None
    call.world.unschedule("finalize", call.id)
    call.world.remove("invoice", call.id)
    emit(call.world, "invoice.deleted", found)
    return {"id": call.id, "object": "invoice", "deleted": True}


@route("GET", "/v1/invoices/{id}", InvoiceRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One invoice."""
    return _need(call)


@route("GET", "/v1/invoices", InvoiceListParams, "+list customer subscription status collection_method due_date")
def listed(call: Call) -> Listing:
    """Invoices, newest first."""
    params = call.params
    wanted = {name: params[name] for name in ("customer", "status", "collection_method") if name in params}
    found = [
        invoice
        for invoice in call.world.all("invoice", **wanted)
        if within(invoice["created"], params.get("created"))
        and within(invoice["due_date"], params.get("due_date"))
        and params.get("subscription") in (None, standing.subscription_of(invoice))
    ]
    return page(found, params, "/v1/invoices")


@route("GET", "/v1/invoices/search", InvoiceSearchParams, "query limit page")
def search(call: Call) -> Listing:
    """Invoices that a query finds."""
    return results(call, "invoice")


@route("GET", "/v1/invoices/{id}/lines", InvoiceLineItemListParams, "limit starting_after ending_before")
def listed_lines(call: Call) -> Listing:
    """An invoice's lines, in their order."""
    return page(_need(call)["lines"]["data"][::-1], call.params, f"/v1/invoices/{call.id}/lines")


@route("GET", "/v1/invoice_payments/{id}", InvoicePaymentRetrieveParams)
def retrieve_payment(call: Call) -> Obj:
    """What joins an invoice and a payment intent."""
    return call.world.need("invoice_payment", call.id, in_path=True)


@route("GET", "/v1/invoice_payments", InvoicePaymentListParams, "+list invoice payment status")
def listed_payments(call: Call) -> Listing:
    """Payments of invoices, newest first; of one payment intent where `payment` names it."""
    wanted = {name: call.params[name] for name in ("invoice", "status") if name in call.params}
    payment = call.get("payment") or {}
    found = [
        joined
        for joined in call.world.all("invoice_payment", **wanted)
        if all(joined["payment"].get(name) == value for name, value in payment.items())
        and within(joined["created"], call.get("created"))
    ]
    return page(found, call.params, "/v1/invoice_payments")


@route(
    "POST",
    "/v1/invoices/create_preview",
    InvoiceCreatePreviewParams,
    "customer subscription preview_mode currency subscription_details.proration_behavior "
    "subscription_details.proration_date "
    "subscription_details.cancel_at_period_end subscription_details.cancel_now subscription_details.trial_end "
    f"subscription_details.billing_cycle_anchor {_ITEM}",
)
def create_preview(call: Call) -> Obj:
    """The invoice that a change, or the next period, would bring; nothing is kept of it.

    A change that is invoiced at once (proration_behavior=always_invoice, another interval) shows that invoice, any
    other the next renewal's, with the prorations on it.
    """
    details = dict(call.get("subscription_details") or {})
    scratch = call.world.scratch()
    if "subscription" not in call.params:
        return _preview_new(scratch, call, details)
    found = scratch.need("subscription", call.params["subscription"], "subscription")
    if call.get("customer") not in (None, found["customer"]):
        raise invalid("The subscription does not belong to the customer.", "customer")
    if found["status"] in standing.ENDED:
        raise _none_to_come(found["customer"])
    if details.get("cancel_now"):
        cancellation.cancel(
            scratch, found["id"], prorate=details.get("proration_behavior") != "none", invoice_now=False
        )
        made = subscriptions.bill_rest(scratch, found["id"])
        if made is None:
            raise _none_to_come(found["customer"])
        return previews.as_preview(made)
    if details.get("cancel_at_period_end") is not None:
        scratch.edit("subscription", found["id"])["cancel_at_period_end"] = details["cancel_at_period_end"]
    draft = change_items(scratch, found["id"], details)
    if draft is not None:
        return previews.as_preview(draft)
    foreseen = previews.foresee(scratch, found["id"])
    if foreseen is None:
        raise _none_to_come(found["customer"])
    return foreseen


def _preview_new(scratch: World, call: Call, details: Obj) -> Obj:
    if "customer" not in call.params:
        raise invalid("You must pass a customer or a subscription.", "customer", "parameter_missing")
    customer = scratch.need("customer", call.params["customer"], "customer")
    if details.get("items"):
        _, draft = open_for(scratch, customer, details)
        return previews.as_preview(draft)
    running = [s for s in scratch.all("subscription", customer=customer["id"]) if s["status"] not in standing.ENDED]
    foreseen = previews.foresee(scratch, running[0]["id"]) if running else None
    if foreseen is not None:
        return foreseen
    contents = invoicing.pending_lines(scratch, customer["id"], None)
    if not contents:
        raise _none_to_come(customer["id"])
    now = scratch.now(customer["test_clock"])
    made = invoicing.draft(scratch, customer=customer, reason="upcoming", contents=contents, period=(now, now))
    return previews.as_preview(made)


def _none_to_come(customer: str) -> Refusal:
    return Refusal(404, f"No upcoming invoices for customer: {customer}", code="invoice_upcoming_none")
