"""Owns charges and refunds as requests see them, and the account's balance movements."""

from __future__ import annotations

from stripe.params._balance_transaction_list_params import BalanceTransactionListParams
from stripe.params._balance_transaction_retrieve_params import BalanceTransactionRetrieveParams
from stripe.params._charge_list_params import ChargeListParams
from stripe.params._charge_retrieve_params import ChargeRetrieveParams
from stripe.params._charge_search_params import ChargeSearchParams
from stripe.params._charge_update_params import ChargeUpdateParams
from stripe.params._refund_create_params import RefundCreateParams
from stripe.params._refund_list_params import RefundListParams
from stripe.params._refund_retrieve_params import RefundRetrieveParams
from stripe.params._refund_update_params import RefundUpdateParams

from deploy.local.sandbox.stripe.engine import payments
from deploy.local.sandbox.stripe.engine.events import change
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import Listing, embedded_list, includes, page, render, within
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.search import results
from deploy.local.sandbox.stripe.world import World


@route("GET", "/v1/charges/{id}", ChargeRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One charge."""
    return call.world.need("charge", call.id, in_path=True)


@route("POST", "/v1/charges/{id}", ChargeUpdateParams, "description metadata receipt_email")
def update(call: Call) -> Obj:
    """Change what is said about a charge."""
    call.world.need("charge", call.id, in_path=True)
    with change(call.world, "charge", call.id, "charge.updated") as edited:
        edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
        for name in ("description", "receipt_email"):
            if name in call.params:
                edited[name] = call.params[name]
    return edited


@route("GET", "/v1/charges", ChargeListParams, "+list customer payment_intent")
def listed(call: Call) -> Listing:
    """Charges, newest first."""
    wanted = {name: call.params[name] for name in ("customer", "payment_intent") if name in call.params}
    found = [c for c in call.world.all("charge", **wanted) if within(c["created"], call.get("created"))]
    return page(found, call.params, "/v1/charges")


@route("GET", "/v1/charges/search", ChargeSearchParams, "query limit page")
def search(call: Call) -> Listing:
    """Charges that a query finds."""
    return results(call, "charge")


@includes("charge", "refunds")
def _refunds(world: World, charge: Obj) -> Obj:
    found = [render(world, refund) for refund in world.all("refund", charge=charge["id"])]
    return embedded_list(found[::-1], f"/v1/charges/{charge['id']}/refunds")


@route("POST", "/v1/refunds", RefundCreateParams, "amount charge payment_intent reason metadata")
def create_refund(call: Call) -> Obj:
    """Give back a charge, named itself or by its payment intent, or a part of it."""
    charge, intent = call.get("charge"), call.get("payment_intent")
    if charge is None and intent is None:
        raise invalid("One of the following params should be provided for this request: payment_intent or charge.")
    if charge is None:
        found = call.world.need("payment_intent", intent, "payment_intent")
        if found["status"] != "succeeded":
            raise invalid("This PaymentIntent does not have a successful charge to refund.", "payment_intent")
        charge = found["latest_charge"]
    elif call.world.need("charge", charge, "charge")["payment_intent"] != (
        intent or call.world.get("charge", charge)["payment_intent"]
    ):
        raise invalid("The charge is not one of the payment intent's.", "payment_intent")
    metadata = merged_metadata({}, call.get("metadata"))
    return payments.refund(call.world, charge, amount=call.get("amount"), reason=call.get("reason"), metadata=metadata)


@route("POST", "/v1/refunds/{id}", RefundUpdateParams, "metadata")
def update_refund(call: Call) -> Obj:
    """Change a refund's metadata."""
    call.world.need("refund", call.id, in_path=True)
    with change(call.world, "refund", call.id, "refund.updated") as edited:
        edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
    return edited


@route("GET", "/v1/refunds/{id}", RefundRetrieveParams)
def retrieve_refund(call: Call) -> Obj:
    """One refund."""
    return call.world.need("refund", call.id, in_path=True)


@route("GET", "/v1/refunds", RefundListParams, "+list charge payment_intent")
def listed_refunds(call: Call) -> Listing:
    """Refunds, newest first."""
    wanted = {name: call.params[name] for name in ("charge", "payment_intent") if name in call.params}
    found = [r for r in call.world.all("refund", **wanted) if within(r["created"], call.get("created"))]
    return page(found, call.params, "/v1/refunds")


@route("GET", "/v1/balance_transactions/{id}", BalanceTransactionRetrieveParams)
def retrieve_movement(call: Call) -> Obj:
    """One movement of the account's balance: an amount, Stripe's fee and the net."""
    return call.world.need("balance_transaction", call.id, in_path=True)


@route("GET", "/v1/balance_transactions", BalanceTransactionListParams, "+list source type currency")
def listed_movements(call: Call) -> Listing:
    """Movements of the account's balance, newest first."""
    wanted = {name: call.params[name] for name in ("source", "type", "currency") if name in call.params}
    found = [t for t in call.world.all("balance_transaction", **wanted) if within(t["created"], call.get("created"))]
    return page(found, call.params, "/v1/balance_transactions")
