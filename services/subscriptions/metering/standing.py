"""Owns whether the ledger has stopped an account: suspending and closing are said there, and nobody is told of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from services.kit.bounded import keep
from services.subscriptions.clients import LedgerClient

# So long an answer is believed, and the ledger waited for: whoever checks a quota does so before each piece of work.
_BELIEVED_SECONDS = 1.0
_MAX_KEPT = 10_000


class LedgerStandings:
    """Accounts' statuses at the ledger, each asked for at most once a second. Safe to share between threads."""

    def __init__(self, ledger: LedgerClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, str]] = {}

    def of(self, account_id: str) -> str:
        """`open`, `suspended` or `closed`; empty where the ledger cannot be asked now or does not know it yet."""
        known = self._kept.get(account_id)
        if known is not None and self._clock() - known[0] < _BELIEVED_SECONDS:
            return known[1]
        status = self._ledger.status(account_id, timeout_seconds=_BELIEVED_SECONDS)
        with self._lock:
            keep(self._kept, account_id, (self._clock(), status), at_most=_MAX_KEPT)
        return status
