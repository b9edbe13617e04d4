"""Owns the rules of undoing: refunds of deductions and reversals of credits, in part or whole, never more than that."""

from __future__ import annotations

from services.ledger.errors import NotRefundable, RefundExceedsOriginal, TransactionNotFound
from services.ledger.model.book import Book, Grant, GrantUses
from services.ledger.model.entry import Entry
from services.ledger.model.moves import Moves
from services.ledger.model.operations import Posted, Result, Undo
from services.ledger.model.rows import transaction_id
from services.ledger.model.rules.money import DEFAULT_PRIORITY, check_room_below


def undo(moves: Moves, operation: Undo) -> Result:
    """Undo an entry. Raises TransactionNotFound, NotRefundable, RefundExceedsOriginal, AccountFull."""
    past = moves.replayed(operation.account_id, operation.request_id, operation.body_hash)
    if past is not None:
        return Result(Posted(moves.entry_of(operation.account_id, past)), replayed=True)
    book = moves.open_book(operation.account_id)
    key = (operation.account_id, operation.sequence)
    original = moves.loaded.entries.get(key)
    if original is None or transaction_id(original.created_at, original.sequence) != operation.transaction_id:
        raise TransactionNotFound(
            f"the account has no transaction {operation.transaction_id}", transactionId=operation.transaction_id
        )
    undone = moves.loaded.undone.get(key, 0)
    left = _undoable(original, operation.kind) - undone
    amount = left if operation.amount is None else operation.amount
    if amount > left or amount == 0:
        raise RefundExceedsOriginal(
            f"of {operation.transaction_id} there are {left} nanos left to undo, not {amount}",
            transactionId=operation.transaction_id,
            leftNanos=left,
        )
    undoing = _refunded if operation.kind == "refund" else _reversed
    entry = undoing(moves, book, operation, original, amount=amount, undone=undone)
    moves.loaded.undone[key] = moves.changes.undone[key] = undone + amount
    moves.remember(operation.account_id, operation.request_id, operation.body_hash, entry.sequence)
    return Result(Posted(entry))


def _undoable(original: Entry, kind: str) -> int:
    """What a refund or a reversal of an entry may come to in all; an entry of another kind is refused."""
    if kind == "refund" and original.type == "usage_deduction":
        return original.spent
    if kind == "reversal" and original.funding < 0:
        return -original.funding
    wanted = "deductions can be refunded" if kind == "refund" else "credits can be reversed"
    raise NotRefundable(f"a {original.type} is not undone like this: only {wanted}", type=original.type)


def paid_by(original: Entry) -> GrantUses:
    """Which grants a deduction was paid by. Its uses may go on: what was freed by it paid earlier overdrawing."""
    uses, left = [], original.spent
    for grant_id, amount in original.grant_uses:
        if left == 0:
            break
        uses.append((grant_id, amount))
        left -= amount
    assert left == 0, original
    return tuple(uses)


def last_parts(uses: GrantUses, skip: int, amount: int) -> GrantUses:
    """Of what was taken, in order: the `amount` that was taken last, but for the very last `skip`.

    So several refunds of parts leave the grants as if so much less had been spent.
    """
    parts = []
    for grant_id, taken in reversed(uses):
        passed = min(skip, taken)
        skip -= passed
        part = min(taken - passed, amount)
        amount -= part
        if part:
            parts.append((grant_id, part))
    assert amount == 0, uses
    return tuple(parts)


def _refunded(moves: Moves, book: Book, operation: Undo, original: Entry, *, amount: int, undone: int) -> Entry:
    parts = last_parts(paid_by(original), undone, amount)
    homeless = sum(part for grant_id, part in parts if not _comes_back(moves, book, grant_id))
    unpaid = min(book.overdrawn, sum(part for grant_id, part in parts if not grant_id))
    if homeless > unpaid or any(grant_id and not book.grant(grant_id) for grant_id, _ in parts):
        book.check_room_for_grant()
    uses: list[tuple[str, int]] = []
    for grant_id, part in parts:
        if grant_id and _comes_back(moves, book, grant_id):
            _return(moves, book, grant_id, part)
            uses.append((grant_id, -part))
    if unpaid:
        book.overdrawn -= unpaid
        uses.append(("", -unpaid))
    if homeless > unpaid:
        grant = moves.new_grant(book, homeless - unpaid, source="refund", priority=DEFAULT_PRIORITY)
        uses.append((grant.grant_id, unpaid - homeless))
    entry = moves.post(
        book,
        "refund",
        spent=-amount,
        available=amount,
        uses=(*uses, *book.pay_overdrawn()),
        description=operation.description,
        request_id=operation.request_id,
        original_id=operation.transaction_id,
        hold_id=original.hold_id,
        usage_id=original.usage_id,
        key_id=original.key_id,
        workspace=original.workspace,
        provider=original.provider,
        model=original.model,
    )
    if original.created_at < book.cycle_start:
        book.cycle_spent += amount  # it was spent in a cycle that is over
    return entry


def _comes_back(moves: Moves, book: Book, grant_id: str) -> bool:
    """Whether money can go back to the grant it came from: one that has expired would take it along at once."""
    row = moves.loaded.grants.get((book.account_id, grant_id))
    grant = row.grant if row else book.grant(grant_id)
    return grant is not None and (grant.expires_at is None or grant.expires_at > book.touched_at)


def _return(moves: Moves, book: Book, grant_id: str, amount: int) -> None:
    grant = book.grant(grant_id)
    if grant is None:
        told = moves.loaded.grants[book.account_id, grant_id].grant
        grant = Grant(
            grant_id, told.source, told.priority, told.order, told.expires_at, told.amount, 0, 0, told.rollover_cap
        )
        book.add_grant(grant)
    grant.remaining += amount


def _reversed(moves: Moves, book: Book, operation: Undo, original: Entry, *, amount: int, undone: int) -> Entry:  # noqa: ARG001 (as _refunded)
    check_room_below(book, amount)
    grant_id = original.grant_uses[0][0]
    own = book.take_from(grant_id, amount)
    expired = moves.take_back_expired(book, grant_id, amount - own)
    uses: GrantUses = ((grant_id, own),) if own else ()
    return moves.post(
        book,
        "reversal",
        funding=amount,
        available=expired - amount,
        expired=-expired,
        uses=uses + book.spend_free(amount - own - expired),
        description=operation.description,
        request_id=operation.request_id,
        original_id=operation.transaction_id,
    )
