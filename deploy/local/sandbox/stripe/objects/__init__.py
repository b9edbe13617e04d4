"""Owns Stripe's resources, one module each: their shape, and the requests that read and change them.

Importing this package fills the tables of routes, jobs and shapes.
"""

from deploy.local.sandbox.stripe.objects import (  # noqa: F401 (each registers what it has)
    account,
    charges,
    checkout_completion,
    checkout_sessions,
    credit_notes,
    customers,
    disputes,
    events,
    invoice_items,
    invoices,
    meters,
    payment_intents,
    payment_methods,
    portal,
    prices,
    products,
    setup_intents,
    subscription_items,
    subscriptions,
    test_clocks,
)
