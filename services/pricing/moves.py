"""Owns how far a publication moves prices: what a call pays by it against what it pays when that begins to hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from services.pricing.litellm.diff import moves
from services.pricing.model import BASIS_POINTS, PriceBook, PublishedPrice
from services.rating import Fault, PriceCard


def too_large_moves(
    prices: Sequence[PublishedPrice], book: PriceBook, at: datetime, max_move_percent: int
) -> list[Fault]:
    """What moves by more percent than allowed, up or down, by its field in the request; measured as an import is.

    From free to any price is more than any percentage. What was not priced before, or is not any more, does not move.
    """
    found = []
    for number, price in enumerate(prices):
        before = book.in_force(price.provider, price.model, at)
        if before is not None and before.card is not None and price.card is not None:
            name = f"{price.provider}/{price.model}"
            found += list(_moves(before.card, price.card, max_move_percent, f"prices[{number}]", name))
    return found


def _moves(before: PriceCard, after: PriceCard, max_move_percent: int, at: str, name: str) -> Iterator[Fault]:
    places = {(rate.component, rate.service_tier, rate.above_tokens): n for n, rate in enumerate(after.rates)}
    for move in moves(before, after):
        if move.basis_points * 100 > max_move_percent * BASIS_POINTS:
            place = places.get((move.component, move.service_tier, move.above_tokens))
            # Where a rate is left out, a part goes over to that of the tokens it is part of.
            field = f"{at}.rates" if place is None else f"{at}.rates[{place}].nanos_per_million"
            yield Fault(field, f"{name} {move.component} ({move.service_tier}): {move.was} to {move.becomes}")
