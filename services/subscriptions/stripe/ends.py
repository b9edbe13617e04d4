"""Owns how the end of a subscription is read and said. Pure.

Stripe has two ways to say that a subscription ends with its period: `cancel_at_period_end`, which is what we say, and
the moment itself, `cancel_at`. Its own pages say the moment, and that alone, of subscriptions that are billed flexibly,
as ours are. Source: docs.stripe.com/billing/subscriptions/billing-mode/compare, on cancellations in the portal.
"""

from __future__ import annotations

import stripe


def ends_with_period(subscription: stripe.Subscription, period_end: int) -> bool:
    """Whether no period follows the one that ends at `period_end` (seconds), whichever way that was said."""
    cancel_at = subscription.cancel_at
    return subscription.cancel_at_period_end or (cancel_at is not None and cancel_at <= period_end)


def end_said(
    subscription: stripe.Subscription, period_end: int, *, is_taken_back: bool, is_paid: bool
) -> stripe.params.SubscriptionUpdateParams:
    """What a change has to say of the end: nothing, that it is taken back, or that it goes with a move that is paid.

    It is taken back in the way in which it was said. A moment would stay where it is when a move begins a longer
    period, and the customer would pay for a year that ends with the month: the period's end moves along.
    """
    if not ends_with_period(subscription, period_end):
        return {}
    if is_taken_back:
        return {"cancel_at_period_end": False} if subscription.cancel_at_period_end else {"cancel_at": ""}
    return {"cancel_at_period_end": True} if is_paid and not subscription.cancel_at_period_end else {}
