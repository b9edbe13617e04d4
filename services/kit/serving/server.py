"""Owns what both servers share: registration, hooks, health and reflection, metrics and tracing, the address."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from services.kit.addresses import split_address
from services.kit.handlers.gate import Gate, ThreadedGate
from services.kit.handlers.registration import Collector, Registrar, wrapped_handlers
from services.kit.http2.call import Handler
from services.kit.identity import Authenticator, TokenAuthenticator, TokenVerifier
from services.kit.logs import get_logger
from services.kit.metrics import observe_running, serve_metrics
from services.kit.settings import ServiceSettings
from services.kit.tls import peer_identity
from services.kit.tracing import start_tracing

_log = get_logger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# How long no call may have been running before what is left (watches of health) is cut off.
IDLE_SECONDS = 0.25
POLL_SECONDS = 0.05

SIGNALS = (signal.SIGTERM, signal.SIGINT)

Hook = Callable[[], Any]


class Server:
    """What both servers share: registration, hooks and the address."""

    _aio: bool
    # The names in the certificate of a call's client.
    _names_of: Callable[[Any], Iterable[str]]

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.port = 0
        self._gate = (Gate if self._aio else ThreadedGate)(settings.max_concurrent)
        self._authenticator = TokenAuthenticator(_verifier(settings))
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
            peer_identity=peer_identity(self.settings, self._names_of),
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
            servicer = kind((*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME))
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
