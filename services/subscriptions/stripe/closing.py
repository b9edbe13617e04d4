"""Owns that an account which is closed is charged for nothing more: its subscriptions end at Stripe.

What was used and is not billed yet is not billed: who wants that ends the subscription before the account. Asked as
often as there is something to end, Stripe ends each subscription once.
"""

from __future__ import annotations

from contextlib import suppress

import stripe
from prometheus_client import Counter

from services.kit.logs import get_logger
from services.subscriptions.errors import StripeKeyInvalid, SubscriptionsError
from services.subscriptions.stripe import mirror_store
from services.subscriptions.stripe.application import Application
from services.subscriptions.stripe.client import stripe_errors
from services.subscriptions.stripe.parts import StripeParts

_log = get_logger(__name__)

_AT_ONCE = 100
_MOST_DRAFTS = 100

_ENDED = Counter(
    "tollkeeper_subscriptions_of_closed_accounts",
    "Subscriptions of closed accounts, by what became of them: ended, or failed to be",
    ["outcome"],
)


class Closing:
    """Ends what closed accounts subscribe to. Any number of these are safe side by side."""

    def __init__(self, parts: StripeParts, application: Application) -> None:
        self._parts = parts
        self._application = application

    def look(self) -> bool:
        """The job: end what closed accounts subscribe to; False, there is no more until later."""
        after = ""
        while True:
            with self._parts.engine.connect() as connection:
                accounts = mirror_store.closed_and_subscribed(connection, after=after, limit=_AT_ONCE)
            for account_id in accounts:
                self._end_quietly(account_id)
            if len(accounts) < _AT_ONCE:
                return False
            after = accounts[-1]

    def _end_quietly(self, account_id: str) -> None:
        try:
            self._end(account_id)
        except SubscriptionsError as error:
            _ENDED.labels("failed").inc()
            _log.error("a closed account is still subscribed at Stripe", account_id=account_id, reason=error.reason)

    def _end(self, account_id: str) -> None:
        customer_id = self._parts.stripe_customers.find(account_id)
        subscription = self._parts.current.find(customer_id) if customer_id is not None else None
        if subscription is not None:
            with suppress(StripeKeyInvalid), stripe_errors("stop a closed account's drafts", account_id=account_id):
                self._stop_drafts(subscription)
            with stripe_errors("end a closed account's subscription", account_id=account_id):
                self._cancel(subscription)
            _ENDED.labels("ended").inc()
            _log.warning("a closed account is subscribed no more", account_id=account_id, subscription=subscription.id)
        # A further subscription, should there be one, is found by this; it ends the next time.
        self._application.refresh_quietly(account_id, self._parts.clock())

    def _stop_drafts(self, subscription: stripe.Subscription) -> None:
        """Keep Stripe from collecting what it has drafted: with the end it stops collecting only what is final.

        A key that may not write invoices is no reason to leave the subscription as it is.
        """
        invoices = self._parts.access.client.v1.invoices
        listed = invoices.list(params={"subscription": subscription.id, "status": "draft", "limit": _MOST_DRAFTS})
        for draft in listed.data:
            if draft.auto_advance:
                invoices.update(draft.id, params={"auto_advance": False})

    def _cancel(self, subscription: stripe.Subscription) -> None:
        subscriptions = self._parts.access.client.v1.subscriptions
        try:
            subscriptions.cancel(subscription.id, params={"invoice_now": False, "prorate": False})
        except stripe.InvalidRequestError:  # somebody else was quicker
            if subscriptions.retrieve(subscription.id).status != "canceled":
                raise
