"""Owns the one wrapping of each RPC handler: everything that happens around a servicer's method, in order.

    request id → deadline → concurrency → who calls → may they → the method → refusals → metrics and log

A handler is wrapped once, when its servicer is registered; no interceptor objects are made per call. The wrapped
handler takes the request's bytes and decodes them itself, so that nothing is decoded for a caller without access, and
malformed bytes are the caller's error, not ours. Servicers therefore read request streams by iterating over them.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from services.kit.access import RegistrationError, Rule, rules, service_descriptor, unimplemented_methods
from services.kit.call import CURRENT, REQUEST_ID_KEY, Call, new_request_id
from services.kit.errors import ServiceError, wire_form
from services.kit.http2.call import AbortedError, CallGoneError, Handler
from services.kit.identity import ANONYMOUS, Authenticator, Identity, Role
from services.kit.logs import get_logger
from services.kit.metrics import rpc_metrics
from services.kit.refusals import (
    DeadlineExceeded,
    Internal,
    MalformedRequest,
    NotImplementedYet,
    Overloaded,
    as_refusal,
)
from services.kit.tracing import end_span, rpc_span

_log = get_logger(__name__)

# Far beyond any real deadline: the sync server says so that there is none.
_NO_DEADLINE_SECONDS = 1e8
_SERVER_FAULT = 500
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

Metadata = dict[str, str | bytes]

PeerIdentity = Callable[[Any], Identity | None]
Registrar = Callable[[Any, Any], None]


class Gate:
    """Counts the calls being served and refuses those above the limit. Shared by all RPCs of an aio server."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0

    def enter(self) -> None:
        """Count one call in. Raises Overloaded where the limit is reached."""
        if self.running >= self.limit:
            raise Overloaded("the server is at its limit of calls at once", retry_after_seconds=1)
        self.running += 1

    def leave(self) -> None:
        """Count one call out."""
        self.running -= 1


class ThreadedGate(Gate):
    """The same, of a sync server, whose calls come and go in many threads at once."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Count one call in. Raises Overloaded where the limit is reached."""
        with self._lock:
            super().enter()

    def leave(self) -> None:
        """Count one call out."""
        with self._lock:
            super().leave()


class Rpc:
    """One RPC of one server: what its wrapped handler needs, looked up once.

    `deadline_seconds` is given to unary calls that bring none; `peer_identity` reads a client certificate.
    """

    def __init__(
        self,
        rule: Rule,
        handler: Handler,
        *,
        authenticator: Authenticator,
        gate: Gate,
        peer_identity: PeerIdentity | None,
        deadline_seconds: float,
    ) -> None:
        self.rule = rule
        self.gate = gate
        self._authenticator = authenticator
        self._peer_identity = peer_identity
        self._decode = handler.request_deserializer or _as_it_is
        # One answer as bytes.
        self.encoded = handler.response_serializer or _as_it_is
        # A stream may rightly last for hours; whoever opens one limits it.
        self._deadline_seconds = None if handler.response_streaming or handler.request_streaming else deadline_seconds
        self._metrics = rpc_metrics(rule.path)

    def begin(self, context: Any) -> tuple[Call, Metadata, float | None]:
        """Open the call: its record (also in the context variable), its metadata, and the timeout we have to keep.

        The timeout is None where the caller gave a deadline (gRPC keeps that one) or none is to be kept.
        """
        metadata: Metadata = dict(context.invocation_metadata() or ())
        request_id = metadata.get(REQUEST_ID_KEY)
        if not isinstance(request_id, str) or not _SANE_REQUEST_ID.fullmatch(request_id):
            request_id = new_request_id()
        call = Call(self.rule.path, request_id, ANONYMOUS, metadata)
        call.span = rpc_span(self.rule.path, metadata, request_id)
        timeout = None
        left = context.time_remaining()
        if left is None or left > _NO_DEADLINE_SECONDS:
            left = timeout = self._deadline_seconds
        if left is not None:
            call.deadline = call.started + left
        CURRENT.set(call)
        return call, metadata, timeout

    def caller(self, metadata: Metadata) -> Identity | Awaitable[Identity | None] | None:
        """Ask the authenticator for the caller. A public RPC takes a bad credential for none."""
        try:
            return self._authenticator.authenticate(self.rule.path, metadata)
        except ServiceError:
            if self.rule.role is Role.PUBLIC:
                return None
            raise

    def admit(self, call: Call, caller: Identity | None, context: Any) -> None:
        """Note who calls (by certificate where there is no credential) and check that they may. Raises the refusal."""
        if caller is None and self._peer_identity is not None:
            caller = self._peer_identity(context)
        call.identity = caller or ANONYMOUS
        self.rule.check_caller(call.identity)

    def request(self, call: Call, raw: bytes) -> Any:
        """Decode one request message and bind it to the caller's account. Raises MalformedRequest or the refusal."""
        try:
            message = self._decode(raw)
        except DecodeError as error:
            raise MalformedRequest("the request is not a message of the type this call takes") from error
        self.rule.check_request(call.identity, message)
        return message

    def refuse(self, call: Call, context: Any, error: Exception) -> tuple[grpc.StatusCode, str, Any]:
        """Count and log a failed call; the result is what goes on the wire: code, message, trailing metadata."""
        refusal = as_refusal(error, call.request_id)
        if refusal is not error or isinstance(refusal, Internal):
            _log.error("call failed", reason=refusal.reason, exc_info=error)
        else:
            log = _log.warning if refusal.kind.http_status >= _SERVER_FAULT else _log.info
            log("call refused", reason=refusal.reason, message=refusal.message)
        code, message, trailing = wire_form(refusal)
        self.end(call, code.name, refusal.reason)
        _forget_frames(error)
        return code, message, (*_trailing(context, call), *trailing)

    def answered(self, call: Call, context: Any) -> None:
        """Close a call that was answered: add the request id, count it under the code its method left."""
        context.set_trailing_metadata(_trailing(context, call))
        code = context.code()
        self.end(call, code.name if isinstance(code, grpc.StatusCode) else "OK")

    def end(self, call: Call, code: str, reason: str = "") -> None:
        """Close the call's record and count it."""
        call.finished = True
        self._metrics.ended(time.monotonic() - call.started, code, reason)
        if call.span is not None:
            end_span(call.span, code, reason)


def _trailing(context: Any, call: Call) -> tuple[tuple[str, str | bytes], ...]:
    return (*(context.trailing_metadata() or ()), (REQUEST_ID_KEY, call.request_id))


def _forget_frames(error: BaseException | None) -> None:
    """Part an error that was told of, and what it came from, from the frames it passed: they hold the request.

    An error raised from a variable (one that came through a queue, say) is held by its own frame, so the two would
    last until Python next looks for cycles, and enough large requests that are refused would fill the memory.
    """
    while error is not None and error.__traceback__ is not None:  # each but once, even where they go round
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _as_it_is(message: Any) -> Any:
    return message


# ---------------------------------------------------------------------------------------------------------------- aio


async def _awaited_caller(rpc: Rpc, answer: Awaitable[Identity | None]) -> Identity | None:
    try:
        return await answer
    except ServiceError:
        if rpc.rule.role is Role.PUBLIC:
            return None
        raise


async def _aio_requests(rpc: Rpc, call: Call, raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for raw in raws:
        yield rpc.request(call, raw)


def _aio_stream(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Awaitable[None]]:
    """A streaming method, async generator or coroutine using `context.write`, as one coroutine function."""

    async def stream(request: Any, context: Any) -> None:
        responses = method(request, context)
        if not hasattr(responses, "__aiter__"):
            await responses
            return
        try:
            async for response in responses:
                await context.write(response)
        finally:
            await _closed(responses)

    return stream


async def _closed(responses: Any) -> None:
    """Close an async generator here and now, not whenever the garbage collector comes by.

    A client that goes away is noticed twice, by a write that fails and by a cancellation: the second does not cut short
    the clean-up that the first began.
    """
    closing = asyncio.ensure_future(responses.aclose())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await closing
        raise


async def _within(seconds: float, answer: Awaitable[Any]) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await answer
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded(f"not answered within {seconds:g} seconds") from None
        raise


def _wrap_aio(rpc: Rpc, method: Callable[[Any, Any], Any], handler: Handler) -> Callable[[Any, Any], Awaitable[Any]]:
    streamed_request, streamed_response = handler.request_streaming, handler.response_streaming
    run = _aio_stream(method) if streamed_response else method
    gate = rpc.gate

    async def handle(argument: Any, context: Any) -> bytes | None:
        call, metadata, timeout = rpc.begin(context)
        encoded = None
        try:
            gate.enter()
            try:
                caller = rpc.caller(metadata)
                if caller is not None and not isinstance(caller, Identity):
                    caller = await _awaited_caller(rpc, caller)
                rpc.admit(call, caller, context)
                request = _aio_requests(rpc, call, argument) if streamed_request else rpc.request(call, argument)
                answer = run(request, context)
                response = await (answer if timeout is None else _within(timeout, answer))
                if not streamed_response:
                    encoded = rpc.encoded(response)
            finally:
                gate.leave()
        except asyncio.CancelledError:
            rpc.end(call, "CANCELLED")
            raise
        except (AbortedError, CallGoneError):
            # The method has aborted by itself, or the client went away while being written to.
            code = context.code()
            rpc.end(call, code.name if isinstance(code, grpc.StatusCode) else "CANCELLED")
            raise
        except Exception as error:  # noqa: BLE001 (the one place where any failure becomes a refusal)
            context.refuse(*rpc.refuse(call, context, error))
        else:
            rpc.answered(call, context)
        return encoded

    return handle


async def _aio_not_implemented(_request: Any, _context: Any) -> NoReturn:
    raise NotImplementedYet("this call is in the contract but not implemented yet")


# --------------------------------------------------------------------------------------------------------------- sync


def _sync_requests(rpc: Rpc, call: Call, raws: Iterator[bytes]) -> Iterator[Any]:
    for raw in raws:
        yield rpc.request(call, raw)


def _sync_request(rpc: Rpc, call: Call, metadata: Metadata, argument: Any, context: Any, *, streamed: bool) -> Any:
    caller = rpc.caller(metadata)
    if caller is not None and not isinstance(caller, Identity):
        raise TypeError("a sync server needs a sync authenticator")
    rpc.admit(call, caller, context)
    if call.deadline is not None and call.deadline <= time.monotonic():
        raise DeadlineExceeded("the deadline passed while the call waited for a thread")
    return _sync_requests(rpc, call, argument) if streamed else rpc.request(call, argument)


def _sync_fail(rpc: Rpc, call: Call, context: Any, error: Exception) -> NoReturn:
    code = context.code()
    # The sync server's own abort is a bare Exception after it has set the code.
    aborted = type(error) is Exception and not error.args and code is not None
    if aborted or (isinstance(error, grpc.RpcError) and not context.is_active()):
        rpc.end(call, code.name if isinstance(code, grpc.StatusCode) else "CANCELLED")
        raise error
    code, message, trailing = rpc.refuse(call, context, error)
    context.set_trailing_metadata(trailing)
    context.abort(code, message)
    raise AssertionError  # abort raises


def _wrap_sync(rpc: Rpc, method: Callable[[Any, Any], Any], handler: Handler) -> Callable[[Any, Any], Any]:
    streamed_request = handler.request_streaming
    gate = rpc.gate

    def handle(argument: Any, context: Any) -> bytes:
        call, metadata, _ = rpc.begin(context)
        try:
            gate.enter()
            try:
                request = _sync_request(rpc, call, metadata, argument, context, streamed=streamed_request)
                encoded = rpc.encoded(method(request, context))
            finally:
                gate.leave()
        except Exception as error:  # noqa: BLE001 (the one place where any failure becomes a refusal)
            _sync_fail(rpc, call, context, error)
        rpc.answered(call, context)
        return encoded

    def handle_stream(argument: Any, context: Any) -> Iterator[bytes]:
        call, metadata, _ = rpc.begin(context)
        try:
            gate.enter()
            try:
                request = _sync_request(rpc, call, metadata, argument, context, streamed=streamed_request)
                for response in method(request, context):
                    yield rpc.encoded(response)
            finally:
                gate.leave()
        except GeneratorExit:
            rpc.end(call, "CANCELLED")
            raise
        except Exception as error:  # noqa: BLE001
            _sync_fail(rpc, call, context, error)
        rpc.answered(call, context)

    return handle_stream if handler.response_streaming else handle


def _sync_not_implemented(_request: Any, _context: Any) -> NoReturn:
    raise NotImplementedYet("this call is in the contract but not implemented yet")


# ------------------------------------------------------------------------------------------------------- registration


class Collector:
    """Stands in for a server when `add_XServicer_to_server` is called, to take what it would register."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, Handler]] = {}

    def add_generic_rpc_handlers(self, _handlers: Any) -> None:
        """Generated code registers everything twice; the other form is the one with names."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        """Take one service's handlers, by RPC name."""
        self.services[service] = handlers


def _method_of(handler: Handler) -> Callable[[Any, Any], Any]:
    method = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    assert method is not None
    return method


def _check_colour(path: str, method: Callable[[Any, Any], Any], handler: Handler, *, aio: bool) -> None:
    """Raise RegistrationError for a sync method on an aio server or the reverse: it would fail at its first call."""
    is_async = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
    if not aio and is_async:
        raise RegistrationError(f"{path} is async, but the server is sync")
    if aio and not is_async and (inspect.isgeneratorfunction(method) or not handler.response_streaming):
        raise RegistrationError(f"{path} is not async, but the server is aio")


def _rebuilt(handler: Handler, wrapped: Any, *, aio: bool) -> Handler:
    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    # An aio stream is written message by message through the context, which encodes.
    serializer = handler.response_serializer if aio and handler.response_streaming else None
    rebuilt: Handler = make(wrapped, request_deserializer=None, response_serializer=serializer)
    return rebuilt


def wrapped_handlers(
    add_to_server: Registrar,
    servicer: object,
    *,
    aio: bool,
    authenticator: Authenticator,
    gate: Gate,
    deadline_seconds: float,
    access_overrides: Mapping[str, int] | None = None,
    peer_identity: PeerIdentity | None = None,
) -> dict[str, dict[str, Handler]]:
    """Wrapped handlers by service and RPC name, of what a generated `add_XServicer_to_server` registers.

    Raises RegistrationError for an RPC without an access rule or of the wrong colour.
    """
    collector = Collector()
    add_to_server(servicer, collector)
    if not collector.services:
        raise RegistrationError(
            f"{add_to_server!r} registers no service; is it generated code of grpcio 1.63 or newer?"
        )
    wrapped: dict[str, dict[str, Handler]] = {}
    for service_name, handlers in collector.services.items():
        descriptor = service_descriptor(service_name)
        found_rules = rules(descriptor, access_overrides)
        missing = set(unimplemented_methods(servicer, descriptor))
        wrapped[service_name] = {}
        for name, handler in handlers.items():
            rpc = Rpc(
                found_rules[name],
                handler,
                authenticator=authenticator,
                gate=gate,
                peer_identity=peer_identity,
                deadline_seconds=deadline_seconds,
            )
            if name in missing:
                method: Any = _aio_not_implemented if aio else _sync_not_implemented
            else:
                method = _method_of(handler)
                _check_colour(rpc.rule.path, method, handler, aio=aio)
            wrap: Any = _wrap_aio if aio else _wrap_sync
            wrapped[service_name][name] = _rebuilt(handler, wrap(rpc, method, handler), aio=aio)
    return wrapped
