"""Owns the prices in this process: a picture of pricing's catalogue, kept current by its stream of changes.

Until the first picture is whole there is none, and no call is made. When the stream breaks, the last picture stays.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import grpc
from prometheus_client import Gauge
from tollkeeper.pricing.v1 import pricing_service_pb2, resources_pb2

from services import rating
from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.proxy.errors import CatalogueUnavailable
from services.rating.wire import card_from_proto, rate_from_proto

_log = get_logger(__name__)

ALL_MODELS = "*"

_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 5.0
_VERSION = Gauge("tollkeeper_proxy_catalogue_version", "Catalogue version that calls are priced by")
_CONNECTED = Gauge("tollkeeper_proxy_catalogue_connected", "1 while the stream of price changes is up")

_BEGINNING = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Published:
    """One published price: in force from a moment on. `card` None: withdrawn, or not to be understood."""

    effective_from: datetime
    version: int
    card: rating.PriceCard | None
    display_name: str


@dataclass(frozen=True, slots=True)
class _Override:
    """One account's own rates, or a factor on the catalogue's, for a time."""

    effective_from: datetime
    effective_until: datetime | None
    version: int
    rates: tuple[rating.Rate, ...]
    multiplier_millionths: int


class Catalogue:
    """Prices by provider and model, and accounts' overrides, each with the time it is in force."""

    def __init__(self) -> None:
        self.version = 0
        self._prices: dict[tuple[str, str], list[_Published]] = {}
        self._providers: dict[str, set[str]] = {}
        self._overrides: dict[tuple[str, str, str], list[_Override]] = {}

    def take_in(self, change: pricing_service_pb2.CatalogueChange) -> None:
        """Add what a message of the stream brings. Taking in the same again changes nothing."""
        for price in change.prices:
            self._take_price(price)
        for override in change.price_overrides:
            self._take_override(override)
        self.version = max(self.version, change.version)

    def _take_price(self, price: resources_pb2.Price) -> None:
        card = None
        if not price.withdrawn:
            try:
                card = card_from_proto(price)
            except rating.InvalidPriceCard as error:
                # Not called rather than called at a price that is wrong.
                _log.error("a price is not sound, so the model is not served", error=str(error))
        published = _Published(
            effective_from=price.effective_from.ToDatetime(UTC) if price.HasField("effective_from") else _BEGINNING,
            version=price.version,
            card=card,
            display_name=price.display_name or price.model,
        )
        versions = self._prices.setdefault((price.provider, price.model), [])
        versions[:] = sorted(
            [*(one for one in versions if one.version != price.version), published],
            key=lambda one: (one.effective_from, one.version),
        )
        self._providers.setdefault(price.model, set()).add(price.provider)

    def _take_override(self, override: resources_pb2.PriceOverride) -> None:
        until = override.effective_until.ToDatetime(UTC) if override.HasField("effective_until") else None
        taken = _Override(
            effective_from=(
                override.effective_from.ToDatetime(UTC) if override.HasField("effective_from") else _BEGINNING
            ),
            effective_until=until,
            version=override.version,
            rates=tuple(rate_from_proto(rate) for rate in override.rates),
            multiplier_millionths=override.multiplier_millionths,
        )
        known = self._overrides.setdefault((override.account_id, override.provider, override.model), [])
        known[:] = sorted(
            [*(one for one in known if one.version != override.version), taken], key=lambda one: one.version
        )

    def providers_of(self, model: str, now: datetime) -> list[str]:
        """The providers that have a price for the model in force, in alphabetical order."""
        return sorted(
            provider for provider in self._providers.get(model, ()) if self._published(provider, model, now) is not None
        )

    def models(self, now: datetime) -> Iterable[tuple[str, rating.PriceCard, str]]:
        """Every model that has a price in force: (model, card, display name), by provider and model."""
        for (provider, model), versions in sorted(self._prices.items()):
            card = self._published(provider, model, now)
            if card is not None:
                yield model, card, versions[-1].display_name

    def card(self, account_id: str, provider: str, model: str, now: datetime) -> rating.PriceCard | None:
        """The price that the account pays for the model at `now`; None where there is none."""
        card = self._published(provider, model, now)
        if card is None or not self._overrides:
            return card
        # An override of one model goes before one of all of the provider's.
        for name in (model, ALL_MODELS):
            for override in reversed(self._overrides.get((account_id, provider, name), ())):
                ended = override.effective_until is not None and override.effective_until <= now
                if override.effective_from <= now and not ended:
                    return _overridden(card, override)
        return card

    def _published(self, provider: str, model: str, now: datetime) -> rating.PriceCard | None:
        for published in reversed(self._prices.get((provider, model), ())):
            if published.effective_from <= now:
                return published.card
        return None


def _overridden(card: rating.PriceCard, override: _Override) -> rating.PriceCard | None:
    """The card at an override's rates; a factor is applied to each rate, rounded half-even to a nano per million."""
    rates = override.rates or tuple(
        replace(
            rate,
            nanos_per_million=rating.half_even(
                rate.nanos_per_million * override.multiplier_millionths, rating.AT_COST_MILLIONTHS
            ),
        )
        for rate in card.rates
    )
    try:
        return rating.PriceCard(
            provider=card.provider,
            model=card.model,
            mode=card.mode,
            rates=rates,
            max_input_tokens=card.max_input_tokens,
            max_output_tokens=card.max_output_tokens,
            # The newer of the two names both: it prices as they stood together.
            version=max(card.version, override.version),
            effective_from=card.effective_from,
        )
    except rating.InvalidPriceCard as error:
        _log.error("an override is not sound, so the model is not served to the account", error=str(error))
        return None


class CatalogueWatch:
    """Keeps a picture current from pricing's WatchCatalogue, and connects again when that ends."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._picture: Catalogue | None = None
        self._begun: Catalogue | None = None  # what the present stream has brought
        self._task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()

    @property
    def current(self) -> Catalogue:
        """The picture. Raises CatalogueUnavailable before the first is whole."""
        if self._picture is None:
            raise CatalogueUnavailable("the prices are not known yet", retry_after_seconds=1)
        return self._picture

    async def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch_for_ever())

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch_for_ever(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            try:
                async for change in self._stub.WatchCatalogue(pricing_service_pb2.WatchCatalogueRequest()):
                    self._take_in(change)
                    if change.complete:
                        backoff = _FIRST_BACKOFF_SECONDS
                _log.info("the stream of prices ended")
            except grpc.RpcError as error:
                refusal = RemoteError.from_rpc(error)
                _log.warning("the stream of prices broke", code=refusal.code.name, message=refusal.message)
            except Exception:  # noqa: BLE001 (a message that is not understood must not end the watch)
                _log.exception("a change of prices was not taken in")
            finally:
                self._begun = None
                _CONNECTED.set(0)
            # Jitter, so that replicas do not come back all at once.
            await asyncio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311
            backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)

    def _take_in(self, change: pricing_service_pb2.CatalogueChange) -> None:
        if self._begun is None:
            self._begun = Catalogue()
        self._begun.take_in(change)
        if change.complete and self._picture is not self._begun:
            self._picture = self._begun
            self.ready.set()
            _CONNECTED.set(1)
            _log.info("prices taken in", version=self._begun.version)
        if self._picture is self._begun:
            _VERSION.set(self._begun.version)
