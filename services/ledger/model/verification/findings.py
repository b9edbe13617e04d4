"""Owns what a verification finds, and where an account's rows begin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.ledger.model.entry import Entry
from services.ledger.model.rows import transaction_id

MAX_FINDINGS = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `sequence` and `transaction_id` name the entry to blame; 0 and empty: none is."""

    reason: str
    sequence: int
    transaction_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of an account: how many entries were read, and what is wrong, the first broken entry first."""

    account_id: str
    entries: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Where an account's rows begin: what its archived months add up to, by journal column and by grant; nanos."""

    sequence: int = 0
    hash: bytes = b""
    sums: Mapping[str, int] = field(default_factory=dict)
    uses: Mapping[str, int] = field(default_factory=dict)
    usage_number: int = 0
    archived_before: datetime | None = None

    def whole_since(self, moment: datetime) -> bool:
        """Whether everything since a moment is here."""
        return self.archived_before is None or moment >= self.archived_before


BEGINNING = Start()


class Findings:
    """What was found of one account: of each reason the first hundred."""

    def __init__(self) -> None:
        self._broken: list[Finding] = []
        self._others: list[Finding] = []
        self._counts: Counter[str] = Counter()

    def blame(self, entry: Entry, reason: str, detail: str) -> None:
        """Note what is wrong with an entry itself. Entries come in order."""
        self._note(self._broken, reason, detail, entry.sequence, entry.created_at)

    def add(self, reason: str, detail: str, sequence: int = 0, created_at: datetime | None = None) -> None:
        """Note what is wrong beside the journal, and the entry it disagrees with, where there is one."""
        self._note(self._others, reason, detail, sequence, created_at)

    def _note(self, found: list[Finding], reason: str, detail: str, sequence: int, created_at: datetime | None) -> None:
        self._counts[reason] += 1
        if self._counts[reason] <= MAX_FINDINGS:
            blamed = (sequence, transaction_id(created_at, sequence)) if created_at is not None else (0, "")
            found.append(Finding(reason, *blamed, detail))

    def first(self) -> tuple[Finding, ...]:
        """Up to a hundred: broken entries in order, then what disagrees with an entry, then all else."""
        others = sorted(self._others, key=lambda finding: finding.sequence or 2**63)
        return tuple((self._broken + others)[:MAX_FINDINGS])
