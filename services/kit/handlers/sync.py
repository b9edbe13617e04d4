"""Owns the handlers of a sync server: the steps of a call around a function or a generator, in the call's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from services.kit.call import Call
from services.kit.handlers.rpc import Metadata, Rpc
from services.kit.http2.call import Handler
from services.kit.identity import Identity
from services.kit.refusals import DeadlineExceeded, NotImplementedYet


def _requests(rpc: Rpc, call: Call, raws: Iterator[bytes]) -> Iterator[Any]:
    for raw in raws:
        yield rpc.request(call, raw)


def _request(rpc: Rpc, call: Call, metadata: Metadata, argument: Any, context: Any, *, streamed: bool) -> Any:
    caller = rpc.caller(metadata)
    if caller is not None and not isinstance(caller, Identity):
        raise TypeError("a sync server needs a sync authenticator")
    rpc.admit(call, caller, context)
    if call.deadline is not None and call.deadline <= time.monotonic():
        raise DeadlineExceeded("the deadline passed while the call waited for a thread")
    return _requests(rpc, call, argument) if streamed else rpc.request(call, argument)


def _fail(rpc: Rpc, call: Call, context: Any, error: Exception) -> NoReturn:
    code = context.code()
    # The sync server's own abort is a bare Exception after it has set the code.
    aborted = type(error) is Exception and not error.args and code is not None
    if aborted or (isinstance(error, grpc.RpcError) and not context.is_active()):
        rpc.end(call, code.name if isinstance(code, grpc.StatusCode) else "CANCELLED")
        raise error
    code, message, trailing = rpc.refuse(call, context, error)
    context.set_trailing_metadata(trailing)
    context.abort(code, message)
    raise AssertionError  # abort raises


def wrap(rpc: Rpc, method: Callable[[Any, Any], Any], handler: Handler) -> Callable[[Any, Any], Any]:
    """The handler of one RPC: a function of request bytes and context, or a generator where it answers a stream."""
    streamed_request = handler.request_streaming
    gate, most = rpc.gate, rpc.gate.most(streamed=handler.response_streaming)

    def handle(argument: Any, context: Any) -> bytes:
        call, metadata, _ = rpc.begin(context)
        try:
            gate.enter(most)
            try:
                request = _request(rpc, call, metadata, argument, context, streamed=streamed_request)
                encoded = rpc.encoded(method(request, context))
            finally:
                gate.leave()
        except Exception as error:  # noqa: BLE001 (the one place where any failure becomes a refusal)
            _fail(rpc, call, context, error)
        rpc.answered(call, context)
        return encoded

    def handle_stream(argument: Any, context: Any) -> Iterator[bytes]:
        call, metadata, _ = rpc.begin(context)
        try:
            gate.enter(most)
            try:
                request = _request(rpc, call, metadata, argument, context, streamed=streamed_request)
                for response in method(request, context):
                    yield rpc.encoded(response)
            finally:
                gate.leave()
        except GeneratorExit:
            rpc.end(call, "CANCELLED")
            raise
        except Exception as error:  # noqa: BLE001
            _fail(rpc, call, context, error)
        rpc.answered(call, context)

    return handle_stream if handler.response_streaming else handle


def not_implemented(_request: Any, _context: Any) -> NoReturn:
    """Stands for a method that the servicer has not."""
    raise NotImplementedYet("this call is in the contract but not implemented yet")
