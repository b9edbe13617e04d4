"""Owns the verification of an account's journal: its order, its hash chain, its sums."""

from __future__ import annotations

from services.ledger.model.book import Book
from services.ledger.model.entry import Entry
from services.ledger.model.rows import sequence_of
from services.ledger.model.verification.findings import Findings, Start

_SUMS = ("funding", "available", "held", "spent", "expired")


class Journal:
    """The entries so far, and what they add up to."""

    def __init__(self, book: Book, start: Start, findings: Findings) -> None:
        self._book, self._start, self._findings = book, start, findings
        self.entries = 0
        self._last: Entry | None = None
        self._sequence, self._hash, self._at = start.sequence, start.hash, start.archived_before
        self._balance = start.sums.get("available", 0)
        self._sums = [start.sums.get(name, 0) for name in _SUMS]
        # The first entry of the present cycle, and what was spent from it on.
        self._cycle_from = self._cycle_spent = 0

    def entry(self, entry: Entry) -> None:
        """The next entry, by number."""
        self.entries += 1
        findings, sequence = self._findings, entry.sequence
        moved = (entry.funding, entry.available, entry.held, entry.spent, entry.expired)
        if sequence == self._sequence + 1:
            found = entry.chained(self._hash)
            if found != entry.hash:
                findings.blame(entry, "HASH_BROKEN", f"expected hash {found.hex()}, found {entry.hash.hex()}")
            balance = self._balance + entry.available
            if balance != entry.balance_after:
                findings.blame(
                    entry, "BALANCE_DIFFERS", f"expected balance_after {balance}, found {entry.balance_after}"
                )
        else:
            findings.blame(entry, "SEQUENCE_GAP", f"expected entry {self._sequence + 1}, found {sequence}")
        if self._at is not None and entry.created_at < self._at:
            findings.blame(entry, "TIME_GOES_BACK", f"expected no time before {self._at}, found {entry.created_at}")
        if sum(moved):
            findings.blame(entry, "NOT_ZERO_SUM", f"expected postings that sum to 0, found {sum(moved)}")
        # On from what is written: what comes after a broken entry may be sound.
        self._sequence, self._hash, self._balance = sequence, entry.hash, entry.balance_after
        self._at, self._last = entry.created_at, entry
        sums = self._sums
        for index, amount in enumerate(moved):
            sums[index] += amount
        if entry.created_at >= self._book.cycle_start:
            self._count_in_cycle(entry)

    def _count_in_cycle(self, entry: Entry) -> None:
        if not self._cycle_from:
            self._cycle_from = entry.sequence
        # A refund of what an earlier cycle spent does not count.
        if entry.spent > 0 or (entry.spent and sequence_of(entry.original_id) >= self._cycle_from):
            self._cycle_spent += entry.spent

    def end(self) -> None:
        """There are no more entries: compare the sums with the account's row."""
        book, findings = self._book, self._findings
        sequence, created_at = (self._last.sequence, self._last.created_at) if self._last else (0, None)
        if self._sequence != book.sequence:
            detail = (
                f"expected {book.sequence} as the last entry's number, as the account has it, found {self._sequence}"
            )
            findings.add("SEQUENCE_GAP", detail)
        elif self._hash != book.last_hash:
            detail = f"expected {self._hash.hex()}, the last entry's hash, in the account, found {book.last_hash.hex()}"
            findings.add("HASH_BROKEN", detail, sequence, created_at)
        if created_at is not None and book.touched_at < created_at:
            detail = f"expected no time after {book.touched_at}, the account's own, found {created_at}"
            findings.add("TIME_GOES_BACK", detail, sequence, created_at)
        for name, total in zip(_SUMS, self._sums, strict=True):
            there = -book.funded if name == "funding" else getattr(book, name)
            if there != total:
                findings.add("BALANCE_DIFFERS", f"expected {name} {total}, which the entries add up to, found {there}")
        if self._start.whole_since(book.cycle_start) and self._cycle_spent != book.cycle_spent:
            detail = f"expected {self._cycle_spent} spent in this cycle, found {book.cycle_spent}"
            findings.add("BALANCE_DIFFERS", detail)
