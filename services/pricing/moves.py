"""Owns how far a publication moves prices: each rate against the one in force when the publication begins to hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from services.pricing.model import PriceBook, PublishedPrice
from services.rating import Fault, PriceCard


def too_large_moves(
    prices: Sequence[PublishedPrice], book: PriceBook, at: datetime, max_move_percent: int
) -> list[Fault]:
    """The rates that move by more percent than allowed, up or down, by their field in the request.

    From free to any price is more than any percentage. Models and rates that are new, and those that go, do not move.
    """
    found = []
    for number, price in enumerate(prices):
        before = book.in_force(price.provider, price.model, at)
        if before is not None and before.card is not None and price.card is not None:
            name = f"{price.provider}/{price.model}"
            found += list(_moves(before.card, price.card, max_move_percent, f"prices[{number}]", name))
    return found


def _moves(before: PriceCard, after: PriceCard, max_move_percent: int, at: str, name: str) -> Iterator[Fault]:
    old = {(rate.component, rate.service_tier, rate.above_tokens): rate.nanos_per_million for rate in before.rates}
    for number, rate in enumerate(after.rates):
        was = old.get((rate.component, rate.service_tier, rate.above_tokens))
        if was is not None and abs(rate.nanos_per_million - was) * 100 > was * max_move_percent:
            yield Fault(
                f"{at}.rates[{number}].nanos_per_million",
                f"{name} {rate.component} ({rate.service_tier}): {was} to {rate.nanos_per_million}",
            )
