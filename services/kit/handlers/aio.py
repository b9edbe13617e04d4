"""Owns the handlers of an aio server: the steps of a call around a coroutine function or an async generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from services.kit.call import Call
from services.kit.errors import ServiceError
from services.kit.handlers.rpc import Rpc
from services.kit.http2.call import AbortedError, CallGoneError, Handler
from services.kit.identity import Identity, Role
from services.kit.refusals import DeadlineExceeded, NotImplementedYet


async def _awaited_caller(rpc: Rpc, answer: Awaitable[Identity | None]) -> Identity | None:
    try:
        return await answer
    except ServiceError:
        if rpc.rule.role is Role.PUBLIC:
            return None
        raise


async def _requests(rpc: Rpc, call: Call, raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for raw in raws:
        yield rpc.request(call, raw)


def _stream(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Awaitable[None]]:
    """A streaming method, async generator or coroutine using `context.write`, as one coroutine function."""

    async def stream(request: Any, context: Any) -> None:
        responses = method(request, context)
        if not hasattr(responses, "__aiter__"):
            await responses
            return
        try:
            async for response in responses:
                await context.write(response)
        finally:
            await _closed(responses)

    return stream


async def _closed(responses: Any) -> None:
    """Close an async generator here and now, not whenever the garbage collector comes by.

    A client that goes away is noticed twice, by a write that fails and by a cancellation: the second does not cut short
    the clean-up that the first began.
    """
    closing = asyncio.ensure_future(responses.aclose())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await closing
        raise


async def _within(seconds: float, answer: Awaitable[Any]) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await answer
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded(f"not answered within {seconds:g} seconds") from None
        raise


def wrap(rpc: Rpc, method: Callable[[Any, Any], Any], handler: Handler) -> Callable[[Any, Any], Awaitable[Any]]:
    """The handler of one RPC: a coroutine function of request bytes and context; a stream goes through the context."""
    streamed_request, streamed_response = handler.request_streaming, handler.response_streaming
    run = _stream(method) if streamed_response else method
    gate, most = rpc.gate, rpc.gate.most(streamed=streamed_response)

    async def handle(argument: Any, context: Any) -> bytes | None:
        call, metadata, timeout = rpc.begin(context)
        encoded = None
        try:
            gate.enter(most)
            try:
                caller = rpc.caller(metadata)
                if caller is not None and not isinstance(caller, Identity):
                    caller = await _awaited_caller(rpc, caller)
                rpc.admit(call, caller, context)
                request = _requests(rpc, call, argument) if streamed_request else rpc.request(call, argument)
                answer = run(request, context)
                response = await (answer if timeout is None else _within(timeout, answer))
                if not streamed_response:
                    encoded = rpc.encoded(response)
            finally:
                gate.leave()
        except asyncio.CancelledError:
            rpc.end(call, "CANCELLED")
            raise
        except (AbortedError, CallGoneError):
            # The method has aborted by itself, or the client went away while being written to.
            code = context.code()
            rpc.end(call, code.name if isinstance(code, grpc.StatusCode) else "CANCELLED")
            raise
        except Exception as error:  # noqa: BLE001 (the one place where any failure becomes a refusal)
            context.refuse(*rpc.refuse(call, context, error))
        else:
            rpc.answered(call, context)
        return encoded

    return handle


async def not_implemented(_request: Any, _context: Any) -> NoReturn:
    """Stands for a method that the servicer has not."""
    raise NotImplementedYet("this call is in the contract but not implemented yet")
