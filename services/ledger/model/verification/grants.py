"""Owns the verification of an account's grants: what was given, taken, and expired of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from services.ledger.model.book import Book, Grant
from services.ledger.model.entry import Entry
from services.ledger.model.rows import GrantRow, sequence_of
from services.ledger.model.verification.findings import Findings, Start


@dataclass(slots=True)
class _Given:
    """A grant's row, and what the journal so far says: whether it was given; nanos left, expired, rolled over."""

    row: GrantRow
    begun: bool
    left: int
    expired: int = 0
    carried: int = 0


class Grants:
    """All grants that the account was ever given: a few numbers of each are kept."""

    def __init__(self, book: Book, rows: Iterable[GrantRow], start: Start, findings: Findings) -> None:
        self._book, self._start, self._findings = book, start, findings
        self._overdrawn = start.uses.get("", 0)
        self._given = {
            row.grant.grant_id: _Given(
                row, begun=row.grant.order <= start.sequence, left=-start.uses.get(row.grant.grant_id, 0)
            )
            for row in rows
        }

    def entry(self, entry: Entry) -> None:
        """The next entry, by number."""
        used = 0
        for grant_id, amount in entry.grant_uses:
            used += amount
            if grant_id:
                self._use(entry, grant_id, amount)
            else:
                self._overdrawn += amount
                if self._overdrawn < 0:
                    self._blame(entry, f"expected no more paid than was overdrawn, found {-self._overdrawn} more")
        if used != -entry.available - entry.held:
            self._blame(entry, f"expected {-entry.available - entry.held} taken from grants, found {used}")
        if entry.type == "expiry" and entry.grant_uses and entry.grant_uses[0][0] in self._given:
            self._given[entry.grant_uses[0][0]].carried -= sum(amount for _, amount in entry.grant_uses[1:])
        if entry.expired:
            # What a reversal takes back expired of the grant that its original gave.
            reversal = f"grant-{sequence_of(entry.original_id)}"
            grant_id = entry.grant_uses[0][0] if entry.expired > 0 and entry.grant_uses else reversal
            given = self._given.get(grant_id)
            if given is None:
                self._blame(entry, f"expected the row of {grant_id}, of which {entry.expired} expired, found none")
            else:
                given.expired += entry.expired

    def _use(self, entry: Entry, grant_id: str, amount: int) -> None:
        given = self._given.get(grant_id)
        if given is None:
            self._blame(entry, f"expected a row of {grant_id}, which it names, found none")
            return
        grant = given.row.grant
        if not given.begun:
            given.begun = True
            if (grant.order, grant.amount) != (entry.sequence, -amount):
                where = f"given by entry {grant.order}"
                self._blame(entry, f"expected {-amount} of {grant_id}, found a row of {grant.amount} {where}")
        given.left -= amount
        if not 0 <= given.left <= grant.amount:
            self._blame(entry, f"expected 0 to {grant.amount} left of {grant_id}, found {given.left}")

    def _blame(self, entry: Entry, detail: str) -> None:
        self._findings.blame(entry, "GRANT_DIFFERS", detail)

    def end(self) -> None:
        """There are no more entries: compare with the account's row and the grants' own."""
        if self._overdrawn != self._book.overdrawn:
            self._findings.add("BALANCE_DIFFERS", f"expected overdrawn {self._overdrawn}, found {self._book.overdrawn}")
        kept = {grant.grant_id: grant for grant in self._book.grants}
        if len(kept) != len(self._book.grants):
            self._differs("expected each grant once in the account's row, found one twice")
        for grant_id in kept.keys() - self._given.keys():
            self._differs(f"expected a row of {grant_id}, which the account's row has, found none")
        for grant_id, given in self._given.items():
            self._compare_expired(grant_id, given)
            if not given.begun:
                self._differs(f"expected entry {given.row.grant.order} to give {grant_id}, found none that does")
            there = kept.get(grant_id)
            if given.left != (there.remaining if there else 0):
                found = there.remaining if there else "nothing"
                self._differs(f"expected {given.left} left of {grant_id} in the account's row, found {found}")
            if there:
                self._compare_words(given, there)

    def _compare_expired(self, grant_id: str, given: _Given) -> None:
        grant, expired = given.row.grant, given.row.expired
        if grant.order > self._start.sequence:
            if expired != given.expired:
                self._differs(f"expected {given.expired} expired of {grant_id}, found {expired}")
        # What expired of it in months that are archived is not known, but not out of its bounds.
        elif not (0 <= expired <= grant.amount and 0 <= expired - given.expired <= grant.amount):
            least = max(0, given.expired)
            self._differs(f"expected {least} to {grant.amount} expired of {grant_id}, found {expired}")

    def _differs(self, detail: str) -> None:
        self._findings.add("GRANT_DIFFERS", detail)

    def _compare_words(self, given: _Given, there: Grant) -> None:
        row = given.row.grant
        # What holds had reserved of it when it expired rolls over later, as far as its cap then still allows.
        now = replace(there, remaining=0, reserved=0, rollover_cap=0)
        if now != replace(row, remaining=0, reserved=0, rollover_cap=0):
            self._differs(f"expected of {row.grant_id} the words of its own row, found others in the account's")
        most = row.rollover_cap - given.carried
        least = 0 if row.order <= self._start.sequence else most  # archived months may have seen some roll over
        if not least <= there.rollover_cap <= most:
            self._differs(
                f"expected {least} to {most} of {row.grant_id} to roll over still, found {there.rollover_cap}"
            )
