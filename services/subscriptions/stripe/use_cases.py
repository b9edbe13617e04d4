"""Owns what can be asked of Stripe for an account, put together."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from services.subscriptions.errors import SubscriptionUnmovable
from services.subscriptions.settings import Settings
from services.subscriptions.stripe import mirror_store, request_store
from services.subscriptions.stripe.application import Application
from services.subscriptions.stripe.changes import PlanChanges, Wish
from services.subscriptions.stripe.checkout import Checkout, ReturnUrls
from services.subscriptions.stripe.invoices import Invoices
from services.subscriptions.stripe.metered_items import MeteredItems
from services.subscriptions.stripe.model import Mirror
from services.subscriptions.stripe.names import MONTH
from services.subscriptions.stripe.parts import StripeParts
from services.subscriptions.stripe.recharge import AutoRecharges
from services.subscriptions.worker import ScheduledJob

_DELETED_AT_ONCE = 1000
_UPKEEP_SECONDS = 60.0
_FOLLOW_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class StripeUseCases:
    """Pages, changes, invoices, auto-recharge."""

    engine: Engine
    checkout: Checkout
    changes: PlanChanges
    invoices: Invoices
    recharges: AutoRecharges
    metered_items: MeteredItems

    @classmethod
    def over(cls, parts: StripeParts, application: Application, settings: Settings) -> StripeUseCases:
        """The use cases over these parts."""
        return cls(
            parts.engine,
            Checkout(parts),
            PlanChanges(parts),
            Invoices(parts),
            AutoRecharges(parts, application, pause_seconds=settings.recharge_seconds),
            MeteredItems(parts),
        )

    def kept_subscription(self, account_id: str) -> Mirror | None:
        """The account's newest subscription, as Stripe last told of it."""
        with self.engine.connect() as connection:
            return mirror_store.find_mirror(connection, account_id)

    def upgrade(self, account_id: str, plan_id: str, interval: str, urls: ReturnUrls) -> str:
        """Where to go on with an upgrade: a page to subscribe at, or the invoice of the move that was made.

        Raises SubscriptionUnmovable where the plan is a cheaper one, and what `subscribe` and `update` raise.
        """
        upgrades = self.changes.is_upgrade(account_id, plan_id, interval)
        if upgrades is None:
            return self.checkout.subscribe(account_id, plan_id, interval or MONTH, urls, "").answer.url
        if not upgrades:
            raise SubscriptionUnmovable(f"{plan_id} is no upgrade: change the subscription instead")
        moved = self.changes.update(account_id, Wish(plan_id, interval), "").answer
        return self.changes.latest_invoice_url(moved.subscription_id)

    def jobs(self, settings: Settings, *, configured: bool) -> list[ScheduledJob]:
        """The background jobs: what asks Stripe, where Stripe is set up, and the deletion of old requests."""

        def upkeep() -> bool:
            with self.engine.begin() as connection:
                deleted = request_store.delete_old_requests(
                    connection, older_than_days=settings.request_retention_days, limit=_DELETED_AT_ONCE
                )
            return deleted == _DELETED_AT_ONCE

        found = [ScheduledJob("stripe-requests-upkeep", upkeep, _UPKEEP_SECONDS)]
        if configured:
            found.append(ScheduledJob("auto-recharge", self.recharges.look_next, settings.poll_seconds))
            found.append(ScheduledJob("metered-items", self.metered_items.look, _FOLLOW_SECONDS))
        return found
