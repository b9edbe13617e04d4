"""Owns the RPCs of price overrides: checks each request, hands it to the service, makes the answer's message."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1 import resources_pb2

from services.kit.paging import page_position, page_token
from services.kit.times import moment_of
from services.kit.validation import Violations
from services.pricing import wire
from services.pricing.override_service import OverrideService
from services.pricing.overrides import Override
from services.pricing.shipped import MAX_MODEL_CHARS
from services.rating.wire import rate_from_proto

# Above what any card may have, which is refused by its own rule; this only bounds what is read of a request.
_MAX_RATES_READ = 1000


class OverrideRpcs:
    """The part of PricingService that is about overrides."""

    _overrides: OverrideService

    def SetPriceOverride(
        self, request: pb.SetPriceOverrideRequest, context: grpc.ServicerContext
    ) -> resources_pb2.PriceOverride:
        """See the contract."""
        v = Violations()
        v.identifier("request_id", request.request_id)
        v.text("reason", request.reason, max_length=wire.MAX_REASON_CHARS)
        override, effective_from = _override(v, request.price_override)
        v.raise_if_any()
        made, replayed = self._overrides.set(override, effective_from, wire.asked("SetPriceOverride", request))
        wire.tell_replayed(context, replayed=replayed)
        return wire.override_to_proto(made)

    def DeletePriceOverride(
        self, request: pb.DeletePriceOverrideRequest, context: grpc.ServicerContext
    ) -> pb.DeletePriceOverrideResponse:
        """See the contract."""
        v = Violations()
        v.identifier("request_id", request.request_id)
        v.text("reason", request.reason, max_length=wire.MAX_REASON_CHARS)
        key = _key(v, request, "")
        v.raise_if_any()
        replayed = self._overrides.end(key, wire.asked("DeletePriceOverride", request))
        wire.tell_replayed(context, replayed=replayed)
        return pb.DeletePriceOverrideResponse()

    def ListPriceOverrides(
        self, request: pb.ListPriceOverridesRequest, _context: grpc.ServicerContext
    ) -> pb.ListPriceOverridesResponse:
        """See the contract."""
        v = Violations()
        v.identifier("account_id", request.account_id, required=False)
        size = v.page_size("page_size", request.page_size, default=100)
        after = page_position(v, request, str, str, str, int)
        v.raise_if_any()
        found = self._overrides.overrides(request.account_id, include_ended=request.include_ended)
        if after:
            found = [override for override in found if (*override.key, override.version) > after]
        page = found[:size]
        token = page_token(request, *page[-1].key, page[-1].version) if len(found) > size else ""
        return pb.ListPriceOverridesResponse(price_overrides=map(wire.override_to_proto, page), next_page_token=token)


def _key(
    v: Violations, message: resources_pb2.PriceOverride | pb.DeletePriceOverrideRequest, within: str
) -> tuple[str, str, str]:
    v.identifier(f"{within}account_id", message.account_id)
    v.identifier(f"{within}provider", message.provider)
    v.text(f"{within}model", message.model, max_length=MAX_MODEL_CHARS, required=True)
    return message.account_id, message.provider, message.model


def _override(v: Violations, message: resources_pb2.PriceOverride) -> tuple[Override, datetime | None]:
    """The override asked for, and from when (None: now); whether its rates and times are sound is the rules' to say."""
    at = "price_override."
    account_id, provider, model = _key(v, message, at)
    v.count(f"{at}rates", message.rates, at_most=_MAX_RATES_READ)
    effective_from = until = None
    if message.HasField("effective_from"):
        effective_from = moment_of(v, f"{at}effective_from", message.effective_from)
    if message.HasField("effective_until"):
        until = moment_of(v, f"{at}effective_until", message.effective_until)
    override = Override(
        account_id=account_id,
        provider=provider,
        model=model,
        version=0,
        effective_from=effective_from or datetime.now(UTC),
        agreed_until=until,
        rates=tuple(rate_from_proto(rate) for rate in message.rates[:_MAX_RATES_READ]),
        multiplier_millionths=message.multiplier_millionths,
    )
    return override, effective_from
