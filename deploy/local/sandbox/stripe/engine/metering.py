"""Owns usage: meter events taken once by their identifier, and their sums per meter, customer and span of time."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, Final

from deploy.local.sandbox.stripe.identifiers import random_text
from deploy.local.sandbox.stripe.money import fits, plain
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.world import World

_DAY: Final = 86_400
_OLDEST_SECONDS: Final = 35 * _DAY
_AHEAD_SECONDS: Final = 300
# Stripe promises at least 24 hours in which an identifier counts once.
_IDENTIFIER_SECONDS: Final = 48 * 3600
_LONGEST_IDENTIFIER: Final = 100
IDENTIFIER: Final = "_meter_identifier"
USAGE: Final = "_usage"


def active_meter(world: World, event_name: str) -> Obj:
    """The meter that counts events of this name.

    Raises:
        Refusal: there is none, or it is deactivated.
    """
    for meter in world.all("billing.meter", event_name=event_name):
        if meter["status"] == "active":
            return meter
        raise invalid(f"The meter for event name '{event_name}' is inactive.", "event_name", "archived_meter")
    raise invalid(f"No active meter found for event name '{event_name}'.", "event_name", "no_meter")


def take(
    world: World, *, event_name: str, payload: dict[str, str], identifier: str | None, timestamp: int | None
) -> Obj:
    """Count one event, once.

    Raises:
        Refusal: no such meter or customer, a value that is no number, a time too far off, an identifier seen before.
    """
    meter = active_meter(world, event_name)
    customer = _customer(world, meter, payload)
    value = _value(meter, payload)
    now = world.now(customer["test_clock"])
    timestamp = now if timestamp is None else timestamp
    if timestamp < now - _OLDEST_SECONDS:
        raise invalid(
            "The timestamp must be within the past 35 calendar days.", "timestamp", "timestamp_too_far_in_past"
        )
    if timestamp > now + _AHEAD_SECONDS:
        raise invalid("The timestamp must not be more than 5 minutes ahead.", "timestamp", "timestamp_in_future")
    identifier = identifier or f"{random_text(8)}-{random_text(16)}"
    if len(identifier) > _LONGEST_IDENTIFIER:
        raise invalid(f"The identifier may have at most {_LONGEST_IDENTIFIER} characters.", "identifier")
    if world.find(IDENTIFIER, identifier) is not None:
        raise invalid(f"An event already exists with identifier {identifier}.", "identifier", "duplicate_meter_event")
    created = world.now()
    world.transaction.put(IDENTIFIER, {"id": identifier, "created": created})
    _count(world, _bucket(meter["id"], customer["id"], timestamp // _DAY), [timestamp, plain(value), identifier])
    return {
        "object": "billing.meter_event",
        "created": created,
        "event_name": event_name,
        "identifier": identifier,
        "livemode": False,
        "payload": payload,
        "timestamp": timestamp,
    }


def _customer(world: World, meter: Obj, payload: dict[str, str]) -> Obj:
    key = meter["customer_mapping"]["event_payload_key"]
    if not payload.get(key):
        raise invalid(
            f"The payload is missing the customer's key '{key}'.", "payload", "meter_event_no_customer_defined"
        )
    found = world.find("customer", payload[key])
    if found is None or found.get("deleted"):
        raise invalid(f"No such customer: '{payload[key]}'", f"payload[{key}]", "meter_event_customer_not_found")
    return found


def _value(meter: Obj, payload: dict[str, str]) -> Decimal:
    key = meter["value_settings"]["event_payload_key"]
    if meter["default_aggregation"]["formula"] == "count" and key not in payload:
        return Decimal(1)
    if not payload.get(key):
        raise invalid(f"The payload is missing the value's key '{key}'.", "payload", "meter_event_value_not_found")
    try:
        value = Decimal(payload[key])
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or not fits(value):
        raise invalid(f"The value '{payload[key]}' is not a number.", f"payload[{key}]", "meter_event_invalid_value")
    return value


def _count(world: World, name: str, entry: list[Any]) -> None:
    if world.find(USAGE, name) is None:
        world.transaction.put(USAGE, {"id": name, "entries": []})
    world.edit(USAGE, name)["entries"].append(entry)


def _bucket(meter: str, customer: str, day: int) -> str:
    return f"{meter}:{customer}:{day}"


def cancel(world: World, event_name: str, identifier: str) -> None:
    """Take a counted event back, within a day.

    Raises:
        Refusal: there is no such event.
    """
    meter = active_meter(world, event_name)
    for bucket in world.transaction.all(USAGE):
        if bucket["id"].startswith(f"{meter['id']}:") and any(e[2] == identifier for e in bucket["entries"]):
            edited = world.edit(USAGE, bucket["id"])
            edited["entries"] = [entry for entry in edited["entries"] if entry[2] != identifier]
            return
    raise invalid(f"No meter event with identifier {identifier} to cancel.", "cancel[identifier]", "resource_missing")


def usage(world: World, meter: Obj, customer: str, start: int, end: int) -> Decimal:
    """What a customer used from `start` to before `end`, by the meter's formula: sum, count or last."""
    entries: list[tuple[int, Decimal]] = []
    for day in range(start // _DAY, (end - 1) // _DAY + 1):
        bucket = world.find(USAGE, _bucket(meter["id"], customer, day))
        if bucket is not None:
            entries += [(when, Decimal(value)) for when, value, _ in bucket["entries"] if start <= when < end]
    if not entries:
        return Decimal(0)
    match meter["default_aggregation"]["formula"]:
        case "count":
            return Decimal(len(entries))
        case "last":
            return max(entries, key=lambda entry: entry[0])[1]
        case _:
            return sum((value for _, value in entries), Decimal(0))


def forget_identifiers(world: World) -> None:
    """Let go of identifiers that have been kept for long enough."""
    oldest = world.now() - _IDENTIFIER_SECONDS
    for kept in list(world.transaction.all(IDENTIFIER)):
        if kept["created"] >= oldest:
            break
        world.remove(IDENTIFIER, kept["id"])
