"""Owns what metering reads of Stripe's side of an account: its customer, and the grace after a failed payment."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import Engine, select

from services.subscriptions.stripe.tables import stripe_customers, subscriptions


class KeptBillingRecords:
    """Billing records as they were last heard of from Stripe; nobody's, in a suite without it. See BillingRecords."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def customer_ids(self, account_ids: Collection[str]) -> Mapping[str, str]:
        """See BillingRecords. By `stripe_customers_of_account`."""
        statement = select(stripe_customers.c.account_id, stripe_customers.c.customer_id).where(
            stripe_customers.c.account_id.in_(sorted(account_ids)), stripe_customers.c.deleted_at.is_(None)
        )
        with self._engine.connect() as connection:
            return {row.account_id: row.customer_id for row in connection.execute(statement)}

    def grace_until(self, account_id: str) -> datetime | None:
        """See BillingRecords. By primary key."""
        statement = select(subscriptions.c.grace_until).where(subscriptions.c.account_id == account_id)
        with self._engine.connect() as connection:
            moment: datetime | None = connection.execute(statement).scalar()
        return moment
