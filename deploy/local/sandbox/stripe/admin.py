"""Owns the sandbox's own addresses below `/sandbox/`, which ask for no key: faults, deliveries, disputes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import web

from deploy.local.sandbox.armed import ArmingError
from deploy.local.sandbox.stripe.delivery import Deliverer
from deploy.local.sandbox.stripe.engine import deliveries, disputes
from deploy.local.sandbox.stripe.faults import Faults
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid, no_such
from deploy.local.sandbox.stripe.rendering import render
from deploy.local.sandbox.stripe.world import World

_LONGEST_DRAIN_SECONDS: Final = 60.0
_MOST_COPIES: Final = 10
_DEFAULT_LISTED: Final = 1000
_POLL_SECONDS: Final = 0.01


class Admin:
    """Answers what tests and a developer ask of the sandbox itself."""

    def __init__(self, world: Callable[[], World], faults: Faults, deliverer: Deliverer) -> None:
        self._world = world
        self._faults = faults
        self._deliverer = deliverer

    async def answer(self, request: web.Request, path: str) -> tuple[Any, int]:  # noqa: PLR0911  (one for each address)
        """Body and status of the answer.

        Raises:
            Refusal: there is no such address, or it is asked for what cannot be.
        """
        names = path.removeprefix("/sandbox/").strip("/").split("/")
        body = await _body(request)
        try:
            match request.method, *names:
                case ("GET" | "POST" | "DELETE") as method, "faults", *number:
                    return self._arm(method, "".join(number), body)
                case "POST", "outage":
                    self._faults.go_away(body.get("seconds", 0))
                    return {"sandbox": True, "gone": self._faults.gone}, HTTPStatus.OK
                case method, "deliveries", *rest:
                    return await self._deliveries(method, rest, body, dict(request.query))
                case "POST", "events", identifier, "resend":
                    return self._resend_event(identifier)
                case "POST", "disputes":
                    return self._dispute(body)
                case "POST", "disputes", identifier, "close":
                    return self._close_dispute(identifier, body)
                case "GET", "receipts", charge:
                    return {"sandbox": True, "receipt": charge}, HTTPStatus.OK
        except ArmingError as error:
            raise invalid(str(error)) from error
        raise Refusal(HTTPStatus.NOT_FOUND, f"SANDBOX: no such address: {request.method} {path}")

    def _arm(self, method: str, number: str, body: Obj) -> tuple[Any, int]:
        if method == "GET":
            return {"sandbox": True, "faults": self._faults.listing()}, HTTPStatus.OK
        if method == "POST":
            return self._faults.arm(body).public(), HTTPStatus.CREATED
        gone = (not number or number.isdigit()) and self._faults.disarm(int(number) if number else None)
        return None, HTTPStatus.NO_CONTENT if gone else HTTPStatus.NOT_FOUND

    async def _deliveries(self, method: str, rest: list[str], body: Obj, query: dict[str, str]) -> tuple[Any, int]:
        match method, *rest:
            case ("GET",):
                return self._list(query)
            case "POST", "hold":
                return self._change(lambda world: deliveries.hold(world, _types(body) or ["*"]))
            case "POST", "release":
                return self._change(lambda world: _release(world, body))
            case "POST", "retry":
                return self._change(deliveries.retry_now)
            case "POST", "drain":
                return await self._drain(body)
            case "POST", identifier, "resend":
                return self._change(lambda world: _resend(world, identifier))
        raise Refusal(HTTPStatus.NOT_FOUND, "SANDBOX: no such address below /sandbox/deliveries")

    def _list(self, query: dict[str, str]) -> tuple[Any, int]:
        limit = query.pop("limit", str(_DEFAULT_LISTED))
        known = {"state", "type", "endpoint", "event"}
        if unknown := set(query) - known or (not limit.isdigit() and {"limit"}):
            raise invalid(f"known are {', '.join(sorted(known))} and limit; not {', '.join(sorted(unknown))}")
        found = deliveries.listing(self._world().transaction, query, int(limit))
        return {"sandbox": True, "deliveries": found}, HTTPStatus.OK

    def _change(self, function: Callable[[World], Any]) -> tuple[Any, int]:
        world = self._world()
        result = function(world)
        world.transaction.commit()
        self._deliverer.wake()
        return {"sandbox": True, "result": result}, HTTPStatus.OK

    async def _drain(self, body: Obj) -> tuple[Any, int]:
        """Wait until nothing is due or on its way, or (`delivered`) until no delivery is left to be made at all."""
        seconds = min(float(body.get("seconds", 10)), _LONGEST_DRAIN_SECONDS)
        deadline = time.monotonic() + seconds
        everything = bool(body.get("delivered", False))
        while time.monotonic() < deadline:
            if not (self._deliverer.waiting() if everything else not self._deliverer.settled()):
                return {"sandbox": True, "drained": True}, HTTPStatus.OK
            self._deliverer.wake()
            await asyncio.sleep(_POLL_SECONDS)
        return {"sandbox": True, "drained": False}, HTTPStatus.OK

    def _resend_event(self, identifier: str) -> tuple[Any, int]:
        world = self._world()
        count = deliveries.again_event(world, world.need("event", identifier, in_path=True))
        world.transaction.commit()
        self._deliverer.wake()
        return {"sandbox": True, "result": count}, HTTPStatus.OK

    def _dispute(self, body: Obj) -> tuple[Any, int]:
        world = self._world()
        charge = world.need("charge", str(body.get("charge")), "charge")
        amount = body.get("amount", charge["amount"])
        if not isinstance(amount, int) or isinstance(amount, bool):
            raise invalid("amount must be a whole number of cents", "amount")
        made = disputes.open_dispute(world, charge["id"], amount=amount, reason=str(body.get("reason", "fraudulent")))
        return self._committed(world, made)

    def _close_dispute(self, identifier: str, body: Obj) -> tuple[Any, int]:
        status = body.get("status")
        if status not in ("won", "lost"):
            raise invalid("status must be won or lost", "status")
        world = self._world()
        world.need("dispute", identifier, in_path=True)
        return self._committed(world, disputes.close(world, identifier, status=status))

    def _committed(self, world: World, obj: Obj) -> tuple[Any, int]:
        shown = render(world, obj)
        world.transaction.commit()
        self._deliverer.wake()
        return shown, HTTPStatus.OK


async def _body(request: web.Request) -> Obj:
    raw = await request.read()
    try:
        body = orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise invalid("the body must be a JSON object")
    return body


def _types(body: Obj) -> list[str] | None:
    types = body.get("types")
    if types is not None and not (isinstance(types, list) and all(isinstance(kind, str) for kind in types)):
        raise invalid("types must be a list of events' types", "types")
    return types


def _release(world: World, body: Obj) -> list[str]:
    copies, seed = body.get("copies", 1), body.get("seed", 0)
    if not isinstance(copies, int) or not 1 <= copies <= _MOST_COPIES or not isinstance(seed, int):
        raise invalid(f"copies must be from 1 to {_MOST_COPIES}, and seed a whole number", "copies")
    order = str(body.get("order", "given"))
    return deliveries.release(world, order=order, seed=seed, copies=copies, types=_types(body))


def _resend(world: World, identifier: str) -> Obj:
    made = deliveries.again(world, identifier)
    if made is None:
        raise no_such("delivery", identifier, "id", in_path=True)
    return made
