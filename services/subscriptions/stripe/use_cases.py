"""Owns what can be asked of Stripe for an account, put together."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from services.subscriptions.clock import Clock
from services.subscriptions.errors import SubscriptionUnmovable
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.stripe import mirror_store, request_store
from services.subscriptions.stripe.application import Application
from services.subscriptions.stripe.changes import PlanChanges, Wish
from services.subscriptions.stripe.checkout import Checkout, ReturnUrls
from services.subscriptions.stripe.closing import Closing
from services.subscriptions.stripe.current import SubscriptionView
from services.subscriptions.stripe.invoices import Invoices
from services.subscriptions.stripe.metered_items import MeteredItems
from services.subscriptions.stripe.model import Mirror
from services.subscriptions.stripe.names import MONTH
from services.subscriptions.stripe.parts import StripeParts
from services.subscriptions.stripe.recharge import AutoRecharges
from services.subscriptions.stripe.requests import Answered
from services.subscriptions.worker import ScheduledJob

# How long who asks for a change waits for another one that applies something to the account.
_APPLIED_WITHIN_SECONDS = 2.0
_DELETED_AT_ONCE = 1000
_UPKEEP_SECONDS = 60.0
_FOLLOW_SECONDS = 30.0
_CLOSED_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class StripeUseCases:
    """Pages, changes, invoices, auto-recharge."""

    engine: Engine
    clock: Clock
    application: Application
    checkout: Checkout
    changes: PlanChanges
    invoices: Invoices
    recharges: AutoRecharges
    metered_items: MeteredItems
    closing: Closing

    @classmethod
    def over(cls, parts: StripeParts, application: Application, settings: SubscriptionsSettings) -> StripeUseCases:
        """The use cases over these parts."""
        return cls(
            parts.engine,
            parts.clock,
            application,
            Checkout(parts),
            PlanChanges(parts),
            Invoices(parts),
            AutoRecharges(parts, application, pause_seconds=settings.recharge_seconds),
            MeteredItems(parts),
            Closing(parts, application),
        )

    def kept_subscription(self, account_id: str) -> Mirror | None:
        """The account's newest subscription, as Stripe last told of it."""
        with self.engine.connect() as connection:
            return mirror_store.find_mirror(connection, account_id)

    def update(self, account_id: str, wish: Wish, request_id: str) -> Answered[SubscriptionView]:
        """Move a subscription, or take its end back; what follows holds here too. Raises as `PlanChanges.update`."""
        return self._applied(account_id, self.changes.update(account_id, wish, request_id))

    def cancel(self, account_id: str, *, now: bool, request_id: str) -> Answered[SubscriptionView]:
        """End a subscription; what follows holds here too. Raises as `PlanChanges.cancel`."""
        return self._applied(account_id, self.changes.cancel(account_id, now=now, request_id=request_id))

    def _applied(self, account_id: str, answered: Answered[SubscriptionView]) -> Answered[SubscriptionView]:
        """Apply what Stripe has done, so that the next command finds the account where this one has left it.

        Where that cannot be done now, the event that tells of it does it.
        """
        if not answered.replayed:
            self.application.refresh_quietly(account_id, self.clock(), within_seconds=_APPLIED_WITHIN_SECONDS)
        return answered

    def upgrade(self, account_id: str, plan_id: str, interval: str, urls: ReturnUrls) -> str:
        """Where to go on with an upgrade: a page to subscribe at, or the invoice of the move that was made.

        Raises SubscriptionUnmovable where the plan is a cheaper one, and what `subscribe` and `update` raise.
        """
        upgrades = self.changes.is_upgrade(account_id, plan_id, interval)
        if upgrades is None:
            return self.checkout.subscribe(account_id, plan_id, interval or MONTH, urls, "").answer.url
        if not upgrades:
            raise SubscriptionUnmovable(f"{plan_id} is no upgrade: change the subscription instead")
        moved = self.update(account_id, Wish(plan_id, interval), "").answer
        return self.changes.latest_invoice_url(moved.subscription_id)

    def jobs(self, settings: SubscriptionsSettings, *, configured: bool) -> list[ScheduledJob]:
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
            found.append(ScheduledJob("closed-accounts", self.closing.look, _CLOSED_SECONDS))
        return found
