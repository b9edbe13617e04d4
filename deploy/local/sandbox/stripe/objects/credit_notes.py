"""Owns credit notes as requests see them: of an amount, without lines of their own."""

from __future__ import annotations

from stripe.params._credit_note_create_params import CreditNoteCreateParams
from stripe.params._credit_note_list_params import CreditNoteListParams
from stripe.params._credit_note_retrieve_params import CreditNoteRetrieveParams
from stripe.params._credit_note_void_credit_note_params import CreditNoteVoidCreditNoteParams

from deploy.local.sandbox.stripe.engine import credit_notes
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page, within
from deploy.local.sandbox.stripe.routes import Call, route


@route(
    "POST",
    "/v1/credit_notes",
    CreditNoteCreateParams,
    "invoice amount credit_amount refund_amount out_of_band_amount memo reason metadata",
)
def create(call: Call) -> Obj:
    """Credit an amount of a final invoice."""
    invoice = call.world.need("invoice", call.params["invoice"], "invoice")
    if "amount" not in call.params:
        raise invalid("You must pass one of `amount`, `lines` or `shipping_cost`.", "amount", "parameter_missing")
    back = credit_notes.Back(
        refund=call.get("refund_amount", 0),
        balance=call.get("credit_amount", 0),
        out_of_band=call.get("out_of_band_amount", 0),
    )
    more: Obj = {"memo": call.get("memo"), "reason": call.get("reason")}
    more["metadata"] = merged_metadata({}, call.get("metadata"))
    return credit_notes.issue(call.world, invoice["id"], call.params["amount"], back, more)


@route("GET", "/v1/credit_notes/{id}", CreditNoteRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One credit note."""
    return call.world.need("credit_note", call.id, in_path=True)


@route("GET", "/v1/credit_notes", CreditNoteListParams, "+list invoice customer")
def listed(call: Call) -> Listing:
    """Credit notes, newest first."""
    wanted = {name: call.params[name] for name in ("invoice", "customer") if name in call.params}
    found = [n for n in call.world.all("credit_note", **wanted) if within(n["created"], call.get("created"))]
    return page(found, call.params, "/v1/credit_notes")


@route("POST", "/v1/credit_notes/{id}/void", CreditNoteVoidCreditNoteParams)
def void(call: Call) -> Obj:
    """Take a credit note back."""
    return credit_notes.void(call.world, call.world.need("credit_note", call.id, in_path=True)["id"])
