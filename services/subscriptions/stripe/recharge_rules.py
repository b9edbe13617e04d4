"""Owns the rules of auto-recharge: when credit is bought, and when it may be bought again. Pure.

Credit is bought once for each time that the balance falls below the threshold. A purchase disarms the rule; it is armed
again when the balance is seen at or above the threshold, or when the credit has arrived and was enough to lift the
balance there: between two looks it may have been there and fallen again.

What is refunded or disputed of any payment disarms it too: the balance falls by what is taken back then, and neither
who was given money back nor who disputes a payment wants another one made.

Credit that is already on its way is waited for: at a renewal the balance is without the ended cycle's credit for
seconds, and nobody wants to buy some for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from services.subscriptions.stripe.model import Mirror

# Within which Stripe begins the next period and tells of it, when all is well.
_RENEWS_WITHIN = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class RechargeRule:
    """When to buy how much credit; a `monthly_cap_nanos` of 0 is none. `armed`: the next fall brings a purchase."""

    account_id: str
    enabled: bool
    threshold_nanos: int
    amount_nanos: int
    monthly_cap_nanos: int
    armed: bool


@dataclass(frozen=True, slots=True)
class Recharge:
    """One purchase. `lifts`: it is enough to lift the balance to the threshold. `status` is that of the table."""

    account_id: str
    request_id: str
    amount_nanos: int
    status: str
    lifts: bool
    customer_id: str
    payment_method_id: str
    payment_intent_id: str
    created_at: datetime


class Decision(Enum):
    """What a look at the balance brings."""

    NOTHING = "nothing"
    ARM = "arm"
    BUY = "buy"
    CAPPED = "capped"


def decide(rule: RechargeRule, available_nanos: int, bought_this_month_nanos: int) -> Decision:
    """What to do with nothing under way, at this balance, having bought so much in the present UTC month."""
    if available_nanos >= rule.threshold_nanos:
        return Decision.NOTHING if rule.armed else Decision.ARM
    if not (rule.enabled and rule.armed):
        return Decision.NOTHING
    if rule.monthly_cap_nanos and bought_this_month_nanos + rule.amount_nanos > rule.monthly_cap_nanos:
        return Decision.CAPPED
    return Decision.BUY


def lifts(rule: RechargeRule, available_nanos: int) -> bool:
    """Whether a purchase lifts this balance to the threshold."""
    return available_nanos + rule.amount_nanos >= rule.threshold_nanos


def is_renewing(mirror: Mirror | None, now: datetime) -> bool:
    """Whether a subscription's period has just ended, and the one that follows is not known here yet."""
    if mirror is None or not mirror.in_force or mirror.cancel_at_period_end:
        return False
    return mirror.period_end <= now < mirror.period_end + _RENEWS_WITHIN


def month_start(now: datetime) -> datetime:
    """The start of the UTC month."""
    return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
