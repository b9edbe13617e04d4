"""Owns one batch of operations on loaded accounts: runs each by its rule and collects the rows to be written.

Pure: whoever calls it has locked the accounts and read what the operations need (`Loaded`), and writes what is
collected (`Changes`) in the same database transaction. One refused operation leaves no trace and does not touch its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from services.ledger.errors import LedgerError, LinkedOperationFailed
from services.ledger.model.moves import Moves
from services.ledger.model.operations import Operation, Result
from services.ledger.model.rows import Changes, Loaded
from services.ledger.model.rules import RULES


class Batch:
    """One batch at one moment. `run` once for each linked group, in order; then write `changes`."""

    def __init__(self, loaded: Loaded, now: datetime) -> None:
        self._moves = Moves(loaded, now)
        self._touched: set[str] = set()

    @property
    def changes(self) -> Changes:
        """The rows to be written."""
        return self._moves.changes

    def run(self, group: Sequence[Operation]) -> list[Result]:
        """Do a linked group: all of it, or nothing. A group of one is an ordinary operation."""
        accounts = {operation.account_id for operation in group}
        for account_id in accounts - self._touched:
            self._touched.add(account_id)
            self._moves.let_happen(account_id)
        results = self._done(group[0]) if len(group) == 1 else self._linked(group, accounts)
        for account_id in accounts:
            book = self._moves.loaded.books.get(account_id)
            if book is not None:
                book.check()
        return results

    def _done(self, operation: Operation) -> list[Result]:
        """Do one operation, which checks everything before it changes anything."""
        try:
            return [RULES[type(operation)](self._moves, operation)]
        except LedgerError as refusal:
            return [Result(refusal)]

    def _linked(self, group: Sequence[Operation], accounts: set[str]) -> list[Result]:
        """Do several, or, where one is refused, none: put these accounts back as they were."""
        undo = _saved(self._moves, accounts)
        results: list[Result] = []
        for operation in group:
            try:
                results.append(RULES[type(operation)](self._moves, operation))
            except LedgerError as refusal:
                undo()
                position = len(results)
                others = LinkedOperationFailed(f"operation {position + 1} of the group failed: {refusal.reason}")
                return [Result(refusal if index == position else others) for index in range(len(group))]
        return results


def _saved(moves: Moves, accounts: set[str]) -> Callable[[], None]:
    """What puts these accounts back as they are now."""
    loaded, changes = moves.loaded, moves.changes
    books = {a: loaded.books[a].copy() for a in accounts if a in loaded.books}
    holds = {k: v.copy() for k, v in loaded.holds.items() if k[0] in accounts}
    subjects = {k: [x.copy() for x in v] for k, v in loaded.subjects.items() if k[0] in accounts}
    granted = {k: replace(v) for k, v in loaded.grants.items() if k[0] in accounts}
    undone, past = dict(loaded.undone), dict(loaded.requests)
    lengths = len(changes.entries), len(changes.usage)
    opened, changed, reworded = set(changes.opened), set(changes.books), set(changes.reworded)
    held, made, extended = set(changes.holds), set(changes.made), set(changes.extended)
    subject_keys, limited, grant_keys = set(changes.subjects), set(changes.limited), set(changes.grants)
    expired, undoing, requests = dict(changes.expired), dict(changes.undone), dict(changes.requests)

    def restore() -> None:
        for account_id in accounts - books.keys():
            loaded.books.pop(account_id, None)
        loaded.books |= books
        loaded.holds = {k: v for k, v in loaded.holds.items() if k[0] not in accounts} | holds
        loaded.subjects = {k: v for k, v in loaded.subjects.items() if k[0] not in accounts} | subjects
        loaded.grants = {k: v for k, v in loaded.grants.items() if k[0] not in accounts} | granted
        loaded.undone, loaded.requests = undone, past
        for entry in changes.entries[lengths[0] :]:
            del loaded.entries[entry.account_id, entry.sequence]
        del changes.entries[lengths[0] :], changes.usage[lengths[1] :]
        changes.opened = {a: loaded.books[a] for a in opened}
        changes.books = {a: loaded.books[a] for a in changed}
        changes.reworded = reworded
        changes.holds = {k: loaded.holds[k] for k in held}
        changes.made = {k: loaded.holds[k] for k in made}
        changes.extended = extended
        changes.subjects = {k: loaded.subjects[k] for k in subject_keys}
        changes.limited = limited
        changes.grants = {k: loaded.grants[k] for k in grant_keys}
        changes.expired, changes.undone, changes.requests = expired, undoing, requests

    return restore
