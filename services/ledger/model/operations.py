"""Owns what the ledger can be asked to do, and what it answers: a named tuple each, made in a third of a class' time.

`body_hash` is over the request as it came: the same key with another hash is another request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from services.ledger.errors import LedgerError
from services.ledger.model.book import Book, Hold, Limit
from services.ledger.model.entry import Entry

CREDIT_TYPES = {
    "purchase": "credit_purchase",
    "subscription": "subscription_grant",
    "promotion": "promotion",
    "adjustment": "credit_adjustment",
    "refund": "refund",
}

# Entries that move money between available and held, and change nothing of what an account is worth.
HOLD_MOVES = ("hold", "hold_extended", "hold_released", "hold_expired")


class Usage(NamedTuple):
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
    internal: bool


# Of a settlement or debit that came without a report.
NOT_REPORTED = Usage("", "", "", "", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, "ok", False, None, "", "standard", {}, False)


class UsageRow(NamedTuple):
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


class OpenAccount(NamedTuple):
    """Open an account."""

    account_id: str
    display_name: str
    overdraft_kind: str
    overdraft_limit: int
    cycle_anchor: datetime | None
    body_hash: bytes


class UpdateAccount(NamedTuple):
    """Change what is said of an account; None leaves a thing as it is."""

    account_id: str
    display_name: str | None
    overdraft: tuple[str, int] | None
    cycle_anchor: datetime | None
    request_id: str
    body_hash: bytes


class SetStatus(NamedTuple):
    """Suspend, resume or close an account."""

    account_id: str
    status: str
    why: str
    request_id: str
    body_hash: bytes


class Credit(NamedTuple):
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


class Debit(NamedTuple):
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


class Adjust(NamedTuple):
    """Correct a balance by hand; a negative amount takes."""

    account_id: str
    amount: int
    description: str
    request_id: str
    body_hash: bytes


class Undo(NamedTuple):
    """Give a deduction back (`refund`) or take a credit back (`reversal`); amount None: all that is left of it."""

    account_id: str
    kind: Literal["refund", "reversal"]
    transaction_id: str
    sequence: int
    amount: int | None
    description: str
    request_id: str
    body_hash: bytes


class CreateHold(NamedTuple):
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


class ExtendHold(NamedTuple):
    """Make a hold larger or longer; a TTL of 0 leaves its end as it is."""

    account_id: str
    hold_id: str
    amount: int
    tokens: int
    ttl_seconds: int
    request_id: str
    body_hash: bytes


class SettleHold(NamedTuple):
    """Book what a call used, and give the rest of its hold back."""

    account_id: str
    hold_id: str
    amount: int
    tokens: int
    usage: Usage | None
    description: str
    body_hash: bytes


class ReleaseHold(NamedTuple):
    """Give a whole hold back."""

    account_id: str
    hold_id: str
    description: str


class Counted(NamedTuple):
    """What a limit's subject has used since `since`, by usage records up to number `through`; in the limit's unit."""

    since: datetime
    through: int
    used: int


class SetLimit(NamedTuple):
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


class DeleteLimit(NamedTuple):
    """End a limit."""

    account_id: str
    scope: str
    subject: str
    unit: str
    window: str
    request_id: str
    body_hash: bytes


class Touch(NamedTuple):
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


class AccountState(NamedTuple):
    """The account as it stands."""

    book: Book


class Posted(NamedTuple):
    """One journal entry was written; how much of it was undone since."""

    entry: Entry
    undone: int = 0


class LimitWarning(NamedTuple):
    """A limit that is nearly used up, or a soft one that is exceeded."""

    reason: str
    limit: Limit


class Quota(NamedTuple):
    """What was left of a limit of the whole account on tokens or requests in a cycle; never below 0."""

    unit: str
    amount: int
    remaining: int
    resets_at: datetime


class Debited(NamedTuple):
    """A debit was booked."""

    entry: Entry
    warnings: tuple[LimitWarning, ...]


class HoldMade(NamedTuple):
    """A hold was made or extended; `available` and `quotas` are what was left after it; a replay has no quotas."""

    hold: Hold
    available: int
    warnings: tuple[LimitWarning, ...]
    quotas: tuple[Quota, ...] = ()


class HoldSettled(NamedTuple):
    """A hold was settled. `entry` is the deduction, None where nothing was charged; a replay has no `quotas`."""

    hold: Hold
    entry: Entry | None
    available: int
    was_expired: bool
    warnings: tuple[LimitWarning, ...]
    quotas: tuple[Quota, ...] = ()


class HoldReleased(NamedTuple):
    """A hold was given back, now or before."""

    hold: Hold


class LimitState(NamedTuple):
    """The limit as it stands."""

    account_id: str
    limit: Limit


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing to say. No tuple, since an empty one is false."""


Answer = AccountState | Posted | Debited | HoldMade | HoldSettled | HoldReleased | LimitState | Done


class Result(NamedTuple):
    """What became of one operation: an answer or a refusal. `replayed`: it had been done before."""

    outcome: Answer | LedgerError
    replayed: bool = False
