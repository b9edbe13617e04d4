"""Owns what the use cases that ask Stripe share."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.clock import Clock
from services.subscriptions.service.customers import Customers
from services.subscriptions.stripe.client import StripeAccess
from services.subscriptions.stripe.current import CurrentSubscriptions
from services.subscriptions.stripe.customers import StripeCustomers
from services.subscriptions.stripe.prices import PriceLookup


@dataclass(frozen=True, slots=True)
class StripeParts:
    """The database, Stripe's client, and what is read with it."""

    engine: Engine
    access: StripeAccess
    customers: Customers
    stripe_customers: StripeCustomers
    current: CurrentSubscriptions
    prices: PriceLookup
    clock: Clock

    @classmethod
    def over(
        cls, engine: Engine, access: StripeAccess, customers: Customers, plans: PlanCatalogue, clock: Clock
    ) -> StripeParts:
        """The parts over these."""
        return cls(
            engine,
            access,
            customers,
            StripeCustomers(engine, access, clock=clock),
            CurrentSubscriptions(access, plans),
            PriceLookup(access),
            clock,
        )
