"""Owns disputes as requests see them; they are opened and decided at the sandbox's own addresses."""

from __future__ import annotations

from stripe.params._dispute_close_params import DisputeCloseParams
from stripe.params._dispute_list_params import DisputeListParams
from stripe.params._dispute_retrieve_params import DisputeRetrieveParams
from stripe.params._dispute_update_params import DisputeUpdateParams

from deploy.local.sandbox.stripe.engine import disputes
from deploy.local.sandbox.stripe.engine.events import change
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.rendering import Listing, page, within
from deploy.local.sandbox.stripe.routes import Call, route


@route("GET", "/v1/disputes/{id}", DisputeRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One dispute."""
    return call.world.need("dispute", call.id, in_path=True)


@route("GET", "/v1/disputes", DisputeListParams, "+list charge payment_intent")
def listed(call: Call) -> Listing:
    """Disputes, newest first."""
    wanted = {name: call.params[name] for name in ("charge", "payment_intent") if name in call.params}
    found = [d for d in call.world.all("dispute", **wanted) if within(d["created"], call.get("created"))]
    return page(found, call.params, "/v1/disputes")


@route("POST", "/v1/disputes/{id}", DisputeUpdateParams, "evidence submit metadata")
def update(call: Call) -> Obj:
    """Add evidence and, unless `submit` is false, hand it in."""
    call.world.need("dispute", call.id, in_path=True)
    with change(call.world, "dispute", call.id, "charge.dispute.updated") as edited:
        edited["evidence"] |= call.get("evidence") or {}
        edited["metadata"] = merged_metadata(edited["metadata"], call.get("metadata"))
    if "evidence" in call.params and call.get("submit", True) and edited["status"] in disputes.OPEN:
        disputes.submit(call.world, call.id)
    return call.world.get("dispute", call.id)


@route("POST", "/v1/disputes/{id}/close", DisputeCloseParams)
def close(call: Call) -> Obj:
    """Accept a dispute: it is lost."""
    call.world.need("dispute", call.id, in_path=True)
    return disputes.close(call.world, call.id, status="lost")
