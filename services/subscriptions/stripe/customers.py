"""Owns which customer of Stripe's an account is; one is made when it is first needed."""

from __future__ import annotations

import stripe
from sqlalchemy import Engine

from services.subscriptions.clock import Clock
from services.subscriptions.model.account import Account
from services.subscriptions.stripe import mirror_store, names, request_store
from services.subscriptions.stripe.client import StripeAccess, stripe_errors

_KEY_SECONDS = 600


class StripeCustomers:
    """Accounts as customers of Stripe's."""

    def __init__(self, engine: Engine, access: StripeAccess, *, clock: Clock) -> None:
        self._engine = engine
        self._access = access
        self._clock = clock

    def find(self, account_id: str) -> str | None:
        """The customer's id, None where the account has never been one."""
        with self._engine.connect() as connection:
            return mirror_store.customer_of(connection, account_id) or None

    def ensure(self, account: Account) -> str:
        """The customer's id, made now if need be. Raises what `stripe_errors` says, StripeNotConfigured.

        One that was deleted at Stripe's dashboard is a customer no more, though no event has told of it yet. Two that
        make it at once get the same one from Stripe, by the idempotency key. That is another one every ten minutes: a
        fault of Stripe's is the answer to a key for a day, and nobody could buy anything so long. Should two be made,
        the first that is kept here is the customer, and nothing is ever asked for the other.
        """
        known = self.find(account.account_id)
        if known is not None and not self._is_deleted(known):
            return known
        if known is not None:
            with self._engine.begin() as connection:
                mirror_store.end_customer(connection, known)
                mirror_store.look_by(connection, account.account_id, self._clock())
        with self._engine.connect() as connection:
            number = request_store.count_customers(connection, account.account_id) + 1
        # Looked for again after the counting: one made between the two would make the number that of a further one.
        known = self.find(account.account_id)
        if known is not None:
            return known
        made = self._make(account, number)
        with self._engine.begin() as connection:
            mirror_store.insert_customer(connection, made.id, account.account_id)
        kept = self.find(account.account_id)
        assert kept is not None
        return kept

    def _is_deleted(self, customer_id: str) -> bool:
        with stripe_errors("read a customer", customer=customer_id):
            found = self._access.client.v1.customers.retrieve(customer_id)
        return bool(getattr(found, "deleted", False))

    def _make(self, account: Account, number: int) -> stripe.Customer:
        params: stripe.params.CustomerCreateParams = {
            "metadata": {**names.OURS, "account_id": account.account_id},
            "name": account.display_name or account.account_id,
        }
        if account.email:
            params["email"] = account.email
        key = names.idempotency_key(
            account.account_id, "customer", f"{number}:{self._clock().timestamp() // _KEY_SECONDS:.0f}"
        )
        client = self._access.client
        with stripe_errors("create a customer", account_id=account.account_id):
            return client.v1.customers.create(params=params, options={"idempotency_key": key})
