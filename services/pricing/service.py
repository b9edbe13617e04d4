"""Owns the use cases of prices and their transactions: cost and estimate calls, find prices, publish them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine

from services.kit.errors import Violation
from services.kit.logs import get_logger
from services.pricing import store
from services.pricing.costing import Costing
from services.pricing.errors import PriceMoveTooLarge
from services.pricing.litellm.importing import Imported, Order, import_prices
from services.pricing.live import LiveCatalogue
from services.pricing.model import CatalogueVersion, PriceBook, PublishedPrice
from services.pricing.moves import too_large_moves
from services.pricing.shipped import SHIPPED_VERSION, Shipped
from services.pricing.store import State
from services.pricing.writing import Asked, not_past, turn

_log = get_logger(__name__)

_SHIPPED_BY = "tollkeeper"
_MAX_MOVES_TOLD = 10


@dataclass(frozen=True, slots=True)
class Publication:
    """Prices to publish. Their version and moment are set here; `effective_from` None means now."""

    prices: tuple[PublishedPrice, ...]
    effective_from: datetime | None
    max_move_percent: int


class PricingService:
    """The use cases, over one database and the live catalogue that this process reads from it."""

    def __init__(self, engine: Engine, live: LiveCatalogue) -> None:
        self._engine = engine
        self._live = live

    # ------------------------------------------------------------------------------------------------------- prices

    def costing(self) -> Costing:
        """The costs of one request's calls, by one picture of the catalogue."""
        return Costing(self._live)

    def prices_in_force(self, at: datetime, provider: str, model_prefix: str) -> list[PublishedPrice]:
        """Prices in force at a moment, by provider and model."""
        return [
            price
            for price in self._live.current().book.all_in_force(at)
            if (not provider or price.provider == provider) and price.model.startswith(model_prefix)
        ]

    # --------------------------------------------------------------------------------------------------- publishing

    def versions(self, *, before: int | None, limit: int) -> list[CatalogueVersion]:
        """Publications and changes of overrides, newest first, those before version `before`."""
        with self._engine.connect() as connection:
            return store.read_versions(connection, before=before, limit=limit)

    def publish(self, publication: Publication, asked: Asked) -> tuple[CatalogueVersion, bool]:
        """Publish prices as one version, whole or not at all; the version, and whether this is a repeat.

        Raises InvalidArgument for a moment in the past, PriceMoveTooLarge, IdempotencyConflict.
        """
        with turn(self._engine, asked) as ours:
            if ours.replayed is not None:
                return store.read_version(ours.connection, ours.replayed), True
            effective_from = not_past("effective_from", publication.effective_from, ours.now)
            if publication.max_move_percent:
                book = PriceBook(store.read_prices(ours.connection), ours.latest_version)
                _refuse_large_moves(publication, book, effective_from)
            version = ours.new_version(effective_from=effective_from, prices_changed=len(publication.prices))
            store.insert_prices(ours.connection, [price.published_by(version) for price in publication.prices])
            ours.done(version.version)
        _log.info("prices published", version=version.version, models=version.prices_changed, author=version.author)
        self._live.refresh()
        return version, False

    def import_prices(self, order: Order) -> Imported:
        """Compare a public price map with the catalogue, and publish the difference unless it is a dry run.

        Raises InvalidArgument, PriceMapUnreachable, PriceMoveTooLarge, IdempotencyConflict.
        """
        return import_prices(self._engine, self._live, order)

    def ship(self, shipped: Shipped) -> bool:
        """Write the shipped catalogue into a database that has none; whether it was written. Never touches another."""
        with self._engine.begin() as connection:
            if store.read_state(connection).revision or store.lock_state(connection).revision:
                return False
            now = store.database_now(connection)
            version = CatalogueVersion(
                version=SHIPPED_VERSION,
                effective_from=shipped.effective_from,
                created_at=now,
                author=_SHIPPED_BY,
                reason=shipped.reason,
                prices_changed=len(shipped.prices),
            )
            store.insert_version(connection, version)
            store.insert_prices(connection, shipped.prices)
            store.insert_plans(connection, shipped.plans, created_at=now, author=_SHIPPED_BY, revision=1)
            store.write_state(connection, State(revision=1, latest_version=SHIPPED_VERSION))
        _log.info("shipped catalogue written", models=len(shipped.prices), plans=len(shipped.plans))
        return True


def _refuse_large_moves(publication: Publication, book: PriceBook, at: datetime) -> None:
    moves = too_large_moves(publication.prices, book, at, publication.max_move_percent)
    if moves:
        raise PriceMoveTooLarge(
            f"{len(moves)} rates move by more than {publication.max_move_percent} %, first {moves[0].description}",
            violations=[Violation(move.field, move.description) for move in moves[:_MAX_MOVES_TOLD]],
            rates=len(moves),
            max_move_percent=publication.max_move_percent,
        )
