"""Owns a server of gRPC over HTTP/2: it listens, finds each call's handler and runs it in a task, and drains.

What a call is refused for before a handler is found is told here; all else is the handlers' (services.kit.handlers).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from services.kit.http2 import frames
from services.kit.http2.call import Handler, ServerCall, refusal
from services.kit.http2.connection import Connection, ConnectionFault, Limits
from services.kit.http2.headers import Decoder, Metadata, encode, metadata_of, timeout_of
from services.kit.http2.streams import CompressedError, TooLargeError

_BACKLOG = 1024
_DRAIN_PING = b"draining"
# After a client was told to come no more, and does not answer that it has heard so: then it is told for good.
_DRAIN_SECONDS = 1.0
# A connection without calls that takes no more is the client's to close: what was sent may still be on its way, and
# were we to close, the client's next frame would be answered by TCP's reset, which throws that away. We do after such a
# silence, a shorter one where the server stops.
_LINGER_SECONDS = 1.0
_STOPPING_LINGER_SECONDS = 0.2
_POLL_SECONDS = 0.05
_AGE_SPREAD = 0.1
# How long calls that were cancelled may take to clean up.
_CANCELLED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Head:
    """What a call's headers say. `http_status`: what a request that is no gRPC call is answered."""

    path: str
    metadata: Metadata
    timeout_seconds: float | None
    header_bytes: int
    http_status: int = 0
    malformed: str = ""


def _head(pairs: list[tuple[str, str]]) -> _Head:
    named = dict(pairs)
    timeout, status, malformed = None, 0, ""
    if named.get(":method") != "POST":
        status = 405
    elif not named.get("content-type", "").startswith("application/grpc"):
        status = 415
    text = named.get("grpc-timeout")
    if text is not None:
        try:
            timeout = timeout_of(text)
        except ValueError as error:
            malformed = str(error)
    if "" in named:
        malformed = "a header without a name"
    # As large as a peer counts them (RFC 9113, section 6.5.2).
    size = sum(len(name) + len(value) + 32 for name, value in pairs)
    return _Head(named.get(":path", ""), metadata_of(pairs), timeout, size, status, malformed)


class ServerConnection(Connection[ServerCall, _Head]):
    """A client's connection. It takes new calls for `Server.age_seconds`; those under way go on to their end."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.limits, Decoder(_head, 2 * server.limits.header_bytes))
        self.peer_names: tuple[str, ...] = ()
        self._server = server
        self._newest = 0
        self._drained_from = frames.LARGEST_STREAM  # calls above that number are not taken
        self._is_draining = False
        self._age: asyncio.TimerHandle | None = None
        self._awaits_preface = True
        self._ended = 0.0  # when it began to drain, or its last call since was over

    @property
    def last_stream(self) -> int:
        """The client's newest call that was taken."""
        return self._newest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a client in."""
        super().connection_made(transport)
        self.peer_names = _peer_names(transport)
        self._server.connections.add(self)
        if self._server.is_stopping:  # it was shaking hands when the others were told
            self.drain()
            return
        age = self._server.age_seconds * random.uniform(1 - _AGE_SPREAD, 1 + _AGE_SPREAD)  # noqa: S311
        self._age = asyncio.get_running_loop().call_later(age, self.drain)

    def data_received(self, data: bytes) -> None:
        """Check that a client speaks HTTP/2 before anything it says is read."""
        if self._awaits_preface:
            self._buffer += data
            if len(self._buffer) < len(frames.PREFACE) and frames.PREFACE.startswith(self._buffer):
                return
            if not self._buffer.startswith(frames.PREFACE):
                self.transport.abort()
                return
            self._awaits_preface = False
            data, self._buffer = self._buffer[len(frames.PREFACE) :], b""
        super().data_received(data)

    def headers_came(self, number: int, head: _Head, *, ended: bool) -> None:
        """Begin a call, or end the request of one."""
        if not number % 2:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if number <= self._newest:
            call = self.streams.get(number)
            if call is not None and ended:
                self.data_came(call, b"", ended=True)
            return
        if number > self._drained_from:
            return
        self._newest = number
        refused = self._refused(number, head)
        if refused:
            # A client that is still sending is told to spare itself that.
            self.answer(refused if ended else refused + frames.reset(number, frames.NO_ERROR))
            return
        call = ServerCall(self, number, self._server.handlers[head.path], head.metadata, head.timeout_seconds)
        self.streams[number] = call
        if head.timeout_seconds is not None:
            call.timer = asyncio.get_running_loop().call_later(head.timeout_seconds, self._expire, call)
        if call.handler.request_streaming:
            call.requests = asyncio.Queue()
            self._start(call)
        if ended:
            self.data_came(call, b"", ended=True)

    def _refused(self, number: int, head: _Head) -> bytes:
        """The answer to a call that reaches no handler, empty where it reaches one."""
        if len(self.streams) >= self.limits.streams:
            return frames.reset(number, frames.REFUSED_STREAM)
        if head.http_status:
            return frames.headers(number, encode([(":status", str(head.http_status))]), ends_stream=True)
        if head.header_bytes > self.limits.header_bytes:
            return refusal(number, grpc.StatusCode.RESOURCE_EXHAUSTED, "the metadata are too large")
        if head.malformed:
            return refusal(number, grpc.StatusCode.INTERNAL, head.malformed)
        if head.path not in self._server.handlers:
            return refusal(number, grpc.StatusCode.UNIMPLEMENTED, "no such method")
        return b""

    def data_came(self, stream: ServerCall, data: bytes, *, ended: bool) -> None:
        """Take in a part of a request, and run the handler when it is whole."""
        if stream.is_asked:
            stream.give_up()
            self.answer(frames.reset(stream.number, frames.STREAM_CLOSED))
            self.forget(stream)
            return
        try:
            is_whole = stream.take_in(data, ended=ended)
        except CompressedError:
            self._refuse(stream, grpc.StatusCode.UNIMPLEMENTED, "compressed messages are not taken", ended=ended)
        except TooLargeError as error:
            self._refuse(stream, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), ended=ended)
        else:
            if is_whole and stream.argument is None:
                self._refuse(stream, grpc.StatusCode.INTERNAL, "the request is not whole", ended=ended)
            elif is_whole:
                self._start(stream)

    def _refuse(self, call: ServerCall, code: grpc.StatusCode, details: str, *, ended: bool) -> None:
        call.give_up()
        refused = call.refusal(code, details)
        self.answer(refused if ended else refused + frames.reset(call.number, frames.NO_ERROR))
        self.forget(call)

    def _start(self, call: ServerCall) -> None:
        call.task = asyncio.get_running_loop().create_task(call.run())
        running = self._server.running
        running[call.task] = call
        call.task.add_done_callback(running.pop)

    def _expire(self, call: ServerCall) -> None:
        """A call's deadline has passed."""
        if call.task is not None:
            call.give_up(grpc.StatusCode.DEADLINE_EXCEEDED)
        elif not call.is_over:
            self._refuse(call, grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed", ended=False)

    def end_sent(self, stream: ServerCall) -> None:
        """A call is over with its trailers. Where it was the only one, there is nothing to wait for."""
        self.forget(stream)
        if not self.streams:
            self.flush()

    def reset_came(self, stream: ServerCall, code: int) -> None:  # noqa: ARG002 (whatever for, the client has left)
        """The client has given a call up."""
        stream.give_up()

    def lost(self) -> None:
        """The client is gone: nobody waits for its calls any more."""
        if self._age is not None:
            self._age.cancel()
        self._server.connections.discard(self)
        self._server.left.set()
        for call in list(self.streams.values()):
            call.give_up()

    def drain(self) -> None:
        """Take no new calls, in two steps: a client is told before a call of its can be refused for it."""
        if self._is_draining or self.transport.is_closing():
            return
        self._is_draining = True
        self._ended = time.monotonic()
        self.write(frames.goaway(frames.LARGEST_STREAM, frames.NO_ERROR))
        self.write(frames.frame(frames.PING, 0, 0, _DRAIN_PING))
        if self._age is not None:
            self._age.cancel()
        self._age = asyncio.get_running_loop().call_later(_DRAIN_SECONDS, self._drain_for_good)

    def pong_came(self, payload: bytes) -> None:
        """A client that answers has read that it is to call elsewhere."""
        if payload == _DRAIN_PING and self._is_draining:
            self._drain_for_good()

    def _drain_for_good(self) -> None:
        if self._drained_from != frames.LARGEST_STREAM or self.transport.is_closing():
            return
        self._drained_from = self._newest
        self.write(frames.goaway(self._newest, frames.NO_ERROR))
        self._linger()

    def forget(self, stream: ServerCall) -> None:
        """Know a call no more. With the last one a connection that takes no new ones ends."""
        if stream.task is None and stream.timer is not None:
            stream.timer.cancel()
        super().forget(stream)
        if not self.streams and self._drained_from != frames.LARGEST_STREAM:
            self._ended = time.monotonic()
            self._linger()

    def _linger(self) -> None:
        """End when the last call is over and nothing has come for a while."""
        if self._age is not None:
            self._age.cancel()
        if not self.streams and not self.end_if_silent(_LINGER_SECONDS):
            self._age = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._linger)

    def end_if_silent(self, seconds: float) -> bool:
        """End where no call is under way, and nothing was said for so long; whether it has ended."""
        if not self.streams and time.monotonic() - max(self._last_came, self._ended) >= seconds:
            self.end()
        return self.transport.is_closing()


def _peer_names(transport: asyncio.BaseTransport) -> tuple[str, ...]:
    """The names in a client's certificate, of every kind; a certificate is there only where it was checked."""
    certificate: dict[str, Any] | None = transport.get_extra_info("peercert")
    return tuple(value for _kind, value in (certificate or {}).get("subjectAltName", ()))


class Server:
    """Serves `handlers` by path. A connection takes new calls for about `age_seconds`, so that replicas are found."""

    def __init__(self, handlers: Mapping[str, Handler], limits: Limits, *, age_seconds: float) -> None:
        self.handlers = handlers
        self.limits = limits
        self.age_seconds = age_seconds
        self.connections: set[ServerConnection] = set()
        self.running: dict[asyncio.Task[None], ServerCall] = {}
        self.is_stopping = False
        self.left = asyncio.Event()  # set with each connection that is lost
        self._listener: asyncio.Server | None = None

    async def bind(self, host: str, port: int, *, tls: ssl.SSLContext | None, reuse_port: bool) -> int:
        """Take an address; its port. Clients can connect and are answered from `start` on. Raises OSError."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        taken = socket.socket(family, socket.SOCK_STREAM)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            taken.bind(address)
            taken.listen(_BACKLOG)
            taken.setblocking(False)
        except OSError:
            taken.close()
            raise
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: ServerConnection(self), sock=taken, ssl=tls, backlog=_BACKLOG, start_serving=False
        )
        return int(taken.getsockname()[1])

    async def start(self) -> None:
        """Serve."""
        assert self._listener is not None, "bind comes first"
        await self._listener.start_serving()

    async def stop(self, grace_seconds: float) -> None:
        """Take no new calls, wait so long for those that run, cancel the rest, and see every connection closed.

        Called again while it stops, it cancels the handlers that still run: the first goes on to the end.
        """
        if self.is_stopping:
            await self._cancel([call for call in self.running.values() if not call.is_answered])
            return
        self.is_stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.drain()
        ends = time.monotonic() + grace_seconds
        # A connection leaves when its calls are over and its client has heard: before, calls may be on their way.
        await self._all_left(ends)
        while self.running and (left := ends - time.monotonic()) > 0:
            await asyncio.wait(list(self.running), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        await self._cancel(list(self.running.values()))
        await self._all_left(time.monotonic() + _LINGER_SECONDS)
        for connection in list(self.connections):
            connection.end()
        await self._all_left(time.monotonic() + _LINGER_SECONDS)
        for connection in list(self.connections):
            connection.abort("the server has stopped")

    async def _cancel(self, calls: list[ServerCall]) -> None:
        """Cancel these calls, and wait for their clean-up."""
        for call in calls:
            call.give_up()
        tasks = [call.task for call in calls if call.task is not None]
        if tasks:
            # What a library has made forget that it was cancelled is left to the end of the process.
            await asyncio.wait(tasks, timeout=_CANCELLED_SECONDS)

    async def _all_left(self, ends: float) -> None:
        """Wait until no connection is left, at most until then (of `time.monotonic()`)."""
        while self.connections and (left := ends - time.monotonic()) > 0:
            self.left.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.left.wait(), min(left, _POLL_SECONDS))
            for connection in list(self.connections):
                connection.end_if_silent(_STOPPING_LINGER_SECONDS)
