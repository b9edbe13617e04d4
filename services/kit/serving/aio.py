"""Owns the server on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import time
from typing import Any, Self

from grpc_health.v1 import health

from services.kit.addresses import BindError, split_address
from services.kit.http2 import server as http2
from services.kit.http2.call import ServerCall
from services.kit.logs import get_logger
from services.kit.loops import run_async
from services.kit.serving import limits
from services.kit.serving.server import IDLE_SECONDS, NOT_SERVING, POLL_SECONDS, SERVING, SIGNALS, Server
from services.kit.settings import ServiceSettings
from services.kit.tls import TlsFileError, server_context

_log = get_logger(__name__)


class AioServer(Server):
    """A server on the event loop (services.kit.http2), uvloop's where installed. Hooks may be coroutine functions.

    >>> server = AioServer(settings)
    >>> server.register(add_EchoServiceServicer_to_server, EchoServicer())
    >>> server.run()
    """

    _aio = True
    _names_of = staticmethod(ServerCall.peer_names)

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings)
        self.draining = asyncio.Event()
        self._health = health.aio.HealthServicer()
        self._server: http2.Server | None = None

    async def start(self) -> None:
        """Bind, run the start hooks, serve. Raises BindError, or what a hook raised; then nothing is left running."""
        server = self._server = http2.Server(
            self._handlers(self._health), limits.of_http2(self.settings), age_seconds=limits.CONNECTION_SECONDS
        )
        try:
            self.port = await _bound(server, self.settings)
            await self._set_health(NOT_SERVING)
            for hook in self._start_hooks:
                await _finished(hook())
            self._started()
            await server.start()
        except BaseException:
            await self.stop(grace=0)
            raise
        await self._set_health(SERVING)
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
            await asyncio.wait([stopping], timeout=POLL_SECONDS)
            if self._gate.running:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > IDLE_SECONDS:
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
        with _signals(asyncio.get_running_loop(), asked):
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


async def _bound(server: http2.Server, settings: ServiceSettings) -> int:
    """The port of a server that has taken the configured address. Raises BindError naming the address."""
    host, port = split_address(settings.listen)
    try:
        return await server.bind(host, port, tls=server_context(settings), reuse_port=settings.reuse_port)
    except (OSError, TlsFileError) as error:
        raise BindError(f"cannot listen on {settings.listen}: {error}") from error


async def _finished(result: Any) -> None:
    if inspect.isawaitable(result):
        await result


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, asked: asyncio.Event) -> Any:
    for number in SIGNALS:
        loop.add_signal_handler(number, asked.set)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def _collect_garbage_seldom() -> None:
    """Leave what start-up made out of every later search for cycles, and search less often.

    Calls make many short-lived objects and hardly a cycle; Python's own thresholds would look through all of them again
    and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
