"""Owns identifiers: Stripe's prefixes, a mark that they are of the sandbox, and randomness."""

from __future__ import annotations

import secrets
import string
from typing import Final

_ALPHABET: Final = string.ascii_letters + string.digits
# The kinds that requests make, by the prefix of their ids.
PREFIXES: Final = {
    "balance_transaction": "txn",
    "billing.meter": "mtr_test",
    "billing.meter_event": "mevt",
    "billing.meter_event_summary": "mtrusg_test",
    "billing_portal.configuration": "bpc",
    "billing_portal.session": "bps",
    "charge": "ch",
    "checkout.session": "cs_test",
    "credit_note": "cn",
    "customer": "cus",
    "customer_balance_transaction": "cbtxn",
    "dispute": "du",
    "event": "evt",
    "invoice": "in",
    "invoice_payment": "inpay",
    "invoiceitem": "ii",
    "item": "li",
    "line_item": "il",
    "payment_intent": "pi",
    "payment_method": "pm",
    "price": "price",
    "product": "prod",
    "refund": "re",
    "setup_intent": "seti",
    "subscription": "sub",
    "subscription_item": "si",
    "test_helpers.test_clock": "clock",
    "webhook_endpoint": "we",
}


def random_text(length: int) -> str:
    """So many random letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_id(kind: str) -> str:
    """A new object's id, as `sub_1SandboxQ2w…`."""
    return f"{PREFIXES[kind]}_1Sandbox{random_text(16)}"
