"""Owns invoice items: amounts that the next invoice, or a given draft, takes up."""

from __future__ import annotations

from decimal import Decimal

from stripe.params._invoice_item_create_params import InvoiceItemCreateParams
from stripe.params._invoice_item_delete_params import InvoiceItemDeleteParams
from stripe.params._invoice_item_list_params import InvoiceItemListParams
from stripe.params._invoice_item_retrieve_params import InvoiceItemRetrieveParams
from stripe.params._invoice_item_update_params import InvoiceItemUpdateParams

from deploy.local.sandbox.stripe import money
from deploy.local.sandbox.stripe.engine import invoicing, lines
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page, within
from deploy.local.sandbox.stripe.routes import Call, route


@route(
    "POST",
    "/v1/invoiceitems",
    InvoiceItemCreateParams,
    "amount currency customer description invoice metadata period pricing.price quantity "
    "subscription unit_amount_decimal",
)
def create(call: Call) -> Obj:
    """Add an invoice item."""
    world, params = call.world, call.params
    if "customer" not in params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = world.need("customer", params["customer"], "customer")
    quantity = params.get("quantity", 1)
    price = world.need("price", params["pricing"]["price"], "pricing[price]") if params.get("pricing") else None
    now = world.now(customer["test_clock"])
    period = params.get("period") or {"start": now, "end": now}
    if (subscription := params.get("subscription")) is not None:
        world.need("subscription", subscription, "subscription")
    amount, unit = _amount(params, price, quantity)
    made = lines.invoice_item(
        world,
        customer=customer,
        amount=amount,
        currency=(price["currency"] if price else params.get("currency") or customer["currency"] or "usd").lower(),
        description=params.get("description") or (lines.product_name(world, price) if price else None),
        period=(period["start"], period["end"]),
        quantity=quantity,
        price=price,
        unit_amount=unit,
        subscription=subscription,
        metadata=merged_metadata({}, params.get("metadata")),
    )
    emit(world, "invoiceitem.created", made)
    if (invoice := params.get("invoice")) is not None:
        _put_on(call, made, invoice)
    return made


def _amount(params: Obj, price: Obj | None, quantity: int) -> tuple[int, str | None]:
    if price is not None:
        if price["recurring"] is not None:
            raise invalid("An invoice item takes a one-time price.", "pricing[price]")
        return money.total(price, Decimal(quantity)), price["unit_amount_decimal"]
    if "unit_amount_decimal" in params:
        unit = params["unit_amount_decimal"]
        return money.cents(unit * quantity), money.plain(unit)
    if "amount" not in params:
        raise invalid(
            "You must pass `amount`, `unit_amount_decimal` or `pricing[price]`.", "amount", "parameter_missing"
        )
    return params["amount"], None


def _put_on(call: Call, item: Obj, invoice: str) -> None:
    found = call.world.need("invoice", invoice, "invoice")
    if found["status"] != "draft":
        raise invalid("You can only add invoice items to draft invoices.", "invoice", "invoice_not_editable")
    item["invoice"] = invoice
    edited = call.world.edit("invoice", invoice)
    invoicing.put_lines(edited, [*edited["lines"]["data"], lines.from_invoice_item(item)])


@route("POST", "/v1/invoiceitems/{id}", InvoiceItemUpdateParams, "amount description metadata")
def update(call: Call) -> Obj:
    """Change a pending invoice item."""
    found = call.world.need("invoiceitem", call.id, in_path=True)
    if found["invoice"] is not None and set(call.params) - {"metadata", "expand"}:
        raise invalid("The invoice item is on an invoice already.", code="invoice_not_editable")
    edited = call.world.edit("invoiceitem", call.id)
    edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
    edited |= {name: call.params[name] for name in ("amount", "description") if name in call.params}
    if "amount" in call.params:
        edited["net_amount"] = edited["amount"]
        edited["pricing"]["unit_amount_decimal"] = money.plain(Decimal(edited["amount"]) / edited["quantity"])
    return edited


@route("DELETE", "/v1/invoiceitems/{id}", InvoiceItemDeleteParams)
def delete(call: Call) -> Obj:
    """Take a pending invoice item away."""
    found = call.world.need("invoiceitem", call.id, in_path=True)
    if found["invoice"] is not None:
        raise invalid("The invoice item is on an invoice already.", code="invoice_not_editable")
    call.world.remove("invoiceitem", call.id)
    emit(call.world, "invoiceitem.deleted", found)
    return {"id": call.id, "object": "invoiceitem", "deleted": True}


@route("GET", "/v1/invoiceitems/{id}", InvoiceItemRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One invoice item."""
    return call.world.need("invoiceitem", call.id, in_path=True)


@route("GET", "/v1/invoiceitems", InvoiceItemListParams, "+list customer invoice pending")
def listed(call: Call) -> Listing:
    """Invoice items, newest first."""
    wanted = {name: call.params[name] for name in ("customer", "invoice") if name in call.params}
    found = [
        item
        for item in call.world.all("invoiceitem", **wanted)
        if within(item["date"], call.get("created")) and call.get("pending") in (None, item["invoice"] is None)
    ]
    return page(found, call.params, "/v1/invoiceitems")
