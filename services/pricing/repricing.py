"""Owns re-pricing: what a period's booked calls would have cost under another catalogue version, summed by model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.kit.call import remaining_seconds
from services.kit.refusals import DeadlineExceeded, InvalidArgument
from services.pricing.costing import Call, Costing
from services.pricing.errors import ComponentNotPriced, CostTooLarge, LedgerNotConfigured, PriceNotFound
from services.pricing.live import LiveCatalogue
from services.pricing.model import MAX_INT64
from services.rating import STANDARD, Usage

MAX_PERIOD = timedelta(days=366)

# What makes a call that was booked one that a version has no price for.
_UNPRICED = (PriceNotFound, ComponentNotPriced, CostTooLarge, InvalidArgument)


@dataclass(frozen=True, slots=True)
class BookedCall:
    """A call as the ledger booked it. `usage` is None where it counts what no price component is known for."""

    provider: str
    model: str
    service_tier: str
    usage: Usage | None
    cost_nanos: int
    created_at: datetime


class BookedCalls(Protocol):
    """The ledger, as far as re-pricing reads it; pages, so that no more than one is held at once."""

    def account_ids(self) -> Iterator[str]:
        """Every account, by id."""
        ...

    def calls(self, account_id: str, start: datetime, end: datetime) -> Iterator[list[BookedCall]]:
        """An account's calls booked in `[start, end)`, page by page. Raises AccountNotFound."""
        ...


@dataclass(slots=True)
class RepricedModel:
    """One model's calls: how many there were, what they cost and would have cost; and those without a price."""

    provider: str
    model: str
    requests: int = 0
    cost_nanos: int = 0
    repriced_cost_nanos: int = 0
    unpriced_requests: int = 0
    unpriced_cost_nanos: int = 0

    @property
    def difference_nanos(self) -> int:
        """What the calls would have cost more (or less) than they did."""
        return self.repriced_cost_nanos - self.cost_nanos


@dataclass(frozen=True, slots=True)
class Repricing:
    """A period, re-priced. `models` are by the size of their difference, largest first; sums leave out the unpriced."""

    models: tuple[RepricedModel, ...]

    def total(self, name: str) -> int:
        """The sum of one field over all models. Raises CostTooLarge where that does not fit 64 bits."""
        found: int = sum(getattr(model, name) for model in self.models)
        if found > MAX_INT64:
            raise CostTooLarge("the period's cost does not fit 64 bits")
        return found


class Repricer:
    """Re-prices what a ledger has booked, by the live catalogue."""

    def __init__(self, live: LiveCatalogue, ledger: BookedCalls | None) -> None:
        """`ledger`: None where none is configured."""
        self._live = live
        self._ledger = ledger

    def reprice(self, start: datetime, end: datetime, version: int, account_id: str = "") -> Repricing:
        """What the calls booked in `[start, end)` would have cost under `version`; of one account, or of all ("").

        Raises LedgerNotConfigured, PriceNotFound for a version that is not there, AccountNotFound, DeadlineExceeded.
        """
        if self._ledger is None:
            raise LedgerNotConfigured("no ledger is configured, so there is no usage to price")
        latest = self._live.refresh().book.latest_version
        if not 1 <= version <= latest:
            raise PriceNotFound(f"there is no catalogue version {version}; the newest is {latest}", version=version)
        costing = Costing(self._live)  # one picture of the catalogue for the whole period
        models: dict[tuple[str, str], RepricedModel] = {}
        for one in (account_id,) if account_id else self._ledger.account_ids():
            for page in self._ledger.calls(one, start, end):
                if remaining_seconds() == 0:
                    raise DeadlineExceeded("the period has more usage than could be priced within the deadline")
                _add(models, page, costing, one, version)
        by_difference = sorted(
            models.values(), key=lambda found: (-abs(found.difference_nanos), found.provider, found.model)
        )
        return Repricing(tuple(by_difference))


def _add(
    models: dict[tuple[str, str], RepricedModel],
    calls: Iterable[BookedCall],
    costing: Costing,
    account_id: str,
    version: int,
) -> None:
    for call in calls:
        found = models.setdefault((call.provider, call.model), RepricedModel(call.provider, call.model))
        cost_nanos = _cost_under(costing, call, account_id, version)
        if cost_nanos is None:
            found.unpriced_requests += 1
            found.unpriced_cost_nanos += call.cost_nanos
        else:
            found.requests += 1
            found.cost_nanos += call.cost_nanos
            found.repriced_cost_nanos += cost_nanos


def _cost_under(costing: Costing, booked: BookedCall, account_id: str, version: int) -> int | None:
    if booked.usage is None:
        return None
    call = Call(
        booked.provider,
        booked.model,
        booked.service_tier or STANDARD,
        at=booked.created_at,
        price_version=version,
        account_id=account_id,
        as_if_always=True,
    )
    try:
        return costing.cost_of(call, booked.usage).cost_nanos
    except _UNPRICED:
        return None
