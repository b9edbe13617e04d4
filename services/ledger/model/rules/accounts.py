"""Owns the rules of accounts: opening, changing, suspending, resuming and closing them."""

from __future__ import annotations

from datetime import timedelta

from services.ledger.errors import AccountExists, AccountHasHolds
from services.ledger.model.book import Book
from services.ledger.model.moves import Moves
from services.ledger.model.operations import AccountState, Done, OpenAccount, Result, SetStatus, Touch, UpdateAccount
from services.ledger.model.windows import cycle_containing


def open_account(moves: Moves, operation: OpenAccount) -> Result:
    """Open it, or give the one that was opened with the same words."""
    there = moves.loaded.books.get(operation.account_id)
    if there is not None:
        if there.open_hash == operation.body_hash:
            return Result(AccountState(there.copy()), replayed=True)
        raise AccountExists(f"account {operation.account_id} is there already", accountId=operation.account_id)
    anchor = operation.cycle_anchor or moves.now
    start, end = cycle_containing(anchor, moves.now)
    book = Book(
        account_id=operation.account_id,
        display_name=operation.display_name,
        status="open",
        status_reason="",
        overdraft_kind=operation.overdraft_kind,
        overdraft_limit=operation.overdraft_limit,
        cycle_anchor=anchor,
        created_at=moves.now,
        open_hash=operation.body_hash,
        touched_at=moves.now,
        cycle_start=start,
        cycle_end=end,
    )
    moves.loaded.books[operation.account_id] = book
    moves.changes.opened[operation.account_id] = book
    return Result(AccountState(book.copy()))


def update_account(moves: Moves, operation: UpdateAccount) -> Result:
    """Change what is said of it. A new anchor begins a new cycle now."""
    if moves.replayed(operation.account_id, operation.request_id, operation.body_hash):
        return Result(AccountState(moves.book(operation.account_id).copy()), replayed=True)
    book = moves.open_book(operation.account_id)
    if operation.display_name is not None:
        book.display_name = operation.display_name
    if operation.overdraft is not None:
        book.overdraft_kind, book.overdraft_limit = operation.overdraft
    if operation.cycle_anchor is not None and operation.cycle_anchor != book.cycle_anchor:
        # Strictly after what was done before, so that each thing is in one cycle.
        book.touched_at += timedelta(microseconds=1)
        book.move_cycle(operation.cycle_anchor, book.touched_at)
    return _reworded(moves, book, operation)


def set_status(moves: Moves, operation: SetStatus) -> Result:
    """Suspend, resume or close it. Raises AccountHasHolds where it cannot be closed yet."""
    if moves.replayed(operation.account_id, operation.request_id, operation.body_hash):
        return Result(AccountState(moves.book(operation.account_id).copy()), replayed=True)
    book = moves.open_book(operation.account_id)
    if operation.status == "closed":
        # All its open holds were read: one may hold no money and still be a call under way.
        still_open = sum(h.account_id == book.account_id and h.status == "open" for h in moves.loaded.holds.values())
        if still_open:
            raise AccountHasHolds(f"account {book.account_id} has {still_open} open holds", openHolds=still_open)
    book.status, book.status_reason = operation.status, operation.why
    return _reworded(moves, book, operation)


def touch(moves: Moves, operation: Touch) -> Result:
    """Nothing but what is due, which has happened by now."""
    moves.book(operation.account_id)
    return Result(Done())


def _reworded(moves: Moves, book: Book, operation: SetStatus | UpdateAccount) -> Result:
    moves.changes.books[book.account_id] = book
    moves.changes.reworded.add(book.account_id)
    moves.remember(operation.account_id, operation.request_id, operation.body_hash)
    return Result(AccountState(book.copy()))
