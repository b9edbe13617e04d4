"""Owns the verification of an account's usage records and of the use that its limits count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.ledger.model.book import Book, Hold, Limit
from services.ledger.model.rows import transaction_id
from services.ledger.model.verification.findings import Findings, Start


@dataclass(frozen=True, slots=True)
class Counts:
    """What limits count of one call, or of all archived ones of a key in a workspace."""

    key_id: str
    workspace: str
    nanos: int
    tokens: int
    requests: int

    def of(self, unit: str) -> int:
        """In a limit's unit."""
        return self.nanos if unit == "nanos" else self.tokens if unit == "tokens" else self.requests


@dataclass(frozen=True, slots=True)
class UseRows:
    """A usage record with the deduction that names it; either may be missing: `number` or `entry` is 0 then.

    `differing`: the fields that the two should share and do not, with commas; `spent`: the entry's, nanos.
    """

    account_id: str
    number: int
    transaction_id: str
    counted_at: datetime | None
    counts: Counts
    entry: int
    entry_at: datetime | None
    spent: int
    differing: str


@dataclass(slots=True)
class _Tally:
    limit: Limit
    used: int = 0
    held: int = 0


class Use:
    """The usage records so far, and what they and the open holds count against the account's limits."""

    def __init__(
        self, book: Book, limits: Iterable[Limit], archived: Sequence[Counts], start: Start, findings: Findings
    ) -> None:
        self._book, self._start, self._findings = book, start, findings
        self._number = start.usage_number
        self._tallies: dict[tuple[str, str], list[_Tally]] = {}
        for limit in (*book.limits, *limits):
            place = (limit.scope if limit.subject else "", limit.subject)
            self._tallies.setdefault(place, []).append(_Tally(limit))
        for counts in archived:
            for tally in self._counting(counts.key_id, counts.workspace):
                if tally.limit.window == "lifetime":
                    tally.used += counts.of(tally.limit.unit)

    def _counting(self, key_id: str, workspace: str) -> list[_Tally]:
        """The tallies of all limits that a call with this key in this workspace counts against."""
        if not self._tallies:
            return []
        found = list(self._tallies.get(("", ""), ()))
        if key_id:
            found += self._tallies.get(("key", key_id), ())
        if workspace:
            found += self._tallies.get(("workspace", workspace), ())
        return found

    def record(self, rows: UseRows) -> None:
        """The next record, by number, or last a deduction without one."""
        findings = self._findings
        blamed = (rows.entry, rows.entry_at)
        if not rows.number:
            findings.add("USAGE_DIFFERS", "expected its usage record, found none", *blamed)
            return
        if rows.number != self._number + 1:
            findings.add("USAGE_DIFFERS", f"expected usage record {self._number + 1}, found {rows.number}", *blamed)
        self._number = rows.number
        name = transaction_id(rows.entry_at, rows.entry) if rows.entry_at is not None else ""
        if rows.transaction_id != name:
            detail = f"expected it to name transaction {name or '(none)'}, found {rows.transaction_id or '(none)'}"
            findings.add("USAGE_DIFFERS", f"usage record {rows.number}: {detail}", *blamed)
        if rows.counts.nanos != rows.spent:
            detail = f"expected {rows.spent} billed, found {rows.counts.nanos}"
            findings.add("USAGE_DIFFERS", f"usage record {rows.number}: {detail}", *blamed)
        if rows.differing:
            detail = f"expected its entry's {rows.differing}, found another"
            findings.add("USAGE_DIFFERS", f"usage record {rows.number}: {detail}", *blamed)
        for tally in self._counting(rows.counts.key_id, rows.counts.workspace):
            if rows.counted_at is not None and rows.counted_at >= tally.limit.window_start:
                tally.used += rows.counts.of(tally.limit.unit)

    def hold(self, hold: Hold) -> None:
        """A hold that is open."""
        for tally in self._counting(hold.key_id, hold.workspace):
            if tally.limit.counts(hold):
                tally.held += hold.asked[tally.limit.unit]

    def end(self) -> None:
        """There are no more records and holds: compare with the account's row and its limits."""
        if self._number != self._book.usage_sequence:
            detail = f"expected {self._book.usage_sequence} as the last usage record's number, found {self._number}"
            self._findings.add("USAGE_DIFFERS", detail)
        for tallies in self._tallies.values():
            for tally in tallies:
                self._compare(tally)

    def _compare(self, tally: _Tally) -> None:
        limit = tally.limit
        # Where its window began in a month that is archived, there was more.
        whole = limit.window == "lifetime" or self._start.whole_since(limit.window_start)
        if limit.used != tally.used if whole else limit.used < tally.used:
            least = "" if whole else "at least "
            self._differs(limit, f"expected {least}{tally.used} used, found {limit.used}")
        if limit.held != tally.held:
            self._differs(limit, f"expected {tally.held} held, found {limit.held}")

    def _differs(self, limit: Limit, detail: str) -> None:
        self._findings.add("LIMIT_DIFFERS", f"limit {limit.limit_id}: {detail}")
