"""Owns the verification of an account's holds: each with what the journal and the usage records say of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from services.ledger.model.book import Book, Hold
from services.ledger.model.verification.findings import Findings, Start


@dataclass(frozen=True, slots=True)
class HoldRows:
    """One hold: its row, if it is there, and the sums of the entries and usage records that name it; nanos.

    `ended`: it ended so long ago that only its name is kept. `made`: how many entries made it; `set_aside`: what they
    and its extensions set aside; `held`: what all entries left of that; `charges`, `charged`: its deductions;
    `records`: its usage records; `first`, `first_at`: the first of the entries.
    """

    account_id: str
    hold_id: str
    row: Hold | None
    ended: bool
    made: int
    set_aside: int
    held: int
    charges: int
    charged: int
    records: int
    first: int
    first_at: datetime | None


class Holds:
    """The holds so far, and what the open ones add up to."""

    def __init__(self, book: Book, start: Start, findings: Findings) -> None:
        self._book, self._start, self._findings = book, start, findings
        self._held = self._unbacked = 0
        self._reserved: Counter[str] = Counter()

    def hold(self, rows: HoldRows) -> None:
        """One hold, in any order."""
        hold = rows.row
        if hold is None:
            self._gone(rows)
            return
        whole = hold.sequence > self._start.sequence
        if whole and (rows.made, rows.first) != (1, hold.sequence):
            self._differs(
                rows, f"expected entry {hold.sequence} to make it, found {rows.made} that do, {rows.first} first"
            )
        if rows.set_aside != hold.amount if whole else not 0 <= rows.set_aside <= hold.amount:
            self._differs(rows, f"expected an amount of {rows.set_aside}, found {hold.amount}")
        if hold.status == "open":
            self._open(rows, hold, whole=whole)
        else:
            self._ended(rows, hold, whole=whole)

    def _open(self, rows: HoldRows, hold: Hold, *, whole: bool) -> None:
        if whole and rows.held != hold.amount:
            self._differs(rows, f"expected it ended, as {rows.held} of it are held, found it open")
        if rows.charges or rows.records or hold.settled:
            self._differs(rows, "expected an open hold to be charged nothing, found it charged")
        backed = sum(amount for _, amount in hold.reservations)
        if backed + hold.unbacked != hold.amount:
            self._differs(rows, f"expected {hold.amount} backed or unbacked, found {backed} and {hold.unbacked}")
        self._held += hold.amount
        self._unbacked += hold.unbacked
        for grant_id, amount in hold.reservations:
            self._reserved[grant_id] += amount

    def _ended(self, rows: HoldRows, hold: Hold, *, whole: bool) -> None:
        if hold.status not in ("settled", "released", "expired"):
            self._differs(rows, f"expected a status, found {hold.status!r}")
        if whole and rows.held:
            self._differs(rows, f"expected it open, as {rows.held} of it are held, found it {hold.status}")
        # Where its end is archived, so is its charge.
        if (hold.end_sequence > self._start.sequence or not hold.end_sequence) and rows.charged != hold.settled:
            self._differs(rows, f"expected settled {rows.charged}, found {hold.settled}")
        if rows.charges > 1 or rows.records > 1:
            self._differs(
                rows, f"expected it settled once, found {rows.charges} deductions, {rows.records} usage records"
            )
        expected = int(hold.status == "settled")
        recorded = hold.ended_at is not None and self._start.whole_since(hold.ended_at)
        if recorded and rows.records < expected:
            self._differs(rows, "expected its usage record, found none")
        if rows.records > expected == 0:
            self._differs(rows, f"expected no usage record of it, as it was {hold.status}, found {rows.records}")

    def _gone(self, rows: HoldRows) -> None:
        if not rows.ended:
            self._differs(rows, "expected its row, found none")
        elif (rows.made and rows.held) or rows.charges > 1 or rows.records > 1:
            self._differs(
                rows, f"expected it ended and settled once at most, found {rows.held} held, {rows.charges} deductions"
            )

    def _differs(self, rows: HoldRows, detail: str) -> None:
        self._findings.add("HOLD_DIFFERS", f"hold {rows.hold_id}: {detail}", rows.first, rows.first_at)

    def end(self) -> None:
        """There are no more holds: compare their sums with the account's row."""
        book, findings = self._book, self._findings
        if self._held != book.held:
            findings.add("HOLD_DIFFERS", f"expected {self._held} held, which open holds add up to, found {book.held}")
        if self._unbacked != book.unbacked:
            findings.add(
                "HOLD_DIFFERS", f"expected {self._unbacked} unbacked, as open holds are, found {book.unbacked}"
            )
        for grant in book.grants:
            reserved = self._reserved.pop(grant.grant_id, 0)
            if reserved != grant.reserved:
                detail = f"expected {reserved} reserved of {grant.grant_id}, as open holds do, found {grant.reserved}"
                findings.add("GRANT_DIFFERS", detail)
        for grant_id in self._reserved:
            findings.add(
                "GRANT_DIFFERS", f"expected {grant_id} in the account's row, as open holds reserve it, found none"
            )
