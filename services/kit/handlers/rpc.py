"""Owns the steps around an RPC's method, aio or sync: from the call's record to what is counted and logged of it."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.kit.access import Rule
from services.kit.call import CURRENT, REQUEST_ID_KEY, Call, new_request_id
from services.kit.errors import ServiceError, wire_form
from services.kit.handlers.gate import Gate
from services.kit.http2.call import Handler
from services.kit.identity import ANONYMOUS, Authenticator, Identity, Role
from services.kit.logs import get_logger
from services.kit.metrics import rpc_metrics
from services.kit.refusals import Internal, MalformedRequest, as_refusal, logged
from services.kit.tracing import end_span, rpc_span

_log = get_logger(__name__)

# Far beyond any real deadline: the sync server says so that there is none.
_NO_DEADLINE_SECONDS = 1e8
_SERVER_FAULT = 500
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

Metadata = dict[str, str | bytes]

PeerIdentity = Callable[[Any], Identity | None]


class Rpc:
    """One RPC of one server: what its wrapped handler needs, looked up once.

    `deadline_seconds` is given to unary calls that bring none; `peer_identity` reads a client certificate.
    """

    def __init__(
        self,
        rule: Rule,
        handler: Handler,
        *,
        authenticator: Authenticator,
        gate: Gate,
        peer_identity: PeerIdentity | None,
        deadline_seconds: float,
    ) -> None:
        self.rule = rule
        self.gate = gate
        self._authenticator = authenticator
        self._peer_identity = peer_identity
        self._decode = handler.request_deserializer or _as_it_is
        # One answer as bytes.
        self.encoded = handler.response_serializer or _as_it_is
        # A stream may rightly last for hours; whoever opens one limits it.
        self._deadline_seconds = None if handler.response_streaming or handler.request_streaming else deadline_seconds
        self._metrics = rpc_metrics(rule.path)

    def begin(self, context: Any) -> tuple[Call, Metadata, float | None]:
        """Open the call: its record (also in the context variable), its metadata, and the timeout we have to keep.

        The timeout is None where the caller gave a deadline (gRPC keeps that one) or none is to be kept.
        """
        pairs = context.invocation_metadata() or ()
        metadata: Metadata = dict(pairs)
        if len(metadata) < len(pairs):
            metadata = _joined(pairs)
        request_id = metadata.get(REQUEST_ID_KEY)
        if not isinstance(request_id, str) or not _SANE_REQUEST_ID.fullmatch(request_id):
            request_id = new_request_id()
        call = Call(self.rule.path, request_id, ANONYMOUS, metadata)
        call.span = rpc_span(self.rule.path, metadata, request_id)
        timeout = None
        left = context.time_remaining()
        if left is None or left > _NO_DEADLINE_SECONDS:
            left = timeout = self._deadline_seconds
        if left is not None:
            call.deadline = call.started + left
        CURRENT.set(call)
        return call, metadata, timeout

    def caller(self, metadata: Metadata) -> Identity | Awaitable[Identity | None] | None:
        """Ask the authenticator for the caller. A public RPC takes a bad credential for none."""
        try:
            return self._authenticator.authenticate(self.rule.path, metadata)
        except ServiceError:
            if self.rule.role is Role.PUBLIC:
                return None
            raise

    def admit(self, call: Call, caller: Identity | None, context: Any) -> None:
        """Note who calls (by certificate where there is no credential) and check that they may. Raises the refusal."""
        if caller is None and self._peer_identity is not None:
            caller = self._peer_identity(context)
        call.identity = caller or ANONYMOUS
        self.rule.check_caller(call.identity)

    def request(self, call: Call, raw: bytes) -> Any:
        """Decode one request message and bind it to the caller's account. Raises MalformedRequest or the refusal."""
        try:
            message = self._decode(raw)
        except DecodeError as error:
            raise MalformedRequest("the request is not a message of the type this call takes") from error
        self.rule.check_request(call.identity, message)
        return message

    def refuse(self, call: Call, context: Any, error: Exception) -> tuple[grpc.StatusCode, str, Any]:
        """Count and log a failed call; the result is what goes on the wire: code, message, trailing metadata."""
        refusal = as_refusal(error, call.request_id)
        if refusal is not error or isinstance(refusal, Internal):
            _log.error("call failed", reason=refusal.reason, **logged(error))
        else:
            log = _log.warning if refusal.kind.http_status >= _SERVER_FAULT else _log.info
            log("call refused", reason=refusal.reason, message=refusal.message)
        code, message, trailing = wire_form(refusal)
        self.end(call, code.name, refusal.reason)
        _forget_frames(error)
        return code, message, (*_trailing(context, call), *trailing)

    def answered(self, call: Call, context: Any) -> None:
        """Close a call that was answered: add the request id, count it under the code its method left."""
        context.set_trailing_metadata(_trailing(context, call))
        code = context.code()
        self.end(call, code.name if isinstance(code, grpc.StatusCode) else "OK")

    def end(self, call: Call, code: str, reason: str = "") -> None:
        """Close the call's record and count it."""
        call.finished = True
        self._metrics.ended(time.monotonic() - call.started, code, reason)
        if call.span is not None:
            end_span(call.span, code, reason)


def _joined(pairs: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """Metadata in which names come more than once: their texts with commas between, as HTTP has it."""
    found: Metadata = {}
    for name, value in pairs:
        before = found.get(name)
        found[name] = f"{before},{value}" if isinstance(before, str) and isinstance(value, str) else value
    return found


def _trailing(context: Any, call: Call) -> tuple[tuple[str, str | bytes], ...]:
    return (*(context.trailing_metadata() or ()), (REQUEST_ID_KEY, call.request_id))


def _forget_frames(error: BaseException | None) -> None:
    """Part an error that was told of, and what it came from, from the frames it passed: they hold the request.

    An error raised from a variable (one that came through a queue, say) is held by its own frame, so the two would
    last until Python next looks for cycles, and enough large requests that are refused would fill the memory.
    """
    while error is not None and error.__traceback__ is not None:  # each but once, even where they go round
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _as_it_is(message: Any) -> Any:
    return message
