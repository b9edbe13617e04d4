"""Owns a model's price: its rates by component, service tier and context threshold, and which of them applies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.rating.errors import Fault, InvalidPriceCard

STANDARD = "standard"
SERVICE_TIERS = (STANDARD, "batch", "flex", "priority")
MODES = ("chat", "embedding", "image", "audio", "moderation", "rerank", "other")

INPUT_TOKEN_COMPONENTS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "audio_input", "image_input")
OUTPUT_TOKEN_COMPONENTS = ("output", "reasoning", "audio_output", "image_output")
TOKEN_COMPONENTS = INPUT_TOKEN_COMPONENTS + OUTPUT_TOKEN_COMPONENTS
UNIT_COMPONENTS = ("image", "character", "second", "request")
COMPONENTS = TOKEN_COMPONENTS + UNIT_COMPONENTS

MAX_RATES = 256
MAX_NANOS = 2**63 - 1

# Whose rate a component takes where it has none of its own. Providers bill a part without a price of its own as the
# plain tokens it is part of. An hour's cache write is never cheaper than one of five minutes: it takes that rate first.
_CHAINS: dict[str, tuple[str, ...]] = {
    **{component: (component, "input") for component in INPUT_TOKEN_COMPONENTS if component != "input"},
    **{component: (component, "output") for component in OUTPUT_TOKEN_COMPONENTS if component != "output"},
    "cache_write_1h": ("cache_write_1h", "cache_write_5m", "input"),
}


def fallbacks(component: str) -> tuple[str, ...]:
    """The components whose rate this one takes, best first: its own, then those of what it is part of."""
    return _CHAINS.get(component, (component,))


@dataclass(frozen=True, slots=True)
class Rate:
    """What one component costs: `nanos_per_million` nano-USD for one million units.

    It holds for calls whose input has more than `above_tokens` tokens (0: for every call); the whole call is at it.
    """

    component: str
    service_tier: str = STANDARD
    above_tokens: int = 0
    nanos_per_million: int = 0


def _own_faults(rate: Rate, at: str) -> list[Fault]:
    """What is wrong with one rate, whatever stands beside it."""
    faults = []
    if rate.component not in COMPONENTS:
        faults.append(Fault(f"{at}.component", f"must be one of {', '.join(COMPONENTS)}"))
    if rate.service_tier not in SERVICE_TIERS:
        faults.append(Fault(f"{at}.service_tier", f"must be one of {', '.join(SERVICE_TIERS)}"))
    if not 0 <= rate.above_tokens <= MAX_NANOS:
        faults.append(Fault(f"{at}.above_tokens", "must not be negative"))
    if not 0 <= rate.nanos_per_million <= MAX_NANOS:
        faults.append(Fault(f"{at}.nanos_per_million", "must not be negative, nor above 2^63 - 1"))
    return faults


def rate_faults(rates: Sequence[Rate]) -> list[Fault]:
    """Everything that is wrong with a model's rates, by field; empty where they are sound."""
    if not rates:
        return [Fault("rates", "must hold at least one rate")]
    if len(rates) > MAX_RATES:
        return [Fault("rates", f"must hold at most {MAX_RATES} rates, not {len(rates)}")]
    faults: list[Fault] = []
    seen: dict[tuple[str, str, int], int] = {}
    for number, rate in enumerate(rates):
        at = f"rates[{number}]"
        faults += _own_faults(rate, at)
        key = (rate.component, rate.service_tier, rate.above_tokens)
        if key in seen:
            faults.append(Fault(at, f"prices the same as rates[{seen[key]}]"))
        seen.setdefault(key, number)
    for (component, tier, above), number in seen.items():
        if above > 0 and (component, tier, 0) not in seen:
            faults.append(Fault(f"rates[{number}].above_tokens", f"{component} ({tier}) has no rate for shorter calls"))
    return faults


_Bands = tuple[tuple[int, int], ...]
_Index = dict[tuple[str, str], _Bands]


@dataclass(frozen=True, slots=True)
class PriceCard:
    """The price of one model, in force from `effective_from`, published by catalogue version `version`.

    Raises InvalidPriceCard, naming every fault, where the rates are not sound.
    """

    provider: str
    model: str
    mode: str
    rates: tuple[Rate, ...]
    max_input_tokens: int = 0
    max_output_tokens: int = 0
    version: int = 0
    effective_from: datetime | None = None
    # (component, tier) → (above_tokens, nanos_per_million), highest threshold first.
    _index: _Index = field(init=False, repr=False, compare=False, default_factory=dict)
    # The same for what was asked for so far, with what it falls back to; () where it is not priced. Two threads may
    # work out an entry at once: it is the same.
    _found: _Index = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        faults = rate_faults(self.rates)
        if faults:
            raise InvalidPriceCard(f"{self.provider}/{self.model}", faults)
        bands: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for rate in self.rates:
            key = (rate.component, rate.service_tier)
            bands.setdefault(key, []).append((rate.above_tokens, rate.nanos_per_million))
        self._index.update({key: tuple(sorted(found, reverse=True)) for key, found in bands.items()})

    def rate(self, component: str, service_tier: str, input_tokens: int) -> int | None:
        """Nanos per million units of `component` in a call with `input_tokens` of input; None where not priced.

        A part without a rate of its own in this tier takes that of the plain tokens it is part of, in the same tier. A
        fee per request that names no tier is owed in every tier.
        """
        for above_tokens, nanos_per_million in self._bands(component, service_tier):
            if input_tokens > above_tokens or above_tokens == 0:
                return nanos_per_million
        return None

    def dearest(self, components: Iterable[str], service_tier: str, max_input_tokens: int) -> tuple[str, int] | None:
        """The dearest of `components` and its rate in calls of at most so much input; None where none is priced."""
        found: tuple[str, int] | None = None
        for component in components:
            for above_tokens, nanos_per_million in self._bands(component, service_tier):
                reachable = max_input_tokens > above_tokens or above_tokens == 0
                if reachable and (found is None or nanos_per_million > found[1]):
                    found = (component, nanos_per_million)
        return found

    def _bands(self, component: str, service_tier: str) -> _Bands:
        asked = (component, service_tier)
        bands = self._found.get(asked)
        if bands is None:
            names = [(name, service_tier) for name in fallbacks(component)]
            if component == "request":
                names.append((component, STANDARD))
            bands = next((self._index[name] for name in names if name in self._index), ())
            self._found[asked] = bands
        return bands
