"""Owns what a price map means in rates: each entry becomes a price, or is told with the reason why not.

How an entry is read:
- A price of zero that is given is a price of zero: providers do publish free models. A price that is left out is no
  price, and what has none is refused when it is used. So nothing is free because the map forgot it.
- A threshold, and each range of `tiered_pricing`, holds for the whole call, as providers mean it.
- A part priced only above a threshold costs below it what the tokens cost that it is part of.
- A service tier that has no rate of its own for long calls, where the standard tier has one, takes the dearer of the
  two rates that the map does give: its own for short calls, and the standard one for long ones. So no less is asked
  than is owed.
- Seconds are priced by one rate, whichever side the map puts them on; two that differ are not understood.
- A price that depends on what no usage tells (an image's size, a video's resolution) is not understood.
- Where all that is understood of an entry is free, but something that is not understood is not, it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from services.kit.validation import is_identifier
from services.pricing.litellm.fields import IMAGE_MADE_OR_PUT_IN, TIERED, Meaning, has_no_price, meaning
from services.pricing.litellm.reading import PriceMapError, is_number, nanos_per_million, read_entries, shown
from services.pricing.model import PublishedPrice
from services.rating import COMPONENTS, SERVICE_TIERS, STANDARD, PriceCard, Rate, rate_faults
from services.rating.card import fallbacks

MAX_MODEL_CHARS = 200
MAX_UNKNOWN_FIELDS = 1_000
_EXAMPLE = "sample_spec"
_MAX_TOLD = 5

_MODES = {
    "chat": "chat",
    "completion": "chat",
    "responses": "chat",
    "embedding": "embedding",
    "image_generation": "image",
    "image_edit": "image",
    "audio_transcription": "audio",
    "audio_speech": "audio",
    "realtime": "audio",
    "moderation": "moderation",
    "rerank": "rerank",
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry that could not be priced, and why not."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class PriceMap:
    """A map, understood. Every entry but the example is in `prices` or in `skipped`.

    `named` has the provider and key of every entry that names a provider, priced or not. `unknown` has, by field, the
    keys of the entries with a field which is not understood. `rounded` has the (key, field) of prices with more
    decimals than a rate has.
    """

    prices: tuple[PublishedPrice, ...]
    named: frozenset[tuple[str, str]]
    skipped: tuple[Skipped, ...]
    unknown: Mapping[str, tuple[str, ...]]
    rounded: tuple[tuple[str, str], ...]

    @property
    def free(self) -> list[PublishedPrice]:
        """Prices that are zero throughout: for a person to look at."""
        return [p for p in self.prices if p.card and not any(rate.nanos_per_million for rate in p.card.rates)]


class _NotPriced(Exception):  # noqa: N818 (it says what became of the entry, and never leaves this module)
    """The entry cannot be priced; its text says why not."""


_Slots = dict[Meaning, int]


def read_price_map(content: bytes, effective_from: datetime, *, version: int = 0) -> PriceMap:
    """A map's prices, in force from a moment.

    Raises PriceMapError for what is no price map, or has a price that is negative or that no rate can hold.
    """
    prices, skipped, rounded, named = [], [], [], set()
    unknown: dict[str, list[str]] = {}
    for key, entry in read_entries(content).items():
        if key == _EXAMPLE:
            continue
        reader = _Entry(key, entry)
        try:
            card = reader.card()
        except _NotPriced as error:
            skipped.append(Skipped(shown(key), str(error)))
        else:
            card = replace(card, version=version, effective_from=effective_from)
            prices.append(PublishedPrice(card.provider, key, version, effective_from, card, key, card.mode))
            rounded += [(key, field) for field in reader.rounded]
        named.add((str(entry.get("litellm_provider")), key))
        for field in reader.unknown:
            unknown.setdefault(shown(field), []).append(shown(key))
    if len(unknown) > MAX_UNKNOWN_FIELDS:
        raise PriceMapError(f"is not a price map: it has {len(unknown)} fields that are not understood")
    return PriceMap(
        tuple(sorted(prices, key=lambda price: (price.provider, price.model))),
        frozenset(named),
        tuple(skipped),
        MappingProxyType({field: tuple(keys) for field, keys in sorted(unknown.items())}),
        tuple(rounded),
    )


class _Entry:
    """One entry, while it is read."""

    def __init__(self, key: str, entry: Mapping[str, Any]) -> None:
        self._key = key
        self._entry = {field: value for field, value in entry.items() if value is not None}
        self._mode = _MODES.get(str(entry.get("mode")), "other")
        self.unknown: list[str] = []
        self.rounded: list[str] = []

    def card(self) -> PriceCard:
        """The entry's price. Raises _NotPriced, PriceMapError."""
        slots = self._understood()
        provider = self._entry.get("litellm_provider")
        if provider is None:
            raise _NotPriced("has no litellm_provider")
        if not isinstance(provider, str) or not is_identifier(provider):
            raise _NotPriced("litellm_provider is not an identifier")
        if len(self._key) > MAX_MODEL_CHARS or not self._key.isprintable() or not self._key.strip():
            raise _NotPriced(f"its key is not a name of 1 to {MAX_MODEL_CHARS} printable characters")
        if not slots:
            raise _NotPriced(f"is priced by {self._told_unknown()}" if self.unknown else "has no price")
        if not any(slots.values()) and self._something_else_costs():
            raise _NotPriced(f"is free but for {self._told_unknown()}")
        rates = tuple(
            Rate(slot.component, slot.service_tier, slot.above_tokens, slots[slot])
            for slot in sorted(slots, key=_order)
        )
        faults = rate_faults(rates)
        if faults:
            raise _NotPriced("; ".join(f"{fault.field} {fault.description}" for fault in faults))
        return PriceCard(
            provider,
            self._key,
            self._mode,
            rates,
            self._tokens("max_input_tokens"),
            self._tokens("max_output_tokens"),
        )

    def _understood(self) -> _Slots:
        """The rates that the entry's fields give, and those that follow from them."""
        given: dict[Meaning, dict[str, int]] = {}
        for field, value in self._entry.items():
            found = self._meaning(field)
            if found is not None:
                given.setdefault(found, {})[field] = self._rate(field, value)
            elif field == TIERED:
                self._take_ranges(value, given)
            elif not has_no_price(field):
                self.unknown.append(field)
        slots = {slot: rate for slot, fields in given.items() if (rate := self._agreed(slot, fields)) is not None}
        for slot in _unfounded(slots):
            del slots[slot]
            self.unknown += given[slot]
        _add_short_calls(slots)
        _add_long_calls(slots)
        return slots

    def _meaning(self, field: str) -> Meaning | None:
        if field == IMAGE_MADE_OR_PUT_IN and self._mode == "image" and "output_cost_per_image" not in self._entry:
            by_tokens = any("_cost_per_" in name and "_token" in name for name in self._entry)
            return None if by_tokens else Meaning("image")
        return meaning(field)

    def _rate(self, field: str, value: object) -> int:
        assert value is not None, "fields without a value are left out"
        if not is_number(value):
            raise _NotPriced(f"{shown(field)} is not a number")
        assert isinstance(value, int | Decimal), "it is a number"
        rate, exact = nanos_per_million(value, f"{shown(self._key)}: {shown(field)}")
        if not exact:
            self.rounded.append(field)
        return rate

    def _agreed(self, slot: Meaning, fields: Mapping[str, int]) -> int | None:
        """The one rate that all fields of a slot give; None where they differ, or depend on what no usage tells."""
        rates = set(fields.values())
        if slot.component == "second" and len(rates) > 1:
            rates.discard(0)  # what comes in or what goes out is billed by the second, and the other is not
        varied = [name for field in fields for name in self._entry if self._is_variant(name, field)]
        if len(rates) > 1 or varied:
            self.unknown += fields
            return None
        return rates.pop()

    def _is_variant(self, name: str, field: str) -> bool:
        """Whether `name` gives another price than `field` for some of what that prices, such as images of one size."""
        of_unit = field.endswith(("_second", "_image"))
        return (
            of_unit
            and name.startswith(f"{field}_")
            and meaning(name) is None
            and self._entry[name] != self._entry[field]
        )

    def _take_ranges(self, ranges: object, given: dict[Meaning, dict[str, int]]) -> None:
        """The rates of `tiered_pricing`: ranges of input tokens that follow each other from 0, each with its prices."""
        found: list[dict[str, int]] = []
        starts: list[int] = []
        end: object = 0
        for one in ranges if isinstance(ranges, list) else ():
            bounds = one.get("range") if isinstance(one, dict) else None
            if not isinstance(bounds, list) or bounds[:1] != [end] or not all(map(_is_whole, bounds)):
                break
            components = {name: meaning(name) for name in one if name != "range"}
            if not all(slot is not None and slot == Meaning(slot.component) for slot in components.values()):
                break
            at = f"{TIERED}[{len(found)}]"
            found.append(
                {slot.component: self._rate(f"{at}.{name}", one[name]) for name, slot in components.items() if slot}
            )
            starts.append(int(bounds[0]))
            end = bounds[-1]
        if not isinstance(ranges, list) or not found or len(found) != len(ranges) or not _completed(found):
            self.unknown.append(TIERED)
            return
        for above, rates in zip(starts, found, strict=True):
            for component, rate in rates.items():
                given.setdefault(Meaning(component, STANDARD, above), {})[TIERED] = rate

    def _told_unknown(self) -> str:
        names = ", ".join(map(shown, self.unknown[:_MAX_TOLD]))
        more = len(self.unknown) - _MAX_TOLD
        return names if more <= 0 else f"{names} and {more} more"

    def _something_else_costs(self) -> bool:
        return any(not is_number(self._entry[name]) or self._entry[name] for name in self.unknown)

    def _tokens(self, field: str) -> int:
        """A model's limit; 0, not known, where the map does not give it as a whole number."""
        value = self._entry.get(field)
        return int(value) if value is not None and _is_whole(value) and 0 <= value < 2**63 else 0


def _completed(ranges: list[dict[str, int]]) -> bool:
    """Give each range all components that one of them prices, as the tokens they are part of; whether that can be."""
    components = {component for rates in ranges for component in rates}
    for rates in ranges:
        for component in sorted(components - rates.keys()):
            whole = next((name for name in fallbacks(component)[1:] if name in rates), None)
            if whole is None:
                return False
            rates[component] = rates[whole]
    return True


def _unfounded(slots: _Slots) -> list[Meaning]:
    """Rates above a threshold of components that have none below it, nor anything they are part of."""
    return [
        slot
        for slot in slots
        if not any(Meaning(name, slot.service_tier) in slots for name in fallbacks(slot.component))
    ]


def _add_short_calls(slots: _Slots) -> None:
    """Give parts priced only above a threshold the rates, below it, of the tokens they are part of."""
    for component, tier in {(slot.component, slot.service_tier) for slot in slots}:
        if Meaning(component, tier) in slots:
            continue
        whole = next(name for name in fallbacks(component)[1:] if Meaning(name, tier) in slots)
        first = min(_bands(slots, component, tier))
        for above, rate in _bands(slots, whole, tier).items():
            if above < first:
                slots[Meaning(component, tier, above)] = rate


def _add_long_calls(slots: _Slots) -> None:
    """Give service tiers without a threshold those of the standard tier, at the dearer of both rates."""
    for component, tier in {(slot.component, slot.service_tier) for slot in slots if slot.service_tier != STANDARD}:
        own = _bands(slots, component, tier)
        if own.keys() == {0}:
            for above, rate in _bands(slots, component, STANDARD).items():
                if above:
                    slots[Meaning(component, tier, above)] = max(own[0], rate)


def _bands(slots: _Slots, component: str, tier: str) -> dict[int, int]:
    return {
        slot.above_tokens: rate
        for slot, rate in slots.items()
        if (slot.component, slot.service_tier) == (component, tier)
    }


def _order(slot: Meaning) -> tuple[int, int, int]:
    return SERVICE_TIERS.index(slot.service_tier), COMPONENTS.index(slot.component), slot.above_tokens


def _is_whole(value: object) -> bool:
    return is_number(value) and 0 <= value < 2**63 and value == int(value)  # type: ignore[operator, call-overload]  # it is a number
