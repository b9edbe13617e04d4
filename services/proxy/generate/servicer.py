"""Owns the passage between GenerateService's messages and model calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
from google.protobuf.json_format import ParseError
from tollkeeper.proxy.v1 import generate_service_pb2 as pb
from tollkeeper.proxy.v1 import generate_service_pb2_grpc

from services.kit.call import current_identity
from services.kit.errors import HTTP_STATUS_KEY, RETRY_AFTER_KEY
from services.kit.replays import REPLAYED
from services.kit.validation import Violations
from services.proxy import provider_json
from services.proxy.calls.call import Asked, Call
from services.proxy.calls.delivery import Head, Metadata
from services.proxy.calls.quotas import QUOTA_HEADERS
from services.proxy.calls.running import Calls
from services.proxy.clock import utc_now
from services.proxy.errors import AnswerNotPassedOn, ProviderRateLimited, ProviderRefused, ProviderUnavailable
from services.proxy.formats.openai_chat import ChatRequest
from services.proxy.generate import messages
from services.proxy.keys.credentials import KnownKeys
from services.proxy.keys.model import STANDARD, Key
from services.proxy.sse import data_of
from services.proxy.upstream import retry_after_seconds

GENERATE = "/tollkeeper.proxy.v1.GenerateService/Generate"
STREAM_GENERATE = "/tollkeeper.proxy.v1.GenerateService/StreamGenerate"

_TOO_MANY, _SERVER_SIDE = 429, 500
_MAX_WORDS = 500
# What an answer in another form than it should have raises where it is read.
_NOT_UNDERSTOOD = (ParseError, KeyError, IndexError, TypeError, AttributeError, ValueError)


class GenerateServicer(generate_service_pb2_grpc.GenerateServiceServicer):
    """GenerateService. `own_secret` is what kept answers are sealed with, since the caller brings no API key."""

    def __init__(self, calls: Calls, known: KnownKeys, *, own_secret: str) -> None:
        self._calls = calls
        self._known = known
        self._own_secret = own_secret

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        call = await self._begun(request, GENERATE, stream=False)
        try:
            head = await call.delivery.head()
            body = b"".join([piece async for piece in call.delivery.pieces()])
        finally:
            call.delivery.abandon()
        _raise_refusal(head, body)
        await context.send_initial_metadata(_told(head))
        try:
            return messages.response(body, call)
        except _NOT_UNDERSTOOD as error:
            raise _not_passed_on(call) from error

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        inner = request.request
        if request.account_id and inner.account_id not in {"", request.account_id}:
            violations = Violations()
            violations.add("request.account_id", "must be that of account_id")
            violations.raise_if_any()
        call = await self._begun(inner, STREAM_GENERATE, stream=True, account_id=request.account_id)
        finish_reason = ""
        try:
            head = await call.delivery.head()
            if told := _told(head):
                await context.send_initial_metadata(told)
            async for event in call.delivery.pieces():
                _raise_refusal(head, event)
                data = data_of(event)
                if not data.startswith(b"{"):
                    continue
                chunk = provider_json.read(data)
                if not isinstance(chunk, dict):
                    continue  # half of one; what it said is lost
                if chunk.get("error") is not None:
                    raise ProviderUnavailable("the provider broke off in the middle of its answer")
                try:
                    choices = chunk.get("choices") or [{}]
                    finish_reason = choices[0].get("finish_reason") or finish_reason
                    said = messages.piece(chunk, call, finish_reason)
                except _NOT_UNDERSTOOD as error:
                    raise _not_passed_on(call) from error
                yield said
        finally:
            call.delivery.abandon()

    async def _begun(self, request: pb.GenerateRequest, endpoint: str, *, stream: bool, account_id: str = "") -> Call:
        key = await self._payer(account_id or request.account_id)
        body = messages.chat_body(request, stream=stream)
        asked = Asked(
            endpoint=endpoint,
            provider=request.provider,
            credits_in_body=True,
            session=request.session,
            workspace=request.workspace,
            idempotency_key=request.request_id,
            secret=self._own_secret,
        )
        return self._calls.begin(key, ChatRequest.read(body), body, asked)

    async def _payer(self, account_id: str) -> Key:
        """Whose call it is: the caller's own key, else, for a service, the account that it names."""
        caller = current_identity()
        if caller.key_id:
            return await self._known.by_id(caller.key_id)
        account_id = caller.account_id or account_id
        violations = Violations()
        violations.identifier("account_id", account_id)
        violations.raise_if_any()
        return Key(
            key_id=f"service:{caller.subject}"[:64],
            account_id=account_id,
            name=caller.subject,
            key_type=STANDARD,
            prefix="",
            last_four="",
            workspace=caller.workspace,
            allowed_models=frozenset(),
            daily_limit_nanos=0,
            monthly_limit_nanos=0,
            requests_per_minute=0,
            tokens_per_minute=0,
            created_at=utc_now(),
        )


def _not_passed_on(call: Call) -> AnswerNotPassedOn | ProviderUnavailable:
    if call.reader.owed:
        return AnswerNotPassedOn("the provider's answer was not understood; it is billed")
    return ProviderUnavailable("the provider's answer was not understood")


def _told(head: Head) -> Metadata:
    """What of an answer's headers has no place in the messages."""
    return tuple(pair for pair in head.metadata if pair == REPLAYED or pair[0] in QUOTA_HEADERS)


def _raise_refusal(head: Head, body: bytes) -> None:
    """Raise a provider's own error answer as a refusal."""
    headers = dict(head.metadata)
    status = int(headers.get(HTTP_STATUS_KEY, 0))
    if not status:
        return
    if status == _TOO_MANY:
        said = retry_after_seconds(headers.get(RETRY_AFTER_KEY, ""))
        raise ProviderRateLimited(
            "the provider takes no more calls for this model now", retry_after_seconds=said or 1, status=status
        )
    if status >= _SERVER_SIDE:
        raise ProviderUnavailable("the provider could not serve this now", retry_after_seconds=1, status=status)
    try:
        words = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        words = ""
    raise ProviderRefused(f"the provider refused the request: {str(words)[:_MAX_WORDS]}", status=status)
