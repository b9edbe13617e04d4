"""Owns the use case of an import: reads a map, tells what it changes, and publishes that unless it is a dry run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Engine

from services.kit.errors import Violation
from services.kit.logs import get_logger
from services.kit.refusals import InvalidArgument
from services.pricing import store
from services.pricing.errors import PriceMapUnreachable, PriceMoveTooLarge
from services.pricing.litellm.diff import PriceChange, changes_of, compare
from services.pricing.litellm.fetching import BadAddressError, FetchError, TooLargeError, fetch
from services.pricing.litellm.mapping import PriceMap, read_price_map
from services.pricing.litellm.reading import PriceMapError
from services.pricing.live import LiveCatalogue
from services.pricing.model import CatalogueVersion, PriceBook, PublishedPrice
from services.pricing.writing import Asked, turn

_log = get_logger(__name__)

DEFAULT_MAX_MOVE_PERCENT = 20

_IMPORT = "ImportPrices"
_MAX_MOVES_TOLD = 10


@dataclass(frozen=True, slots=True)
class Order:
    """An import as it was asked for: the map itself or, where that is empty, its address."""

    content: bytes
    url: str
    dry_run: bool
    max_move_percent: int
    author: str
    reason: str = ""
    request_id: str = ""

    @property
    def body_sha256(self) -> bytes:
        """The digest of what a repeat must ask for again."""
        parts = (self.content, self.url.encode(), str(self.max_move_percent).encode(), self.reason.encode())
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import found or did. `version` is None where nothing was published.

    `price_map` is None in the answer to a repeat that gives an address, which is not asked a second time.
    """

    changes: list[PriceChange]
    price_map: PriceMap | None
    version: CatalogueVersion | None = None
    replayed: bool = False


def import_prices(engine: Engine, live: LiveCatalogue, order: Order) -> Imported:
    """Compare a map with the catalogue; unless it is a dry run, publish what is new and changed as one version.

    Where nothing differs, nothing is published. Raises InvalidArgument for what is no price map, PriceMapUnreachable,
    PriceMoveTooLarge, IdempotencyConflict.
    """
    if order.dry_run:
        price_map = _read(order)
        return Imported(compare(price_map, live.refresh().book, datetime.now(UTC)), price_map)
    # Nothing is fetched while a transaction is open, nor again for a repeat.
    known = None if order.url and _is_repeat(engine, order) else _read(order)
    asked = Asked(_IMPORT, order.request_id, order.body_sha256, order.author, order.reason)
    with turn(engine, asked) as ours:
        prices = store.read_prices(ours.connection)
        if ours.replayed is not None:
            return _replayed(prices, store.read_version(ours.connection, ours.replayed), known)
        assert known is not None, "a request id, once used, stays so"
        changes = compare(known, PriceBook(prices, ours.latest_version), ours.now)
        _refuse_large_moves(changes, order.max_move_percent)
        published = [change.after for change in changes if change.after is not None]
        if not published:
            return Imported(changes, known)
        version = ours.new_version(effective_from=ours.now, prices_changed=len(published))
        store.insert_prices(ours.connection, [price.published_by(version) for price in published])
        ours.done(version.version)
    _log.info("prices imported", version=version.version, models=version.prices_changed, author=version.author)
    live.refresh()
    return Imported([_published(change, version) for change in changes], known, version)


def _read(order: Order) -> PriceMap:
    field = "url" if order.url else "content"
    try:
        content = fetch(order.url) if order.url else order.content
        return read_price_map(content, datetime.now(UTC))
    except (BadAddressError, TooLargeError, PriceMapError) as error:
        raise InvalidArgument.naming([Violation(field, str(error))]) from error
    except FetchError as error:
        raise PriceMapUnreachable(f"the price map {error}") from error


def _is_repeat(engine: Engine, order: Order) -> bool:
    with engine.connect() as connection:
        return store.read_request(connection, order.request_id) is not None


def _replayed(prices: list[PublishedPrice], version: CatalogueVersion, known: PriceMap | None) -> Imported:
    """The first answer again: against the catalogue as it was before that version."""
    before = PriceBook((price for price in prices if price.version < version.version), version.version - 1)
    if known is None:
        published = [price for price in prices if price.version == version.version]
        return Imported(changes_of(published, before, version.effective_from), None, version, replayed=True)
    changes = compare(known, before, version.effective_from)
    return Imported([_published(change, version) for change in changes], known, version, replayed=True)


def _refuse_large_moves(changes: list[PriceChange], percent: int) -> None:
    moves = [change for change in changes if change.moves_more_than(percent)]
    if moves:
        told = [Violation(f"{one.provider}/{one.model}"[:200], one.told_move) for one in moves[:_MAX_MOVES_TOLD]]
        raise PriceMoveTooLarge(
            f"{len(moves)} models move by more than {percent} %, first {told[0].field} by {told[0].description}",
            violations=told,
            models=len(moves),
            max_move_percent=percent,
        )


def _published(change: PriceChange, version: CatalogueVersion) -> PriceChange:
    return change if change.after is None else replace(change, after=change.after.published_by(version))
