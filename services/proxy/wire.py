"""Owns the passage between WireService's messages and model calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import orjson
from google.api import httpbody_pb2  # type: ignore[import-untyped]
from tollkeeper.proxy.v1 import wire_service_pb2 as pb
from tollkeeper.proxy.v1 import wire_service_pb2_grpc

from services.kit.call import current_identity, current_metadata
from services.kit.refusals import CredentialMissing
from services.kit.validation import Violations
from services.proxy import admission
from services.proxy.calls.call import Asked, Call
from services.proxy.calls.running import Calls
from services.proxy.clock import utc_now
from services.proxy.errors import AccountNotFound, AccountSuspended, KeyTypeNotAllowed, ModelNotFound
from services.proxy.formats.anthropic_messages import MessagesRequest
from services.proxy.formats.gemini import GeminiRequest
from services.proxy.formats.openai_chat import ChatRequest
from services.proxy.formats.openai_embeddings import EmbeddingsRequest
from services.proxy.formats.openai_responses import ResponsesRequest
from services.proxy.formats.reading import MAX_MODEL_CHARS
from services.proxy.formats.request import Request
from services.proxy.keys.credentials import credential
from services.proxy.keys.model import ADMIN, Key, KeyIdentity

PROVIDER_CHAT = "/tollkeeper.proxy.v1.WireService/ProviderChat"
IDEMPOTENCY_HEADER = "idempotency-key"
SESSION_HEADER = "x-session-id"

# What an RPC gives that writes its answer by the context: an awaitable, for which the generated stubs have no type. A
# generator would be closed in a task of its own.
Written: TypeAlias = Any

_JSON = "application/json"
_PREFERRED_OWNER = "openai"  # whose form the listing of models is
_MAX_IDEMPOTENCY_CHARS = 255
_MAX_SESSION_CHARS = 128
# The client's own headers that its provider needs, by form: which version of an API, which parts of it in trial.
_PASSED_ON = {
    ChatRequest: ("openai-beta",),
    ResponsesRequest: ("openai-beta",),
    MessagesRequest: ("anthropic-version", "anthropic-beta"),
}


class WireServicer(wire_service_pb2_grpc.WireServiceServicer):
    """WireService. `own_secret` seals the kept answers of those who bring no API key (`/api/ai`)."""

    def __init__(self, calls: Calls, *, own_secret: str) -> None:
        self._calls = calls
        self._own_secret = own_secret

    def ChatCompletions(  # noqa: N802
        self, request: httpbody_pb2.HttpBody, context: Any
    ) -> Written:
        """See the contract."""
        return self._called(ChatRequest.read(request.data), request.data, "/v1/chat/completions", context)

    def Responses(  # noqa: N802
        self, request: httpbody_pb2.HttpBody, context: Any
    ) -> Written:
        """See the contract."""
        return self._called(ResponsesRequest.read(request.data), request.data, "/v1/responses", context)

    def Embeddings(  # noqa: N802
        self, request: httpbody_pb2.HttpBody, context: Any
    ) -> Written:
        """See the contract."""
        return self._called(EmbeddingsRequest.read(request.data), request.data, "/v1/embeddings", context)

    def Messages(  # noqa: N802
        self, request: httpbody_pb2.HttpBody, context: Any
    ) -> Written:
        """See the contract."""
        return self._called(MessagesRequest.read(request.data), request.data, "/v1/messages", context)

    def GenerateContent(  # noqa: N802
        self, request: pb.GenerateContentRequest, context: Any
    ) -> Written:
        """See the contract."""
        read = GeminiRequest.read(request.body.data, model=request.model)
        return self._called(read, request.body.data, "/v1beta/models:generateContent", context)

    def StreamGenerateContent(  # noqa: N802
        self, request: pb.StreamGenerateContentRequest, context: Any
    ) -> Written:
        """See the contract."""
        violations = Violations()
        violations.one_of("alt", request.alt, ("", "json", "sse"))
        violations.raise_if_any()
        body = request.body.data
        read = GeminiRequest.read(body, model=request.model, stream=True, as_array=request.alt != "sse")
        return self._called(read, body, "/v1beta/models:streamGenerateContent", context)

    def ProviderChat(  # noqa: N802
        self, request: pb.ProviderChatRequest, context: Any
    ) -> Written:
        """See the contract."""
        violations = Violations()
        violations.identifier("provider", request.provider)
        violations.raise_if_any()
        body = request.body.data
        return self._called(
            ChatRequest.read(body), body, f"/api/ai/{request.provider}", context, provider=request.provider
        )

    def _called(self, request: Request, body: bytes, endpoint: str, context: Any, *, provider: str = "") -> Written:
        metadata, key = current_metadata(), _key()
        asked = Asked(
            endpoint=endpoint,
            provider=provider,
            credits_in_body=bool(provider),
            headers=tuple(
                (name, str(metadata[name])) for name in _PASSED_ON.get(type(request), ()) if name in metadata
            ),
            session=_session(metadata),
            idempotency_key=_idempotency_key(metadata, request),
            secret=self._own_secret if provider else credential(metadata) or "",
        )
        return _delivered(self._calls.begin(key, request, body, asked), context)

    async def ListModels(  # noqa: N802
        self, _request: pb.ListModelsRequest, _context: Any
    ) -> httpbody_pb2.HttpBody:
        """See the contract."""
        models = await self._models(_key())
        return _json({"object": "list", "data": list(models.values())})

    async def GetModel(self, request: pb.GetModelRequest, _context: Any) -> httpbody_pb2.HttpBody:  # noqa: N802
        """See the contract."""
        violations = Violations()
        violations.text("model", request.model, max_length=MAX_MODEL_CHARS, required=True)
        violations.raise_if_any()
        model = (await self._models(_key())).get(request.model)
        if model is None:
            raise ModelNotFound(f"no model {request.model} for this key", model=request.model)
        return _json(model)

    async def _models(self, key: Key) -> dict[str, dict[str, Any]]:
        """The models that the key may call, by name, in OpenAI's form: priced, in the plan, allowed for the key."""
        parts, now = self._calls.parts, utc_now()
        if key.key_type == ADMIN:
            raise KeyTypeNotAllowed("an admin key calls no models", key_type=key.key_type)
        entitlement = await parts.entitlements.get(key.account_id)
        if entitlement is None:
            raise AccountNotFound("no entitlement of this account is known", account_id=key.account_id)
        if not entitlement.active:
            raise AccountSuspended("the account is suspended", account_id=key.account_id)
        found: dict[str, dict[str, Any]] = {}
        for model, card, _name in parts.catalogue.current.models(now):
            allowed = entitlement.allows_provider(card.provider) and admission.may_call(key, entitlement, model)
            # Of several providers of a model the preferred one's stands, as in a call.
            if allowed and (model not in found or card.provider == _PREFERRED_OWNER):
                created = int(card.effective_from.timestamp()) if card.effective_from is not None else 0
                found[model] = {"id": model, "object": "model", "created": created, "owned_by": card.provider}
        return found


def _key() -> Key:
    identity = current_identity()
    if not isinstance(identity, KeyIdentity) or identity.key is None:
        raise CredentialMissing("this call needs an API key")
    return identity.key


def _idempotency_key(metadata: Mapping[str, str | bytes], request: Request) -> str:
    """The client's idempotency key, empty where it gave none. Streams are not kept, so a key for one is refused."""
    found = str(metadata.get(IDEMPOTENCY_HEADER, ""))
    violations = Violations()
    violations.text(IDEMPOTENCY_HEADER, found, max_length=_MAX_IDEMPOTENCY_CHARS)
    if found and request.stream:
        violations.add(IDEMPOTENCY_HEADER, "is for answers that come whole; a stream is not kept")
    violations.raise_if_any()
    return found


def _session(metadata: Mapping[str, str | bytes]) -> str:
    """What the client calls the conversation or job, as the usage record keeps it; empty where it is no name."""
    found = str(metadata.get(SESSION_HEADER, ""))
    return found if len(found) <= _MAX_SESSION_CHARS and found.isprintable() else ""


async def _delivered(call: Call, context: Any) -> None:
    """Pass on to the client what a call sends, until one of them ends it. What waits together goes in one message."""
    delivery = call.delivery
    try:
        head = await delivery.head()
        await context.send_initial_metadata(head.metadata)
        while (body := await delivery.waiting()) is not None:
            await context.write(httpbody_pb2.HttpBody(content_type=head.content_type, data=body))
    finally:
        delivery.abandon()


def _json(value: Any) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type=_JSON, data=orjson.dumps(value))
