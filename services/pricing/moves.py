"""Owns how far prices move: what a call pays by one price and by another, and which publications move too far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.pricing.model import BASIS_POINTS, MAX_INT64, PriceBook, PublishedPrice
from services.rating import STANDARD, Fault, PriceCard
from services.rating.card import fallbacks

# A move from free to any price: more than any percentage.
FROM_FREE = MAX_INT64
ANY_MOVE_PERCENT = 1_000_000


@dataclass(frozen=True, slots=True)
class Move:
    """What a call pays for one component, in a tier and above a threshold: before and after; None: not priced."""

    component: str
    service_tier: str
    above_tokens: int
    was: int | None
    becomes: int | None

    @property
    def basis_points(self) -> int:
        """How far it moves, up or down, rounded up: just above a limit is not at it. 0 where one side is not priced."""
        if self.was is None or self.becomes is None or self.was == self.becomes:
            return 0
        if self.was == 0:
            return FROM_FREE
        return min(-(-abs(self.becomes - self.was) * BASIS_POINTS // self.was), FROM_FREE - 1)

    @property
    def told_rate(self) -> str:
        """Which rate, for a person: `input, batch, above 200,000`."""
        tier = f", {self.service_tier}" if self.service_tier != STANDARD else ""
        return self.component + tier + (f", above {self.above_tokens:,}" if self.above_tokens else "")

    @property
    def told(self) -> str:
        """How far, for a person: `+33.34 %`, `from free`, `new` or `gone`."""
        if self.was is None:
            return "new"
        if self.becomes is None:
            return "gone"
        return ("-" if self.becomes < self.was else "+") * (self.was > 0) + told_basis_points(self.basis_points)


def moves(before: PriceCard, after: PriceCard) -> list[Move]:
    """Every rate that is not the same on both sides, largest moves first.

    What is compared is the rate that a call takes, not the one that stands there: where a rate of its own is dropped, a
    part goes over to that of the tokens it is part of, with their thresholds.
    """
    priced = {(rate.component, rate.service_tier) for card in (before, after) for rate in card.rates}
    asked = {(*part, above) for part in priced for card in (before, after) for above in _thresholds(card, *part)}
    found = [
        Move(component, tier, above, before.rate(component, tier, above + 1), after.rate(component, tier, above + 1))
        for component, tier, above in sorted(asked)
    ]
    return sorted((move for move in found if move.was != move.becomes), key=lambda move: -move.basis_points)


def _thresholds(card: PriceCard, component: str, service_tier: str) -> list[int]:
    """Above which thresholds a part has rates: its own, or those of the tokens that it takes its rate from."""
    for name in fallbacks(component):
        own = [rate.above_tokens for rate in card.rates if (rate.component, rate.service_tier) == (name, service_tier)]
        if own:
            return own
    return []


def told_basis_points(basis_points: int) -> str:
    """A move for a person: `33.34 %`, or `from free`."""
    return "from free" if basis_points == FROM_FREE else f"{basis_points // 100}.{basis_points % 100:02d} %"


def is_too_large(basis_points: int, max_percent: int) -> bool:
    """Whether a move, up or down, is by more percent than allowed; ANY_MOVE_PERCENT lets all pass, also from free."""
    return max_percent < ANY_MOVE_PERCENT and basis_points * 100 > max_percent * BASIS_POINTS


def too_large_moves(
    prices: Sequence[PublishedPrice], book: PriceBook, at: datetime, max_move_percent: int
) -> list[Fault]:
    """What moves by more percent than allowed, up or down, by its field in the request; measured as an import is.

    What was not priced before, or is not any more, does not move.
    """
    found = []
    for number, price in enumerate(prices):
        before = book.in_force(price.provider, price.model, at)
        if before is not None and before.card is not None and price.card is not None:
            name = f"{price.provider}/{price.model}"
            found += list(_too_large(before.card, price.card, max_move_percent, f"prices[{number}]", name))
    return found


def _too_large(before: PriceCard, after: PriceCard, max_move_percent: int, at: str, name: str) -> Iterator[Fault]:
    places = {(rate.component, rate.service_tier, rate.above_tokens): n for n, rate in enumerate(after.rates)}
    for move in moves(before, after):
        if is_too_large(move.basis_points, max_move_percent):
            place = places.get((move.component, move.service_tier, move.above_tokens))
            # Where a rate is left out, a part goes over to that of the tokens it is part of.
            field = f"{at}.rates" if place is None else f"{at}.rates[{place}].nanos_per_million"
            yield Fault(field, f"{name} {move.component} ({move.service_tier}): {move.was} to {move.becomes}")
