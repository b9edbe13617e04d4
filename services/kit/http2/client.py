"""Owns a channel for unary calls: one connection, made again when it is lost, and calls tried again where that is safe.

It is what a stub of generated code needs of a channel, and raises what grpc.aio raises. Other calls than unary ones,
and names that stand for several addresses, are left to gRPC's own channels.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from services.kit.addresses import split_address
from services.kit.http2 import frames
from services.kit.http2.client_connection import CLOSED, ClientConnection, call_error
from services.kit.http2.connection import Limits
from services.kit.http2.headers import Metadata

_CONNECT_SECONDS = 2.0
# A peer that is back is called again within half a second: a little longer than the attempts of a call last.
_FIRST_RECONNECT_SECONDS = 0.1
_LAST_RECONNECT_SECONDS = 0.5
_ATTEMPTS = 4
_FIRST_BACKOFF_SECONDS = 0.05
_LAST_BACKOFF_SECONDS = 1.0
# Calls are tried again while most succeed, so that attempts never make an outage worse (gRPC's retry throttling).
_MOST_TOKENS = 100.0
_TOKENS_OF_A_SUCCESS = 0.5

_IDLE, _READY = grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.READY
_SHUT = grpc.ChannelConnectivity.SHUTDOWN
_CONNECTING, _FAILED = grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Channel:
    """Unary calls to the server at `address` (host:port). It connects with the first call, then stays connected.

    `tls`: asked for each connection. `name`: what the server is called, and its certificate is for; empty for the host
    of the address.
    """

    def __init__(
        self, address: str, limits: Limits, *, tls: Callable[[], ssl.SSLContext] | None = None, name: str = ""
    ) -> None:
        self._host, self._port = split_address(address)
        self._limits = limits
        self._tls = tls
        self._name = name or self._host
        self._authority = name or address
        self._state = _IDLE
        self._failure = ""
        self._changed = asyncio.Event()
        self._connection: ClientConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tokens = _MOST_TOKENS
        self._is_closed = False
        # Those on which calls are under way, of which all but the newest take no more.
        self._connections: set[ClientConnection] = set()

    # ------------------------------------------------------------------------------------------- what a stub asks for

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002 (gRPC's)
    ) -> Callable[..., Any]:
        """What calls a unary method. Its awaitables raise grpc.aio.AioRpcError."""

        async def call(
            request: Any,
            timeout: float | None = None,  # noqa: ASYNC109 (gRPC's)
            metadata: Metadata | None = None,
        ) -> Any:
            raw = request if request_serializer is None else request_serializer(request)
            answer = await self.call(method, raw, tuple(metadata or ()), timeout_seconds=timeout)
            return answer if response_deserializer is None else response_deserializer(answer)

        return call

    def _only_unary(self, method: str, *_: Any, **__: Any) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"{method} is not unary, and this channel is for unary calls")

        return call

    unary_stream = stream_unary = stream_stream = _only_unary

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 (gRPC's)
        """How the connection is. A lost one stays a failure until it is made again."""
        if try_to_connect:
            self._connect()
        return self._state

    async def close(self, _grace: float | None = None) -> None:
        """Let go of the connection. Calls under way, and those made later, end with CANCELLED."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self._say(_SHUT)
        closed = [asyncio.ensure_future(connection.shut()) for connection in self._connections]
        if closed:
            await asyncio.wait(closed)
        self._connection = None

    # --------------------------------------------------------------------------------------------------------- a call

    async def call(self, path: str, request: bytes, metadata: Metadata, *, timeout_seconds: float | None) -> bytes:
        """The answer to a request. Raises AioRpcError.

        A call without an answer (UNAVAILABLE) is made up to four times, so it has to be one that may be repeated.
        """
        ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        backoff = _FIRST_BACKOFF_SECONDS
        attempt = 1
        while True:
            try:
                answer = await self._attempt(path, request, metadata, ends)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                self._tokens = max(self._tokens - 1, 0.0)
                wait = backoff * random.uniform(0.8, 1.2)  # noqa: S311
                out_of_time = ends is not None and time.monotonic() + wait >= ends
                if attempt == _ATTEMPTS or out_of_time or self._tokens <= _MOST_TOKENS / 2:
                    raise
            else:
                self._tokens = min(self._tokens + _TOKENS_OF_A_SUCCESS, _MOST_TOKENS)
                return answer
            await asyncio.sleep(wait)
            attempt, backoff = attempt + 1, min(2 * backoff, _LAST_BACKOFF_SECONDS)

    async def _attempt(self, path: str, request: bytes, metadata: Metadata, ends: float | None) -> bytes:
        connection = self._connection
        if connection is None or connection.gone.is_set():
            connection = await self._connected(ends)
        left = None if ends is None else max(ends - time.monotonic(), 0.0)
        asked = connection.ask(path, request, metadata, left)
        try:
            return await asked.answer
        except asyncio.CancelledError:
            connection.give_up(asked, frames.CANCEL)
            raise

    async def _connected(self, ends: float | None) -> ClientConnection:
        """The connection, when there is one. Raises AioRpcError where there is none to be had."""
        self._connect()
        while self._is_closed or self._connection is None or self._connection.gone.is_set():
            if self._is_closed:
                raise call_error(grpc.StatusCode.CANCELLED, CLOSED)
            if self._state is _FAILED:
                raise call_error(grpc.StatusCode.UNAVAILABLE, f"no connection to {self._authority}: {self._failure}")
            try:
                async with asyncio.timeout(None if ends is None else max(ends - time.monotonic(), 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                raise call_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        return self._connection

    # ------------------------------------------------------------------------------------------------- the connection

    def _connect(self) -> None:
        """Begin to be connected, where that has not begun."""
        if self._connecting is None and not self._is_closed:
            self._say(_CONNECTING)
            self._connecting = asyncio.get_running_loop().create_task(self._stay_connected())

    def _say(self, state: grpc.ChannelConnectivity, failure: str = "") -> None:
        self._state, self._failure = state, failure
        self._changed.set()
        self._changed = asyncio.Event()

    async def _stay_connected(self) -> None:
        """Connect, and again whenever the connection is gone."""
        wait = _FIRST_RECONNECT_SECONDS
        while True:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    connection = await self._opened()
            except Exception as error:  # noqa: BLE001 (whatever it is, calls are to end with it and not to wait for ever)
                self._say(_FAILED, str(error) or "it took too long")
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311
                wait = min(2 * wait, _LAST_RECONNECT_SECONDS)
                continue
            made = time.monotonic()
            self._connection = connection
            self._say(_READY)
            await connection.gone.wait()
            self._say(_CONNECTING)
            if time.monotonic() - made < wait:  # a server that takes nobody in is not asked again and again
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311
                wait = min(2 * wait, _LAST_RECONNECT_SECONDS)
            else:
                wait = _FIRST_RECONNECT_SECONDS

    async def _opened(self) -> ClientConnection:
        """A connection on which the server has answered. Raises OSError."""
        scheme = "http" if self._tls is None else "https"
        connection = ClientConnection(self._limits, self._authority, scheme, self._connections)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                self._host,
                self._port,
                ssl=None if self._tls is None else self._tls(),
                server_hostname=self._name if self._tls is not None else None,
            )
        except BaseException:
            # uvloop closes what it has just made, and says nothing to it, where whoever waits for it is cancelled.
            if connection in self._connections:
                connection.connection_lost(None)
            raise
        try:
            await connection.ready
        except BaseException:
            connection.transport.abort()
            raise
        return connection
