"""Owns the passage between EntitlementService's messages and entitlements, and what is checked of a request."""

from __future__ import annotations

from typing import Any

from tollkeeper.proxy.v1 import entitlement_service_pb2 as pb
from tollkeeper.proxy.v1 import entitlement_service_pb2_grpc, resources_pb2

from services.kit.times import timestamp
from services.kit.validation import Violations
from services.proxy.clock import utc_now
from services.proxy.entitlements.model import ALL, Entitlement
from services.proxy.entitlements.service import Entitlements
from services.proxy.errors import AccountNotFound

_MAX_PROVIDERS = 100
_MAX_MODELS = 1000
_MAX_MODEL_CHARS = 200
_MAX_MULTIPLIER = 1000 * 1_000_000


class EntitlementServicer(entitlement_service_pb2_grpc.EntitlementServiceServicer):
    """EntitlementService."""

    def __init__(self, entitlements: Entitlements) -> None:
        self._entitlements = entitlements

    async def SetEntitlement(self, request: pb.SetEntitlementRequest, _context: Any) -> resources_pb2.Entitlement:
        """See the contract."""
        return message(await self._entitlements.take_in(_read(request)))

    async def GetEntitlement(self, request: pb.GetEntitlementRequest, _context: Any) -> resources_pb2.Entitlement:
        """See the contract."""
        violations = Violations()
        violations.identifier("account_id", request.account_id)
        violations.raise_if_any()
        found = await self._entitlements.stored(request.account_id)
        if found is None:
            raise AccountNotFound("no entitlement of this account is known", account_id=request.account_id)
        return message(found)


def _read(request: pb.SetEntitlementRequest) -> Entitlement:
    wanted, violations = request.entitlement, Violations()
    violations.identifier("entitlement.account_id", wanted.account_id)
    violations.identifier("entitlement.plan_id", wanted.plan_id, required=False)
    violations.positive("entitlement.revision", wanted.revision)
    violations.count("entitlement.providers", wanted.providers, at_most=_MAX_PROVIDERS)
    for number, provider in enumerate(wanted.providers[:_MAX_PROVIDERS]):
        if provider != ALL:
            violations.identifier(f"entitlement.providers[{number}]", provider)
    violations.count("entitlement.models", wanted.models, at_most=_MAX_MODELS)
    for number, model in enumerate(wanted.models[:_MAX_MODELS]):
        violations.text(f"entitlement.models[{number}]", model, max_length=_MAX_MODEL_CHARS, required=True)
    violations.non_negative("entitlement.max_tokens_per_request", wanted.max_tokens_per_request)
    violations.non_negative("entitlement.requests_per_minute", wanted.requests_per_minute)
    violations.non_negative("entitlement.tokens_per_minute", wanted.tokens_per_minute)
    # Not 0: a call is never free because somebody left a field out.
    violations.between("entitlement.multiplier_millionths", wanted.multiplier_millionths, 1, _MAX_MULTIPLIER)
    violations.raise_if_any()
    return Entitlement(
        account_id=wanted.account_id,
        plan_id=wanted.plan_id,
        revision=wanted.revision,
        active=wanted.active,
        providers=frozenset(wanted.providers),
        models=frozenset(wanted.models),
        max_tokens_per_request=wanted.max_tokens_per_request,
        requests_per_minute=wanted.requests_per_minute,
        tokens_per_minute=wanted.tokens_per_minute,
        multiplier_millionths=wanted.multiplier_millionths,
        updated_at=utc_now(),
        metered=wanted.metered,
    )


def message(entitlement: Entitlement) -> resources_pb2.Entitlement:
    """An entitlement's message."""
    return resources_pb2.Entitlement(
        account_id=entitlement.account_id,
        plan_id=entitlement.plan_id,
        revision=entitlement.revision,
        active=entitlement.active,
        providers=sorted(entitlement.providers),
        models=sorted(entitlement.models),
        max_tokens_per_request=entitlement.max_tokens_per_request,
        requests_per_minute=entitlement.requests_per_minute,
        tokens_per_minute=entitlement.tokens_per_minute,
        multiplier_millionths=entitlement.multiplier_millionths,
        updated_at=timestamp(entitlement.updated_at),
        metered=entitlement.metered,
    )
