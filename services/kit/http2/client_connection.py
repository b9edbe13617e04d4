"""Owns a client's connection: unary calls asked on it, and what each is answered."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import grpc.aio

from services.kit.http2 import frames
from services.kit.http2.connection import Connection, Limits
from services.kit.http2.headers import Decoder, Metadata, encode, metadata_of, status_of, timeout_text
from services.kit.http2.streams import CompressedError, Stream, TooLargeError, message

# How long connections that are closed may take to be gone.
_CLOSE_SECONDS = 1.0
# What calls end with that were answered by something else than a gRPC server (grpc/doc/http-grpc-status-mapping.md).
_BY_HTTP_STATUS = {
    "400": grpc.StatusCode.INTERNAL,
    "401": grpc.StatusCode.UNAUTHENTICATED,
    "403": grpc.StatusCode.PERMISSION_DENIED,
    "404": grpc.StatusCode.UNIMPLEMENTED,
} | dict.fromkeys(("429", "502", "503", "504"), grpc.StatusCode.UNAVAILABLE)
# And those that the server has reset (PROTOCOL-HTTP2.md, "Errors").
_BY_RESET = {
    frames.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    frames.CANCEL: grpc.StatusCode.CANCELLED,
    frames.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
CLOSED = "the channel is closed"


class _Head:
    """What the headers or trailers of an answer say. `status` is None in those that do not end it."""

    __slots__ = ("http_status", "metadata", "status")

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.status = status_of(pairs)
        self.http_status = next((value for name, value in pairs if name == ":status"), "")
        self.metadata = tuple(pair for pair in metadata_of(pairs) if pair[0] not in {"grpc-status", "grpc-message"})


def _no_status(http_status: str) -> grpc.aio.AioRpcError:
    code = _BY_HTTP_STATUS.get(http_status, grpc.StatusCode.UNKNOWN)
    return call_error(code, f"the peer answered HTTP {http_status or 'without a status'}")


def call_error(
    code: grpc.StatusCode, details: str, initial: Metadata = (), trailing: Metadata = ()
) -> grpc.aio.AioRpcError:
    """What a call raises that was not answered as its caller wants."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(*initial), grpc.aio.Metadata(*trailing), details=details)


class Asked(Stream):
    """A call under way, and the future of its answer."""

    __slots__ = ("answer", "initial", "message", "timer")

    def __init__(self, connection: ClientConnection, number: int) -> None:
        super().__init__(number, connection.peer_window)
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.initial: Metadata = ()
        self.message: bytes | None = None
        self.timer: asyncio.TimerHandle | None = None

    def fail(self, error: grpc.aio.AioRpcError) -> None:
        """End with an error."""
        if not self.answer.done():
            self.answer.set_exception(error)


class ClientConnection(Connection[Asked, _Head]):
    """A connection to a server. `gone` is done when it takes no more calls."""

    def __init__(self, limits: Limits, authority: str, scheme: str, all_of_channel: set[ClientConnection]) -> None:
        super().__init__(limits, Decoder(_Head, 2 * limits.header_bytes))
        self._all = all_of_channel
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self.closed = asyncio.Event()
        self._newest = -1
        self._start = [(":method", "POST"), (":scheme", scheme), (":authority", authority)]
        self._starts: dict[str, bytes] = {}  # what requests for a path begin with

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Belong to the channel until it is lost."""
        self._all.add(self)
        super().connection_made(transport)

    def greet(self) -> bytes:
        """What a client says first."""
        return frames.PREFACE

    def settings_came(self) -> None:
        """The server speaks HTTP/2."""
        if not self.ready.done():
            self.ready.set_result(None)

    def ask(self, path: str, request: bytes, metadata: Metadata, left_seconds: float | None) -> Asked:
        """Begin a call. Raises AioRpcError where the server takes no more at once."""
        if len(self.streams) >= self.peer_streams:
            raise call_error(grpc.StatusCode.UNAVAILABLE, "the server takes no more calls at once")
        start = self._starts.get(path)
        if start is None:
            rest = [("te", "trailers"), ("content-type", "application/grpc")]
            start = self._starts[path] = encode([*self._start, (":path", path), *rest])
        limit = () if left_seconds is None else (("grpc-timeout", timeout_text(left_seconds)),)
        try:
            block = start + encode((*limit, *metadata))
        except (AttributeError, TypeError, UnicodeError) as error:
            raise call_error(grpc.StatusCode.INTERNAL, f"metadata that cannot be sent: {error}") from None
        self._newest += 2
        if self._newest >= frames.LARGEST_STREAM:  # it was the last number there is
            self.gone.set()
        asked = Asked(self, self._newest)
        self.streams[asked.number] = asked
        if left_seconds is not None:
            asked.timer = asyncio.get_running_loop().call_later(left_seconds, self._expire, asked)
        head = frames.headers(asked.number, block)
        self.send(asked, head, message(request), frames.frame(frames.DATA, frames.END_STREAM, asked.number, b""))
        self.flush()
        return asked

    def _expire(self, asked: Asked) -> None:
        self.give_up(asked, frames.CANCEL)
        asked.fail(call_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    def headers_came(self, number: int, head: _Head, *, ended: bool) -> None:
        """An answer begins, or ends."""
        asked = self.streams.get(number)
        if asked is None:
            return
        if not ended:
            asked.initial = head.metadata
            if head.http_status not in {"200", "100"}:
                self.give_up(asked, frames.CANCEL)
                asked.fail(_no_status(head.http_status))
            return
        if asked.unsent:  # it has not waited for all of the request
            self.give_up(asked, frames.NO_ERROR)
        else:
            self.forget(asked)
        if head.status is None:
            asked.fail(_no_status(head.http_status))
            return
        code, details = head.status
        if code is not grpc.StatusCode.OK:
            asked.fail(call_error(code, details, asked.initial, head.metadata))
        elif asked.message is None:
            asked.fail(call_error(grpc.StatusCode.INTERNAL, "the answer is not whole"))
        elif not asked.answer.done():
            asked.answer.set_result(asked.message)

    def data_came(self, stream: Asked, data: bytes, *, ended: bool) -> None:
        """A part of an answer."""
        why = ""
        try:
            for one in stream.take(data, self.limits.message_bytes):
                if stream.message is not None:
                    why = "the answer is more than one message"
                stream.message = one
        except CompressedError:
            why = "the answer is compressed"
        except TooLargeError as error:
            why = str(error)
        if why or ended:
            self.give_up(stream, frames.CANCEL)
            stream.fail(call_error(grpc.StatusCode.INTERNAL, why or "the answer has no status"))

    def reset_came(self, stream: Asked, code: int) -> None:
        """The server gave a call up."""
        stream.fail(call_error(_BY_RESET.get(code, grpc.StatusCode.INTERNAL), f"the peer reset the call: {code}"))

    def goaway_came(self, last_stream: int) -> None:
        """The server takes no more calls here. Those it says it has not begun can be asked elsewhere."""
        self.gone.set()
        for asked in list(self.streams.values()):
            if asked.number > last_stream:
                self.forget(asked)
                asked.fail(call_error(grpc.StatusCode.UNAVAILABLE, "the server is leaving"))
        self._close_if_unused()

    def forget(self, stream: Asked) -> None:
        """Know a call no more."""
        if stream.timer is not None:
            stream.timer.cancel()
        super().forget(stream)
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.gone.is_set() and not self.streams:
            self.end()

    async def shut(self) -> None:
        """Cancel what is under way, and see the connection closed."""
        self.gone.set()
        for asked in list(self.streams.values()):
            self.give_up(asked, frames.CANCEL)
            asked.fail(call_error(grpc.StatusCode.CANCELLED, CLOSED))
        self.end()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closed.wait(), _CLOSE_SECONDS)
        self.abort(CLOSED)
        await self.closed.wait()

    def lost(self) -> None:
        """Nothing under way is answered any more."""
        self.gone.set()
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(self.lost_because))
            self.ready.exception()  # whoever has waited for it may have been cancelled
        for asked in list(self.streams.values()):
            if asked.timer is not None:
                asked.timer.cancel()
            asked.fail(call_error(grpc.StatusCode.UNAVAILABLE, f"the connection was lost: {self.lost_because}"))
        self._all.discard(self)
        self.closed.set()
