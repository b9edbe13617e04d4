"""Owns the reading of an account's subscription as Stripe has it now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import stripe

from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.model.plan import Plan
from services.subscriptions.stripe import objects
from services.subscriptions.stripe.client import StripeAccess, stripe_errors
from services.subscriptions.stripe.ends import ends_with_period
from services.subscriptions.stripe.moves import Position, is_kept
from services.subscriptions.stripe.names import NANOS_PER_CENT
from services.subscriptions.stripe.objects import kept_plan, moment, plan_of

# Statuses of a subscription that is there: paid, to be paid, or paused. One that is `incomplete` never began.
LIVE = frozenset({"active", "trialing", "past_due", "unpaid", "paused"})
_MOST_LOOKED_AT = 100


@dataclass(frozen=True, slots=True)
class SubscriptionView:
    """A subscription in the contract's terms. Amounts in nanos."""

    account_id: str
    subscription_id: str
    plan_id: str
    status: str
    interval: str
    price_nanos: int
    period_start: datetime
    period_end: datetime
    cancel_at_period_end: bool
    trial_end: datetime | None
    pending_plan_id: str
    grace_until: datetime | None = None


class CurrentSubscriptions:
    """What Stripe says now."""

    def __init__(self, access: StripeAccess, plans: PlanCatalogue) -> None:
        self._access = access
        self._plans = plans

    def find(self, customer_id: str) -> stripe.Subscription | None:
        """The customer's newest live subscription to a plan of ours. Raises what `stripe_errors` says."""
        client = self._access.client
        with stripe_errors("read the subscription", customer=customer_id):
            listed = client.v1.subscriptions.list(
                params={"customer": customer_id, "status": "all", "limit": _MOST_LOOKED_AT}
            )
        return next((found for found in listed.data if found.status in LIVE and plan_of(found) is not None), None)

    def position(self, subscription: stripe.Subscription, now: datetime) -> Position:
        """Where it stands. Raises PlanNotFound; grpc.RpcError where pricing does not answer."""
        own = own_item(subscription)
        plan = self._plan(own.price, subscription)
        return Position(plan, interval_of(own), self._kept(subscription, plan, now))

    def now_of(self, subscription: stripe.Subscription, now: datetime) -> datetime:
        """The subscription's present moment: `now`, or that of the test clock it lives by, in Stripe's test mode only.

        Raises what `stripe_errors` says.
        """
        clock = subscription.test_clock
        if clock is None:
            return now
        clock_id = clock if isinstance(clock, str) else clock.id
        with stripe_errors("read the test clock", subscription=subscription.id):
            return moment(self._access.client.v1.test_helpers.test_clocks.retrieve(clock_id).frozen_time)

    def _plan(self, price: stripe.Price, subscription: stripe.Subscription) -> Plan:
        """The plan that the price is of; the subscription's own word where the price was made by somebody else."""
        said = price.metadata if "plan_version" in price.metadata else subscription.metadata
        return self._plans.version(said["plan"], int(said["plan_version"]))

    def _kept(self, subscription: stripe.Subscription, plan: Plan, now: datetime) -> Plan | None:
        """The dearer plan that is paid for until the period ends."""
        said = kept_plan(subscription.metadata.to_dict())
        if said is None or said.until <= now:
            return None
        kept = self._plans.version(said.plan.plan_id, said.plan.version)
        period_end = moment(own_item(subscription).current_period_end)
        return kept if is_kept(kept, plan, until=said.until, period_end=period_end) else None


def own_item(subscription: stripe.Subscription) -> stripe.SubscriptionItem:
    """The item for the plan's own price."""
    own = objects.own_item(subscription)
    assert own is not None
    return own


def metered_items(subscription: stripe.Subscription) -> list[stripe.SubscriptionItem]:
    """The items for what is metered."""
    return [item for item in subscription.items.data if is_metered(item)]


def is_metered(item: stripe.SubscriptionItem) -> bool:
    """Whether an item is billed by what was used."""
    return item.price.recurring is not None and item.price.recurring.usage_type == "metered"


def latest_invoice_id(subscription: stripe.Subscription) -> str:
    """The newest invoice of a subscription; empty without one."""
    invoice = subscription.latest_invoice
    return (invoice.id or "") if isinstance(invoice, stripe.Invoice) else invoice or ""


def interval_of(item: stripe.SubscriptionItem) -> str:
    """`month` or `year`."""
    assert item.price.recurring is not None
    return item.price.recurring.interval


_WORDS = {"unpaid": "past_due", "incomplete_expired": "canceled"}


def subscription_view(account_id: str, subscription: stripe.Subscription, position: Position) -> SubscriptionView:
    """A subscription in the contract's terms."""
    own = own_item(subscription)
    pending = position.plan.plan_id if position.kept is not None else ""
    return SubscriptionView(
        account_id=account_id,
        subscription_id=subscription.id,
        plan_id=position.enjoyed.plan_id,
        status=_WORDS.get(subscription.status, subscription.status),
        interval=position.interval,
        price_nanos=(own.price.unit_amount or 0) * (own.quantity or 1) * NANOS_PER_CENT,
        period_start=moment(own.current_period_start),
        period_end=moment(own.current_period_end),
        cancel_at_period_end=ends_with_period(subscription, own.current_period_end),
        trial_end=moment(subscription.trial_end) if subscription.trial_end is not None else None,
        pending_plan_id=pending,
    )
