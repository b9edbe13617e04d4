"""Owns the passage between WireService's messages and model calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import orjson
from google.api import httpbody_pb2  # type: ignore[import-untyped]
from tollkeeper.proxy.v1 import wire_service_pb2 as pb
from tollkeeper.proxy.v1 import wire_service_pb2_grpc

from services import rating
from services.kit.call import current_identity, current_metadata
from services.kit.refusals import CredentialMissing
from services.kit.validation import Violations
from services.proxy import admission, listings, token_counts
from services.proxy.calls.call import Asked, Call
from services.proxy.calls.running import Calls
from services.proxy.clock import utc_now
from services.proxy.errors import AccountNotFound, AccountSuspended, KeyTypeNotAllowed, ModelNotFound
from services.proxy.formats import counting
from services.proxy.formats.anthropic_messages import MessagesRequest
from services.proxy.formats.counting import CountRequest
from services.proxy.formats.gemini import GeminiRequest
from services.proxy.formats.openai_chat import ChatRequest
from services.proxy.formats.openai_embeddings import EmbeddingsRequest
from services.proxy.formats.openai_responses import ResponsesRequest
from services.proxy.formats.reading import MAX_MODEL_CHARS
from services.proxy.formats.request import Request
from services.proxy.keys.credentials import comes_as_googles, credential
from services.proxy.keys.model import ADMIN, Key, KeyIdentity
from services.proxy.listings import Listing

PROVIDER_CHAT = "/tollkeeper.proxy.v1.WireService/ProviderChat"
IDEMPOTENCY_HEADER = "idempotency-key"
SESSION_HEADER = "x-session-id"

# What an RPC gives that writes its answer by the context: an awaitable, for which the generated stubs have no type. A
# generator would be closed in a task of its own.
Written: TypeAlias = Any

_JSON = "application/json"
# Modes of models that are no part of Google's or Anthropic's listing.
_SAYS_NOTHING = ("embedding", "moderation", "rerank")
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

    def CountTokens(  # noqa: N802
        self, request: httpbody_pb2.HttpBody, context: Any
    ) -> Written:
        """See the contract."""
        return self._counted(counting.of_message(request.data), context)

    def CountInputTokens(  # noqa: N802
        self, request: httpbody_pb2.HttpBody, context: Any
    ) -> Written:
        """See the contract."""
        return self._counted(counting.of_response(request.data), context)

    def CountGoogleTokens(  # noqa: N802
        self, request: pb.CountGoogleTokensRequest, context: Any
    ) -> Written:
        """See the contract."""
        return self._counted(counting.of_contents(request.body.data, request.model), context)

    async def _counted(self, asked: CountRequest, context: Any) -> None:
        headers = _passed_on(asked.of, current_metadata())
        head, body = await token_counts.count(self._calls.parts, _key(), asked, headers)
        await context.send_initial_metadata(head.metadata)
        await context.write(httpbody_pb2.HttpBody(content_type=head.content_type, data=body))

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
            headers=_passed_on(type(request), metadata),
            session=_session(metadata),
            idempotency_key=_idempotency_key(metadata, request),
            secret=self._own_secret if provider else credential(metadata) or "",
        )
        return _delivered(self._calls.begin(key, request, body, asked), context)

    async def ListModels(  # noqa: N802
        self, _request: pb.ListModelsRequest, _context: Any
    ) -> httpbody_pb2.HttpBody:
        """See the contract."""
        return await self._listed(_listing_asked_for())

    async def GetModel(self, request: pb.GetModelRequest, _context: Any) -> httpbody_pb2.HttpBody:  # noqa: N802
        """See the contract."""
        listing = _listing_asked_for()
        return _json(listing.one(*await self._model(request.model, listing)))

    async def ListGoogleModels(  # noqa: N802
        self, _request: pb.ListGoogleModelsRequest, _context: Any
    ) -> httpbody_pb2.HttpBody:
        """See the contract."""
        return await self._listed(listings.GOOGLE)

    async def GetGoogleModel(  # noqa: N802
        self, request: pb.GetGoogleModelRequest, _context: Any
    ) -> httpbody_pb2.HttpBody:
        """See the contract."""
        return _json(listings.GOOGLE.one(*await self._model(request.model, listings.GOOGLE)))

    async def _listed(self, listing: Listing) -> httpbody_pb2.HttpBody:
        models = await self._models(_key(), listing)
        return _json(listing.all([listing.one(card, name) for card, name in models.values()]))

    async def _model(self, name: str, listing: Listing) -> tuple[rating.PriceCard, str]:
        violations = Violations()
        violations.text("model", name, max_length=MAX_MODEL_CHARS, required=True)
        violations.raise_if_any()
        found = (await self._models(_key(), listing)).get(name)
        if found is None:
            raise ModelNotFound(f"no model {name} for this key", model=name)
        return found

    async def _models(self, key: Key, listing: Listing) -> dict[str, tuple[rating.PriceCard, str]]:
        """The models that the key may call: priced, in the plan, allowed for the key, of a provider that is configured.

        Price and title of each name.
        """
        parts, now = self._calls.parts, utc_now()
        if key.key_type == ADMIN:
            raise KeyTypeNotAllowed("an admin key calls no models", key_type=key.key_type)
        entitlement = await parts.entitlements.get(key.account_id)
        if entitlement is None:
            raise AccountNotFound("no entitlement of this account is known", account_id=key.account_id)
        if not entitlement.active:
            raise AccountSuspended("the account is suspended", account_id=key.account_id)
        askable = parts.upstreams.speaking(frozenset((listing.form,))) if listing.form else parts.upstreams.names
        found: dict[str, tuple[rating.PriceCard, str]] = {}
        for model, card, name in parts.catalogue.current.models(now):
            if all(rate.component != "input" for rate in card.rates):  # drawn or spoken by the piece: no call takes it
                continue
            if card.provider not in askable or (listing.form and card.mode in _SAYS_NOTHING):
                continue
            allowed = entitlement.allows_provider(card.provider) and admission.may_call(key, entitlement, model)
            # Of several providers of a model the preferred one's stands, as in a call.
            if allowed and (model not in found or card.provider == listing.owner):
                found[model] = (card, name)
        return found


def _passed_on(form: type[Request], metadata: Mapping[str, str | bytes]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(metadata[name])) for name in _PASSED_ON.get(form, ()) if name in metadata)


def _key() -> Key:
    identity = current_identity()
    if not isinstance(identity, KeyIdentity) or identity.key is None:
        raise CredentialMissing("this call needs an API key")
    return identity.key


def _listing_asked_for() -> Listing:
    """The listing whose SDK says by its headers that it asks: the path is OpenAI's, Anthropic's and Google's."""
    metadata = current_metadata()
    if comes_as_googles(metadata):
        return listings.GOOGLE
    return listings.ANTHROPIC if "anthropic-version" in metadata else listings.OPENAI


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
