"""Owns time windows: days and months in UTC, and an account's own billing cycles."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta

WINDOWS = ("day", "month", "cycle", "lifetime")

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# Postgres and protobuf both end with the year 9999.
_END = datetime(9999, 1, 1, tzinfo=UTC)


def add_months(moment: datetime, months: int) -> datetime:
    """The same day and time `months` later, or the month's last day where it has no such day."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)


def cycle_containing(anchor: datetime, now: datetime) -> tuple[datetime, datetime]:
    """Start and end of the billing cycle that `now` is in. Cycles before the anchor count backwards.

    Each is reckoned from the anchor itself, so that an anchor on the 31st comes back to the 31st after a short month.
    """
    number = (now.year - anchor.year) * 12 + now.month - anchor.month
    if add_months(anchor, number) > now:
        number -= 1
    return add_months(anchor, number), add_months(anchor, number + 1)


def window_containing(window: str, now: datetime) -> tuple[datetime, datetime]:
    """Start (inclusive) and end (exclusive) of the `day`, `month` or `lifetime` that `now` is in, UTC."""
    if window == "day":
        start = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return start, start + timedelta(days=1)
    if window == "month":
        start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return start, add_months(start, 1)
    assert window == "lifetime", window
    return _BEGINNING, _END
