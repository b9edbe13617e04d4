"""Owns what Stripe's objects say in our terms, of each by itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import stripe

from services.subscriptions.stripe.model import KeptPlan, PlanKey
from services.subscriptions.stripe.names import (
    KEEPS_PLAN,
    KEEPS_PLAN_VERSION,
    KEEPS_UNTIL,
    PriceName,
    read_price_key,
)


def price_name(price: stripe.Price) -> PriceName | None:
    """What a price is called: by its lookup key or, where that was moved to another one, by its metadata."""
    name = read_price_key(price.lookup_key)
    if name is not None or price.recurring is None:
        return name
    return None if is_metered(price) else plan_said(price.metadata.to_dict(), price.recurring.interval)


def plan_said(metadata: Mapping[str, Any], interval: str) -> PriceName | None:
    """The plan version that metadata names, at an interval; None where it names none."""
    if "plan" not in metadata or "plan_version" not in metadata or not str(metadata["plan_version"]).isdecimal():
        return None
    return PriceName(str(metadata["plan"]), int(metadata["plan_version"]), interval)


def own_item(subscription: stripe.Subscription) -> stripe.SubscriptionItem | None:
    """The item for the plan's own price: the first one that is called so, wherever others were put beside it.

    Where somebody else made its price it is the first that is not for use; None where there is no such item.
    """
    fixed = [item for item in subscription.items.data if not is_metered(item.price)]
    named = (item for item in fixed if price_name(item.price) is not None)
    return next(named, fixed[0] if fixed else None)


def plan_of(subscription: stripe.Subscription) -> PriceName | None:
    """The plan version and interval that a subscription is for; None where it is for something else than a plan.

    By its own price or, where somebody else made that, by the subscription's own word.
    """
    own = own_item(subscription)
    if own is None or own.price.recurring is None:
        return None
    return price_name(own.price) or plan_said(subscription.metadata.to_dict(), own.price.recurring.interval)


def kept_plan(metadata: Mapping[str, Any]) -> KeptPlan | None:
    """The dearer plan that a subscription's metadata says is kept; None where it says nothing of one."""
    named = (KEEPS_PLAN, KEEPS_PLAN_VERSION, KEEPS_UNTIL)
    said = [str(metadata[name]) if name in metadata else "" for name in named]
    plan_id, version, until = said
    if not plan_id or not version.isdecimal() or not until.isdecimal():
        return None
    return KeptPlan(PlanKey(plan_id, int(version)), moment(int(until)))


def is_metered(price: stripe.Price) -> bool:
    """Whether a price is for what was used."""
    return price.recurring is not None and price.recurring.usage_type == "metered"


def inclusive_tax(line: stripe.InvoiceLineItem) -> int:
    """What of a line's amount is tax, in cents."""
    return sum(tax.amount for tax in line.taxes or [] if tax.tax_behavior == "inclusive")


def id_of(value: object) -> str:
    """An id that may stand for its object, or be expanded to it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else str(getattr(value, "id", ""))


def moment(seconds: int) -> datetime:
    """A moment of Stripe's."""
    return datetime.fromtimestamp(seconds, UTC)
