"""Owns settlements that the ledger has not taken yet: kept in the proxy's own Postgres until it does.

A hold is ended once whatever happens here: its id is the idempotency key, so sending it twice books it once. So every
step may be done again, by this process or another, and a settlement is let go of only when the ledger has answered.
"""

from services.proxy.outbox.settlements import Settlements
from services.proxy.outbox.store import OutboxStore, insertion

__all__ = ["OutboxStore", "Settlements", "insertion"]
