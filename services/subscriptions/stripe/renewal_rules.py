"""Owns which invoices of renewals are collected before Stripe would do it. Pure.

When a period ends Stripe drafts the renewal's invoice and leaves it a draft for about an hour, so that others may add
to it; then it makes it final and charges the card. The credit of the next cycle waits for that.

    such an invoice of a subscription of ours                        is
    ───────────────────────────────────────────────────────────────  ─────────────────────────────────────────────
    a draft that Stripe would make final by itself                   made final and, where Stripe charges, charged
    final, to be charged by Stripe, and not charged yet              charged: who made it final got no further
    of a subscription with items, or with lines, for what was used   left: use of the ended period may still come in
    of a subscription whose collection is paused                     left: Stripe would void it, or write it off
    of a subscription that has ended, be it just now                 left: nobody wants what it is for any more
    that Stripe does not advance by itself (`auto_advance` off)      left: somebody has it in hand
    once charged, with whatever outcome                              left: what follows is Stripe's, as ever
    for anything but a renewal: an upgrade, an end, by hand          left
"""

from __future__ import annotations

from collections.abc import Collection

import stripe

from services.subscriptions.stripe.model import IN_FORCE
from services.subscriptions.stripe.names import CURRENCY

# What of an invoice has to be read with it.
READ_WITH_IT = "parent.subscription_details.subscription"
RENEWAL = "subscription_cycle"
DRAFT, OPEN = "draft", "open"


def is_waiting(invoice: stripe.Invoice) -> bool:
    """Whether a renewal's invoice, read with its subscription (`READ_WITH_IT`), is still to be collected."""
    details = invoice.parent.subscription_details if invoice.parent is not None else None
    subscription = details.subscription if details is not None else None
    return isinstance(subscription, stripe.Subscription) and _goes_on(subscription) and is_uncollected(invoice)


def _goes_on(subscription: stripe.Subscription) -> bool:
    return subscription.status in IN_FORCE and subscription.pause_collection is None


def is_uncollected(invoice: stripe.Invoice) -> bool:
    """Whether it is a renewal's, and Stripe has still to make it final or to charge it for the first time."""
    return (
        invoice.billing_reason == RENEWAL
        and bool(invoice.auto_advance)
        and invoice.currency == CURRENCY
        and (invoice.status == DRAFT or (invoice.status == OPEN and _is_charged(invoice) and not invoice.attempted))
    )


def _is_charged(invoice: stripe.Invoice) -> bool:
    """Whether Stripe charges the customer's card for it, rather than sending it to be paid."""
    return invoice.collection_method == "charge_automatically"


def uncollected_renewal(
    subscription: stripe.Subscription, newest: stripe.Invoice | None, metered: Collection[stripe.SubscriptionItem]
) -> str:
    """The invoice of a subscription's last renewal, where it is to be collected; empty where there is none.

    `newest` is the subscription's newest invoice, `metered` are its items for what is used.
    """
    if newest is None or metered or not _goes_on(subscription) or not is_uncollected(newest):
        return ""
    return newest.id
