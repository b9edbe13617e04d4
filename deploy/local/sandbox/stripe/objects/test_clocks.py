"""Owns test clocks: time that stands still until it is moved on, for the customers bound to it."""

from __future__ import annotations

from typing import Final

from stripe.params.test_helpers._test_clock_advance_params import TestClockAdvanceParams
from stripe.params.test_helpers._test_clock_create_params import TestClockCreateParams
from stripe.params.test_helpers._test_clock_delete_params import TestClockDeleteParams
from stripe.params.test_helpers._test_clock_list_params import TestClockListParams
from stripe.params.test_helpers._test_clock_retrieve_params import TestClockRetrieveParams

from deploy.local.sandbox.stripe.engine import clock
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.objects import customers
from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.rendering import Listing, page
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.world import AGENDA

_KEPT_SECONDS: Final = 30 * 86_400


@route("POST", "/v1/test_helpers/test_clocks", TestClockCreateParams, "frozen_time name")
def create(call: Call) -> Obj:
    """Make a clock that stands at `frozen_time`."""
    now = call.world.now()
    made: Obj = {
        "id": new_id("test_helpers.test_clock"),
        "object": "test_helpers.test_clock",
        "created": now,
        "deletes_after": now + _KEPT_SECONDS,
        "frozen_time": call.params["frozen_time"],
        "livemode": False,
        "name": call.get("name"),
        "status": "ready",
        "status_details": {},
    }
    call.world.add(made)
    emit(call.world, "test_helpers.test_clock.created", made)
    return made


@route("POST", "/v1/test_helpers/test_clocks/{id}/advance", TestClockAdvanceParams, "frozen_time")
def advance(call: Call) -> Obj:
    """Move a clock on. Everything has happened when this is answered; the answer says `advancing`, as Stripe's does."""
    call.world.need(clock.CLOCK, call.id, "test_clock", in_path=True)
    clock.advance(call.world, call.id, call.params["frozen_time"])
    return {**call.world.get(clock.CLOCK, call.id), "status": "advancing"}


@route("DELETE", "/v1/test_helpers/test_clocks/{id}", TestClockDeleteParams)
def delete(call: Call) -> Obj:
    """Take a clock away, and the customers that live by it."""
    found = call.world.need(clock.CLOCK, call.id, "test_clock", in_path=True)
    for customer in list(call.world.all("customer", test_clock=call.id)):
        if not customer.get("deleted"):
            customers.remove(call.world, customer)
        call.world.remove("customer", customer["id"])
    for entry in list(call.world.transaction.all(AGENDA)):
        if entry["clock"] == call.id:
            call.world.remove(AGENDA, entry["id"])
    emit(call.world, "test_helpers.test_clock.deleted", found)
    call.world.remove(clock.CLOCK, call.id)
    return {"id": call.id, "object": "test_helpers.test_clock", "deleted": True}


@route("GET", "/v1/test_helpers/test_clocks/{id}", TestClockRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One clock."""
    return call.world.need(clock.CLOCK, call.id, "test_clock", in_path=True)


@route("GET", "/v1/test_helpers/test_clocks", TestClockListParams, "limit starting_after ending_before")
def listed(call: Call) -> Listing:
    """Clocks, newest first."""
    return page(call.world.all(clock.CLOCK), call.params, "/v1/test_helpers/test_clocks")
