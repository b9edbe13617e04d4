"""Owns the server of a bounded pool of threads, on gRPC's own library."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from types import FrameType
from typing import Any, Self

import grpc
from grpc_health.v1 import health

from services.kit.addresses import BindError, split_address
from services.kit.http2.call import Handler
from services.kit.logs import get_logger
from services.kit.serving import limits
from services.kit.serving.server import IDLE_SECONDS, NOT_SERVING, POLL_SECONDS, SERVING, SIGNALS, Server
from services.kit.settings import ServiceSettings
from services.kit.tls import TlsFileError, server_credentials

_log = get_logger(__name__)
# How long a signal may wait to be seen.
_SIGNAL_SECONDS = 0.25

# Threads beyond the limit of calls at once: they refuse what is above it, and answer health checks meanwhile.
_SPARE_THREADS = 8


def _names_in_auth_context(context: Any) -> list[str]:
    return [raw.decode(errors="replace") for raw in context.auth_context().get("x509_subject_alternative_name", ())]


class SyncServer(Server):
    """A gRPC server with a bounded pool of threads, one per running call."""

    _aio = False
    _names_of = staticmethod(_names_in_auth_context)

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings)
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
            options=limits.of_grpc(self.settings),
            maximum_concurrent_rpcs=threads + limits.QUEUED_CALLS,
        )
        server.add_generic_rpc_handlers((_Routes(self._handlers(self._health)),))
        try:
            self.port = _bound(server, self.settings)
            self._set_health(NOT_SERVING)
            for hook in self._start_hooks:
                hook()
            self._started()
            server.start()
        except BaseException:
            self.stop(grace=0)
            raise
        self._set_health(SERVING)
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
        while not stopped.wait(POLL_SECONDS):
            if self._gate.running:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > IDLE_SECONDS:
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
        with _signals(asked):
            self.start()
            # Python runs a signal's handler in its main thread, when that comes by. A signal that another thread was
            # given, or that came in the moment before the wait, does not end it: so the thread comes by now and then.
            while not asked.wait(_SIGNAL_SECONDS):
                pass
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


class _Routes(grpc.GenericRpcHandler):
    """Finds the handler of a path for a sync server, for all services at once."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call's path; None for a path that is not served."""
        return self._handlers.get(handler_call_details.method)


def _bound(server: grpc.Server, settings: ServiceSettings) -> int:
    """The port of a server that has taken the configured address. Raises BindError naming the address."""
    address = settings.listen
    split_address(address)
    try:
        credentials = server_credentials(settings)
        return (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except (OSError, TlsFileError) as error:
        raise BindError(f"cannot listen on {address}: {error}") from error
    except RuntimeError as error:
        raise BindError(f"cannot listen on {address}: the port is in use, or the address is not this host's") from error


@contextlib.contextmanager
def _signals(asked: threading.Event) -> Any:
    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
