# ruff: noqa: N818 (a refusal is named for what is wrong; that it is an error is said by its base)
"""Owns the ledger's refusals.

LedgerError
├── AccountNotFound            ├── HoldNotFound             ├── InsufficientCredit
├── AccountExists              ├── HoldEnded                ├── LimitExceeded
├── AccountSuspended           ├── HoldNotBillable          ├── LinkedOperationFailed
├── AccountClosed              ├── IdempotencyConflict      ├── TransactionNotFound
├── AccountHasHolds            ├── ResultArchived           ├── NotRefundable
├── AccountFull                ├── CursorUnknown            └── RefundExceedsOriginal
├── GrantExpired
"""

from __future__ import annotations

from services.kit.errors import Kind, ServiceError


class LedgerError(ServiceError):
    """Every refusal of the ledger."""

    domain = "tollkeeper.ledger"


class AccountNotFound(LedgerError):
    """No account has this id."""

    kind, reason = Kind.NOT_FOUND, "ACCOUNT_NOT_FOUND"
    advice = "Check the account id, or open the account first."


class AccountExists(LedgerError):
    """The account was opened before, with other words."""

    kind, reason = Kind.CONFLICT, "ACCOUNT_EXISTS"
    advice = "Use another id, or read the account that is there."


class AccountSuspended(LedgerError):
    """The account takes no new holds or debits."""

    kind, reason = Kind.DENIED, "ACCOUNT_SUSPENDED"
    advice = "Ask the operator why; calls already under way still settle."


class AccountClosed(LedgerError):
    """The account is closed for good."""

    kind, reason = Kind.PRECONDITION, "ACCOUNT_CLOSED"
    advice = "Use another account."


class AccountFull(LedgerError):
    """The account has as many grants or limits, or as much money, as one account may have."""

    kind, reason = Kind.PRECONDITION, "ACCOUNT_FULL"
    advice = "Let grants be spent, delete limits that are not needed, or spread the money over several accounts."


class AccountHasHolds(LedgerError):
    """The account has calls under way, so it cannot be closed."""

    kind, reason = Kind.PRECONDITION, "ACCOUNT_HAS_HOLDS"
    advice = "Suspend the account, wait until its holds have ended, then close it."


class GrantExpired(LedgerError):
    """Credit that would have expired before it is given."""

    kind, reason = Kind.INVALID, "GRANT_EXPIRED"
    advice = "Give a later expires_at, or none."


class InsufficientCredit(LedgerError):
    """What is available does not pay for the least that is asked."""

    kind, reason = Kind.PAYMENT_REQUIRED, "INSUFFICIENT_CREDIT"
    advice = "Buy credit, or ask for less. Metadata: availableNanos, requiredNanos."


class LimitExceeded(LedgerError):
    """A hard limit has no room for the least that is asked."""

    kind, reason = Kind.EXHAUSTED, "LIMIT_EXCEEDED"
    advice = "Wait until the limit resets, or raise it. Metadata: limitId, amount, used, held, required, resetsAt."


class HoldNotFound(LedgerError):
    """The account has no hold with this id."""

    kind, reason = Kind.NOT_FOUND, "HOLD_NOT_FOUND"
    advice = "Check the hold id."


class HoldEnded(LedgerError):
    """The hold was settled or given back, and cannot be ended in another way any more."""

    kind, reason = Kind.PRECONDITION, "HOLD_ENDED"
    advice = "Read the hold: metadata `status` says how it ended."


class HoldNotBillable(LedgerError):
    """The hold is of a call that is recorded but not paid for; it cannot be charged."""

    kind, reason = Kind.INVALID, "HOLD_NOT_BILLABLE"
    advice = "Settle it at nothing; the usage record keeps what the call cost."


class IdempotencyConflict(LedgerError):
    """The key was used before with another body."""

    kind, reason = Kind.CONFLICT, "IDEMPOTENCY_CONFLICT"
    advice = "Use a new key for a new request; repeat a request with the same body."


class ResultArchived(LedgerError):
    """The request was done before, so long ago that its result is archived; nothing was done now."""

    kind, reason = Kind.CONFLICT, "RESULT_ARCHIVED"
    advice = "Do not repeat it. Its entry is in the archived months."


class LinkedOperationFailed(LedgerError):
    """Another operation of the same linked group failed, so this one was not done."""

    kind, reason = Kind.ABORTED, "LINKED_OPERATION_FAILED"
    advice = "Look at the group's other results."


class TransactionNotFound(LedgerError):
    """The account has no transaction with this id."""

    kind, reason = Kind.NOT_FOUND, "TRANSACTION_NOT_FOUND"
    advice = "Check the transaction id."


class NotRefundable(LedgerError):
    """Only deductions can be refunded, and only credits reversed."""

    kind, reason = Kind.PRECONDITION, "NOT_REFUNDABLE"
    advice = "Look at the transaction's type; use AdjustBalance for corrections of other kinds."


class RefundExceedsOriginal(LedgerError):
    """More would be undone of a transaction than is left of it."""

    kind, reason = Kind.PRECONDITION, "REFUND_EXCEEDS_ORIGINAL"
    advice = "Ask for at most what metadata `leftNanos` says."


class CursorUnknown(LedgerError):
    """The cursor was not given by this feed."""

    kind, reason = Kind.INVALID, "CURSOR_UNKNOWN"
    advice = "Give the cursor of an earlier answer unchanged, or none to begin anew."
