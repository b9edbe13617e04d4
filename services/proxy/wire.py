"""Owns the passage between WireService's messages and model calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
from google.api import httpbody_pb2  # type: ignore[import-untyped]
from tollkeeper.proxy.v1 import wire_service_pb2 as pb
from tollkeeper.proxy.v1 import wire_service_pb2_grpc

from services.kit.identity import current_identity
from services.kit.refusals import CredentialMissing
from services.kit.validation import Violations
from services.proxy import admission
from services.proxy.calls.call import Call
from services.proxy.calls.chat import MAX_MODEL_CHARS
from services.proxy.calls.running import Calls
from services.proxy.clock import utc_now
from services.proxy.errors import AccountNotFound, AccountSuspended, KeyTypeNotAllowed, ModelNotFound
from services.proxy.keys.model import ADMIN, Key, KeyIdentity

PROVIDER_CHAT = "/tollkeeper.proxy.v1.WireService/ProviderChat"

_JSON = "application/json"


class WireServicer(wire_service_pb2_grpc.WireServiceServicer):
    """WireService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def ChatCompletions(  # noqa: N802
        self, request: httpbody_pb2.HttpBody, context: Any
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """See the contract."""
        return _delivered(self._calls.begin(_key(), "/v1/chat/completions", request.data), context)

    def ProviderChat(  # noqa: N802
        self, request: pb.ProviderChatRequest, context: Any
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """See the contract."""
        violations = Violations()
        violations.identifier("provider", request.provider)
        violations.raise_if_any()
        call = self._calls.begin(
            _key(),
            f"/api/ai/{request.provider}",
            request.body.data,
            provider=request.provider,
            credits_in_body=True,
        )
        return _delivered(call, context)

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
            if allowed and (model not in found or card.provider == admission.PREFERRED_PROVIDER):
                created = int(card.effective_from.timestamp()) if card.effective_from is not None else 0
                found[model] = {"id": model, "object": "model", "created": created, "owned_by": card.provider}
        return found


def _key() -> Key:
    identity = current_identity()
    if not isinstance(identity, KeyIdentity) or identity.key is None:
        raise CredentialMissing("this call needs an API key")
    return identity.key


async def _delivered(call: Call, context: Any) -> AsyncIterator[httpbody_pb2.HttpBody]:
    """Pass on to the client what a call sends, until one of them ends it."""
    delivery = call.delivery
    try:
        head = await delivery.head()
        await context.send_initial_metadata(head.metadata)
        async for piece in delivery.pieces():
            yield httpbody_pb2.HttpBody(content_type=head.content_type, data=piece)
    finally:
        delivery.abandon()


def _json(value: Any) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type=_JSON, data=orjson.dumps(value))
