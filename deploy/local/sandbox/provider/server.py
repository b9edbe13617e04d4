"""Owns the HTTP server: a request's way from its arrival to the request log, and the addresses under `/sandbox/`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from deploy.local.sandbox.armed import ArmingError
from deploy.local.sandbox.provider import catalogue, refusal
from deploy.local.sandbox.provider.answer import compose
from deploy.local.sandbox.provider.behaviour import STREAM_ERROR, Behaviour, DirectiveError, build, parse, parse_message
from deploy.local.sandbox.provider.delivery import Delivery
from deploy.local.sandbox.provider.faults import Faults
from deploy.local.sandbox.provider.keys import Keyring, Presented
from deploy.local.sandbox.provider.prompt import Prompt
from deploy.local.sandbox.provider.refusal import Dialect, Provider, Refusal
from deploy.local.sandbox.provider.request_log import Call, RequestLog
from deploy.local.sandbox.provider.routes import Endpoint, Route, provider_of_model, resolve
from deploy.local.sandbox.provider.wire.anthropic_messages import Messages
from deploy.local.sandbox.provider.wire.base import JSON, Counting, Wire
from deploy.local.sandbox.provider.wire.bedrock import Converse
from deploy.local.sandbox.provider.wire.gemini import GenerateContent
from deploy.local.sandbox.provider.wire.openai_chat import ChatCompletions
from deploy.local.sandbox.provider.wire.openai_embeddings import Embeddings
from deploy.local.sandbox.provider.wire.openai_responses import Responses

SERVER_NAME: Final = "tollkeeper-sandbox-provider"
_LARGEST_BODY: Final = 64 * 1024 * 1024

_RESPONSES: Final = Responses()
_MESSAGES: Final = Messages()
_GEMINI: Final = GenerateContent(sse=False)
_WIRES: Final[dict[Endpoint, Wire]] = {
    Endpoint.CHAT: ChatCompletions(),
    Endpoint.RESPONSES: _RESPONSES,
    Endpoint.EMBEDDINGS: Embeddings(),
    Endpoint.MESSAGES: _MESSAGES,
    Endpoint.GENERATE: _GEMINI,
    Endpoint.STREAM_GENERATE: _GEMINI,
    Endpoint.CONVERSE: Converse(),
    Endpoint.CONVERSE_STREAM: Converse(),
}
_GEMINI_SSE: Final = GenerateContent(sse=True)
_COUNTING: Final[dict[Dialect, Counting]] = {
    Dialect.OPENAI: _RESPONSES,
    Dialect.ANTHROPIC: _MESSAGES,
    Dialect.GOOGLE: _GEMINI,
}

_REQUEST_ID_HEADERS: Final = {
    Provider.OPENAI: "x-request-id",
    Provider.ANTHROPIC: "request-id",
    Provider.GOOGLE: "x-request-id",
    Provider.HUGGINGFACE: "x-request-id",
    Provider.BEDROCK: "x-amzn-requestid",
}


class SandboxProvider:
    """The sandbox's state and its one request handler."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._log = RequestLog()
        self._faults = Faults()
        self._stopping = asyncio.Event()

    def server(self) -> web.Server:
        """The server, to be run by an aiohttp runner in the running loop."""
        return web.Server(
            self._handle,
            request_factory=_large_request,
            # A client that leaves cancels its handler, which is how the log learns of it.
            handler_cancellation=True,
            access_log=None,
        )

    def stop(self) -> None:
        """Let hanging calls go, so that a shutdown need not wait for them."""
        self._stopping.set()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw_path, _, query = request.raw_path.partition("?")
        route = resolve(request.method, raw_path)
        if route is None:
            return await self._own_address(request, raw_path, query)
        if route.endpoint is Endpoint.COUNT:
            return await self._count(request, route, raw_path, query)
        if not route.calls_a_model:
            return await self._models(request, route, raw_path, query)
        call = self._log.open()
        try:
            return await self._call(request, route, raw_path, query, call)
        except (asyncio.CancelledError, ConnectionError):
            call.aborted_by_client = not self._stopping.is_set()
            raise
        finally:
            self._log.close(call)

    async def _call(
        self, request: web.BaseRequest, route: Route, raw_path: str, query: str, call: Call
    ) -> web.StreamResponse:
        """Answer one call of a model."""
        call.provider = (route.provider or Provider.OPENAI).value
        call.endpoint, call.model = route.endpoint.value, route.model
        behaviour = Behaviour()
        try:
            raw = await _read(request)
            body, malformed = _parse(raw)
            route = _settled(route, body, request.headers)
            assert route.provider is not None
            call.provider, call.model = route.provider.value, route.model or str(body.get("model", ""))
            presented = Presented(request.method, raw_path, query, request.headers, raw)
            key = self._keyring.check(route.dialect, presented)
            if malformed is not None:
                raise _not_json(route.dialect, malformed)
            _check_version(route, request.headers)
            wire = _GEMINI_SSE if "alt=sse" in query and route.dialect is Dialect.GOOGLE else _WIRES[route.endpoint]
            prompt = wire.read(body, route)
            call.stream = prompt.stream
            behaviour = self._behaviour(request, route, prompt, key)
            call.fault = behaviour.label()
            if behaviour.status is not None or STREAM_ERROR in behaviour.faults:
                _refuse_if_asked(behaviour, prompt)
            answer = compose(prompt, behaviour, number=call.number, created=int(time.time()))
        except DirectiveError as error:
            return await self._refuse(request, route, call, behaviour, Refusal(HTTPStatus.BAD_REQUEST, str(error)))
        except Refusal as error:
            return await self._refuse(request, route, call, behaviour, error)
        delivery = Delivery(request, call, behaviour, _headers(route.provider, call.number), self._stopping)
        if prompt.stream:
            return await delivery.stream(answer, wire, route.dialect)
        return await delivery.unary(answer, wire)

    def _behaviour(self, request: web.BaseRequest, route: Route, prompt: Prompt, key: str) -> Behaviour:
        """What armed faults, header and message ask for; the message wins over the header, that over the fault."""
        assert route.provider is not None
        settings = self._faults.settings_for(
            provider=route.provider, model=prompt.model, api_key=key, stream=prompt.stream
        )
        header = request.headers.get("x-sandbox-fault")
        if header:
            settings = settings | parse(header)
        message = parse_message(prompt.last_user_text)
        return build(settings | message if message else settings)

    async def _refuse(
        self, request: web.BaseRequest, route: Route, call: Call, behaviour: Behaviour, error: Refusal
    ) -> web.StreamResponse:
        provider = Provider(call.provider)
        delivery = Delivery(request, call, behaviour, _headers(provider, call.number), self._stopping)
        body = refusal.body(route.dialect, error, f"req_sandbox_{call.number}")
        return await delivery.refuse(error.status, body, refusal.headers(route.dialect, error))

    async def _count(self, request: web.BaseRequest, route: Route, raw_path: str, query: str) -> web.StreamResponse:
        """Answer a count of tokens, which calls no model and so stays out of the log. Of faults it knows a status."""
        try:
            raw = await _read(request)
            body, malformed = _parse(raw)
            key = self._keyring.check(route.dialect, Presented(request.method, raw_path, query, request.headers, raw))
            if malformed is not None:
                raise _not_json(route.dialect, malformed)
            _check_version(route, request.headers)
            counting = _COUNTING[route.dialect]
            prompt = counting.count(body, route)
            behaviour = self._behaviour(request, route, prompt, key)
            if behaviour.status is not None:
                error = Refusal(behaviour.status, retry_after=behaviour.retry_after)
                return _refused(route, error, "req_sandbox_count")
        except DirectiveError as error:
            return _refused(route, Refusal(HTTPStatus.BAD_REQUEST, str(error)), "req_sandbox_count")
        except Refusal as error:
            return _refused(route, error, "req_sandbox_count")
        return _json(counting.counted(prompt.input_tokens))

    async def _models(self, request: web.BaseRequest, route: Route, raw_path: str, query: str) -> web.StreamResponse:
        """Answer a models listing, which costs nothing and so stays out of the log."""
        if route.provider is None:
            route = route.of(_lister(request.headers))
        assert route.provider is not None
        try:
            self._keyring.check(route.dialect, Presented(request.method, raw_path, query, request.headers, b""))
            if route.endpoint is Endpoint.MODELS:
                found = catalogue.listing(route.provider, route.dialect)
            else:
                found = catalogue.model(route.provider, route.dialect, route.model)
        except Refusal as error:
            return _refused(route, error, "req_sandbox_models")
        return _json(found)

    async def _own_address(self, request: web.BaseRequest, path: str, query: str) -> web.StreamResponse:
        """Answer an address of the sandbox itself, or none."""
        match request.method, path:
            case "GET", "/healthz":
                return _json({"status": "ok", "sandbox": True})
            case method, "/sandbox/usage":
                return self._usage(method, query)
            case method, _ if path == "/sandbox/faults" or path.startswith("/sandbox/faults/"):
                return await self._armed(request, method, path.removeprefix("/sandbox/faults").lstrip("/"))
        error = Refusal(HTTPStatus.NOT_FOUND, f"Invalid URL ({request.method} {path})", code="unknown_url")
        body = refusal.body(Dialect.OPENAI, error, "")
        return web.Response(status=HTTPStatus.NOT_FOUND, body=body, headers=refusal.headers(Dialect.OPENAI, error))

    def _usage(self, method: str, query: str) -> web.StreamResponse:
        """Show the request log, or start it anew."""
        if method == "DELETE":
            self._log.reset()
            return web.Response(status=HTTPStatus.NO_CONTENT)
        if method != "GET":
            return web.Response(status=HTTPStatus.METHOD_NOT_ALLOWED)
        fields = dict(field.partition("=")[::2] for field in query.split("&"))
        limit, after = fields.get("limit", ""), fields.get("after", "")
        if any(value and not (value.isascii() and value.isdigit()) for value in (limit, after)):
            return _json({"error": "limit and after must be whole numbers"}, HTTPStatus.BAD_REQUEST)
        return _json(self._log.report(limit=int(limit) if limit else None, after=int(after or 0)))

    async def _armed(self, request: web.BaseRequest, method: str, number: str) -> web.StreamResponse:
        """Arm a fault, list those armed, or disarm one or all."""
        if method == "DELETE":
            known = not number or number.isdigit()
            gone = known and self._faults.disarm(int(number) if number else None)
            return web.Response(status=HTTPStatus.NO_CONTENT if gone else HTTPStatus.NOT_FOUND)
        if number or method not in ("GET", "POST"):
            return web.Response(status=HTTPStatus.METHOD_NOT_ALLOWED)
        if method == "GET":
            return _json({"sandbox": True, "faults": self._faults.listing()})
        try:
            fault = self._faults.arm(orjson.loads(await request.read()))
        except (ArmingError, orjson.JSONDecodeError) as error:
            return _json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        return _json(fault.public(), HTTPStatus.CREATED)


def _large_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """A request whose body may be as large as prompts with images are."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_LARGEST_BODY)


async def _read(request: web.BaseRequest) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        message = f"Request exceeds the maximum size of {_LARGEST_BODY} bytes."
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message) from error


def _parse(raw: bytes) -> tuple[Mapping[str, Any], str | None]:
    """The body as an object, or an empty one and what is wrong with it."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return {}, str(error)
    return (body, None) if isinstance(body, dict) else ({}, "the body is not a JSON object")


def _settled(route: Route, body: Mapping[str, Any], headers: Mapping[str, str]) -> Route:
    """The route with its provider, which on a shared path the headers or the model's name tell."""
    if route.provider is not None:
        return route
    if "anthropic-version" in headers:
        return route.of(Provider.ANTHROPIC)
    return route.of(provider_of_model(str(body.get("model", ""))))


def _lister(headers: Mapping[str, str]) -> Provider:
    """Whose models are listed at the address that OpenAI, Anthropic and Google share."""
    if "anthropic-version" in headers:
        return Provider.ANTHROPIC
    return Provider.GOOGLE if "x-goog-api-key" in headers else Provider.OPENAI


def _not_json(dialect: Dialect, problem: str) -> Refusal:
    match dialect:
        case Dialect.BEDROCK:
            return Refusal(HTTPStatus.BAD_REQUEST, problem, code="SerializationException")
        case Dialect.GOOGLE | Dialect.GOOGLE_COMPATIBLE:
            return Refusal(HTTPStatus.BAD_REQUEST, f"Invalid JSON payload received. {problem}")
        case Dialect.ANTHROPIC | Dialect.ANTHROPIC_COMPATIBLE:
            return Refusal(HTTPStatus.BAD_REQUEST, f"The request body is not valid JSON: {problem}")
        case _:
            message = f"We could not parse the JSON body of your request. ({problem})"
            return Refusal(HTTPStatus.BAD_REQUEST, message)


def _check_version(route: Route, headers: Mapping[str, str]) -> None:
    if route.dialect is Dialect.ANTHROPIC and not headers.get("anthropic-version"):
        raise Refusal(HTTPStatus.BAD_REQUEST, "anthropic-version: header is required")


def _refuse_if_asked(behaviour: Behaviour, prompt: Prompt) -> None:
    """Raise the refusal that was asked for, unless it is to come in the middle of a stream."""
    in_stream = STREAM_ERROR in behaviour.faults
    if in_stream and prompt.stream:
        return
    status = behaviour.status or HTTPStatus.INTERNAL_SERVER_ERROR
    raise Refusal(int(status), retry_after=behaviour.retry_after)


def _headers(provider: Provider, number: int) -> dict[str, str]:
    return {"server": SERVER_NAME, _REQUEST_ID_HEADERS[provider]: f"req_sandbox_{number}"}


def _refused(route: Route, error: Refusal, request_id: str) -> web.Response:
    body = refusal.body(route.dialect, error, request_id)
    return web.Response(status=error.status, body=body, headers=refusal.headers(route.dialect, error))


def _json(value: Any, status: int = HTTPStatus.OK) -> web.Response:
    headers = {"content-type": JSON, "server": SERVER_NAME}
    return web.Response(status=status, body=orjson.dumps(value), headers=headers)
