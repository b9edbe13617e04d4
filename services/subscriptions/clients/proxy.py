"""Owns the proxy as subscriptions sees it: who is told what each account may call."""

from __future__ import annotations

import grpc
from tollkeeper.proxy.v1 import entitlement_service_pb2 as entitlement_pb
from tollkeeper.proxy.v1 import resources_pb2 as proxy_pb
from tollkeeper.proxy.v1.entitlement_service_pb2_grpc import EntitlementServiceStub

from services.kit.logs import get_logger
from services.subscriptions.model.delivery import SetEntitlement

_log = get_logger(__name__)


class ProxyClient:
    """The proxy: what each account may call."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._entitlements = EntitlementServiceStub(channel)

    def set_entitlement(self, entitlement: SetEntitlement, *, timeout_seconds: float) -> None:
        """Tell the proxy; a revision it has seen, or an older one, changes nothing.

        A later one that it has is from a time that a restore has undone, or our clock was put back: logged as an error.
        """
        message = proxy_pb.Entitlement(
            account_id=entitlement.account_id,
            plan_id=entitlement.plan_id,
            revision=entitlement.revision,
            active=entitlement.active,
            providers=entitlement.providers,
            models=entitlement.models,
            max_tokens_per_request=entitlement.max_tokens_per_request,
            requests_per_minute=entitlement.requests_per_minute,
            tokens_per_minute=entitlement.tokens_per_minute,
            multiplier_millionths=entitlement.multiplier_millionths,
            metered=entitlement.metered,
        )
        kept = self._entitlements.SetEntitlement(
            entitlement_pb.SetEntitlementRequest(entitlement=message), timeout=timeout_seconds
        )
        if kept.revision > entitlement.revision:
            _log.error(
                "the proxy keeps a later entitlement: after a restore, run redeliver",
                account_id=entitlement.account_id,
                revision=entitlement.revision,
                kept_revision=kept.revision,
            )
