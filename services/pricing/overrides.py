"""Owns accounts' prices of their own: frozen overrides, the book of all of them, and what a price becomes under one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from services.pricing.model import ANY, MAX_INT64, MILLION, PublishedPrice
from services.rating import Fault, InvalidPriceCard, PriceCard, Rate, half_even, rate_faults

MAX_MULTIPLIER_MILLIONTHS = 1000 * MILLION

_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Override:
    """What one account pays for one model, or (`model` ANY) for all of a provider's, instead of the catalogue's price.

    Either `rates` of its own, or the catalogue's rates times `multiplier_millionths`. In force from `effective_from`
    until `agreed_until` (None: open). Where it was ended before that, the version `ended_by` did it, at `ended_at`.
    """

    account_id: str
    provider: str
    model: str
    version: int
    effective_from: datetime
    agreed_until: datetime | None = None
    rates: tuple[Rate, ...] = ()
    multiplier_millionths: int = 0
    ended_by: int = 0
    ended_at: datetime | None = None

    @property
    def key(self) -> _Key:
        """Whose and which: all overrides of a key are told apart by version alone."""
        return self.account_id, self.provider, self.model

    @property
    def effective_until(self) -> datetime | None:
        """Until when it holds, by all that is known; None where that is open."""
        ends = [moment for moment in (self.agreed_until, self.ended_at) if moment is not None]
        return min(ends, default=None)

    def over(self, at: datetime) -> bool:
        """Whether it does not hold at `at` or later."""
        until = self.effective_until
        return until is not None and until <= at


@dataclass(frozen=True, slots=True)
class OverrideEnd:
    """The end, by version `version` at `ended_at`, of every override of one key that was set before it."""

    account_id: str
    provider: str
    model: str
    version: int
    ended_at: datetime


class OverrideBook:
    """All overrides ever set, by account and model. Never changed once made.

    Of several in force at once, one for the model goes before one for all of its provider's, then the last set holds.
    """

    def __init__(self, overrides: Iterable[Override] = (), ends: Iterable[OverrideEnd] = ()) -> None:
        ends_of: dict[_Key, list[OverrideEnd]] = {}
        for end in sorted(ends, key=lambda end: end.version):
            ends_of.setdefault((end.account_id, end.provider, end.model), []).append(end)
        found: dict[_Key, list[Override]] = {}
        for override in sorted(overrides, key=lambda override: override.version):
            first = next((end for end in ends_of.get(override.key, ()) if end.version > override.version), None)
            known = replace(override, ended_by=first.version, ended_at=first.ended_at) if first else override
            found.setdefault(override.key, []).append(known)
        self._by_key = {key: tuple(history) for key, history in sorted(found.items())}

    def in_force(
        self, account_id: str, provider: str, model: str, at: datetime, known_by: int = MAX_INT64
    ) -> Override | None:
        """The override that an account's call at a moment is priced by, of those set by a version; None: none.

        An end counts from its moment on whichever version it is: none is ever made for the past.
        """
        for override in self._last_first(account_id, provider, model, known_by):
            if override.effective_from <= at and not override.over(at):
                return override
        return None

    def of_version(
        self, account_id: str, provider: str, model: str, version: int, at: datetime | None = None
    ) -> Override | None:
        """The override that stood with `version`, whenever in force: the last set by then and not ended by then.

        One that was agreed until a moment does not apply to a call `at` that moment or later.
        """
        for override in self._last_first(account_id, provider, model, version):
            agreed, ended = override.agreed_until, 0 < override.ended_by <= version
            if not ended and (at is None or agreed is None or at < agreed):
                return override
        return None

    def all(self) -> Iterator[Override]:
        """Every override, by account, provider, model and version."""
        for history in self._by_key.values():
            yield from history

    def from_now_on(self, now: datetime) -> Iterator[Override]:
        """Every override in force now or to come, in the order of `all`."""
        return (override for override in self.all() if not override.over(now))

    def changed_after(self, version: int) -> Iterator[Override]:
        """Every override that a version after `version` set or ended, in the order of `all`."""
        return (override for override in self.all() if max(override.version, override.ended_by) > version)

    def _last_first(self, account_id: str, provider: str, model: str, known_by: int) -> Iterator[Override]:
        if not self._by_key:
            return
        for name in (model, ANY):
            for override in reversed(self._by_key.get((account_id, provider, name), ())):
                if override.version <= known_by:
                    yield override


def overridden(price: PublishedPrice, override: Override) -> PublishedPrice | None:
    """A price as an override makes it; None where a rate would not fit 64 bits, so that there is none to charge.

    A multiplier is applied to each rate, rounded half-even to a nano per million: the proxy does the same, so both
    charge the same. The version is the newer of the two, so that with a moment it names both.
    """
    card = price.card
    assert card is not None, "a withdrawn price is no one's"
    version = max(price.version, override.version)
    effective_from = max(price.effective_from, override.effective_from)
    rates = override.rates or tuple(_multiplied(rate, override.multiplier_millionths) for rate in card.rates)
    try:
        own = PriceCard(
            provider=card.provider,
            model=card.model,
            mode=card.mode,
            rates=rates,
            max_input_tokens=card.max_input_tokens,
            max_output_tokens=card.max_output_tokens,
            version=version,
            effective_from=effective_from,
        )
    except InvalidPriceCard:
        return None
    return replace(price, version=version, effective_from=effective_from, card=own)


def _multiplied(rate: Rate, millionths: int) -> Rate:
    return replace(rate, nanos_per_million=half_even(rate.nanos_per_million * millionths, MILLION))


def override_faults(override: Override) -> list[Fault]:
    """Everything that is wrong with an override's price and times, by field; empty where it is sound."""
    faults = []
    if override.rates and override.multiplier_millionths:
        faults.append(Fault("multiplier_millionths", "give rates or multiplier_millionths, not both"))
    elif override.rates:
        faults += rate_faults(override.rates)
    elif not 1 <= override.multiplier_millionths <= MAX_MULTIPLIER_MILLIONTHS:
        description = f"must be from 1 to {MAX_MULTIPLIER_MILLIONTHS}, or give rates"
        faults.append(Fault("multiplier_millionths", description))
    if override.agreed_until is not None and override.agreed_until <= override.effective_from:
        faults.append(Fault("effective_until", "must be after effective_from"))
    return faults
