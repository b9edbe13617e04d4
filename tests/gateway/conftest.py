"""A real Envoy with the real configuration, before one real gRPC server that stands in for all four services.

The server takes every RPC of the contracts with the contracts' own messages. A test says with `services.answers` how
one of them answers, and reads in `services.calls` what arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import importlib
import json
import pkgutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc.aio
import pytest
import tollkeeper
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from google.protobuf import message_factory, symbol_database
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from deploy.local import envoy, ports
from deploy.local.process import running
from gateway import render
from gateway.bindings import read_bindings
from gateway.render import DESCRIPTOR_SET
from services.kit.errors import ServiceError, wire_form

IDENTITY = "an.identity.token"

Answer = Callable[[Any, "Context"], Any]


@dataclasses.dataclass
class Context:
    """What an answer may do besides answering."""

    grpc: grpc.aio.ServicerContext

    async def initial(self, **metadata: str) -> None:
        """Send initial metadata; `_` in a name stands for `-`."""
        await self.grpc.send_initial_metadata([(name.replace("_", "-"), value) for name, value in metadata.items()])


@dataclasses.dataclass
class Call:
    """One call as it arrived."""

    rpc: str
    request: Any
    metadata: dict[str, str]


class Services:
    """All services of the contracts, and the authorizer, on one port."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.checks: list[Any] = []
        self.answers: dict[str, Answer] = {}
        self.deny: Callable[[Any], Any] | None = None
        self.port = 0

    def clear(self) -> None:
        self.calls.clear()
        self.checks.clear()
        self.answers.clear()
        self.deny = None

    async def start(self) -> grpc.aio.Server:
        # As kit serves: as many bytes of headers as the gateway lets in.
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", 32 * 1024 * 1024),
                ("grpc.max_metadata_size", 64 * 1024),
                ("grpc.absolute_max_metadata_size", 128 * 1024),
            ]
        )
        for service, methods in _methods().items():
            handlers = {method.name: self._handler(method) for method in methods}
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(self, server)
        status = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        await status.set("", health_pb2.HealthCheckResponse.SERVING)
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server

    def _handler(self, method: Any) -> grpc.RpcMethodHandler:
        request = message_factory.GetMessageClass(method.input_type)
        response = message_factory.GetMessageClass(method.output_type)
        serialization = (request.FromString, response.SerializeToString)

        async def one(message: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                return await self._answered(method, message, context)
            except ServiceError as refusal:
                await context.abort(*wire_form(refusal))

        async def many(message: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            try:
                answer = self._answered(method, message, context)
                if isinstance(answer, Awaitable):
                    yield await answer
                    return
                async for each in answer:
                    yield each
            except ServiceError as refusal:
                await context.abort(*wire_form(refusal))

        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(many, *serialization)
        return grpc.unary_unary_rpc_method_handler(one, *serialization)

    def _answered(self, method: Any, message: Any, context: grpc.aio.ServicerContext) -> Any:
        self.calls.append(Call(method.full_name, message, dict(context.invocation_metadata() or ())))
        answer = self.answers.get(method.full_name, _empty(method))
        return answer(message, Context(context))

    async def Check(self, request: Any, _context: Any) -> Any:  # noqa: N802 (the contract's name)
        self.checks.append(request.attributes.request.http)
        if self.deny is not None:
            return self.deny(request)
        answer = external_auth_pb2.CheckResponse()
        answer.status.code = 0
        value = base_pb2.HeaderValue(key="x-tollkeeper-identity", value=IDENTITY)
        answer.ok_response.headers.append(base_pb2.HeaderValueOption(header=value))
        answer.ok_response.headers_to_remove.extend(["authorization", "x-api-key", "x-goog-api-key"])
        return answer


def _empty(method: Any) -> Answer:
    async def answer(_request: Any, _context: Context) -> Any:
        return message_factory.GetMessageClass(method.output_type)()

    return answer


def _methods() -> dict[str, list[Any]]:
    """Every method of every gRPC service of the contracts that has a route, by service."""
    for module in pkgutil.walk_packages(tollkeeper.__path__, "tollkeeper."):
        if module.name.endswith("_pb2"):
            importlib.import_module(module.name)
    pool = symbol_database.Default().pool
    names = {binding.grpc_service for binding in read_bindings(DESCRIPTOR_SET.read_bytes())}
    return {name: list(pool.FindServiceByName(name).methods) for name in names}


@pytest.fixture(scope="session")
def _services() -> Iterator[Services]:
    services = Services()
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def serve() -> None:
        server = await services.start()
        ready.set()
        await stopping.wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(30)
    yield services
    loop.call_soon_threadsafe(stopping.set)
    thread.join()
    loop.close()


@dataclasses.dataclass(frozen=True)
class Answered:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


@dataclasses.dataclass(frozen=True)
class Gateway:
    """Where Envoy listens, and what it logged."""

    port: int
    admin_port: int
    log: Path

    def stat(self, name: str) -> int:
        """One of Envoy's counters or gauges."""
        answer = envoy.get(self.admin_port, f"/stats?filter=^{name}$&format=json")
        assert answer is not None
        return int(next(stat["value"] for stat in json.loads(answer)["stats"] if "value" in stat))

    def raw(self, sent: bytes) -> bytes:
        """What is answered to these bytes, until Envoy closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(sent)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answered:
        """One request; a body that is not bytes goes as JSON. `_` in a header's name stands for `-`."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect()
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, content, {"content-type": "application/json"} | names)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answered(response.status, found, response.read())
        finally:
            connection.close()


EVENTUALLY_SECONDS = 20
SERVICES = ("ledger", "pricing", "subscriptions", "proxy")


@contextlib.contextmanager
def served(
    folder: Path,
    upstream: Sequence[int],
    *,
    changed: Callable[[dict[str, Any]], None] = lambda _document: None,
    **options: Any,
) -> Iterator[Gateway]:
    """A gateway set as `options` say, every service at the ports `upstream`; `changed` alters its envoy.json."""
    port, admin_port = ports.free_port(), ports.free_port()
    folder.mkdir(exist_ok=True)
    written = render.files(
        listen=render.Address("127.0.0.1", port),
        admin=render.Address("127.0.0.1", admin_port),
        services={name: [render.Address("127.0.0.1", each) for each in upstream] for name in SERVICES},
        options=render.Options(configuration_folder=str(folder), **options),
    )
    changed(written["envoy.json"])
    for name, document in written.items():
        (folder / name).write_text(json.dumps(document))
    log = folder / "envoy.log"
    # By the admin interface: the listener may speak TLS, or refuse.
    with running(envoy.program(folder / "envoy.json"), log, lambda: envoy.get(admin_port, "/ready") is not None):
        yield Gateway(port, admin_port, log)


class MakeGateway(Protocol):
    """Starts one more gateway, as `served`, for as long as the test module lasts."""

    def __call__(self, *upstream: int, **options: Any) -> Gateway: ...


@pytest.fixture(scope="module")
def make_gateway(_services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeGateway]:
    with contextlib.ExitStack() as stack:

        def make(*upstream: int, **options: Any) -> Gateway:
            folder = tmp_path_factory.mktemp("another gateway")
            return stack.enter_context(served(folder, upstream or [_services.port], **options))

        yield make


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until something holds, for a bounded time."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + EVENTUALLY_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "did not come true in time"
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def gateway_server(_services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("a gateway")
    port, admin_port = ports.free_port(), ports.free_port()
    upstream = dict.fromkeys(("ledger", "pricing", "subscriptions", "proxy"), _services.port)
    configuration = folder / "envoy.json"
    configuration.write_text(envoy.render(port=port, admin_port=admin_port, services=upstream))
    log = folder / "envoy.log"
    with running(envoy.program(configuration), log, lambda: envoy.ready(port, admin_port)):
        yield Gateway(port, admin_port, log)
    assert "script log" not in log.read_text(), "the Lua filter failed"


@pytest.fixture
def services(_services: Services) -> Services:
    _services.clear()
    return _services


@pytest.fixture
def gateway(gateway_server: Gateway, services: Services) -> Gateway:
    return gateway_server
