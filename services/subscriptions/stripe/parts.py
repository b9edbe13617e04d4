"""Owns what the use cases that ask Stripe share."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from services.subscriptions.clients import LedgerClient, PlanCatalogue
from services.subscriptions.clock import Clock
from services.subscriptions.errors import AccountStopped
from services.subscriptions.model.account import Account
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
    ledger: LedgerClient
    clock: Clock

    @classmethod
    def over(
        cls,
        engine: Engine,
        access: StripeAccess,
        customers: Customers,
        plans: PlanCatalogue,
        ledger: LedgerClient,
        *,
        clock: Clock,
    ) -> StripeParts:
        """The parts over these."""
        return cls(
            engine,
            access,
            customers,
            StripeCustomers(engine, access, clock=clock),
            CurrentSubscriptions(access, plans),
            PriceLookup(access),
            ledger,
            clock,
        )

    def paying(self, account_id: str) -> Account:
        """An account for which something may be bought; one that is suspended may pay what it owes.

        Closed it is at the ledger. Where that cannot be asked now it counts as open: nobody is kept from paying.
        Raises AccountNotFound, AccountStopped.
        """
        account = self.customers.get(account_id)
        if account.status == "closed" or self.ledger.is_closed(account_id):
            raise AccountStopped(f"account {account_id} is closed")
        return account
