"""Owns from which second on a move at once credits and charges time.

It is shown and made as of the same second: the preview's is kept, and the same move made within `_SHOWN` of it takes it
over, so that it costs what was shown. What is used up of a metered plan before its time is not credited: the second is
then the one until which the price pays for that, and the new plan is charged from now on, for a period of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import ceil

import stripe

from services.subscriptions.model.plan import METERED, Plan
from services.subscriptions.stripe import request_store
from services.subscriptions.stripe.current import latest_invoice_id, own_item
from services.subscriptions.stripe.moves import Position, used_share
from services.subscriptions.stripe.names import MONTH
from services.subscriptions.stripe.parts import StripeParts

# How long the price of a move holds that was shown.
_SHOWN = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Standing:
    """An account's subscription, and where it stands. `used`: what was used of a metered plan in its present period."""

    account_id: str
    subscription: stripe.Subscription
    position: Position
    used: Mapping[str, int] = field(default_factory=dict)

    @property
    def used_until(self) -> int:
        """The second until which the period's price pays for what is used up of a metered plan; else 0.

        Of a plan without overage, which is paid by the year, what is included comes anew each month.
        """
        plan, own = self.position.enjoyed, own_item(self.subscription)
        if plan.kind != METERED or self.position.interval != MONTH or self.subscription.status == "trialing":
            return 0
        seconds = own.current_period_end - own.current_period_start
        return own.current_period_start + ceil(seconds * used_share(plan, self.used))


@dataclass(frozen=True, slots=True)
class Target:
    """Where it is wanted."""

    plan: Plan
    interval: str


def begins_period(standing: Standing, target: Target, at: int) -> bool:
    """Whether a move at once, which credits time from `at` on, has to begin a period.

    What a metered plan includes is not less where less of a period is paid. Not in a trial, which goes on, and in which
    nothing is paid.
    """
    return standing.subscription.status != "trialing" and (target.plan.kind == METERED or at == standing.used_until)


class Prorations:
    """The seconds of moves at once, of those that were shown and of those that are made."""

    def __init__(self, parts: StripeParts) -> None:
        self._parts = parts

    def second(self, standing: Standing, target: Target) -> int:
        """That of a move which is made: the one that it was shown for not long ago, else the present one."""
        now = self._parts.clock()
        with self._parts.engine.connect() as connection:
            shown = request_store.shown_proration_date(
                connection,
                standing.account_id,
                subscription_id=standing.subscription.id,
                target=_name(standing, target),
                since=now - _SHOWN,
            )
        starts = own_item(standing.subscription).current_period_start
        at = shown if shown is not None and shown >= starts else self._present(standing, now)
        return max(at, standing.used_until)

    def show(self, standing: Standing, target: Target) -> int:
        """That of a move which is shown; it is kept."""
        now = self._parts.clock()
        at = max(self._present(standing, now), standing.used_until)
        with self._parts.engine.begin() as connection:
            request_store.keep_preview(
                connection,
                standing.account_id,
                subscription_id=standing.subscription.id,
                target=_name(standing, target),
                proration_date=at,
                now=now,
            )
        return at

    def _present(self, standing: Standing, now: datetime) -> int:
        """The present second, within the subscription's period: Stripe's clock and ours need not agree."""
        own = own_item(standing.subscription)
        seconds = int(self._parts.current.now_of(standing.subscription, now).timestamp())
        return min(max(seconds, own.current_period_start), own.current_period_end)


def _name(standing: Standing, target: Target) -> str:
    """What a preview of a move is known by: from where, paid for by which invoice, to where."""
    subscription = standing.subscription
    start = f"{own_item(subscription).price.id}:{latest_invoice_id(subscription)}"
    return f"{start}:{target.plan.plan_id}:{target.plan.version}:{target.interval}"
