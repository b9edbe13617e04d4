"""Owns the rules of limits: making, changing and ending them. A new one counts all that its window has seen."""

from __future__ import annotations

from services.ledger.errors import AccountFull
from services.ledger.model.book import MAX_COUNTED, MAX_LIMITS, Book, Limit
from services.ledger.model.moves import Moves
from services.ledger.model.operations import DeleteLimit, Done, LimitState, Result, SetLimit
from services.ledger.model.windows import window_containing


def set_limit(moves: Moves, operation: SetLimit) -> Result:
    """Make a limit or change it. Raises AccountFull."""
    book = moves.book(operation.account_id)
    row = _row(moves, book, operation)
    there = _in(row, operation)
    if moves.replayed(operation.account_id, operation.request_id, operation.body_hash):
        return Result(LimitState(book.account_id, (there or _made(moves, book, operation)).copy()), replayed=True)
    if there is None:
        if len(row) >= MAX_LIMITS:
            raise AccountFull(f"{operation.scope} {operation.subject} has {MAX_LIMITS} limits", limits=len(row))
        there = _made(moves, book, operation)
        row.append(there)
    there.change(amount=operation.amount, mode=operation.mode, warn_percent=operation.warn_percent)
    _write(moves, there, book)
    moves.remember(operation.account_id, operation.request_id, operation.body_hash)
    return Result(LimitState(book.account_id, there.copy()))


def delete_limit(moves: Moves, operation: DeleteLimit) -> Result:
    """End a limit, if it is there."""
    book = moves.book(operation.account_id)
    if moves.replayed(operation.account_id, operation.request_id, operation.body_hash):
        return Result(Done(), replayed=True)
    row = _row(moves, book, operation)
    there = _in(row, operation)
    if there is not None:
        row.remove(there)
        _write(moves, there, book)
    moves.changes.books[book.account_id] = book
    moves.remember(operation.account_id, operation.request_id, operation.body_hash)
    return Result(Done())


def _row(moves: Moves, book: Book, operation: SetLimit | DeleteLimit) -> list[Limit]:
    """The list that a limit is kept in, turned: the account's own, or its key's or workspace's."""
    row = book.limits
    if operation.subject:
        key = (operation.account_id, operation.scope, operation.subject)
        row = moves.loaded.subjects.setdefault(key, [])
    for limit in row:
        limit.turn(book, book.touched_at)
    return row


def _write(moves: Moves, limit: Limit, book: Book) -> None:
    """A limit is made, changed or ended: write the row it is in, or was."""
    moves.count([limit], book)
    if limit.subject:
        moves.changes.limited.add((book.account_id, limit.scope, limit.subject))


def _in(row: list[Limit], operation: SetLimit | DeleteLimit) -> Limit | None:
    wanted = (operation.scope, operation.unit, operation.window)
    return next((limit for limit in row if (limit.scope, limit.unit, limit.window) == wanted), None)


def _made(moves: Moves, book: Book, operation: SetLimit) -> Limit:
    """A new limit, with what was used and is held in its window so far."""
    start, end = (
        (book.cycle_start, book.cycle_end)
        if operation.window == "cycle"
        else window_containing(operation.window, book.touched_at)
    )
    known = operation.counted
    through = known.through if known else 0
    records = [record for record in moves.loaded.usage.get(book.account_id, ()) if record.number > through]
    records += [record for record in moves.changes.usage if record.account_id == book.account_id]
    holds = [h for h in moves.loaded.holds.values() if h.account_id == book.account_id and h.status == "open"]
    return Limit(
        scope=operation.scope,
        subject=operation.subject,
        unit=operation.unit,
        window=operation.window,
        amount=operation.amount,
        mode=operation.mode,
        warn_percent=operation.warn_percent,
        window_start=start,
        window_end=end,
        used=min(
            (known.used if known is not None and known.since == start else 0)
            + sum(
                record.counted(operation.unit)
                for record in records
                if record.counted_at >= start and _concerns(operation, record.key_id, record.workspace)
            ),
            MAX_COUNTED,
        ),
        held=sum(
            hold.asked[operation.unit]
            for hold in holds
            if hold.created_at >= start and _concerns(operation, hold.key_id, hold.workspace)
        ),
    )


def _concerns(operation: SetLimit, key_id: str, workspace: str) -> bool:
    if operation.scope == "key":
        return key_id == operation.subject
    return operation.scope != "workspace" or workspace == operation.subject
