"""Owns the rules of holds: making, extending, settling and releasing them."""

from __future__ import annotations

from dataclasses import replace

from services.kit.errors import Violation
from services.ledger.errors import (
    AccountFull,
    AccountSuspended,
    HoldEnded,
    HoldNotBillable,
    IdempotencyConflict,
    ResultArchived,
)
from services.ledger.model.admission import admit, lapses_at, limit_exceeded
from services.ledger.model.book import MAX_AMOUNT, MAX_SPENT, Book, Hold
from services.ledger.model.moves import Moves, quotas_of, warnings_of
from services.ledger.model.operations import (
    NOT_REPORTED,
    CreateHold,
    ExtendHold,
    HoldMade,
    HoldReleased,
    HoldSettled,
    ReleaseHold,
    Result,
    SettleHold,
)


def create_hold(moves: Moves, operation: CreateHold) -> Result:
    """Set money and limit use aside.

    Raises IdempotencyConflict, ResultArchived, AccountSuspended, InsufficientCredit, LimitExceeded.
    """
    key = (operation.account_id, operation.hold_id)
    there = moves.loaded.holds.get(key)
    if there is not None:
        return _made_before(moves, there, operation)
    if key in moves.loaded.ended:
        raise ResultArchived(f"hold_id {operation.hold_id} was used long ago", holdId=operation.hold_id)
    book = moves.open_book(operation.account_id)
    _check_not_suspended(book)
    limits = moves.applying(book, operation.key_id, operation.workspace)
    amount, tokens = admit(
        book,
        limits,
        amount=operation.amount,
        minimum=operation.minimum,
        tokens=operation.tokens,
        minimum_tokens=operation.minimum_tokens,
        requests=operation.requests,
        billable=operation.billable,
    )
    reservations, unbacked = book.reserve(amount)
    hold = Hold(
        account_id=operation.account_id,
        hold_id=operation.hold_id,
        status="open",
        amount=amount,
        tokens=tokens,
        requests=operation.requests,
        key_id=operation.key_id,
        workspace=operation.workspace,
        billable=operation.billable,
        created_at=book.touched_at,
        expires_at=lapses_at(book.touched_at, operation.ttl_seconds),
        sequence=0,
        reservations=reservations,
        unbacked=unbacked,
        body_hash=operation.body_hash,
    )
    # Written also for nothing held, so that the hold has its place in the account's order of events.
    hold.sequence = _posted(moves, hold, "hold", amount)
    asked = hold.asked
    for limit in limits:
        limit.held += asked[limit.unit]
    moves.count(limits, book)
    book.expects(hold.expires_at)
    moves.loaded.holds[key] = moves.changes.made[key] = hold
    return Result(HoldMade(hold.copy(), book.available, warnings_of(limits), quotas_of(book)))


def _made_before(moves: Moves, there: Hold, operation: CreateHold) -> Result:
    if there.body_hash != operation.body_hash:
        raise IdempotencyConflict(f"hold_id {operation.hold_id} was used for another hold", holdId=operation.hold_id)
    made = moves.loaded.entries.get((operation.account_id, there.sequence))
    first = replace(there, status="open", ended_at=None, settled=0)
    available = made.balance_after if made else moves.book(operation.account_id).available
    return Result(HoldMade(first, available, ()), replayed=True)


def extend_hold(moves: Moves, operation: ExtendHold) -> Result:
    """Make an open hold larger, longer or both, all of it or nothing.

    Raises HoldEnded, HoldNotBillable, AccountSuspended, InsufficientCredit, LimitExceeded, AccountFull.
    """
    hold = moves.hold(operation.account_id, operation.hold_id)
    if moves.replayed(operation.account_id, operation.request_id, operation.body_hash):
        return Result(HoldMade(hold.copy(), moves.book(operation.account_id).available, ()), replayed=True)
    book = moves.open_book(operation.account_id)
    if hold.status != "open":
        raise HoldEnded(f"hold {hold.hold_id} has ended: {hold.status}", holdId=hold.hold_id, status=hold.status)
    _check_not_suspended(book)
    if operation.amount and not hold.billable:
        raise _not_billable(hold, "additional_nanos")
    if hold.amount + operation.amount > MAX_AMOUNT:
        raise AccountFull(f"a hold cannot be larger than {MAX_AMOUNT} nanos", holdId=hold.hold_id)
    applying = moves.applying(book, hold.key_id, hold.workspace)
    limits = [limit for limit in applying if limit.counts(hold)]
    admit(
        book,
        limits,
        amount=operation.amount,
        minimum=operation.amount,
        tokens=operation.tokens,
        minimum_tokens=operation.tokens,
        requests=0,
        billable=operation.amount > 0,
    )
    more = {"nanos": operation.amount, "tokens": operation.tokens, "requests": 0}
    for limit in applying:
        # It would be counted in no window: not in the hold's, which is over, nor in this one.
        if limit.mode == "hard" and not limit.counts(hold) and more[limit.unit]:
            raise limit_exceeded(limit, more[limit.unit], book.touched_at)
    reservations, unbacked = book.reserve(operation.amount)
    hold.reservations += reservations
    hold.unbacked += unbacked
    hold.amount += operation.amount
    hold.tokens += operation.tokens
    if operation.ttl_seconds:
        hold.expires_at = max(hold.expires_at, lapses_at(book.touched_at, operation.ttl_seconds))
    for limit in limits:
        limit.held += more[limit.unit]
    moves.count(limits, book)
    sequence = _posted(moves, hold, "hold_extended", operation.amount, operation.request_id)
    moves.change_hold(hold, extended=True)
    moves.remember(operation.account_id, operation.request_id, operation.body_hash, sequence)
    return Result(HoldMade(hold.copy(), book.available, warnings_of(limits), quotas_of(book)))


def settle_hold(moves: Moves, operation: SettleHold) -> Result:
    """Book what a call used. Raises IdempotencyConflict, HoldEnded, HoldNotBillable, AccountFull."""
    hold = moves.hold(operation.account_id, operation.hold_id)
    book = moves.book(operation.account_id)
    if hold.status == "settled":
        if hold.end_body_hash != operation.body_hash:
            raise IdempotencyConflict(f"hold {hold.hold_id} was settled otherwise", holdId=hold.hold_id)
        charged = moves.entry(operation.account_id, hold.end_sequence) if hold.settled else None
        first = HoldSettled(hold.copy(), charged, hold.end_available, hold.was_expired, warnings=())
        return Result(first, replayed=True)
    if hold.status == "released":
        raise HoldEnded(f"hold {hold.hold_id} was released", holdId=hold.hold_id, status=hold.status)
    if operation.amount and not hold.billable:
        raise _not_billable(hold, "amount_nanos")
    if book.spent + operation.amount > MAX_SPENT:
        raise AccountFull(f"the account cannot spend more than {MAX_SPENT} nanos in all", spent=book.spent)
    return Result(_settled(moves, book, hold, operation))


def _settled(moves: Moves, book: Book, hold: Hold, operation: SettleHold) -> HoldSettled:
    amount, usage = operation.amount, operation.usage or NOT_REPORTED
    hold.was_expired = was_expired = hold.status == "expired"
    limits = moves.applying(book, hold.key_id, hold.workspace)
    asked, counted = hold.asked, {"nanos": amount, "tokens": operation.tokens, "requests": hold.requests}
    for limit in limits:
        if limit.counts(hold):
            limit.held -= 0 if was_expired else asked[limit.unit]
            limit.use(counted[limit.unit])
    moves.count(limits, book)
    freed = 0 if was_expired else hold.amount
    uses = book.spend_free(amount) if was_expired else book.spend_hold(hold, amount)
    uses += book.pay_overdrawn() if freed > amount else ()
    hold.usage_id = moves.number_usage(book)
    entry = None
    if freed or amount:
        entry = moves.post(
            book,
            "usage_deduction" if amount else "hold_released",
            held=-freed,
            spent=amount,
            available=freed - amount,
            uses=uses,
            description=operation.description,
            hold_id=hold.hold_id,
            usage_id=hold.usage_id,
            key_id=hold.key_id,
            workspace=hold.workspace,
            provider=usage.provider,
            model=usage.model,
        )
    hold.end_sequence = entry.sequence if entry else 0
    charged = entry if amount else None
    hold.status, hold.settled, hold.ended_at = "settled", amount, book.touched_at
    hold.end_body_hash = operation.body_hash
    moves.change_hold(hold)
    moves.record(
        book,
        usage,
        entry=charged,
        amount=amount,
        tokens=operation.tokens,
        requests=hold.requests,
        key_id=hold.key_id,
        workspace=hold.workspace,
        hold_id=hold.hold_id,
        billable=hold.billable,
        counted_at=hold.created_at,
    )
    moves.expire_grants(book, book.touched_at)
    hold.end_available = book.available
    # No copy of the hold: what is settled stays as it is.
    return HoldSettled(hold, charged, book.available, was_expired, warnings_of(limits), quotas_of(book))


def release_hold(moves: Moves, operation: ReleaseHold) -> Result:
    """Give a whole hold back. Raises HoldEnded where it was settled."""
    hold = moves.hold(operation.account_id, operation.hold_id)
    if hold.status in {"released", "expired"}:
        return Result(HoldReleased(hold.copy()), replayed=hold.status == "released")
    if hold.status == "settled":
        raise HoldEnded(f"hold {hold.hold_id} was settled", holdId=hold.hold_id, status=hold.status)
    book = moves.book(operation.account_id)
    moves.give_back(book, hold, "released", "hold_released", operation.description)
    moves.expire_grants(book, book.touched_at)
    return Result(HoldReleased(hold.copy()))


def _posted(moves: Moves, hold: Hold, entry_type: str, amount: int, request_id: str = "") -> int:
    """Post what a hold set aside; the entry's number."""
    return moves.post(
        moves.book(hold.account_id),
        entry_type,
        available=-amount,
        held=amount,
        request_id=request_id,
        hold_id=hold.hold_id,
        key_id=hold.key_id,
        workspace=hold.workspace,
    ).sequence


def _check_not_suspended(book: Book) -> None:
    if book.status == "suspended":
        raise AccountSuspended(f"account {book.account_id} is suspended", accountId=book.account_id)


def _not_billable(hold: Hold, field: str) -> HoldNotBillable:
    violation = Violation(field, "must be 0: the hold is not billable")
    return HoldNotBillable(f"hold {hold.hold_id} is not billable", violations=[violation], holdId=hold.hold_id)
