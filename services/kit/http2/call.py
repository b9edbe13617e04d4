"""Owns one call being served: the context that its handler is given, in the form of grpc.aio's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc

from services.kit.http2 import frames
from services.kit.http2.connection import Stream, TooLargeError, message
from services.kit.http2.headers import Metadata, encode, status_block
from services.kit.logs import get_logger

if TYPE_CHECKING:
    from services.kit.http2.server import ServerConnection

_log = get_logger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_END = frames.END_HEADERS | frames.END_STREAM
_START = encode([(":status", "200"), ("content-type", "application/grpc")])
# A streamed request's messages that wait for the handler. Beyond, the call is refused: no method of ours takes many.
_WAITING_MESSAGES = 1024


class AbortedError(Exception):
    """The handler has ended its call by `abort`."""


class CallGoneError(Exception):
    """Written to a call that is over: its client has left, or its time has passed."""


class ServerCall(Stream):
    """One call: what its handler is asked, and the context by which it answers.

    Where grpc.aio's context has a method of that name it does the same. `deadline` is in seconds of
    `time.monotonic()`.
    """

    __slots__ = (
        "_code", "_details", "_headed", "_initial", "_is_given_up", "_trailing",
        "argument", "deadline", "handler", "metadata", "requests", "task", "timer",
    )  # fmt: skip

    def __init__(
        self, connection: ServerConnection, number: int, handler: Handler, metadata: Metadata, timeout: float | None
    ) -> None:
        super().__init__(connection, number)
        self.handler = handler
        self.metadata = metadata
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.argument: bytes | None = None
        self.requests: asyncio.Queue[bytes | None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._initial: Metadata = ()
        self._trailing: Metadata = ()
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._headed = False
        self._is_given_up = False

    # ----------------------------------------------------------------------------------------- what the client sends

    def take_in(self, data: bytes, *, ended: bool) -> bool:
        """Take in data of the request; whether the handler can run now. Raises what refuses the call."""
        messages = self.take(data, self.connection.limits.message_bytes) if data else []
        if self.requests is not None:
            if self.requests.qsize() + len(messages) > _WAITING_MESSAGES:
                raise TooLargeError("too many messages wait")
            for one in (*messages, None) if ended else messages:
                self.requests.put_nowait(one)
            return False
        for one in messages:
            if self.argument is not None:
                raise TooLargeError("more than one message, of a call that takes one")
            self.argument = one
        return ended

    async def _messages(self) -> AsyncIterator[Any]:
        assert self.requests is not None
        decode = self.handler.request_deserializer
        while (raw := await self.requests.get()) is not None:
            yield decode(raw) if decode is not None else raw

    # ------------------------------------------------------------------------------------------- the handler's context

    def invocation_metadata(self) -> Metadata:
        """What the client sent along."""
        return self.metadata

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline, at least 0; None where it gave none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def peer_names(self) -> tuple[str, ...]:
        """The names in the client's certificate (subject alternative names); empty where it showed none."""
        connection: ServerConnection = self.connection  # type: ignore[assignment]
        return connection.peer_names

    def trailing_metadata(self) -> Metadata:
        """What was set to be sent at the end."""
        return self._trailing

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Set what is sent at the end."""
        self._trailing = tuple(metadata)

    def code(self) -> grpc.StatusCode | None:
        """The status that was set; None for none, which is OK."""
        return self._code

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Say what comes before the first message, and goes out with it."""
        self._initial = tuple(metadata)

    async def write(self, response: Any) -> None:
        """Send one message of a stream, and wait until the client has room for more. Raises CallGoneError."""
        if self.is_over:
            raise CallGoneError
        encoded = self.handler.response_serializer
        head = b"" if self._headed else self._head()
        self.connection.send(self, head, message(response if encoded is None else encoded(response)))
        if self.unsent:
            await self.sent()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with an error. Raises AbortedError."""
        self.refuse(code, details, trailing_metadata)
        raise AbortedError

    def refuse(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        """Say with which error the call ends, when its handler returns."""
        self._code, self._details = code, details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)

    # --------------------------------------------------------------------------------------------------------- its run

    async def run(self) -> None:
        """Run the handler, and end the call as it ends."""
        handler, encoded = self.handler, b""
        try:
            answer = await self._answer(handler)
            if not handler.response_streaming and self._code is None:
                serializer = handler.response_serializer
                encoded = message(answer if serializer is None else serializer(answer))
        except asyncio.CancelledError:
            if self.deadline is not None and self.deadline <= time.monotonic():
                self.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")
            else:
                self.refuse(grpc.StatusCode.CANCELLED, "the call was cancelled")
        except AbortedError:
            pass
        except CallGoneError:
            self.refuse(grpc.StatusCode.CANCELLED, "the client has left")
        except Exception:  # noqa: BLE001 (a handler that kit has wrapped raises nothing: a fault of a library's)
            _log.exception("a handler failed")
            self.refuse(grpc.StatusCode.UNKNOWN, "the call failed")
        self._finish(encoded)
        if not self.is_over:
            await self._read_out()
        if self.timer is not None:
            self.timer.cancel()

    def give_up(self) -> None:
        """Cancel the handler, but once: however often that is asked for, it does not cut short what it cleans up."""
        if self.task is not None and not self._is_given_up:
            self._is_given_up = True
            self.task.cancel()

    async def _answer(self, handler: Handler) -> Any:
        argument: Any
        if handler.request_streaming:
            method = handler.stream_stream if handler.response_streaming else handler.stream_unary
            argument = self._messages()
        else:
            method = handler.unary_stream if handler.response_streaming else handler.unary_unary
            argument, self.argument = self.argument, None
            if handler.request_deserializer is not None:
                argument = handler.request_deserializer(argument)
        assert method is not None
        answer: Any = method(argument, self)  # type: ignore[arg-type]
        del argument
        if not hasattr(answer, "__aiter__"):
            return await answer
        async for response in answer:
            await self.write(response)
        return None

    def _head(self) -> bytes:
        self._headed = True
        block = _START + encode(self._initial) if self._initial else _START
        return frames.frame(frames.HEADERS, frames.END_HEADERS, self.number, block)

    def _finish(self, encoded: bytes) -> None:
        """Send the answer, where there is one, and the status. One that comes alone is headers and trailers at once."""
        if self.is_over:
            return
        code = self._code or grpc.StatusCode.OK
        trailers = status_block(code.value[0], self._details, self._trailing)
        head = b""
        if not self._headed:
            if encoded or self._initial or code is grpc.StatusCode.OK:
                head = self._head()
            else:
                trailers = _START + trailers
        self.connection.send(self, head, encoded, frames.frame(frames.HEADERS, _END, self.number, trailers))

    async def _read_out(self) -> None:
        """Wait until the client has taken all of the answer; a call that is cancelled meanwhile is given up."""
        try:
            while not self.is_over:
                await self.sent()
        except asyncio.CancelledError:
            self.connection.give_up(self, frames.CANCEL)


def refusal(number: int, code: grpc.StatusCode, details: str) -> bytes:
    """What ends a call that no handler was asked for."""
    block = _START + status_block(code.value[0], details)
    return frames.frame(frames.HEADERS, _END, number, block)
