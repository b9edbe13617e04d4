"""Owns the verification of idempotency keys: each entry of a request has its key kept, and each key kept its entry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.ledger.model.verification.findings import Findings, Start


@dataclass(frozen=True, slots=True)
class KeyRows:
    """A request's key: the entry that names it, and the number of the entry that is kept with it.

    0: none, and then `entry_at` is None.
    """

    account_id: str
    request_id: str
    entry: int
    entry_at: datetime | None
    kept: int


def check_key(rows: KeyRows, start: Start, findings: Findings) -> None:
    """Compare a key with its entry: where it is lost, the same request is done a second time."""
    if rows.entry == rows.kept or (not rows.entry and rows.kept <= start.sequence):
        return
    expected = f"entry {rows.entry} kept as what it did" if rows.entry else f"entry {rows.kept} written by it"
    found = rows.kept if rows.entry and rows.kept else "none"
    findings.add(
        "KEY_DIFFERS", f"request {rows.request_id!r}: expected {expected}, found {found}", rows.entry, rows.entry_at
    )
