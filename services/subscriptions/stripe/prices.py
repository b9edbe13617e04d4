"""Owns the finding of Stripe's prices by what set-up called them."""

from __future__ import annotations

from services.subscriptions.errors import StripeCatalogueMissing
from services.subscriptions.model.plan import Plan
from services.subscriptions.stripe.catalogue import price_keys
from services.subscriptions.stripe.client import StripeAccess, stripe_errors


class PriceLookup:
    """Stripe's prices by what they are called."""

    def __init__(self, access: StripeAccess) -> None:
        self._access = access

    def of_plan(self, plan: Plan, interval: str) -> list[str]:
        """The prices that a subscription to a plan is made of, the plan's own first. Raises StripeCatalogueMissing."""
        keys = list(price_keys(plan, interval))
        client = self._access.client
        with stripe_errors("look up prices", plan=plan.plan_id):
            listed = client.v1.prices.list(params={"lookup_keys": keys, "active": True, "limit": 100})
        found = {price.lookup_key: price.id for price in listed.data}
        missing = [key for key in keys if key not in found]
        if missing:
            raise StripeCatalogueMissing(f"Stripe has no price {missing[0]}", plan=plan.plan_id)
        return [found[key] for key in keys]
