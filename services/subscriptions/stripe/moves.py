"""Owns the rules of a move between plans: at once and paid, or with the period that is paid for. Pure.

wanted                                          what happens
──────────────────────────────────────────────  ─────────────────────────────────────────────────────────────
the plan and interval it has                    nothing
the plan that it keeps until the period's end   the move away from it is taken back; nothing is paid
a plan that costs as much or more by the month  at once: unused time is credited, the rest invoiced and paid
the same or a dearer plan, by the year          at once: a new year begins, unused time is credited
a cheaper plan                                  with the period's end; until then the dearer plan is kept
a plan without a price                          the subscription ends with the period
by the month instead of by the year             refused: the year is paid
a cheaper plan, by the year                     refused: the move would have to be paid now and begin later
to a metered plan, at once                      a new period begins: what it includes is for a whole one, and so paid
from a metered plan, at the same price          refused: what it includes would be had again by coming back
from a metered plan, ahead of the time          a new period begins: credited is no more than what was not used
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from fractions import Fraction

from services.subscriptions.errors import SubscriptionUnmovable
from services.subscriptions.metering.model import SUMS
from services.subscriptions.model.plan import METERED, MILLION, Plan
from services.subscriptions.stripe.names import MONTH, YEAR


class Move(Enum):
    """How a subscription gets to where it is wanted."""

    NONE = "none"
    BACK = "back"
    AT_ONCE = "at_once"
    AT_PERIOD_END = "at_period_end"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a subscription stands: the plan its price is of, the plan it keeps meanwhile (None: the same), interval."""

    plan: Plan
    interval: str
    kept: Plan | None = None

    @property
    def enjoyed(self) -> Plan:
        """The plan that is paid for now."""
        return self.kept or self.plan


def is_kept(kept: Plan, plan: Plan, *, until: datetime, period_end: datetime) -> bool:
    """Whether a dearer plan is still what the period that ends at `period_end` was paid for.

    Not once Stripe has begun another period than the one it was kept for, nor once a plan that costs as much was taken
    at Stripe's own pages, which know nothing of what is kept.
    """
    return plan.price_nanos < kept.price_nanos and until >= period_end


def move(position: Position, target: Plan, interval: str) -> Move:
    """How to get from a position to a plan and interval. Raises SubscriptionUnmovable."""
    if target.plan_id == position.plan.plan_id and interval == position.interval:
        return Move.NONE
    if position.kept is not None and target.plan_id == position.kept.plan_id and interval == position.interval:
        return Move.BACK
    if position.interval == YEAR and interval == MONTH:
        raise SubscriptionUnmovable("the year is paid: end the subscription with it, and subscribe by the month then")
    dearer = target.price_nanos >= position.enjoyed.price_nanos
    if not dearer and interval != position.interval:
        raise SubscriptionUnmovable("a move to a cheaper plan keeps the interval: change the plan first")
    if not dearer:
        return Move.AT_PERIOD_END
    costs_more = target.price_nanos > position.enjoyed.price_nanos or interval != position.interval
    if position.enjoyed.kind == METERED and not costs_more:
        raise SubscriptionUnmovable(
            f"what {position.enjoyed.plan_id} includes is for the period: let the subscription end, then subscribe"
        )
    return Move.AT_ONCE


def used_share(plan: Plan, used: Mapping[str, int]) -> Fraction:
    """The share of a metered plan's price that is used up, at most 1: `used` is the period's use of each metric.

    A unit that is included is worth what one above would cost or, where none is sold, its share of the price. Levels
    are worth nothing: they are for a time, as the price is.
    """
    share = Fraction(0)
    for metric in plan.metrics:
        units = min(used.get(metric.metric, 0), metric.included) if metric.metric in SUMS else 0
        if units and metric.overage_nanos_per_million:
            share += Fraction(units * metric.overage_nanos_per_million, MILLION * plan.price_nanos)
        elif units:
            share += Fraction(units, metric.included)
    return min(share, Fraction(1))


def is_above(plan: Plan, used: Mapping[str, int]) -> bool:
    """Whether more of a metric was used than the plan includes."""
    return any(used.get(metric.metric, 0) > metric.included for metric in plan.metrics)
