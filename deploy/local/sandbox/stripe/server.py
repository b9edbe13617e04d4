"""Owns the HTTP server: a request's way through faults, key, idempotency and operation to its answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
import traceback
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import orjson
from aiohttp import web

from deploy.local.sandbox.stripe import (
    idempotency,
    objects,  # noqa: F401 (importing it fills the table of routes)
    pages,
    routes,
    v2,
)
from deploy.local.sandbox.stripe.admin import Admin
from deploy.local.sandbox.stripe.delivery import Deliverer
from deploy.local.sandbox.stripe.engine import clock, deliveries, metering
from deploy.local.sandbox.stripe.engine.events import API_VERSION
from deploy.local.sandbox.stripe.faults import Fault, Faults
from deploy.local.sandbox.stripe.identifiers import random_text
from deploy.local.sandbox.stripe.parameters import check, decode, require_built
from deploy.local.sandbox.stripe.refusal import Obj, Refusal
from deploy.local.sandbox.stripe.rendering import answer
from deploy.local.sandbox.stripe.routes import Call, Route
from deploy.local.sandbox.stripe.store import Store
from deploy.local.sandbox.stripe.world import Settings, World

SERVER_NAME: Final = "tollkeeper-sandbox-stripe"
_LARGEST_BODY: Final = 1024 * 1024
_TICK_SECONDS: Final = 0.5
_FORGET_SECONDS: Final = 600.0
_HANGING_POLL_SECONDS: Final = 0.05

_FAULT_WORDS: Final = {
    429: ("invalid_request_error", "rate_limit", "Request rate limit exceeded. SANDBOX: an armed fault."),
    503: ("api_error", None, "SANDBOX: an armed fault: service unavailable."),
}


class SandboxStripe:
    """The sandbox's state and its one request handler."""

    def __init__(self, store: Store, settings: Settings, keys: frozenset[str]) -> None:
        self._store = store
        self._settings = settings
        self._keys = keys
        self._faults = Faults()
        self._deliverer = Deliverer(store, settings)
        self._admin = Admin(self.world, self._faults, self._deliverer)
        self._in_progress: set[str] = set()
        self._stopping = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []

    def application(self) -> web.Application:
        """The server, to be run by an aiohttp runner in the running loop."""
        application = web.Application(client_max_size=_LARGEST_BODY)
        application.router.add_route("*", "/{path:.*}", self._take)
        application.on_startup.append(self._start)
        application.on_cleanup.append(self._end)
        return application

    async def _start(self, _application: web.Application) -> None:
        self._background = [asyncio.create_task(self._deliverer.run()), asyncio.create_task(self._keep_time())]

    async def _end(self, _application: web.Application) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def stop(self) -> None:
        """Let hanging requests go, so that a shutdown need not wait for them."""
        self._stopping.set()

    def world(self, request_id: str | None = None, key: str | None = None) -> World:
        """A fresh view of the state, for one request."""
        return World(self._store.transaction(), self._settings, request_id=request_id, idempotency_key=key)

    async def _keep_time(self) -> None:
        """Do what is due by the wall clock, and forget what has been kept for long enough."""
        forgot = 0.0
        while True:
            if clock.run_due(self._store, self._settings):
                self._deliverer.wake()
            if time.monotonic() - forgot > _FORGET_SECONDS:
                forgot = time.monotonic()
                world = self.world()
                idempotency.forget(world.transaction, time.time())
                metering.forget_identifiers(world)
                deliveries.forget(world.transaction)
                world.transaction.commit()
            await asyncio.sleep(_TICK_SECONDS)

    async def _take(self, request: web.Request) -> web.StreamResponse:
        path = unquote(request.path)
        try:
            return await self._by_address(request, path)
        except Refusal as refusal:
            return _json(refusal.body(), refusal.status)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:  # noqa: BLE001  (a fault of the sandbox's own must look like one of Stripe's, not like HTML)
            traceback.print_exc()
            words = f"SANDBOX: a fault of the sandbox itself at {request.method} {path}; its log has the traceback."
            return _json(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, words, kind="api_error").body(), 500)

    async def _by_address(self, request: web.Request, path: str) -> web.StreamResponse:
        if path == "/healthz":
            return _json({"status": "ok", "sandbox": True})
        if path.startswith("/sandbox/"):
            return _json(*await self._admin.answer(request, path))
        if self._faults.gone:
            return _cut(request)
        if path.startswith(("/v1/", "/v2/")):
            return await self._api(request, path)
        return await self._page(request, path)

    async def _page(self, request: web.Request, path: str) -> web.StreamResponse:
        """Answer an address that a person opens: checkout, portal, an invoice."""
        world = self.world()
        form = dict(parse_qsl((await request.read()).decode("utf-8", "replace"))) if request.method == "POST" else {}
        response = pages.respond(
            world, request.method, path, form, html="text/html" in request.headers.get("accept", "")
        )
        world.transaction.commit()
        self._deliverer.wake()
        response.headers["server"] = SERVER_NAME
        return response

    # ---- the API

    async def _api(self, request: web.Request, path: str) -> web.StreamResponse:
        request_id = f"req_sandbox_{random_text(14)}"
        headers = {"request-id": request_id, "stripe-version": request.headers.get("stripe-version", API_VERSION)}
        raw = await request.read()
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        if key is not None:
            headers["idempotency-key"] = key
            if key in self._in_progress:
                return _json(idempotency.in_use(key).body(), HTTPStatus.CONFLICT, headers)
            self._in_progress.add(key)
        try:
            fault = self._faults.for_request(request.method, path)
            if fault is not None and (stopped := await self._before(request, fault, headers)) is not None:
                return stopped
            breaks = fault is not None and fault.kind == "broken"
            status, body, replayed = self._carry_out(request, path, raw, request_id, key, breaks=breaks)
            if replayed:
                headers["idempotent-replayed"] = "true"
            self._deliverer.wake()
            if fault is not None and fault.kind == "hang-after":
                await self._hang(request)
            if fault is not None and fault.kind in ("cut", "hang-after"):
                return _cut(request)
            return _json(body, status, headers)
        finally:
            if key is not None:
                self._in_progress.discard(key)

    async def _before(self, request: web.Request, fault: Fault, headers: dict[str, str]) -> web.StreamResponse | None:
        """What a fault does before a request is carried out; None where it is carried out all the same."""
        match fault.kind:
            case "hang":
                await self._hang(request)
                return _cut(request)
            case "slow":
                await asyncio.sleep(fault.delay_ms / 1000)
                return None
            case "cut-before":
                return _cut(request)
            case "status":
                kind, code, words = _FAULT_WORDS.get(
                    fault.status, ("api_error", None, "SANDBOX: an armed fault: an error on Stripe's side.")
                )
                refusal = Refusal(fault.status, words, kind=kind, code=code)
                return _json(refusal.body(), fault.status, headers)
        return None

    async def _hang(self, request: web.Request) -> None:
        """Say nothing until the client leaves, or the sandbox stops."""
        while request.transport is not None and not request.transport.is_closing():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _HANGING_POLL_SECONDS)
                return

    def _carry_out(
        self, request: web.Request, path: str, raw: bytes, request_id: str, key: str | None, *, breaks: bool = False
    ) -> tuple[int, Obj, bool]:
        """Status and body of a request's answer, and whether it was given before; its effects are kept or undone.

        With `breaks` it is a 500 without effect: the answer to the idempotency key from then on, as at Stripe.
        """
        world = self.world(request_id, key)
        try:
            self._require_key(request, path, world)
            if path.startswith("/v2/"):
                body = v2.respond(world, request.method, path, raw)
                world.transaction.commit()
                return HTTPStatus.OK, body, False
            route, ids = _find(request.method, path)
            given = _given(request, raw)
            seen = idempotency.fingerprint(request.method, path, given)
            if key is not None:
                first = idempotency.replay(world.transaction, key, seen, path, time.time())
                if first is not None:
                    return *first, True
            status, body = _broken() if breaks else _operate(world, route, ids, path, given)
            if key is not None:
                idempotency.keep(world.transaction, key, seen, path, status=status, body=body, now=time.time())
            world.transaction.commit()
        except Refusal as refusal:
            return refusal.status, refusal.body(), False
        return status, body, False

    def _require_key(self, request: web.Request, path: str, world: World) -> None:
        """Raise a 401 unless the request carries one of the sandbox's keys, or the token of a meter event session."""
        given = _credential(request.headers.get("authorization", ""))
        if path == v2.STREAM_PATH and v2.is_session(world, given):
            return
        if given in self._keys:
            return
        if not given:
            message = (
                "You did not provide an API key. You need to provide your API key in the Authorization header, using "
                "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
            )
            raise Refusal(HTTPStatus.UNAUTHORIZED, message)
        shown = f"{given[:8]}{'*' * 8}{given[-4:]}" if len(given) > 16 else "*" * len(given)  # noqa: PLR2004
        raise Refusal(HTTPStatus.UNAUTHORIZED, f"Invalid API Key provided: {shown}")


def _operate(world: World, route: Route, ids: tuple[str, ...], path: str, given: Obj) -> tuple[int, Obj]:
    """Carry out one operation: status and body, also of a refusal whose effects stay."""
    params = check(given, route.params)
    require_built(params, route.built)
    try:
        result = route.operation(Call(world, ids, params, path))
    except Refusal as refusal:
        if not refusal.effects_stay:
            raise
        return refusal.status, refusal.body()
    return HTTPStatus.OK, answer(world, result, params.get("expand", ()))


def _broken() -> tuple[int, Obj]:
    words = "SANDBOX: an armed fault: an error on Stripe's side, which the idempotency key remembers."
    return HTTPStatus.INTERNAL_SERVER_ERROR, Refusal(500, words, kind="api_error").body()


def _find(method: str, path: str) -> tuple[Route, tuple[str, ...]]:
    found = routes.find(method, path)
    if found is None:
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            f"Unrecognized request URL ({method}: {path}). SANDBOX: Stripe may have it; this sandbox has not.",
        )
    return found


def _given(request: web.Request, raw: bytes) -> Obj:
    """The nested parameters of a request, from its query and its form."""
    try:
        pairs = parse_qsl(request.query_string, keep_blank_values=True)
        if request.method == "POST":
            pairs += parse_qsl(raw.decode(), keep_blank_values=True)
    except UnicodeDecodeError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "Invalid request: the body is not UTF-8.") from error
    return decode(pairs)


def _credential(header: str) -> str:
    """The key of an `Authorization` header, bearer or basic; empty where there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError, UnicodeDecodeError):
            return base64.b64decode(value).decode().partition(":")[0]
    return ""


def _cut(request: web.Request) -> web.StreamResponse:
    """Break the connection; the answer that is returned never goes out."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)


def _json(value: Any, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> web.Response:
    more = {"content-type": "application/json", "server": SERVER_NAME, **(headers or {})}
    body = b"" if value is None else orjson.dumps(value, option=orjson.OPT_INDENT_2)
    return web.Response(status=int(status), body=body, headers=more)
