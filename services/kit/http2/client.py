"""Owns a channel for unary calls: one connection, made again when it is lost, and calls tried again where that is safe.

It is what a stub of generated code needs of a channel, and raises what grpc.aio raises. Other calls than unary ones,
and names that stand for several addresses, are left to gRPC's own channels.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from services.kit.http2 import frames
from services.kit.http2.connection import CompressedError, Connection, Limits, Stream, TooLargeError, message
from services.kit.http2.headers import Decoder, Metadata, encode, metadata_of, status_of, timeout_text

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
_CONNECTING, _FAILED = grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.TRANSIENT_FAILURE


class _Head:
    """What the headers or trailers of an answer say. `status` is None in those that do not end it."""

    __slots__ = ("http_status", "metadata", "status")

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.status = status_of(pairs)
        self.http_status = next((value for name, value in pairs if name == ":status"), "")
        self.metadata = tuple(pair for pair in metadata_of(pairs) if pair[0] not in {"grpc-status", "grpc-message"})


def _error(
    code: grpc.StatusCode, details: str, initial: Metadata = (), trailing: Metadata = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(*initial), grpc.aio.Metadata(*trailing), details=details)


class _Asked(Stream):
    """A call under way, and the future of its answer."""

    __slots__ = ("answer", "initial", "message", "timer")

    def __init__(self, connection: _ClientConnection, number: int) -> None:
        super().__init__(connection, number)
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.initial: Metadata = ()
        self.message: bytes | None = None
        self.timer: asyncio.TimerHandle | None = None

    def fail(self, error: grpc.aio.AioRpcError) -> None:
        """End with an error."""
        if not self.answer.done():
            self.answer.set_exception(error)


class _ClientConnection(Connection[_Asked, _Head]):
    """A connection to a server. `gone` is done when it takes no more calls."""

    def __init__(self, limits: Limits, authority: str, scheme: str) -> None:
        super().__init__(limits, Decoder(_Head, 2 * limits.header_bytes))
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self._newest = -1
        self._start = [(":method", "POST"), (":scheme", scheme), (":authority", authority)]
        self._rest = [("te", "trailers"), ("content-type", "application/grpc")]

    def greet(self) -> bytes:
        """What a client says first."""
        return frames.PREFACE

    def settings_came(self) -> None:
        """The server speaks HTTP/2."""
        if not self.ready.done():
            self.ready.set_result(None)

    def ask(self, path: str, request: bytes, metadata: Metadata, left_seconds: float | None) -> _Asked:
        """Begin a call. Raises AioRpcError where the server takes no more at once."""
        if len(self.streams) >= self.peer_streams:
            raise _error(grpc.StatusCode.UNAVAILABLE, "the server takes no more calls at once")
        self._newest += 2
        asked = _Asked(self, self._newest)
        self.streams[asked.number] = asked
        pairs = [*self._start, (":path", path), *self._rest]
        if left_seconds is not None:
            pairs.append(("grpc-timeout", timeout_text(left_seconds)))
            asked.timer = asyncio.get_running_loop().call_later(left_seconds, self._expire, asked)
        head = frames.frame(frames.HEADERS, frames.END_HEADERS, asked.number, encode((*pairs, *metadata)))
        self.send(asked, head, message(request), frames.frame(frames.DATA, frames.END_STREAM, asked.number, b""))
        return asked

    def _expire(self, asked: _Asked) -> None:
        self.give_up(asked, frames.CANCEL)
        asked.fail(_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    def headers_came(self, number: int, head: _Head, *, ended: bool) -> None:
        """An answer begins, or ends."""
        asked = self.streams.get(number)
        if asked is None:
            return
        if not ended:
            asked.initial = head.metadata
            return
        self.over(asked)
        if head.status is None:
            asked.fail(
                _error(grpc.StatusCode.UNKNOWN, f"the peer answered HTTP {head.http_status or 'without a status'}")
            )
            return
        code, details = head.status
        if code is not grpc.StatusCode.OK:
            asked.fail(_error(code, details, asked.initial, head.metadata))
        elif asked.message is None:
            asked.fail(_error(grpc.StatusCode.INTERNAL, "the answer is not whole"))
        elif not asked.answer.done():
            asked.answer.set_result(asked.message)

    def data_came(self, stream: _Asked, data: bytes, *, ended: bool) -> None:
        """A part of an answer."""
        why = ""
        try:
            for one in stream.take(data, self.limits.message_bytes):
                stream.message = one
        except CompressedError:
            why = "the answer is compressed"
        except TooLargeError as error:
            why = str(error)
        if why or ended:
            self.give_up(stream, frames.CANCEL)
            stream.fail(_error(grpc.StatusCode.INTERNAL, why or "the answer has no status"))

    def reset_came(self, stream: _Asked, code: int) -> None:
        """The server gave a call up."""
        refused = code == frames.REFUSED_STREAM
        stream.fail(
            _error(
                grpc.StatusCode.UNAVAILABLE if refused else grpc.StatusCode.CANCELLED,
                f"the peer reset the call: {code}",
            )
        )

    def goaway_came(self, last_stream: int) -> None:
        """The server takes no more calls here. Those it says it has not begun can be asked elsewhere."""
        self.gone.set()
        for asked in list(self.streams.values()):
            if asked.number > last_stream:
                self.forget(asked)
                asked.fail(_error(grpc.StatusCode.UNAVAILABLE, "the server is leaving"))
        self._close_if_unused()

    def forget(self, stream: _Asked) -> None:
        """Know a call no more."""
        if stream.timer is not None:
            stream.timer.cancel()
        super().forget(stream)

    def over(self, asked: _Asked) -> None:
        """A call has ended."""
        self.forget(asked)
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.gone.is_set() and not self.streams:
            self.end()

    def lost(self) -> None:
        """Nothing under way is answered any more."""
        self.gone.set()
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(self.lost_because))
        for asked in list(self.streams.values()):
            if asked.timer is not None:
                asked.timer.cancel()
            asked.fail(_error(grpc.StatusCode.UNAVAILABLE, f"the connection was lost: {self.lost_because}"))


class Channel:
    """Unary calls to the server at `address` (host:port). It connects with the first call, then stays connected.

    `name`: what the server is called, and its certificate is for; empty for the host of the address.
    """

    def __init__(self, address: str, limits: Limits, *, tls: ssl.SSLContext | None = None, name: str = "") -> None:
        self._host, _, port = address.rpartition(":")
        self._host = self._host.removeprefix("[").removesuffix("]")
        self._port = int(port)
        self._limits = limits
        self._tls = tls
        self._name = name or self._host
        self._authority = name or address
        self._state = _IDLE
        self._failure = ""
        self._changed = asyncio.Event()
        self._connection: _ClientConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tokens = _MOST_TOKENS

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
        """Let go of the connection, and fail what is under way."""
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connecting
            self._connecting = None
        if self._connection is not None:
            self._connection.end()
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

    async def _connected(self, ends: float | None) -> _ClientConnection:
        """The connection, when there is one. Raises AioRpcError where there is none to be had."""
        self._connect()
        while self._connection is None or self._connection.gone.is_set():
            if self._state is _FAILED:
                raise _error(grpc.StatusCode.UNAVAILABLE, f"no connection to {self._authority}: {self._failure}")
            try:
                async with asyncio.timeout(None if ends is None else max(ends - time.monotonic(), 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        return self._connection

    # ------------------------------------------------------------------------------------------------- the connection

    def _connect(self) -> None:
        """Begin to be connected, where that has not begun."""
        if self._connecting is None:
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
            except (OSError, TimeoutError) as error:
                self._say(_FAILED, str(error) or "it took too long")
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311
                wait = min(2 * wait, _LAST_RECONNECT_SECONDS)
                continue
            wait = _FIRST_RECONNECT_SECONDS
            self._connection = connection
            self._say(_READY)
            await connection.gone.wait()
            self._say(_CONNECTING)

    async def _opened(self) -> _ClientConnection:
        """A connection on which the server has answered. Raises OSError."""
        scheme = "http" if self._tls is None else "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _ClientConnection(self._limits, self._authority, scheme),
            self._host,
            self._port,
            ssl=self._tls,
            server_hostname=self._name if self._tls is not None else None,
        )
        try:
            await connection.ready
        except BaseException:
            connection.transport.abort()
            raise
        return connection
