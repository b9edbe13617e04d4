"""Owns billing cycles: a calendar month each, counted from an account's anchor, as the ledger counts them."""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import datetime

_MONTHS = 12


@dataclass(frozen=True, slots=True)
class Cycle:
    """From `start` (included) to `end` (excluded), UTC."""

    start: datetime
    end: datetime


def months_after(anchor: datetime, months: int) -> datetime:
    """The anchor's day and time so many months later; the month's last day where it has no such day.

    Counted from the anchor each time, so that 31 January gives 28 February and then 31 March.
    """
    index = anchor.month - 1 + months
    year, month = anchor.year + index // _MONTHS, index % _MONTHS + 1
    return anchor.replace(year=year, month=month, day=min(anchor.day, monthrange(year, month)[1]))


def cycle_at(anchor: datetime, moment: datetime) -> Cycle:
    """The cycle that `moment` falls into; the first one for a moment before the anchor (a clock that is behind)."""
    months = (moment.year - anchor.year) * _MONTHS + moment.month - anchor.month
    if months_after(anchor, months) > moment:
        months -= 1
    months = max(months, 0)
    return Cycle(months_after(anchor, months), months_after(anchor, months + 1))
