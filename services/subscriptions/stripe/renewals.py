"""Owns the collecting of a renewal as soon as Stripe has drafted it: made final and, where Stripe charges, charged.

What is asked follows from the invoice as it is now, read just before, and is asked under keys made from its id: so it
takes effect once, however often and by however many it is asked. What does not succeed is Stripe's to do, in the hour
in which it would have done it anyway.
"""

from __future__ import annotations

from enum import Enum

import stripe
from prometheus_client import Counter

from services.kit.logs import get_logger
from services.subscriptions.clients import LedgerClient
from services.subscriptions.errors import PaymentFailed, PaymentMethodMissing, StripeUnavailable, SubscriptionsError
from services.subscriptions.model.account import Account
from services.subscriptions.stripe.client import StripeAccess, stripe_errors
from services.subscriptions.stripe.gathering import Seen
from services.subscriptions.stripe.model import SubscriptionState
from services.subscriptions.stripe.names import idempotency_key
from services.subscriptions.stripe.reading import MissingObjectError, StripeReader, UnreadableObjectError
from services.subscriptions.stripe.renewal_rules import DRAFT, READ_WITH_IT, is_waiting

_log = get_logger(__name__)

_RENEWALS = Counter(
    "tollkeeper_subscriptions_renewals",
    "Invoices of renewals that were to be collected early, by what became of them",
    ["outcome"],
)


class Outcome(Enum):
    """What became of an invoice; the words are the metric's."""

    COLLECTED = "collected"  # made final, and paid where Stripe charges for it
    DECLINED = "declined"
    OVERTAKEN = "overtaken"  # somebody else was quicker
    LEFT = "left"  # it bills what was used
    LATER = "later"  # no answer: to be tried again
    REFUSED = "refused"  # Stripe will do it by itself, or somebody has to look

    @property
    def is_news(self) -> bool:
        """Whether Stripe has something else to say now than before."""
        return self not in (Outcome.LEFT, Outcome.LATER)


class Renewals:
    """Collects; `enabled` False: leaves all to Stripe. The ledger is asked whether the account is closed by now."""

    def __init__(self, access: StripeAccess, reader: StripeReader, ledger: LedgerClient, *, enabled: bool) -> None:
        self._access = access
        self._reader = reader
        self._ledger = ledger
        self._enabled = enabled

    def collect_waiting(self, account: Account, seen: Seen) -> Outcome | None:
        """Collect the renewal that the account's credit waits for; None where none is, or it is left to Stripe.

        Raises nothing that Stripe may answer.
        """
        found = seen.subscription
        if not self._enabled or found is None or not found.renewal_id or not found.in_force or not account.may_call:
            return None
        if not _sells_credit(seen, found) or self._ledger.is_closed(account.account_id):
            return None
        return self._collect(account.account_id, found.renewal_id)

    def _collect(self, account_id: str, invoice_id: str) -> Outcome:
        try:
            outcome = self._asked(account_id, invoice_id)
        except (PaymentFailed, PaymentMethodMissing):
            outcome = Outcome.DECLINED
        except StripeUnavailable:
            outcome = Outcome.LATER
        except MissingObjectError:
            outcome = Outcome.OVERTAKEN
        except (SubscriptionsError, UnreadableObjectError) as error:
            _log.warning("renewal is left to Stripe", account_id=account_id, invoice=invoice_id, error=str(error))
            outcome = Outcome.REFUSED
        _RENEWALS.labels(outcome.value).inc()
        _log.info("a renewal was waiting", account_id=account_id, invoice=invoice_id, outcome=outcome.value)
        return outcome

    def _asked(self, account_id: str, invoice_id: str) -> Outcome:
        invoice = self._reader.renewal(invoice_id)
        if not is_waiting(invoice):
            return Outcome.OVERTAKEN
        if self._reader.bills_use(invoice):
            return Outcome.LEFT
        if invoice.status == DRAFT:
            invoice = self._finalized(account_id, invoice_id)
        if is_waiting(invoice):  # not where it is paid by now, is sent, or somebody has ended the subscription
            self._pay(account_id, invoice_id)
        return Outcome.COLLECTED

    def _finalized(self, account_id: str, invoice_id: str) -> stripe.Invoice:
        """Make it final. Stripe goes on advancing it: what is not charged here is charged there."""
        with stripe_errors("make a renewal final", account_id=account_id, invoice=invoice_id):
            return self._access.client.v1.invoices.finalize_invoice(
                invoice_id,
                params={"auto_advance": True, "expand": [READ_WITH_IT]},
                options={"idempotency_key": idempotency_key(account_id, "finalize_renewal", invoice_id)},
            )

    def _pay(self, account_id: str, invoice_id: str) -> None:
        with stripe_errors("charge a renewal", account_id=account_id, invoice=invoice_id):
            self._access.client.v1.invoices.pay(
                invoice_id, options={"idempotency_key": idempotency_key(account_id, "pay_renewal", invoice_id)}
            )


def _sells_credit(seen: Seen, found: SubscriptionState) -> bool:
    """Whether the plan's price brings credit: for the others nobody waits."""
    return seen.plans[found.plan].kind == "subscription"
