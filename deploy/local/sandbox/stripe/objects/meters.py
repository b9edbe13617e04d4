"""Owns billing meters, the events that they count, and sums of these; the older and the newer address of events."""

from __future__ import annotations

from typing import Final

from stripe.params.billing._meter_create_params import MeterCreateParams
from stripe.params.billing._meter_deactivate_params import MeterDeactivateParams
from stripe.params.billing._meter_event_adjustment_create_params import MeterEventAdjustmentCreateParams
from stripe.params.billing._meter_event_create_params import MeterEventCreateParams
from stripe.params.billing._meter_event_summary_list_params import MeterEventSummaryListParams
from stripe.params.billing._meter_list_params import MeterListParams
from stripe.params.billing._meter_reactivate_params import MeterReactivateParams
from stripe.params.billing._meter_retrieve_params import MeterRetrieveParams
from stripe.params.billing._meter_update_params import MeterUpdateParams

from deploy.local.sandbox.stripe.engine import metering
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.money import plain
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page
from deploy.local.sandbox.stripe.routes import Call, route

_WINDOWS: Final = {"hour": 3600, "day": 86_400}
_MOST_WINDOWS: Final = 1000


@route(
    "POST",
    "/v1/billing/meters",
    MeterCreateParams,
    "customer_mapping default_aggregation display_name event_name event_time_window value_settings",
)
def create(call: Call) -> Obj:
    """Add a meter."""
    name = call.params["event_name"]
    for other in call.world.all("billing.meter", event_name=name, status="active"):
        raise invalid(f"An active meter with the event name '{name}' exists already: {other['id']}.", "event_name")
    now = call.world.now()
    mapping = call.get("customer_mapping") or {}
    values = call.get("value_settings") or {}
    meter: Obj = {
        "id": new_id("billing.meter"),
        "object": "billing.meter",
        "created": now,
        "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id", **mapping},
        "default_aggregation": call.params["default_aggregation"],
        "display_name": call.params["display_name"],
        "event_name": name,
        "event_time_window": call.get("event_time_window"),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": now,
        "value_settings": {"event_payload_key": "value", **values},
    }
    call.world.add(meter)
    emit(call.world, "billing.meter.created", meter)
    return meter


def _need(call: Call) -> Obj:
    return call.world.need("billing.meter", call.id, in_path=True)


@route("POST", "/v1/billing/meters/{id}", MeterUpdateParams, "display_name")
def update(call: Call) -> Obj:
    """Change a meter's name."""
    _need(call)
    edited = call.world.edit("billing.meter", call.id)
    if "display_name" in call.params:
        edited |= {"display_name": call.params["display_name"], "updated": call.world.now()}
    emit(call.world, "billing.meter.updated", edited)
    return edited


@route("POST", "/v1/billing/meters/{id}/deactivate", MeterDeactivateParams)
def deactivate(call: Call) -> Obj:
    """Have a meter count no more."""
    if _need(call)["status"] == "inactive":
        raise invalid("This meter is already inactive.")
    edited = call.world.edit("billing.meter", call.id)
    now = call.world.now()
    edited |= {"status": "inactive", "status_transitions": {"deactivated_at": now}, "updated": now}
    emit(call.world, "billing.meter.deactivated", edited)
    return edited


@route("POST", "/v1/billing/meters/{id}/reactivate", MeterReactivateParams)
def reactivate(call: Call) -> Obj:
    """Have a meter count again."""
    if _need(call)["status"] == "active":
        raise invalid("This meter is already active.")
    edited = call.world.edit("billing.meter", call.id)
    edited |= {"status": "active", "status_transitions": {"deactivated_at": None}, "updated": call.world.now()}
    emit(call.world, "billing.meter.reactivated", edited)
    return edited


@route("GET", "/v1/billing/meters/{id}", MeterRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One meter."""
    return _need(call)


@route("GET", "/v1/billing/meters", MeterListParams, "limit starting_after ending_before status")
def listed(call: Call) -> Listing:
    """Meters, newest first."""
    wanted = {name: call.params[name] for name in ("status",) if name in call.params}
    return page(call.world.all("billing.meter", **wanted), call.params, "/v1/billing/meters")


@route("POST", "/v1/billing/meter_events", MeterEventCreateParams, "event_name identifier payload timestamp")
def create_event(call: Call) -> Obj:
    """Count one event."""
    return metering.take(
        call.world,
        event_name=call.params["event_name"],
        payload=call.params["payload"],
        identifier=call.get("identifier"),
        timestamp=call.get("timestamp"),
    )


@route("POST", "/v1/billing/meter_event_adjustments", MeterEventAdjustmentCreateParams, "cancel event_name type")
def adjust(call: Call) -> Obj:
    """Take an event back."""
    identifier = (call.get("cancel") or {}).get("identifier")
    if identifier is None:
        raise invalid("Missing required param: cancel[identifier].", "cancel[identifier]", "parameter_missing")
    metering.cancel(call.world, call.params["event_name"], identifier)
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": call.params["event_name"],
        "livemode": False,
        "status": "complete",
        "type": "cancel",
    }


@route(
    "GET",
    "/v1/billing/meters/{id}/event_summaries",
    MeterEventSummaryListParams,
    "customer start_time end_time value_grouping_window limit starting_after ending_before",
)
def summaries(call: Call) -> Listing:
    """What a customer used in a span of time, in all or by hour or day."""
    meter = _need(call)
    customer = call.world.need("customer", call.params["customer"], "customer")["id"]
    start, end = call.params["start_time"], call.params["end_time"]
    if start % 60 or end % 60 or start >= end:
        raise invalid("`start_time` and `end_time` must be whole minutes, and in this order.", "start_time")
    step = _WINDOWS.get(call.get("value_grouping_window", ""), end - start)
    if start % step and step != end - start:
        raise invalid("`start_time` and `end_time` must align with the window.", "start_time")
    if (end - start) / step > _MOST_WINDOWS:
        raise invalid(f"At most {_MOST_WINDOWS} windows at once.", "value_grouping_window")
    found = []
    for begin in range(start, end, step):
        value = metering.usage(call.world, meter, customer, begin, min(begin + step, end))
        if value or step == end - start:
            found.append(_summary(meter, begin, min(begin + step, end), plain(value)))
    return page(found, call.params, f"/v1/billing/meters/{call.id}/event_summaries")


def _summary(meter: Obj, start: int, end: int, value: str) -> Obj:
    return {
        "id": f"{new_id('billing.meter_event_summary')}",
        "object": "billing.meter_event_summary",
        "aggregated_value": int(value) if "." not in value else float(value),
        "end_time": end,
        "livemode": False,
        "meter": meter["id"],
        "start_time": start,
    }
