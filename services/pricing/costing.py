"""Owns the costing of calls: finds the price that a call is to be priced by, and has rating work it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, TypeVar

from services.kit.errors import Violation
from services.kit.refusals import InvalidArgument
from services.pricing.errors import ComponentNotPriced, CostTooLarge, PriceNotFound
from services.pricing.live import Snapshot
from services.pricing.model import PublishedPrice
from services.pricing.overrides import Override, overridden
from services.rating import AT_COST_MILLIONTHS, STANDARD, Cost, InvalidUsage, PriceCard, Usage, cost, upper_bound
from services.rating import ComponentNotPriced as RateMissing
from services.rating import CostTooLarge as CostOverflow

_T = TypeVar("_T")


class Catalogue(Protocol):
    """Where the catalogue is read from: the live one of a service, or a file."""

    def current(self) -> Snapshot:
        """The catalogue as last read."""

    def refresh(self) -> Snapshot:
        """The catalogue as it is now."""


class Call(NamedTuple):  # not a frozen dataclass, which takes longer to make: there is one for each line of a batch
    """Which price a call is to be priced by: a model's, at a moment (None: now), or by a version (0: the newest).

    By a version alone, whenever in force; by both, what of that version was in force then. The account's override
    applies ("": no account's). With `as_if_always` the version is taken to have been in force always, and the moment
    only says which overrides, agreed until a moment, were over.
    """

    provider: str
    model: str
    service_tier: str = STANDARD
    multiplier_millionths: int = AT_COST_MILLIONTHS
    at: datetime | None = None
    price_version: int = 0
    account_id: str = ""
    as_if_always: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """The most that a call, not made yet, can use."""

    max_input_tokens: int
    max_output_tokens: int
    images: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call can cost: at most, and as a best guess."""

    most: Cost
    expected: Cost


class Costing:
    """The costs of one request's calls, all by one picture of the catalogue and one now; made anew for each request.

    Where a price is missing from it, the database is asked for a newer one, once: another replica may have published it
    a moment ago, and the caller may have it from there. So a batch of unknown models asks once, not once a line.
    """

    def __init__(self, live: Catalogue) -> None:
        self._live = live
        self._snapshot = live.current()
        self._looked_again = False
        self._now = datetime.now(UTC)
        self._present: dict[tuple[str, str, str], PublishedPrice] = {}
        self._own: dict[tuple[str, str, int, int], PublishedPrice | None] = {}

    def cost_of(self, call: Call, usage: Usage) -> Cost:
        """What a call cost. Raises PriceNotFound, ComponentNotPriced, CostTooLarge, InvalidArgument."""
        card = self._card(call)
        return _rated(
            lambda: cost(card, usage, service_tier=call.service_tier, multiplier_millionths=call.multiplier_millionths)
        )

    def estimate(self, call: Call, counts: Counts) -> Estimate:
        """The most that a call can cost, and a best guess. Raises as `cost_of`.

        The guess: all input is plain, and the output is half of its cap, the mean where nothing else is known of it.
        """
        card = self._card(call)
        usage = Usage(
            input_tokens=counts.max_input_tokens,
            output_tokens=(counts.max_output_tokens + 1) // 2,
            images=counts.images,
        )
        return _rated(
            lambda: Estimate(
                most=upper_bound(
                    card,
                    counts.max_input_tokens,
                    counts.max_output_tokens,
                    images=counts.images,
                    service_tier=call.service_tier,
                    multiplier_millionths=call.multiplier_millionths,
                ),
                expected=cost(
                    card, usage, service_tier=call.service_tier, multiplier_millionths=call.multiplier_millionths
                ),
            )
        )

    def price_of(self, call: Call) -> PublishedPrice:
        """The price that a call is priced by, never a withdrawn one. Raises PriceNotFound."""
        if call.at is not None or call.price_version:
            return self._searched(call)
        named = (call.account_id, call.provider, call.model)
        if named not in self._present:
            self._present[named] = self._searched(call)
        return self._present[named]

    def _searched(self, call: Call) -> PublishedPrice:
        found = self._found(call)
        if found is None and not self._looked_again:
            self._snapshot, self._looked_again = self._live.refresh(), True
            found = self._found(call)
        if found is None:
            how = f"by version {call.price_version}" if call.price_version else "at that moment"
            raise PriceNotFound(
                f"{call.provider}/{call.model} has no price {how}", provider=call.provider, model=call.model
            )
        return found

    def _card(self, call: Call) -> PriceCard:
        card = self.price_of(call).card
        assert card is not None, "the book gives no withdrawn price"
        return card

    def _found(self, call: Call) -> PublishedPrice | None:
        book, overrides = self._snapshot.book, self._snapshot.overrides
        version = call.price_version or book.latest_version
        if version > book.latest_version:
            return None
        if call.price_version and (call.at is None or call.as_if_always):
            found = book.of_version(call.provider, call.model, version)
            own = overrides.of_version(call.account_id, call.provider, call.model, version, call.at)
        else:
            at = call.at or self._now
            found = book.in_force(call.provider, call.model, at, version)
            own = overrides.in_force(call.account_id, call.provider, call.model, at, version)
        return found if found is None or own is None else self._overridden(found, own)

    def _overridden(self, price: PublishedPrice, override: Override) -> PublishedPrice | None:
        key = (price.provider, price.model, price.version, override.version)
        if key not in self._own:
            self._own[key] = overridden(price, override)
        return self._own[key]


def _rated(rate: Callable[[], _T]) -> _T:
    """What `rate` gives, its refusals in the form that leaves this service."""
    try:
        return rate()
    except RateMissing as error:
        raise ComponentNotPriced(
            str(error),
            provider=error.provider,
            model=error.model,
            component=error.component,
            service_tier=error.service_tier,
        ) from error
    except InvalidUsage as error:
        raise InvalidArgument.naming([Violation(f"usage.{error.field}", error.description)]) from error
    except CostOverflow as error:
        raise CostTooLarge(str(error)) from error
