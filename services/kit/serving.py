"""Owns a gRPC server's life: bind, start, health, drain on SIGTERM. One class for aio services, one for sync ones.

Both have the same surface: `register` servicers, add `on_start` and `on_stop` hooks, then `run()`, or `start()` and
`stop()` (as tests do). Health answers SERVING only after the start hooks have ended well. On SIGTERM or SIGINT it
answers NOT_SERVING; after `drain_seconds`, in which balancers look elsewhere, no new call is taken, those running get
`grace_seconds`, then the stop hooks run, last added first.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import os
import signal
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent import futures
from types import FrameType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from services.kit.addresses import BindError, split_address
from services.kit.handlers import Collector, Gate, Registrar, ThreadedGate, wrapped_handlers
from services.kit.http2 import server as http2
from services.kit.http2.call import Handler, ServerCall
from services.kit.http2.connection import Limits
from services.kit.identity import Authenticator, Identity, Role, TokenAuthenticator, TokenVerifier
from services.kit.logs import get_logger
from services.kit.metrics import observe_running, serve_metrics
from services.kit.settings import ServiceSettings
from services.kit.tracing import start_tracing

_log = get_logger(__name__)

_HEALTH = health.SERVICE_NAME
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# Threads beyond the limit of calls at once: they refuse what is above it, and answer health checks meanwhile.
_SPARE_THREADS = 8
# Beyond this many, gRPC refuses by itself, without our error model, so that its queue of calls has an end.
_QUEUED_CALLS = 256
_MAX_METADATA_BYTES = 64 * 1024
# How long a connection takes new calls. Its client then connects anew and so finds replicas that came since; calls and
# streams under way go on over the old connection to their end.
_CONNECTION_SECONDS = 300
# How long a connection may be silent before the peer is asked whether it is there, and how long it may take to answer.
_PING_SECONDS = 60
_PONG_SECONDS = 20

# How long no call may have been running before what is left (watches of health) is cut off.
_IDLE_SECONDS = 0.25
_POLL_SECONDS = 0.05

Hook = Callable[[], Any]


def _options(settings: ServiceSettings) -> list[tuple[str, Any]]:
    """A sync server's."""
    return [
        # Two processes on one port is a mistake to be told of, not load balancing.
        ("grpc.so_reuseport", int(settings.reuse_port)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # As much as the gateway lets in, so that it is the gateway that refuses more, with the right status.
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA_BYTES),
        ("grpc.max_connection_age_ms", round(_CONNECTION_SECONDS * 1000)),
        ("grpc.keepalive_time_ms", _PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _PONG_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_concurrent_streams", _streams(settings)),
    ]


def _streams(settings: ServiceSettings) -> int:
    """Calls at once on a connection: more than are served, so that it is we who refuse what is above that."""
    return 2 * settings.max_concurrent + _QUEUED_CALLS


def _credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """TLS where a certificate is configured, mutual TLS where a CA is too; None for plain text."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    authority = settings.tls_ca_file.read_bytes() if settings.tls_ca_file else None
    pair = (settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


def _tls(settings: ServiceSettings) -> ssl.SSLContext | None:
    """The same for an aio server. Raises OSError for files that cannot be used."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["h2"])
    for file in (settings.tls_cert_file, settings.tls_key_file):
        file.open("rb").close()  # what is not there is told by its name, which the next line does not
    tls.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    if settings.tls_ca_file is not None:
        tls.load_verify_locations(cadata=settings.tls_ca_file.read_text())
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def _peer_identity(
    settings: ServiceSettings, names_of: Callable[[Any], Iterable[str]]
) -> Callable[[Any], Identity | None] | None:
    """Reads the caller from its certificate: a name in `tls_service_names` is a service, any other proves nothing."""
    if settings.tls_ca_file is None or not settings.tls_service_names:
        return None
    services = frozenset(settings.tls_service_names)

    def read(context: Any) -> Identity | None:
        name = next((name for name in names_of(context) if name in services), None)
        return Identity(Role.SERVICE, subject=name) if name is not None else None

    return read


def _names_in_auth_context(context: Any) -> list[str]:
    """The names in the certificate of a sync server's client."""
    return [raw.decode(errors="replace") for raw in context.auth_context().get("x509_subject_alternative_name", ())]


def _names_of_peer(context: ServerCall) -> tuple[str, ...]:
    return context.peer_names()


class _Routes(grpc.GenericRpcHandler):
    """Finds the handler of a path for a sync server, for all services at once."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call's path; None for a path that is not served."""
        return self._handlers.get(handler_call_details.method)


class _Server:
    """What both servers share: registration, hooks and the address."""

    _aio: bool

    def __init__(self, settings: ServiceSettings, *, authenticator: Authenticator | None = None) -> None:
        self.settings = settings
        self.port = 0
        self._gate = (Gate if self._aio else ThreadedGate)(settings.max_concurrent)
        self._authenticator = authenticator or TokenAuthenticator(_verifier(settings))
        self._services: dict[str, dict[str, Handler]] = {}
        self._start_hooks: list[Hook] = []
        self._stop_hooks: list[Hook] = []
        self._stop_metrics: Callable[[], None] | None = None
        self._stop_tracing: Callable[[], None] | None = None

    def register(
        self,
        add_to_server: Registrar,
        servicer: object,
        *,
        access_overrides: Mapping[str, int] | None = None,
        authenticator: Authenticator | None = None,
        deadline_seconds: float | None = None,
    ) -> None:
        """Serve a servicer: `server.register(add_LedgerServiceServicer_to_server, servicer)`.

        `access_overrides` (path → Role) is for contracts of third parties only; `authenticator` replaces the server's
        for this servicer; `deadline_seconds` replaces the setting for its unary calls.
        Raises RegistrationError for an RPC without an access rule, and for a sync method on an aio server or the
        reverse.
        """
        self._services |= wrapped_handlers(
            add_to_server,
            servicer,
            aio=self._aio,
            authenticator=authenticator or self._authenticator,
            gate=self._gate,
            deadline_seconds=deadline_seconds or self.settings.deadline_seconds,
            access_overrides=access_overrides,
            peer_identity=_peer_identity(self.settings, _names_of_peer if self._aio else _names_in_auth_context),
        )

    def on_start(self, hook: Hook) -> None:
        """Run `hook` before serving begins; one that raises keeps the server from starting."""
        self._start_hooks.append(hook)

    def on_stop(self, hook: Hook) -> None:
        """Run `hook` after the last call has ended; last added first. Runs also where starting failed."""
        self._stop_hooks.append(hook)

    def _handlers(self, health_servicer: object) -> dict[str, Handler]:
        """All handlers by path, health and reflection among them.

        Those are the transport's own business: open to all, outside of limits and metrics.
        """
        transport = Collector()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, transport)  # type: ignore[arg-type]
        if self.settings.reflection:
            kind = reflection.aio.ReflectionServicer if self._aio else reflection.ReflectionServicer
            servicer = kind((*self._services, _HEALTH, reflection.SERVICE_NAME))
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, transport)  # type: ignore[no-untyped-call]
        services = self._services | transport.services
        return {f"/{service}/{name}": handler for service, found in services.items() for name, handler in found.items()}

    def _started(self) -> None:
        self._stop_tracing = start_tracing(self.settings)
        if self.settings.metrics_listen:
            self._stop_metrics = serve_metrics(self.settings.metrics_listen)
        observe_running(self.settings.service, lambda: self._gate.running)

    def _stopped(self) -> None:
        if self._stop_tracing is not None:
            self._stop_tracing()
            self._stop_tracing = None
        if self._stop_metrics is not None:
            self._stop_metrics()
            self._stop_metrics = None

    @property
    def address(self) -> str:
        """host:port that a client on this host can reach it at."""
        host, _ = split_address(self.settings.listen)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def _verifier(settings: ServiceSettings) -> TokenVerifier:
    if settings.identity_jwks_file is None:
        _log.warning("no identity keys configured: every token will be refused", setting="IDENTITY_JWKS_FILE")
    return TokenVerifier(file=settings.identity_jwks_file)


def _collect_garbage_seldom() -> None:
    """Leave what start-up made out of every later search for cycles, and search less often.

    Calls make many short-lived objects and hardly a cycle; Python's own thresholds would look through all of them again
    and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class AioServer(_Server):
    """A server on the event loop (services.kit.http2), uvloop's where installed. Hooks may be coroutine functions.

    >>> server = AioServer(settings)
    >>> server.register(add_EchoServiceServicer_to_server, EchoServicer())
    >>> server.run()
    """

    _aio = True

    def __init__(self, settings: ServiceSettings, *, authenticator: Authenticator | None = None) -> None:
        super().__init__(settings, authenticator=authenticator)
        self.draining = asyncio.Event()
        self._health = health.aio.HealthServicer()
        self._server: http2.Server | None = None

    async def start(self) -> None:
        """Bind, run the start hooks, serve. Raises BindError, or what a hook raised; then nothing is left running."""
        server = self._server = http2.Server(
            self._handlers(self._health), _limits(self.settings), age_seconds=_CONNECTION_SECONDS
        )
        try:
            self.port = await _bound(server, self.settings)
            await self._set_health(_NOT_SERVING)
            for hook in self._start_hooks:
                await _finished(hook())
            self._started()
            await server.start()
        except BaseException:
            await self.stop(grace=0)
            raise
        await self._set_health(_SERVING)
        _log.info("serving", address=self.address, services=sorted(self._services))

    async def stop(self, grace: float | None = None) -> None:
        """Drain for at most `grace` (default: the setting) seconds, then run the stop hooks. Safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        self.draining.set()
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(server.stop(self.settings.grace_seconds if grace is None else grace))
        idle_since = time.monotonic()
        while not stopping.done():
            await asyncio.wait([stopping], timeout=_POLL_SECONDS)
            if self._gate.running:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _IDLE_SECONDS:
                await server.stop(0)
        await stopping
        for hook in reversed(self._stop_hooks):
            try:
                await _finished(hook())
            except Exception:  # noqa: BLE001 (the hooks after it still have to run)
                _log.exception("a stop hook failed")
        self._stopped()

    async def _set_health(self, status: Any) -> None:
        for name in ("", *self._services):
            await self._health.set(name, status)

    async def serve(self) -> None:
        """Start, serve until SIGTERM or SIGINT, drain, return."""
        asked = asyncio.Event()
        with _signals_on_loop(asyncio.get_running_loop(), asked):
            await self.start()
            _collect_garbage_seldom()
            await asked.wait()
        # From here on a second signal has its usual effect: it ends the process at once.
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self.settings.drain_seconds)
        _log.info("draining", running=self._gate.running, grace_seconds=self.settings.grace_seconds)
        await self.stop()
        _log.info("stopped")

    def run(self) -> None:
        """`serve()` in an event loop of its own; blocks until stopped."""
        run_async(self.serve)

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()


class SyncServer(_Server):
    """A gRPC server with a bounded pool of threads, one per running call."""

    _aio = False

    def __init__(self, settings: ServiceSettings, *, authenticator: Authenticator | None = None) -> None:
        super().__init__(settings, authenticator=authenticator)
        self.draining = threading.Event()
        self._health_pool = futures.ThreadPoolExecutor(2, thread_name_prefix="health")
        # Non-blocking: a watcher of health must not hold a thread for as long as it watches.
        self._health = health.HealthServicer(experimental_non_blocking=True, experimental_thread_pool=self._health_pool)
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Bind, run the start hooks, serve. Raises BindError, or what a hook raised; then nothing is left running."""
        threads = self.settings.max_concurrent + _SPARE_THREADS
        server = self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="rpc"),
            options=_options(self.settings),
            maximum_concurrent_rpcs=threads + _QUEUED_CALLS,
        )
        server.add_generic_rpc_handlers((_Routes(self._handlers(self._health)),))
        try:
            self.port = _bound_sync(server, self.settings)
            self._set_health(_NOT_SERVING)
            for hook in self._start_hooks:
                hook()
            self._started()
            server.start()
        except BaseException:
            self.stop(grace=0)
            raise
        self._set_health(_SERVING)
        _log.info("serving", address=self.address, services=sorted(self._services))

    def stop(self, grace: float | None = None) -> None:
        """Drain for at most `grace` (default: the setting) seconds, then run the stop hooks. Safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        self.draining.set()
        self._health.enter_graceful_shutdown()
        stopped = server.stop(self.settings.grace_seconds if grace is None else grace)
        idle_since = time.monotonic()
        while not stopped.wait(_POLL_SECONDS):
            if self._gate.running:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _IDLE_SECONDS:
                server.stop(None)
        for hook in reversed(self._stop_hooks):
            try:
                hook()
            except Exception:  # noqa: BLE001 (the hooks after it still have to run)
                _log.exception("a stop hook failed")
        self._stopped()
        self._health_pool.shutdown(wait=False)

    def _set_health(self, status: Any) -> None:
        for name in ("", *self._services):
            self._health.set(name, status)

    def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, drain, return. Only in the main thread."""
        asked = threading.Event()
        with _signals_on_thread(asked):
            self.start()
            asked.wait()
        self._health.enter_graceful_shutdown()
        time.sleep(self.settings.drain_seconds)
        _log.info("draining", running=self._gate.running, grace_seconds=self.settings.grace_seconds)
        self.stop()
        if self._gate.running:
            _log.warning("calls outlasted the grace period and are cut off", running=self._gate.running)
            logging.shutdown()
            os._exit(0)  # the interpreter would wait for their threads
        _log.info("stopped")

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()


def _limits(settings: ServiceSettings) -> Limits:
    return Limits(
        message_bytes=settings.max_message_bytes,
        header_bytes=_MAX_METADATA_BYTES,
        streams=_streams(settings),
        ping_seconds=_PING_SECONDS,
        pong_seconds=_PONG_SECONDS,
    )


async def _bound(server: http2.Server, settings: ServiceSettings) -> int:
    """The port of a server that has taken the configured address. Raises BindError naming the address."""
    host, port = split_address(settings.listen)
    try:
        return await server.bind(host, port, tls=_tls(settings), reuse_port=settings.reuse_port)
    except OSError as error:
        raise BindError(f"cannot listen on {settings.listen}: {error}") from error


def _bound_sync(server: grpc.Server, settings: ServiceSettings) -> int:
    """The same of a sync server."""
    address = settings.listen
    split_address(address)
    try:
        credentials = _credentials(settings)
        return (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except OSError as error:
        raise BindError(f"cannot listen on {address}: {error}") from error
    except RuntimeError as error:
        raise BindError(f"cannot listen on {address}: the port is in use, or the address is not this host's") from error


async def _finished(result: Any) -> None:
    if inspect.isawaitable(result):
        await result


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def _signals_on_loop(loop: asyncio.AbstractEventLoop, asked: asyncio.Event) -> Any:
    for number in _SIGNALS:
        loop.add_signal_handler(number, asked.set)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _signals_on_thread(asked: threading.Event) -> Any:
    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_async(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine function in a new event loop, uvloop's where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 (only the data plane's extras install it)

        factory: Any = uvloop.new_event_loop
    except ImportError:
        factory = None

    async def finished() -> None:
        await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(finished())


def raise_if_cancelled() -> None:
    """Raise CancelledError where the running task was cancelled, and what it waited for has forgotten that.

    Libraries do where an answer comes at that moment: pyreqwest, and what waits by `asyncio.wait_for` in Python 3.11,
    as psycopg does.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
