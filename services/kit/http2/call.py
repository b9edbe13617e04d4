"""Owns one call being served: the context that its handler is given, in the form of grpc.aio's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc

from services.kit.http2 import frames
from services.kit.http2.headers import Metadata, encode, status_block
from services.kit.http2.streams import Stream, TooLargeError, message
from services.kit.logs import get_logger

if TYPE_CHECKING:
    from services.kit.http2.server import ServerConnection

_log = get_logger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_START = encode([(":status", "200"), ("content-type", "application/grpc")])
# A streamed request's messages that wait for the handler. Beyond, the call is refused: no method of ours takes many.
_WAITING_MESSAGES = 1024
# Not each: an answer of one message goes out together with its end.
_MESSAGES_A_TURN = 16


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
        "_code",
        "_details",
        "_given_up_as",
        "_has_begun",
        "_headed",
        "_initial",
        "_trailing",
        "_written",
        "argument",
        "connection",
        "deadline",
        "handler",
        "is_answered",
        "is_asked",
        "metadata",
        "requests",
        "task",
        "timer",
    )

    def __init__(
        self, connection: ServerConnection, number: int, handler: Handler, metadata: Metadata, timeout: float | None
    ) -> None:
        super().__init__(number, connection.peer_window)
        self.connection = connection
        self.handler = handler
        self.metadata = metadata
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.is_asked = False  # the request has ended
        self.is_answered = False  # the handler has ended
        self.argument: bytes | None = None
        self.requests: asyncio.Queue[bytes | None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._initial: Metadata = ()
        self._trailing: Metadata = ()
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._headed = False
        self._written = 0
        self._has_begun = False
        self._given_up_as: grpc.StatusCode | None = None

    # ----------------------------------------------------------------------------------------- what the client sends

    def take_in(self, data: bytes, *, ended: bool) -> bool:
        """Take in data of the request; whether the handler can run now. Raises what refuses the call."""
        messages = self.take(data, self.connection.limits.message_bytes) if data else []
        self.is_asked = ended
        if self.requests is not None:
            if self.requests.qsize() + len(messages) > _WAITING_MESSAGES:
                raise TooLargeError("too many messages wait")
            for one in (*messages, None) if ended else messages:
                self.requests.put_nowait(one)
            self.is_full = not self.requests.empty()
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
            if self.is_full and self.requests.empty():
                self.is_full = False
                self.connection.let_send(self)
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
        return self.connection.peer_names

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
        """Send one message of a stream, and wait until the client has room for more.

        Raises CallGoneError, also where the client takes nothing for too long: then the call is given up.
        """
        if self.is_over:
            raise CallGoneError
        encoded = self.handler.response_serializer
        head = b"" if self._headed else self._head()
        self.connection.send(self, head, message(response if encoded is None else encoded(response)))
        self._written += 1
        if self.unsent:
            try:
                await self.sent(self.connection.limits.stall_seconds)
            except TimeoutError:
                self.connection.give_up(self, frames.CANCEL)
                raise CallGoneError from None
        elif not self._written % _MESSAGES_A_TURN:
            await asyncio.sleep(0)  # a handler that waits for nothing else lets others have their turn

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
        self._has_begun = True
        try:
            if self._given_up_as is not None:
                raise asyncio.CancelledError  # noqa: TRY301 (it ends as any that is cancelled)
            answer = await self._answer(handler)
            if not handler.response_streaming and self._code is None:
                serializer = handler.response_serializer
                encoded = message(answer if serializer is None else serializer(answer))
        except asyncio.CancelledError:
            if self._given_up_as is grpc.StatusCode.DEADLINE_EXCEEDED:
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
        self.is_answered = True
        self._finish(encoded)
        if not self.is_over:
            await self._read_out()
        if self.timer is not None:
            self.timer.cancel()

    def give_up(self, code: grpc.StatusCode = grpc.StatusCode.CANCELLED) -> None:
        """Cancel the handler, but once: however often that is asked for, it does not cut short what it cleans up.

        One that has not begun never does: a task that is cancelled before its first step would not answer at all.
        """
        if self.task is None:
            if self.timer is not None:
                self.timer.cancel()
        elif self._given_up_as is None:
            self._given_up_as = code
            if self._has_begun:
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
        block = _START + encode(self._initial) if self._initial else _START
        self._headed = True
        return frames.headers(self.number, block)

    def _finish(self, encoded: bytes) -> None:
        """Send the answer, where there is one, and the status. One that comes alone is headers and trailers at once."""
        if self.is_over:
            return
        try:
            head, trailers = self._ends(encoded)
        except (UnicodeError, TypeError, AttributeError, ValueError):
            _log.exception("a handler's metadata cannot be sent")
            self._initial, self._trailing, encoded = (), (), b""
            self.refuse(grpc.StatusCode.INTERNAL, "the call's metadata cannot be sent")
            head, trailers = self._ends(b"")
        self.connection.send(self, head, encoded, trailers)

    def _ends(self, encoded: bytes) -> tuple[bytes, bytes]:
        """The frames before the answer and after it."""
        code = self._code or grpc.StatusCode.OK
        head, trailers = b"", status_block(code.value[0], self._details, self._trailing)
        if not self._headed:
            if encoded or self._initial or code is grpc.StatusCode.OK:
                head = self._head()
            else:
                trailers = _START + trailers
        return head, frames.headers(self.number, trailers, ends_stream=True)

    def refusal(self, code: grpc.StatusCode, details: str) -> bytes:
        """What ends the call here and now, with what waits to be sent left out."""
        start = b"" if self._headed else _START
        return frames.headers(self.number, start + status_block(code.value[0], details), ends_stream=True)

    async def _read_out(self) -> None:
        """Wait until the client has taken all of the answer; a call that is cancelled meanwhile is given up.

        So is one that was cancelled before: whoever asked for that does not wait for the client. And one whose client
        takes nothing for too long.
        """
        try:
            if self._given_up_as is None:
                await self.sent(self.connection.limits.stall_seconds)
        except (asyncio.CancelledError, TimeoutError):
            pass
        self.connection.give_up(self, frames.CANCEL)


def refusal(number: int, code: grpc.StatusCode, details: str) -> bytes:
    """What ends a call that no handler was asked for."""
    return frames.headers(number, _START + status_block(code.value[0], details), ends_stream=True)
