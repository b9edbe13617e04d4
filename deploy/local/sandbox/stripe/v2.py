"""Owns the addresses of Stripe's newer API that take JSON: meter events one by one, or as a stream with a session."""

from __future__ import annotations

import datetime as dt
from http import HTTPStatus
from typing import Any, Final

import orjson

from deploy.local.sandbox.stripe.engine import metering
from deploy.local.sandbox.stripe.identifiers import random_text
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid
from deploy.local.sandbox.stripe.world import World

STREAM_PATH: Final = "/v2/billing/meter_event_stream"
_SESSION: Final = "_meter_event_session"
_SESSION_SECONDS: Final = 15 * 60
_MOST_EVENTS: Final = 100


def respond(world: World, method: str, path: str, raw: bytes) -> Obj:
    """The answer to one request.

    Raises:
        Refusal: the address is not built, the body is not what it should be, or an event is refused.
    """
    body = _body(raw)
    match method, path:
        case "POST", "/v2/billing/meter_events":
            return _event(world, body)
        case "POST", "/v2/billing/meter_event_session":
            return _session(world)
        case "POST", "/v2/billing/meter_event_stream":
            return _stream(world, body)
        case "POST", "/v2/billing/meter_event_adjustments":
            return _adjust(world, body)
    raise Refusal(HTTPStatus.NOT_FOUND, f"Unrecognized request URL ({method}: {path}). SANDBOX: not built here.")


def _body(raw: bytes) -> Any:
    try:
        body = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as error:
        raise invalid(f"Invalid JSON: {error}") from error
    if not isinstance(body, dict):
        raise invalid("Invalid JSON: the body must be an object")
    return body


def _event(world: World, body: Obj) -> Obj:
    unknown = set(body) - {"event_name", "payload", "identifier", "timestamp"}
    if unknown:
        raise invalid(f"Received unknown parameter: {min(unknown)}", min(unknown), "parameter_unknown")
    name, payload = body.get("event_name"), body.get("payload")
    if (
        not isinstance(name, str)
        or not isinstance(payload, dict)
        or not all(isinstance(v, str) for v in payload.values())
    ):
        raise invalid("Missing required param: event_name and payload, the latter an object of strings.", "payload")
    moment = body.get("timestamp")
    try:
        seconds = None if moment is None else int(dt.datetime.fromisoformat(moment).timestamp())
    except (TypeError, ValueError) as error:
        raise invalid(f"Invalid timestamp: {moment}", "timestamp") from error
    taken = metering.take(world, event_name=name, payload=payload, identifier=body.get("identifier"), timestamp=seconds)
    return {
        "object": "v2.billing.meter_event",
        "created": _iso(taken["created"]),
        "event_name": name,
        "identifier": taken["identifier"],
        "livemode": False,
        "payload": payload,
        "timestamp": _iso(taken["timestamp"]),
    }


def _stream(world: World, body: Obj) -> Obj:
    events = body.get("events")
    if not isinstance(events, list) or not 1 <= len(events) <= _MOST_EVENTS:
        raise invalid(f"Pass 1 to {_MOST_EVENTS} events.", "events")
    for event in events:
        # Stripe looks at them later and reports what is wrong with them apart; the call itself succeeds.
        try:
            _event(world, event)
        except Refusal as refusal:
            print(f"SANDBOX Stripe: a streamed meter event is refused: {refusal.message}", flush=True)
    return {}


def _session(world: World) -> Obj:
    now = world.now()
    token = f"mes_sandbox_{random_text(32)}"
    made: Obj = {
        "id": f"mes_1Sandbox{random_text(12)}",
        "object": "v2.billing.meter_event_session",
        "authentication_token": token,
        "created": _iso(now),
        "expires_at": _iso(now + _SESSION_SECONDS),
        "livemode": False,
    }
    world.transaction.put(_SESSION, {"id": token, "expires": now + _SESSION_SECONDS})
    return made


def is_session(world: World, token: str) -> bool:
    """Whether a token is that of a session that has not run out."""
    found = world.find(_SESSION, token)
    return found is not None and bool(found["expires"] > world.now())


def _adjust(world: World, body: Obj) -> Obj:
    identifier = (body.get("cancel") or {}).get("identifier")
    name = body.get("event_name")
    if not isinstance(identifier, str) or not isinstance(name, str):
        raise invalid("Missing required param: event_name and cancel[identifier].", "cancel")
    metering.cancel(world, name, identifier)
    return {
        "id": f"mea_1Sandbox{random_text(12)}",
        "object": "v2.billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "created": _iso(world.now()),
        "event_name": name,
        "livemode": False,
        "status": "complete",
        "type": "cancel",
    }


def _iso(moment: int) -> str:
    return f"{dt.datetime.fromtimestamp(moment, dt.UTC):%Y-%m-%dT%H:%M:%S.000Z}"
