"""Owns the verification of an account as a whole: which rows it is fed, in which order, and its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.ledger.model.book import Book, Limit
from services.ledger.model.entry import Entry
from services.ledger.model.rows import GrantRow
from services.ledger.model.verification.findings import BEGINNING, Findings, Start, Verified
from services.ledger.model.verification.grants import Grants
from services.ledger.model.verification.holds import HoldRows, Holds
from services.ledger.model.verification.journal import Journal
from services.ledger.model.verification.keys import KeyRows, check_key
from services.ledger.model.verification.undoing import UndoneRows, check_undone
from services.ledger.model.verification.use import Counts, Use, UseRows


class Verification:
    """One account's. Feed it its entries and its usage in order, its holds, undoings and keys; then `result`."""

    def __init__(
        self,
        book: Book,
        *,
        limits: Iterable[Limit] = (),
        grants: Iterable[GrantRow] = (),
        start: Start = BEGINNING,
        archived_use: Sequence[Counts] = (),
        unreadable: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`limits`: those of keys and workspaces; `archived_use`: what archived usage records come to.

        `unreadable`: reason and detail of what cannot be read of the account's rows, and is left out of them here.
        """
        self._book, self._start = book, start
        self._findings = Findings()
        for reason, detail in unreadable:
            self._findings.add(reason, detail)
        self._journal = Journal(book, start, self._findings)
        self._grants = Grants(book, grants, start, self._findings)
        self._holds = Holds(book, start, self._findings)
        self._use = Use(book, limits, archived_use, start, self._findings)

    def entry(self, entry: Entry) -> None:
        """The next entry, by number."""
        self._journal.entry(entry)
        if entry.grant_uses or entry.expired or entry.available + entry.held:
            self._grants.entry(entry)

    def usage(self, rows: UseRows) -> None:
        """The next usage record, by number, and after them deductions that have none."""
        self._use.record(rows)

    def hold(self, rows: HoldRows) -> None:
        """One hold, in any order."""
        self._holds.hold(rows)
        if rows.row is not None and rows.row.status == "open":
            self._use.hold(rows.row)

    def undone(self, rows: UndoneRows) -> None:
        """One entry that was undone, in any order."""
        check_undone(rows, self._start, self._findings)

    def key(self, rows: KeyRows) -> None:
        """One key of a request, in any order."""
        check_key(rows, self._start, self._findings)

    def result(self) -> Verified:
        """What was found, all rows being read."""
        self._journal.end()
        self._grants.end()
        self._holds.end()
        self._use.end()
        return Verified(self._book.account_id, self._journal.entries, self._findings.first())
