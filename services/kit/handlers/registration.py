"""Owns which handlers a servicer has: taken as its generated code registers them, checked, and wrapped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from services.kit.access import RegistrationError, rules, service_descriptor, unimplemented_methods
from services.kit.handlers import aio as aio_handlers
from services.kit.handlers import sync as sync_handlers
from services.kit.handlers.gate import Gate
from services.kit.handlers.rpc import PeerIdentity, Rpc
from services.kit.http2.call import Handler
from services.kit.identity import Authenticator

Registrar = Callable[[Any, Any], None]


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
    kind: Any = aio_handlers if aio else sync_handlers
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
                method: Any = kind.not_implemented
            else:
                method = _method_of(handler)
                _check_colour(rpc.rule.path, method, handler, aio=aio)
            wrapped[service_name][name] = _rebuilt(handler, kind.wrap(rpc, method, handler), aio=aio)
    return wrapped
