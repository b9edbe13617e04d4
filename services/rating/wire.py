"""Owns the passage between rating's values and the messages of tollkeeper.pricing.v1."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from operator import attrgetter

from tollkeeper.pricing.v1 import resources_pb2

from services.rating.arithmetic import Cost
from services.rating.card import STANDARD, PriceCard, Rate
from services.rating.usage import USAGE_FIELDS, Usage

_counts: Callable[[resources_pb2.Usage], tuple[int, ...]] = attrgetter(*USAGE_FIELDS)


def rate_from_proto(rate: resources_pb2.Rate) -> Rate:
    """A rate, unchecked; an empty service tier is the standard one."""
    return Rate(rate.component, rate.service_tier or STANDARD, rate.above_tokens, rate.nanos_per_million)


def rate_to_proto(rate: Rate) -> resources_pb2.Rate:
    """A rate's message."""
    return resources_pb2.Rate(
        component=rate.component,
        service_tier=rate.service_tier,
        above_tokens=rate.above_tokens,
        nanos_per_million=rate.nanos_per_million,
    )


def card_from_proto(price: resources_pb2.Price) -> PriceCard:
    """A price's card. A withdrawn price has none to compute by: look at `price.withdrawn` first.

    Raises InvalidPriceCard for rates that are not sound.
    """
    return PriceCard(
        provider=price.provider,
        model=price.model,
        mode=price.mode,
        rates=tuple(rate_from_proto(rate) for rate in price.rates),
        max_input_tokens=price.max_input_tokens,
        max_output_tokens=price.max_output_tokens,
        version=price.version,
        effective_from=price.effective_from.ToDatetime(UTC) if price.HasField("effective_from") else None,
    )


def card_to_proto(card: PriceCard, *, display_name: str = "") -> resources_pb2.Price:
    """A card's message."""
    price = resources_pb2.Price(
        provider=card.provider,
        model=card.model,
        mode=card.mode,
        rates=[rate_to_proto(rate) for rate in card.rates],
        max_input_tokens=card.max_input_tokens,
        max_output_tokens=card.max_output_tokens,
        version=card.version,
        display_name=display_name,
    )
    if card.effective_from is not None:
        price.effective_from.FromDatetime(card.effective_from)
    return price


def usage_from_proto(usage: resources_pb2.Usage) -> Usage:
    """A call's counts; where the message does not say, it was one request."""
    counts = dict(zip(USAGE_FIELDS, _counts(usage), strict=True))
    if not usage.HasField("requests"):
        counts["requests"] = 1
    return Usage(**counts)


def cost_to_proto(cost: Cost) -> resources_pb2.Cost:
    """A cost's message."""
    message = resources_pb2.Cost(
        cost_nanos=cost.cost_nanos,
        billed_nanos=cost.billed_nanos,
        input_cost_nanos=cost.input_cost_nanos,
        output_cost_nanos=cost.output_cost_nanos,
        price_version=cost.price_version,
    )
    for part in cost.parts:
        message.parts.add(
            component=part.component,
            quantity=part.quantity,
            nanos_per_million=part.nanos_per_million,
            cost_nanos=part.cost_nanos,
        )
    return message
