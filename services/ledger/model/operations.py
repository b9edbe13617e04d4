"""Owns what the ledger can be asked to do, and what it answers: one frozen class each.

`body_hash` is over the request as it came: the same key with another hash is another request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from services.ledger.errors import LedgerError
from services.ledger.model.book import Book, Entry, Hold, Limit

CREDIT_TYPES = {
    "purchase": "credit_purchase",
    "subscription": "subscription_grant",
    "promotion": "promotion",
    "adjustment": "credit_adjustment",
    "refund": "refund",
}

# Entries that move money between available and held, and change nothing of what an account is worth.
HOLD_MOVES = ("hold", "hold_extended", "hold_released", "hold_expired")


@dataclass(frozen=True, slots=True)
class Usage:
    """What is known of one model call when it ends. Field for field the contract's UsageReport."""

    session: str
    provider: str
    model: str
    endpoint: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    input_cost: int
    output_cost: int
    cost: int
    price_version: int
    duration_milliseconds: int
    status: str
    estimated: bool
    started_at: datetime | None
    provider_request_id: str
    service_tier: str
    units: Mapping[str, int]


# Of a settlement or debit that came without a report.
NOT_REPORTED = Usage("", "", "", "", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, "ok", False, None, "", "standard", {})


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One usage record, as it is written."""

    account_id: str
    number: int
    created_at: datetime
    key_id: str
    workspace: str
    hold_id: str
    transaction_id: str
    billed: int
    billable: bool
    # What limits count, in the window that this moment is in.
    tokens: int
    requests: int
    counted_at: datetime
    usage: Usage

    def counted(self, unit: str) -> int:
        """What it counts against a limit of this unit."""
        return self.billed if unit == "nanos" else self.tokens if unit == "tokens" else self.requests


@dataclass(frozen=True, slots=True)
class OpenAccount:
    """Open an account."""

    account_id: str
    display_name: str
    overdraft_kind: str
    overdraft_limit: int
    cycle_anchor: datetime | None
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class UpdateAccount:
    """Change what is said of an account; None leaves a thing as it is."""

    account_id: str
    display_name: str | None
    overdraft: tuple[str, int] | None
    cycle_anchor: datetime | None
    request_id: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class SetStatus:
    """Suspend, resume or close an account."""

    account_id: str
    status: str
    why: str
    request_id: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class Credit:
    """Give credit."""

    account_id: str
    amount: int
    source: str
    priority: int
    expires_at: datetime | None
    rollover_cap: int
    description: str
    request_id: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class Debit:
    """Spend at once."""

    account_id: str
    amount: int
    tokens: int
    requests: int
    key_id: str
    workspace: str
    usage: Usage | None
    description: str
    request_id: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class Adjust:
    """Correct a balance by hand; a negative amount takes."""

    account_id: str
    amount: int
    description: str
    request_id: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class Undo:
    """Give a deduction back (`refund`) or take a credit back (`reversal`); amount None: all that is left of it."""

    account_id: str
    kind: Literal["refund", "reversal"]
    transaction_id: str
    sequence: int
    amount: int | None
    description: str
    request_id: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class CreateHold:
    """Set money and limit use aside."""

    account_id: str
    hold_id: str
    amount: int
    minimum: int
    tokens: int
    minimum_tokens: int
    requests: int
    key_id: str
    workspace: str
    ttl_seconds: int
    billable: bool
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class ExtendHold:
    """Make a hold larger or longer; a TTL of 0 leaves its end as it is."""

    account_id: str
    hold_id: str
    amount: int
    tokens: int
    ttl_seconds: int
    request_id: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class SettleHold:
    """Book what a call used, and give the rest of its hold back."""

    account_id: str
    hold_id: str
    amount: int
    tokens: int
    usage: Usage | None
    description: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class ReleaseHold:
    """Give a whole hold back."""

    account_id: str
    hold_id: str
    description: str


@dataclass(frozen=True, slots=True)
class Counted:
    """What a limit's subject has used since `since`, by usage records up to number `through`; in the limit's unit."""

    since: datetime
    through: int
    used: int


@dataclass(frozen=True, slots=True)
class SetLimit:
    """Make a limit or change it. `counted` was read before the account was locked: a window may hold many records."""

    account_id: str
    scope: str
    subject: str
    unit: str
    window: str
    amount: int
    mode: str
    warn_percent: int
    request_id: str
    body_hash: bytes
    counted: Counted | None = None


@dataclass(frozen=True, slots=True)
class DeleteLimit:
    """End a limit."""

    account_id: str
    scope: str
    subject: str
    unit: str
    window: str
    request_id: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class Touch:
    """Let what is due at the account happen: holds lapse, grants expire. Asked for by the worker and by reads."""

    account_id: str


Operation = (
    OpenAccount
    | UpdateAccount
    | SetStatus
    | Credit
    | Debit
    | Adjust
    | Undo
    | CreateHold
    | ExtendHold
    | SettleHold
    | ReleaseHold
    | SetLimit
    | DeleteLimit
    | Touch
)


@dataclass(frozen=True, slots=True)
class AccountState:
    """The account as it stands."""

    book: Book


@dataclass(frozen=True, slots=True)
class Posted:
    """One journal entry was written; how much of it was undone since."""

    entry: Entry
    undone: int = 0


@dataclass(frozen=True, slots=True)
class LimitWarning:
    """A limit that is nearly used up, or a soft one that is exceeded."""

    reason: str
    limit: Limit


@dataclass(frozen=True, slots=True)
class Debited:
    """A debit was booked."""

    entry: Entry
    warnings: tuple[LimitWarning, ...]


@dataclass(frozen=True, slots=True)
class HoldMade:
    """A hold was made or extended; `available` is what was left after it."""

    hold: Hold
    available: int
    warnings: tuple[LimitWarning, ...]


@dataclass(frozen=True, slots=True)
class HoldSettled:
    """A hold was settled. `entry` is the deduction, None where nothing was charged."""

    hold: Hold
    entry: Entry | None
    available: int
    was_expired: bool
    warnings: tuple[LimitWarning, ...]


@dataclass(frozen=True, slots=True)
class HoldReleased:
    """A hold was given back, now or before."""

    hold: Hold


@dataclass(frozen=True, slots=True)
class LimitState:
    """The limit as it stands."""

    account_id: str
    limit: Limit


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing to say."""


Answer = AccountState | Posted | Debited | HoldMade | HoldSettled | HoldReleased | LimitState | Done


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one operation: an answer or a refusal. `replayed`: it had been done before."""

    outcome: Answer | LedgerError
    replayed: bool = False
