"""Owns the way to the ledger: its replicas, which of them an account's operations go to, and their batches.

What the ledger refuses is raised as it said it (RemoteError); that it did not answer, or could not just now, is
LedgerUnavailable. Every operation has an idempotency key, so one whose answer was lost may be sent again.
"""

from services.proxy.ledger.ledger import Ledger

__all__ = ["Ledger"]
