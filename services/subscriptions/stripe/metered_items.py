"""Owns that what is metered follows a plan into the next period.

A move to a cheaper plan leaves the metered items of the dearer one where they are, since what is used until the
period's end is used under the dearer plan: its included amounts and its overage. Once the next period has begun the
items are exchanged here, by what Stripe has then; so it does not matter how often, or by how many, that is looked at.

A subscription with metered items ends at once only when Stripe has been told what was used: nothing bills the rest. So
it is with a move at once to a plan without; after one to a metered plan the rest is the new period's (`reporting`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import stripe
from sqlalchemy import Engine

from services.kit.logs import get_logger
from services.subscriptions.errors import SubscriptionsError, SubscriptionUnmovable
from services.subscriptions.metering import report_store, store
from services.subscriptions.metering.model import in_minutes
from services.subscriptions.model.cycle import Cycle
from services.subscriptions.stripe import names, request_store
from services.subscriptions.stripe.catalogue_sync import is_ours
from services.subscriptions.stripe.client import stripe_errors
from services.subscriptions.stripe.current import interval_of, metered_items, own_item
from services.subscriptions.stripe.objects import moment
from services.subscriptions.stripe.parts import StripeParts

_log = get_logger(__name__)

# How long after a period's start it is looked at, and how many at once; those that were are kept in mind, so many.
_LOOKED_FOR = timedelta(days=3)
_AT_ONCE = 20_000
_MOST_KEPT = 100_000

_IN_FORCE = frozenset({"active", "trialing", "past_due"})

# How long an end at once waits for what its meters have to be told; what cannot be told is no reason to wait for ever.
_TOLD_WITHIN = timedelta(hours=1)
_ASK_AGAIN_SECONDS = 60.0

Item = stripe.params.SubscriptionUpdateParamsItem


def exchanged(held: Sequence[stripe.SubscriptionItem], wanted: Sequence[str]) -> list[Item]:
    """What has to be said of metered items so that those of these prices are there, and no others."""
    there = {item.price.id for item in held}
    gone: list[Item] = [{"id": item.id, "deleted": True} for item in held if item.price.id not in wanted]
    return gone + [{"price": price} for price in wanted if price not in there]


def require_reported(engine: Engine, account_id: str) -> None:
    """Check that Stripe has been told of an account's use. Raises SubscriptionUnmovable: to be asked again soon."""
    with engine.connect() as connection:
        waits = report_store.has_unreported(connection, account_id, within=_TOLD_WITHIN)
    if waits:
        raise SubscriptionUnmovable(
            "the use of the last minutes has still to be billed: ask again in some minutes, or for the period's end",
            retry_after_seconds=_ASK_AGAIN_SECONDS,
        )


def use_of_period(engine: Engine, account_id: str, own: stripe.SubscriptionItem) -> dict[str, int]:
    """What an account has used of each metric in the present period of its plan's item, reported or not."""
    period = in_minutes(Cycle(moment(own.current_period_start), moment(own.current_period_end)))
    with engine.connect() as connection:
        return {metric: found.used for metric, found in store.cycle_use(connection, account_id, period).items()}


class MeteredItems:
    """Looks after the accounts that were moved between plans and have begun a period since."""

    def __init__(self, parts: StripeParts) -> None:
        self._parts = parts
        self._done: set[tuple[str, datetime]] = set()

    def look(self) -> bool:
        """The job: look at those that nobody here has looked at yet; False: there are no more."""
        with self._parts.engine.connect() as connection:
            since = self._parts.clock() - _LOOKED_FOR
            found = request_store.moved_and_renewed(connection, since=since, limit=_AT_ONCE)
        if len(self._done) > _MOST_KEPT:
            self._done.clear()
        for account_id, subscription_id, started in found:
            if (subscription_id, started) in self._done:
                continue
            try:
                self._follow(account_id, subscription_id)
            except SubscriptionsError as error:
                _log.warning("metered items have to wait", account_id=account_id, reason=error.reason)
            else:
                self._done.add((subscription_id, started))
        return False

    def _follow(self, account_id: str, subscription_id: str) -> None:
        subscriptions = self._parts.access.client.v1.subscriptions
        with stripe_errors("read a subscription", account_id=account_id, subscription=subscription_id):
            found = subscriptions.retrieve(subscription_id)
        own = own_item(found)
        if found.status not in _IN_FORCE or not is_ours(own.price):
            return
        position = self._parts.current.position(found, self._parts.clock())
        if position.kept is not None:
            return
        _, *wanted = self._parts.prices.of_plan(position.plan, interval_of(own))
        items = exchanged([item for item in metered_items(found) if is_ours(item.price)], wanted)
        if not items:
            return
        said = f"{subscription_id}:{own.current_period_start}"
        with stripe_errors("exchange metered items", account_id=account_id, subscription=subscription_id):
            subscriptions.update(
                subscription_id,
                params={"items": items, "proration_behavior": "none"},
                options={"idempotency_key": names.idempotency_key(account_id, "metered_items", said)},
            )
        _log.info("what is metered has followed the plan", account_id=account_id, plan=position.plan.plan_id)
