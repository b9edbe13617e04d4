"""Owns the rules of money that moves at once: credit, adjustments, debits."""

from __future__ import annotations

from services.kit.errors import Violation
from services.ledger.errors import AccountFull, AccountSuspended, GrantExpired
from services.ledger.model.admission import admit
from services.ledger.model.book import MAX_FUNDED, Book
from services.ledger.model.moves import Moves, warnings_of
from services.ledger.model.operations import (
    CREDIT_TYPES,
    NOT_REPORTED,
    Adjust,
    Credit,
    Debit,
    Debited,
    Posted,
    Result,
)

DEFAULT_PRIORITY = 100


def credit(moves: Moves, operation: Credit) -> Result:
    """Give credit: one new grant. Raises GrantExpired, AccountFull."""
    past = moves.replayed(operation.account_id, operation.request_id, operation.body_hash)
    if past is not None:
        return Result(Posted(moves.entry_of(operation.account_id, past)), replayed=True)
    book = moves.open_book(operation.account_id)
    if operation.expires_at is not None and operation.expires_at <= book.touched_at:
        raise GrantExpired("expires_at is past", violations=[Violation("expires_at", "must be in the future")])
    return Result(_given(moves, book, operation))


def _given(moves: Moves, book: Book, operation: Credit) -> Posted:
    if book.funded + operation.amount > MAX_FUNDED:
        raise AccountFull(f"the account cannot take more than {MAX_FUNDED} nanos in all", funded=book.funded)
    book.check_room_for_grant()
    grant = moves.new_grant(
        book,
        operation.amount,
        source=operation.source,
        priority=operation.priority,
        expires_at=operation.expires_at,
        rollover_cap=operation.rollover_cap,
    )
    # The entry names the new grant with a minus (filled), and what overdrawn spending it paid at once with a plus.
    uses = ((grant.grant_id, -operation.amount), *book.pay_overdrawn())
    entry = moves.post(
        book,
        CREDIT_TYPES[operation.source],
        funding=-operation.amount,
        available=operation.amount,
        uses=uses,
        description=operation.description,
        request_id=operation.request_id,
    )
    moves.remember(operation.account_id, operation.request_id, operation.body_hash, entry.sequence)
    return Posted(entry)


def check_room_below(book: Book, taken: int) -> None:
    """Raise AccountFull where taking so much would bring the account nearer to the end of 64 bits than it may come."""
    if book.available - taken < -MAX_FUNDED:
        raise AccountFull(f"the account cannot go below {-MAX_FUNDED} nanos like this", available=book.available)


def adjust(moves: Moves, operation: Adjust) -> Result:
    """Correct the balance: up as credit is given, down from free credit and then by overdrawing. Raises AccountFull."""
    past = moves.replayed(operation.account_id, operation.request_id, operation.body_hash)
    if past is not None:
        return Result(Posted(moves.entry_of(operation.account_id, past)), replayed=True)
    book = moves.open_book(operation.account_id)
    if operation.amount > 0:
        given = Credit(
            account_id=operation.account_id,
            amount=operation.amount,
            source="adjustment",
            priority=DEFAULT_PRIORITY,
            expires_at=None,
            rollover_cap=0,
            description=operation.description,
            request_id=operation.request_id,
            body_hash=operation.body_hash,
        )
        return Result(_given(moves, book, given))
    taken = -operation.amount
    check_room_below(book, taken)
    entry = moves.post(
        book,
        CREDIT_TYPES["adjustment"],
        funding=taken,
        available=-taken,
        uses=book.spend_free(taken),
        description=operation.description,
        request_id=operation.request_id,
    )
    moves.remember(operation.account_id, operation.request_id, operation.body_hash, entry.sequence)
    return Result(Posted(entry))


def debit(moves: Moves, operation: Debit) -> Result:
    """Spend at once, what balance and limits allow. Raises AccountSuspended, InsufficientCredit, LimitExceeded."""
    past = moves.replayed(operation.account_id, operation.request_id, operation.body_hash)
    if past is not None:
        return Result(Debited(moves.entry_of(operation.account_id, past), ()), replayed=True)
    book = moves.open_book(operation.account_id)
    if book.status == "suspended":
        raise AccountSuspended(f"account {book.account_id} is suspended", accountId=book.account_id)
    limits = moves.applying(book, operation.key_id, operation.workspace)
    admit(
        book,
        limits,
        amount=operation.amount,
        minimum=operation.amount,
        tokens=operation.tokens,
        minimum_tokens=operation.tokens,
        requests=operation.requests,
        billable=operation.amount > 0,
    )
    asked = {"nanos": operation.amount, "tokens": operation.tokens, "requests": operation.requests}
    for limit in limits:
        limit.use(asked[limit.unit])
    moves.count(limits, book)
    usage = operation.usage or NOT_REPORTED
    # Written also for nothing spent, so that the key has its entry.
    entry = moves.post(
        book,
        "usage_deduction",
        available=-operation.amount,
        spent=operation.amount,
        uses=book.spend_free(operation.amount),
        description=operation.description,
        request_id=operation.request_id,
        usage_id=moves.number_usage(book),
        key_id=operation.key_id,
        workspace=operation.workspace,
        provider=usage.provider,
        model=usage.model,
    )
    moves.record(
        book,
        usage,
        entry=entry,
        amount=operation.amount,
        tokens=operation.tokens,
        requests=operation.requests,
        key_id=operation.key_id,
        workspace=operation.workspace,
        counted_at=book.touched_at,
    )
    moves.remember(operation.account_id, operation.request_id, operation.body_hash, entry.sequence)
    return Result(Debited(entry, warnings_of(limits)))
