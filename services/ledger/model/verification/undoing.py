"""Owns the verification of what was undone: refunds and reversals, never more than their original."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.ledger.model.rows import transaction_id
from services.ledger.model.verification.findings import Findings, Start


@dataclass(frozen=True, slots=True)
class UndoneRows:
    """An entry of which something was undone, nanos.

    `kept`: what is kept of it (None: no row); `named`, `undoing`: what refunds and reversals name, and come to;
    `first`, `first_at`: the first of them (0, None: there is none); `original_at`: the entry's time (None: it is not
    here); `undoable`: the most that may be undone of it.
    """

    account_id: str
    sequence: int
    kept: int | None
    named: str
    undoing: int
    first: int
    first_at: datetime | None
    original_at: datetime | None
    undoable: int


def check_undone(rows: UndoneRows, start: Start, findings: Findings) -> None:
    """Compare what is kept of an entry with what its refunds or reversals come to."""

    def differs(detail: str) -> None:
        findings.add("REFUND_DIFFERS", f"of entry {rows.sequence}: {detail}", rows.first, rows.first_at)

    kept = rows.kept or 0
    if rows.original_at is None:
        if rows.sequence > start.sequence or not rows.sequence:
            differs(f"expected the transaction {rows.named or rows.sequence}, found none")
        elif kept < rows.undoing:  # what undid more of it may be archived with it
            differs(f"expected at least {rows.undoing} undone, found {kept}")
        return
    name = transaction_id(rows.original_at, rows.sequence)
    if rows.named and rows.named != name:
        differs(f"expected {name} named as what is undone, found {rows.named}")
    if kept != rows.undoing:
        differs(f"expected {rows.undoing} undone, found {kept}")
    if rows.undoing > rows.undoable:
        differs(f"expected at most {rows.undoable} undone, found {rows.undoing}")
