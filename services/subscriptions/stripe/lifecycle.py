"""Owns what follows for an account from its subscription as Stripe has it now, at a moment. Pure.

    Stripe says                      the account is on                              its status
    ───────────────────────────────  ─────────────────────────────────────────────  ──────────
    trialing, active                 the plan, or the dearer one it keeps           active
    past_due, within the grace       the same                                       grace
    past_due, after the grace        the free plan                                  limited
    paused, unpaid, canceled,        the free plan, if the subscription was in      active
    incomplete_expired, none         force before; else what it was on
    incomplete                       as the line above: nothing is paid yet         active

Nothing but the newest state counts, so it does not matter in which order, and how often, Stripe told of it.
An account that an operator has suspended or closed stays so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.subscriptions.model.account import Account
from services.subscriptions.stripe.model import FAILING, Mirror, PlanKey, SubscriptionState

ACTIVE, GRACE, LIMITED = "active", "grace", "limited"

# Stripe drafts a renewal soon after the period has ended: looked at then, it is found though no event tells of it. What
# is left to Stripe, it collects about an hour later.
_DRAFTED = (timedelta(minutes=1), timedelta(minutes=10))
_RENEWAL = timedelta(hours=2)

# The contract's words for what Stripe says.
_WORDS = {"unpaid": FAILING, "incomplete_expired": "canceled"}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an account stands. `plan` None: it stays on the plan it is on. `owes`: its grace ended without payment."""

    plan: PlanKey | None
    status: str
    cycle_anchor: datetime
    mirror: Mirror | None
    owes: bool = False


def standing(
    account: Account,
    known: Mirror | None,
    subscription: SubscriptionState | None,
    *,
    free: PlanKey,
    grace: timedelta,
    now: datetime,
) -> Standing:
    """Where the account stands with its newest subscription (None: it never had one), having been `known`."""
    if subscription is None or not subscription.in_force:
        return _without(account, known, subscription, free)
    failing_since, grace_until = None, None
    if subscription.status == FAILING:
        before = known if known is not None and known.subscription_id == subscription.subscription_id else None
        failing_since = subscription.failing_since or (before.failing_since if before else None) or now
        grace_until = failing_since + grace
    is_kept = subscription.kept is not None and now < subscription.kept.until
    plan = subscription.kept.plan if subscription.kept is not None and is_kept else subscription.plan
    pending = subscription.plan.plan_id if is_kept and subscription.plan != plan else ""
    limited = grace_until is not None and grace_until <= now
    mirror = replace(
        _mirror(account, subscription, plan),
        failing_since=failing_since,
        grace_until=grace_until,
        pending_plan_id=pending,
        look_at=_look_at(subscription, grace_until, now),
    )
    return Standing(
        plan=free if limited else plan,
        status=_status(account, LIMITED if limited else GRACE if grace_until is not None else ACTIVE),
        cycle_anchor=cycle_anchor(account, subscription, now),
        mirror=mirror,
        owes=limited,
    )


def _without(account: Account, known: Mirror | None, subscription: SubscriptionState | None, free: PlanKey) -> Standing:
    """A subscription that is not in force takes away what it gave, and gives nothing."""
    lost = known is not None and known.in_force
    mirror = known
    if subscription is not None:
        mirror = _mirror(account, subscription, subscription.plan)
    elif known is not None:
        mirror = _ended(known)
    status = ACTIVE if account.status in (GRACE, LIMITED) else account.status
    return Standing(free if lost else None, status, account.cycle_anchor, mirror)


def _status(account: Account, status: str) -> str:
    return status if account.may_call else account.status


def cycle_anchor(account: Account, subscription: SubscriptionState, now: datetime) -> datetime:
    """The moment that the account's cycles are counted from: its cycles are the periods that it pays for.

    Stripe counts periods from the billing anchor as we count cycles, so that a 31st is the last day of shorter months;
    while that lies ahead (a trial) the period's start is counted from. A moment ahead of our clock is not taken yet.
    """
    anchor = _cycles_begin(subscription)
    return anchor if anchor <= now else account.cycle_anchor


def _cycles_begin(subscription: SubscriptionState) -> datetime:
    return min(subscription.billing_anchor, subscription.period_start)


def _mirror(account: Account, subscription: SubscriptionState, plan: PlanKey) -> Mirror:
    return Mirror(
        account_id=account.account_id,
        subscription_id=subscription.subscription_id,
        status=_WORDS.get(subscription.status, subscription.status),
        in_force=subscription.in_force,
        plan_id=plan.plan_id,
        plan_version=plan.version,
        interval=subscription.interval,
        price_nanos=subscription.price_nanos,
        period_start=subscription.period_start,
        period_end=subscription.period_end,
        cancel_at_period_end=subscription.cancel_at_period_end,
        trial_end=subscription.trial_end,
        failing_since=None,
        grace_until=None,
        pending_plan_id="",
        look_at=None,
    )


def _look_at(subscription: SubscriptionState, grace_until: datetime | None, now: datetime) -> datetime:
    """When the clock may change something next; where Stripe is late with what it should have done, in an hour."""
    kept_until = subscription.kept.until if subscription.kept is not None else None
    begins = _cycles_begin(subscription)  # ahead of our clock: the cycles are moved then
    renewal = [subscription.period_end + later for later in (*_DRAFTED, _RENEWAL)]
    moments = (begins, grace_until, kept_until, subscription.trial_end, *renewal)
    return min((moment for moment in moments if moment is not None and moment > now), default=now + _RENEWAL / 2)


def _ended(known: Mirror) -> Mirror:
    """What was known of a subscription that Stripe does not list any more."""
    return replace(known, status="canceled", in_force=False, look_at=None, failing_since=None, grace_until=None)
