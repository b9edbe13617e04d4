"""Owns how a price map differs from the catalogue, and how far it would move prices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from services.pricing.litellm.mapping import PriceMap
from services.pricing.model import PriceBook, PublishedPrice
from services.pricing.moves import is_too_large, moves, told_basis_points

NEW, CHANGED, GONE, WITHDRAWN = "new", "changed", "gone", "withdrawn"
_KINDS = (CHANGED, NEW, WITHDRAWN, GONE)


@dataclass(frozen=True, slots=True)
class PriceChange:
    """One difference: `before` is None for a new price, `after` for one that is gone, which keeps its price.

    Of a model that was withdrawn both are None: it stays so, whatever a map says.
    """

    kind: str
    provider: str
    model: str
    before: PublishedPrice | None
    after: PublishedPrice | None
    largest_move_basis_points: int = 0

    @property
    def told_move(self) -> str:
        """Its largest move for a person: `33.34 %`, or `from free`."""
        return told_basis_points(self.largest_move_basis_points)

    def moves_more_than(self, percent: int) -> bool:
        """Whether any of its rates moves by more than an import may."""
        return is_too_large(self.largest_move_basis_points, percent)


def compare(price_map: PriceMap, book: PriceBook, at: datetime) -> list[PriceChange]:
    """What a map has otherwise than the catalogue at a moment: largest moves first, then new, withdrawn, gone.

    Gone is what the catalogue prices and the map does not name, of the providers that the map names. It is told, not
    withdrawn: that a map is silent on a model is no price, and a map cut short would take every model from customers.
    """
    providers = {provider for provider, _ in price_map.named}
    changes = changes_of(price_map.prices, book, at)
    changes += [
        PriceChange(GONE, price.provider, price.model, price, None)
        for price in book.all_in_force(at)
        if price.provider in providers and (price.provider, price.model) not in price_map.named
    ]
    return sorted(changes, key=_largest_first)


def changes_of(prices: Iterable[PublishedPrice], book: PriceBook, at: datetime) -> list[PriceChange]:
    """What these prices change of the catalogue at a moment: changed, largest moves first, then new, then withdrawn."""
    found = []
    for price in prices:
        before = book.in_force(price.provider, price.model, at)
        if before is None:
            if book.is_withdrawn(price.provider, price.model, at):
                found.append(PriceChange(WITHDRAWN, price.provider, price.model, None, None))
            else:
                found.append(PriceChange(NEW, price.provider, price.model, None, price))
            continue
        after = _keeping(before, price)
        if not _same(before, after):
            assert before.card is not None, "the book gives no withdrawn price"
            assert after.card is not None, "a map withdraws nothing"
            largest = max((move.basis_points for move in moves(before.card, after.card)), default=0)
            found.append(PriceChange(CHANGED, price.provider, price.model, before, after, largest))
    return sorted(found, key=_largest_first)


def _keeping(before: PublishedPrice, after: PublishedPrice) -> PublishedPrice:
    """A map's price with what the catalogue knows and the map does not say: the name shown, and unknown limits."""
    assert before.card is not None, "the book gives no withdrawn price"
    assert after.card is not None, "a map withdraws nothing"
    card = replace(
        after.card,
        max_input_tokens=after.card.max_input_tokens or before.card.max_input_tokens,
        max_output_tokens=after.card.max_output_tokens or before.card.max_output_tokens,
    )
    return replace(after, card=card, display_name=before.display_name or after.display_name)


def _same(before: PublishedPrice, after: PublishedPrice) -> bool:
    return _content(before) == _content(after)


def _content(price: PublishedPrice) -> tuple[object, ...]:
    assert price.card is not None, "a withdrawn price is not compared"
    card = price.card
    return frozenset(card.rates), card.mode, card.max_input_tokens, card.max_output_tokens


def _largest_first(change: PriceChange) -> tuple[int, int, str, str]:
    return _KINDS.index(change.kind), -change.largest_move_basis_points, change.provider, change.model
