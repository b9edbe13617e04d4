"""Owns what is priced: calls of every shipped model by tokens, with overrides for one account in eight."""

import random
from collections.abc import Sequence

from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1.resources_pb2 import PriceOverride, Usage

from services.pricing.model import PublishedPrice
from services.rating import Usage as Counts

LINES = 1000
_ACCOUNTS = 8
OVERRIDDEN = "account-0"


def requests(prices: Sequence[PublishedPrice], count: int, seed: int = 1) -> list[pb.CalculateCostRequest]:
    """So many different calls."""
    chance = random.Random(seed)
    models = [(price.provider, price.model) for price in prices if price.mode == "chat"]
    return [_request(chance, *chance.choice(models)) for _ in range(count)]


def _request(chance: random.Random, provider: str, model: str) -> pb.CalculateCostRequest:
    tokens, cached, reasoning = chance.randrange(10_000), chance.randrange(1000), chance.randrange(500)
    return pb.CalculateCostRequest(
        account_id=f"account-{chance.randrange(_ACCOUNTS)}",
        provider=provider,
        model=model,
        usage=Usage(
            input_tokens=tokens + cached,
            cache_read_tokens=cached,
            output_tokens=tokens + reasoning,
            reasoning_tokens=reasoning,
        ),
        multiplier_millionths=1_500_000,
    )


def counts(request: pb.CalculateCostRequest) -> Counts:
    """A request's usage as price arithmetic takes it."""
    usage = request.usage
    return Counts(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def overrides(prices: Sequence[PublishedPrice]) -> list[pb.SetPriceOverrideRequest]:
    """Prices of one account's own, for all models of each provider."""
    return [
        pb.SetPriceOverrideRequest(
            price_override=PriceOverride(
                account_id=OVERRIDDEN, provider=provider, model="*", multiplier_millionths=900_000
            ),
            request_id=f"bench-{provider}",
        )
        for provider in sorted({price.provider for price in prices})
    ]
