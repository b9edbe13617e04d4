"""Owns the reading of price and plan files: strict, whole or not at all, each fault told by file, line and field."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from services.kit.amounts import AmountError, parse_usd
from services.kit.validation import is_identifier
from services.pricing.model import MAX_INT64, MILLION, Plan, PlanMetric, PublishedPrice, plan_faults
from services.pricing.toml_lines import line_at, lines_of
from services.rating import MODES, STANDARD, Fault, InvalidPriceCard, PriceCard, Rate

FOLDER = Path(__file__).parent / "catalogue"
MAX_FILE_BYTES = 10 * 1024 * 1024
MAX_ENTRIES = 10_000
MAX_MODEL_CHARS = 200
SHIPPED_VERSION = 1

_PER = (1, 1_000, MILLION)
_MULTIPLIER = re.compile(r"\d{1,4}(\.\d{1,6})?")
_PERCENT = re.compile(r"\d{1,3}(\.\d{1,2})?")

_T = TypeVar("_T")


class CatalogueFileError(ValueError):
    """A catalogue or plan file that is refused whole; the message names the file, the line and the field."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """What an installation starts with: prices in force from `effective_from` as version 1, and plans."""

    effective_from: datetime
    reason: str
    prices: tuple[PublishedPrice, ...]
    plans: tuple[Plan, ...]


def load_shipped() -> Shipped:
    """The catalogue and plans that come with this release. Raises CatalogueFileError."""
    effective_from, reason, prices = load_prices(FOLDER / "prices.toml")
    return Shipped(effective_from, reason, prices, load_plans(FOLDER / "plans.toml"))


def load_prices(file: Path) -> tuple[datetime, str, tuple[PublishedPrice, ...]]:
    """The moment, the reason and the prices of a price file. Raises CatalogueFileError."""
    page = _Page(file, "models")
    table = _Table(page, page.content, "")
    table.only({"currency", "effective_from", "reason", "models"})
    table.currency()
    effective_from = table.take("effective_from", datetime)
    if effective_from.tzinfo is None:
        table.wrong("effective_from", "must have a UTC offset")
    effective_from = effective_from.astimezone(UTC)
    reason = table.text("reason")
    prices = tuple(_price(entry, effective_from) for entry in table.entries("models"))
    page.distinct([f"{price.provider}/{price.model}" for price in prices])
    return effective_from, reason, prices


def load_plans(file: Path) -> tuple[Plan, ...]:
    """The plans of a plan file. Raises CatalogueFileError."""
    page = _Page(file, "plans")
    table = _Table(page, page.content, "")
    table.only({"currency", "plans"})
    table.currency()
    plans = tuple(_plan(entry) for entry in table.entries("plans"))
    page.distinct([plan.plan_id for plan in plans])
    return plans


def _price(table: _Table, effective_from: datetime) -> PublishedPrice:
    table.only({"provider", "model", "display_name", "mode", "max_input_tokens", "max_output_tokens", "rates"})
    provider = table.text("provider")
    if not is_identifier(provider):
        table.wrong("provider", "must be an identifier")
    model = table.text("model", most=MAX_MODEL_CHARS)
    mode = table.text("mode")
    if mode not in MODES:
        table.wrong("mode", f"must be one of {', '.join(MODES)}")
    rates = tuple(_rate(entry) for entry in table.entries("rates"))
    try:
        card = PriceCard(
            provider=provider,
            model=model,
            mode=mode,
            rates=rates,
            max_input_tokens=table.count("max_input_tokens"),
            max_output_tokens=table.count("max_output_tokens"),
            version=SHIPPED_VERSION,
            effective_from=effective_from,
        )
    except InvalidPriceCard as error:
        table.faulty(error.faults)
    name = table.text("display_name", default=model)
    return PublishedPrice(provider, model, SHIPPED_VERSION, effective_from, card, name, mode)


def _rate(table: _Table) -> Rate:
    table.only({"component", "service_tier", "above_tokens", "usd", "per"})
    return Rate(
        component=table.text("component"),
        service_tier=table.text("service_tier", default=STANDARD),
        above_tokens=table.count("above_tokens"),
        nanos_per_million=table.nanos_per_million(),
    )


def _plan(table: _Table) -> Plan:
    limits = ("tokens_per_cycle", "requests_per_cycle", "max_tokens_per_request", "requests_per_minute")
    counts = (*limits, "tokens_per_minute", "grace_days")
    words = {"plan_id", "display_name", "kind", "providers", "models", "metrics", "multiplier", "warn_percent"}
    amounts = {"price_usd", "promotional_grant_usd", "rollover_cap_usd", "token_overage"}
    table.only({*counts, *words, *amounts, "margin_percent", "annual_discount_percent"})
    overage = table.inner("token_overage")
    plan = Plan(
        plan_id=table.text("plan_id"),
        display_name=table.text("display_name"),
        kind=table.text("kind"),
        price_nanos=table.nanos("price_usd"),
        promotional_grant_nanos=table.nanos("promotional_grant_usd"),
        rollover_cap_nanos=table.nanos("rollover_cap_usd"),
        annual_discount_basis_points=table.decimal("annual_discount_percent", _PERCENT, 100, default=0),
        margin_basis_points=table.decimal("margin_percent", _PERCENT, 100, default=0),
        multiplier_millionths=table.decimal("multiplier", _MULTIPLIER, MILLION, default=MILLION),
        overage_nanos_per_million_tokens=overage.nanos_per_million() if overage else 0,
        providers=table.names("providers"),
        models=table.names("models"),
        metrics=tuple(_metric(entry) for entry in table.entries("metrics", required=False)),
        warn_percent=table.count("warn_percent", default=80),
        tokens_per_cycle=table.count("tokens_per_cycle"),
        requests_per_cycle=table.count("requests_per_cycle"),
        max_tokens_per_request=table.count("max_tokens_per_request"),
        requests_per_minute=table.count("requests_per_minute"),
        tokens_per_minute=table.count("tokens_per_minute"),
        grace_days=table.count("grace_days"),
    )
    faults = plan_faults(plan)
    if faults:
        table.faulty(faults)
    return plan


def _metric(table: _Table) -> PlanMetric:
    table.only({"metric", "included", "cap", "overage"})
    overage = table.inner("overage")
    return PlanMetric(
        metric=table.text("metric"),
        included=table.count("included"),
        cap=table.text("cap"),
        overage_nanos_per_million=overage.nanos_per_million() if overage else 0,
    )


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise CatalogueFileError(f"{file}: is larger than {MAX_FILE_BYTES} bytes")
        return content.decode("utf-8")
    except OSError as error:
        raise CatalogueFileError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CatalogueFileError(f"{file}: {error}") from error


class _Page:
    """One file, read, whose list `listed` has the entries; knows at which line each of its values stands."""

    def __init__(self, file: Path, listed: str) -> None:
        self.file = file
        self._listed = listed
        self._text = _text_of(file)
        try:
            self.content: Mapping[str, Any] = tomllib.loads(self._text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise CatalogueFileError(f"{file}: {error}") from error
        except ValueError as error:
            raise CatalogueFileError(f"{file}: has a number that is too long") from error

    def wrong(self, path: str, description: str) -> NoReturn:
        """Refuse the file for the field at `path`."""
        line = line_at(lines_of(self._text), path)
        raise CatalogueFileError(f"{self.file}:{f'{line}:' if line else ''} {path}: {description}")

    def distinct(self, names: list[str]) -> None:
        """Refuse the file where two entries have the same name."""
        first: dict[str, int] = {}
        for number, name in enumerate(names):
            if name in first:
                self.wrong(f"{self._listed}[{number}]", f"{name} stands already at {self._listed}[{first[name]}]")
            first[name] = number


class _Table:
    """One table of a file; every taker checks the type and names the field where it is wrong."""

    def __init__(self, page: _Page, content: Mapping[str, Any], path: str) -> None:
        self._page = page
        self._content = content
        self._path = path

    def wrong(self, name: str, description: str) -> NoReturn:
        """Refuse the file for one field of this table."""
        self._page.wrong(f"{self._path}.{name}" if self._path else name, description)

    def faulty(self, faults: list[Fault]) -> NoReturn:
        """Refuse the file for the first of some faults, naming the others too."""
        others = "".join(f"; {fault.field} {fault.description}" for fault in faults[1:])
        self.wrong(faults[0].field, faults[0].description + others)

    def only(self, known: Collection[str]) -> None:
        """Refuse fields that are not known: a misspelt one would silently not hold."""
        for name in self._content:
            if name not in known:
                self.wrong(name, f"is not known here; known are {', '.join(sorted(known))}")

    def take(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """A field of exactly this type."""
        value = self._content.get(name, default)
        if value is None:
            self.wrong(name, "is required")
        if type(value) is not kind:
            self.wrong(name, f"must be {kind.__name__}, not {type(value).__name__}")
        return value

    def currency(self) -> None:
        """The file's currency: stated, and US dollars."""
        if self.take("currency", str) != "USD":
            self.wrong("currency", 'must be "USD"')

    def text(self, name: str, *, default: str | None = None, most: int = 500) -> str:
        """Printable text that is not empty."""
        value = self.take(name, str, default)
        if not value.strip() or len(value) > most or not value.isprintable():
            self.wrong(name, f"must be 1 to {most} printable characters")
        return value

    def count(self, name: str, *, default: int = 0) -> int:
        """A whole number from 0."""
        value = self.take(name, int, default)
        if not 0 <= value <= MAX_INT64:
            self.wrong(name, "must not be negative, nor above 2^63 - 1")
        return value

    def nanos(self, name: str) -> int:
        """The nanos of a decimal string of dollars; 0 where left out."""
        return self._parsed(name, self.take(name, str, "0"), parse_usd)

    def nanos_per_million(self) -> int:
        """The rate that this table's `usd` for `per` units makes."""
        nanos = self._parsed("usd", self.take("usd", str), parse_usd)
        per = self.take("per", int, MILLION)
        if per not in _PER:
            self.wrong("per", f"must be one of {', '.join(map(str, _PER))}")
        rate = nanos * (MILLION // per)
        if rate > MAX_INT64:
            self.wrong("usd", "is out of range")
        return rate

    def decimal(self, name: str, form: re.Pattern[str], scale: int, *, default: int) -> int:
        """A decimal string times `scale`, a power of ten that makes it whole."""
        if name not in self._content:
            return default
        value = self.take(name, str)
        if not form.fullmatch(value):
            self.wrong(name, 'must be a decimal string such as "1.5"')
        whole, _, decimals = value.partition(".")
        return int(whole) * scale + int(decimals.ljust(len(str(scale)) - 1, "0") or "0")

    def names(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.take(name, list)
        if not all(isinstance(value, str) for value in values):
            self.wrong(name, "must be a list of texts")
        return tuple(values)

    def inner(self, name: str) -> _Table | None:
        """A table within this one; None where left out."""
        if name not in self._content:
            return None
        path = f"{self._path}.{name}"
        return _Table(self._page, self.take(name, dict), path)

    def entries(self, name: str, *, required: bool = True) -> list[_Table]:
        """The tables of a list."""
        values = self.take(name, list, None if required else [])
        for number, value in enumerate(values):
            if not isinstance(value, dict):
                self.wrong(f"{name}[{number}]", "must be a table")
        if required and not values:
            self.wrong(name, "must not be empty")
        if len(values) > MAX_ENTRIES:
            self.wrong(name, f"must have at most {MAX_ENTRIES} entries, not {len(values)}")
        prefix = f"{self._path}.{name}" if self._path else name
        return [_Table(self._page, value, f"{prefix}[{number}]") for number, value in enumerate(values)]

    def _parsed(self, name: str, value: str, parse: Callable[[str], int]) -> int:
        try:
            return parse(value)
        except AmountError as error:
            self.wrong(name, str(error))
