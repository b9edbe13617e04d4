"""Owns where a command's prices come from: a catalogue file, a LiteLLM map, or the service's database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from services.kit.command import CommandError
from services.pricing.assembly import Parts
from services.pricing.costing import Catalogue
from services.pricing.litellm.mapping import read_price_map
from services.pricing.litellm.reading import MAX_MAP_BYTES, PriceMapError
from services.pricing.live import Snapshot
from services.pricing.model import PriceBook, PublishedPrice
from services.pricing.overrides import OverrideBook
from services.pricing.settings import PricingSettings
from services.pricing.shipped import SHIPPED_VERSION, CatalogueFileError, load_prices

# A map does not say since when its prices hold; as a catalogue of its own it holds for any moment that is asked for.
_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)


class FileCatalogue:
    """A catalogue of one version, read from a file once. What stands in a file does not change."""

    def __init__(self, prices: tuple[PublishedPrice, ...]) -> None:
        book = PriceBook(prices, SHIPPED_VERSION)
        self._snapshot = Snapshot(0, book, OverrideBook(), MappingProxyType({}))

    def current(self) -> Snapshot:
        """The catalogue."""
        return self._snapshot

    def refresh(self) -> Snapshot:
        """The same."""
        return self._snapshot


def file_catalogue(file: Path) -> FileCatalogue:
    """The catalogue in a TOML catalogue file or, where it begins as JSON does, a LiteLLM map. Raises CommandError."""
    try:
        if _is_json(file):
            return FileCatalogue(read_price_map(read_file(file), _ALWAYS, version=SHIPPED_VERSION).prices)
        return FileCatalogue(load_prices(file)[2])
    except PriceMapError as error:
        raise CommandError(f"{file}: {error}") from error
    except CatalogueFileError as error:
        raise CommandError(str(error)) from error


def read_file(file: Path) -> bytes:
    """A map's content, at most a byte more than is allowed. Raises CommandError."""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_MAP_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}") from error


@contextmanager
def database_catalogue(settings: PricingSettings) -> Iterator[Catalogue]:
    """The catalogue in the service's database."""
    parts = Parts(settings)
    try:
        parts.live.refresh()
        yield parts.live
    finally:
        parts.close()


def _is_json(file: Path) -> bool:
    return read_file(file).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
