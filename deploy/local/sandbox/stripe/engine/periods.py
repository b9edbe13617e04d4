"""Owns calendar arithmetic: where billing periods begin and end, counted from an anchor."""

from __future__ import annotations

import calendar
import datetime as dt

from deploy.local.sandbox.stripe.refusal import Obj

_UNIT_SECONDS = {"day": 86_400, "week": 7 * 86_400}


def after(anchor: int, interval: str, count: int) -> int:
    """The moment `count` intervals after `anchor` (before it where negative).

    Months and years keep the anchor's day, or take a shorter month's last day: 31 January, 28 February, 31 March.
    Source: docs.stripe.com/billing/subscriptions/billing-cycle.
    """
    if interval in _UNIT_SECONDS:
        return anchor + count * _UNIT_SECONDS[interval]
    start = dt.datetime.fromtimestamp(anchor, dt.UTC)
    months = start.year * 12 + start.month - 1 + count * (12 if interval == "year" else 1)
    year, month = divmod(months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return int(start.replace(year=year, month=month + 1, day=day).timestamp())


def around(anchor: int, interval: str, interval_count: int, moment: int) -> tuple[int, int]:
    """The period, start inclusive and end exclusive, that `moment` lies in."""
    # A guess that is at most a period or two off, then steps.
    length = after(anchor, interval, interval_count) - anchor
    number = (moment - anchor) // length
    while after(anchor, interval, number * interval_count) > moment:
        number -= 1
    while after(anchor, interval, (number + 1) * interval_count) <= moment:
        number += 1
    return after(anchor, interval, number * interval_count), after(anchor, interval, (number + 1) * interval_count)


def of_price(price: Obj) -> tuple[str, int]:
    """A recurring price's interval and how many of them."""
    return price["recurring"]["interval"], price["recurring"]["interval_count"]
