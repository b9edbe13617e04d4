"""Owns what this process remembers of accounts between batches, so that most batches need not read what they change.

An account is remembered as a batch left it, with the version of its row: the transaction that wrote it (`xmin`). All
that changes anything of an account writes its row, so while the version is the same, so is all that is remembered. The
next batch confirms it as it writes, before anything is answered (`writing.py`), or with what it reads (`loading.py`);
where another replica, or an operator, has changed the account meanwhile, it is read as if nothing had been remembered.
So this is never trusted, and losing it costs a read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.ledger.model.book import Book, Hold, Limit
from services.ledger.model.operations import CreateHold, Operation, ReleaseHold, SettleHold
from services.ledger.model.rows import Changes, HoldKey, Loaded, SubjectKey
from services.ledger.store.due import BUSY_SECONDS, OVERDUE_SECONDS

# What goes with every model call. Others are few, and name more than is remembered.
_REMEMBERED = (CreateHold, SettleHold, ReleaseHold)

# Where two replicas write to the same accounts, what one remembers is often old, and a batch is done twice. Where more
# than about one batch in so many was, or some in a row, it leaves its memory alone, for longer each time it was wrong
# again soon.
_RIGHT_FOR_A_WRONG = 10
_WRONG_IN_A_ROW = 4
_FIRST_DOUBT_SECONDS = 1.0
_LONGEST_DOUBT_SECONDS = 64.0

# By then a worker, whose clock may be ahead of ours, has let happen what was due.
_BUSY = timedelta(seconds=BUSY_SECONDS - 2)
_OVERDUE = timedelta(seconds=OVERDUE_SECONDS - 2)

# What a row of half a kilobyte is counted as: a book without its grants and limits, a hold.
_ROWS_OF_A_BOOK, _ROWS_OF_A_HOLD = 4, 2


@dataclass(slots=True)
class RememberedAccount:
    """An account's row, and of its keys, workspaces and open holds those that operations have named."""

    book: Book
    version: int = 0
    # An empty list: there is no row.
    subjects: dict[SubjectKey, list[Limit]] = field(default_factory=dict)
    holds: dict[HoldKey, Hold] = field(default_factory=dict)
    # What all subjects are counted as, and, while it is kept, the account.
    subject_rows: int = 0
    rows: int = 0

    def recall(self, operation: CreateHold | SettleHold | ReleaseHold, loaded: Loaded) -> bool:
        """Add the rows that an operation names to what is loaded; whether all of them are remembered."""
        key = (operation.account_id, operation.hold_id)
        hold = self.holds.get(key)
        if isinstance(operation, CreateHold):
            if hold is not None:
                return False  # it was made before: how, is read
            subjects = subject_keys(operation.account_id, operation.key_id, operation.workspace)
        elif hold is None:
            return False
        else:
            loaded.holds[key] = hold
            subjects = subject_keys(hold.account_id, hold.key_id, hold.workspace)
        for subject in subjects:
            limits = self.subjects.get(subject)
            if limits is None:
                return False
            loaded.subjects[subject] = limits
        return True

    def note(self, key: HoldKey, hold: Hold) -> None:
        """Remember a hold while it is open."""
        if hold.status == "open":
            self.holds[key] = hold
        else:
            self.holds.pop(key, None)

    def limited_by(self, key_id: str, workspace: str) -> None:
        """The limits of this key and workspace were read: there are no others than those that are remembered."""
        for subject in subject_keys(self.book.account_id, key_id, workspace):
            if subject not in self.subjects:
                self.limit(subject, [])

    def limit(self, subject: SubjectKey, limits: list[Limit]) -> None:
        """Remember the limits of a key or a workspace. How many they are does not change while they are remembered."""
        if subject not in self.subjects:
            self.subject_rows += 1 + len(limits)
        self.subjects[subject] = limits

    def forget(self) -> None:
        """What was remembered beside the book is out of date."""
        self.subjects, self.holds, self.subject_rows = {}, {}, 0

    def count(self) -> int:
        """About how many half kilobytes it takes."""
        own = _ROWS_OF_A_BOOK + len(self.book.grants) + len(self.book.limits)
        return own + self.subject_rows + _ROWS_OF_A_HOLD * len(self.holds)


class Remembered:
    """The accounts named most lately, of up to `most_rows` rows in all. `clock` gives seconds that never go back."""

    def __init__(self, most_rows: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_rows = most_rows
        self._clock = clock
        self._accounts: dict[str, RememberedAccount] = {}  # the one longest not named first
        self._rows = 0
        self._wrong = 0
        self._doubted_until = 0.0
        self._doubt_seconds = _FIRST_DOUBT_SECONDS

    def take(self, operations: Iterable[Operation], now: datetime) -> dict[str, RememberedAccount]:
        """What is remembered of these operations' accounts, where it serves for all of an account's operations.

        It is forgotten here: a batch changes it, and remembers it anew when it is committed.
        """
        unfit: set[str] = set()
        found: dict[str, RememberedAccount | None] = {}
        for operation in operations:
            account_id = operation.account_id
            if account_id not in found:
                found[account_id] = self._pop(account_id)
            if not isinstance(operation, _REMEMBERED):
                unfit.add(account_id)
        return {
            account_id: account
            for account_id, account in found.items()
            if account is not None and account_id not in unfit and not _has_been_due(account.book, now)
        }

    def put(
        self,
        operations: Sequence[Operation],
        loaded: Loaded,
        changes: Changes,
        version: int,
        before: Mapping[str, RememberedAccount],
    ) -> None:
        """Remember a batch's accounts as it left them. `before`: what it had taken.

        `version`: the transaction that wrote those that it has changed.
        """
        if loaded.outdated:
            self.outdated()
        elif before and self._wrong:
            self._wrong -= 1
        if self._clock() < self._doubted_until:
            return
        for account in _as_left(operations, loaded, changes, version, before):
            self._keep(account)

    def _keep(self, account: RememberedAccount) -> None:
        """Remember an account; what was longest not named makes room for it."""
        account.rows = account.count()
        self._accounts[account.book.account_id] = account
        self._rows += account.rows
        while self._rows > self._most_rows:
            self._pop(next(iter(self._accounts)))

    def outdated(self) -> None:
        """Somebody else had changed what a batch took from here. Where that is often, remember nothing for a while."""
        self._wrong += _RIGHT_FOR_A_WRONG
        if self._wrong >= _RIGHT_FOR_A_WRONG * _WRONG_IN_A_ROW:
            self._wrong = 0
            self._doubt()

    def _doubt(self) -> None:
        now = self._clock()
        soon = now - self._doubted_until < 2 * self._doubt_seconds
        self._doubt_seconds = min(2 * self._doubt_seconds, _LONGEST_DOUBT_SECONDS) if soon else _FIRST_DOUBT_SECONDS
        self._doubted_until = now + self._doubt_seconds
        self.clear()

    def clear(self) -> None:
        """Forget everything: the database may be another one now, restored from before."""
        self._accounts.clear()
        self._rows = 0

    def _pop(self, account_id: str) -> RememberedAccount | None:
        account = self._accounts.pop(account_id, None)
        if account is not None:
            self._rows -= account.rows
        return account


def subject_keys(account_id: str, key_id: str, workspace: str) -> list[SubjectKey]:
    """The rows of limits that a call with this key in this workspace counts against, besides the account's own."""
    found = [(account_id, "key", key_id)] if key_id else []
    return [*found, (account_id, "workspace", workspace)] if workspace else found


def _as_left(
    operations: Sequence[Operation],
    loaded: Loaded,
    changes: Changes,
    version: int,
    before: Mapping[str, RememberedAccount],
) -> Iterable[RememberedAccount]:
    """What a batch leaves to be remembered; as `Remembered.put`."""
    # Answers of other operations may still show a part of the book.
    others = {operation.account_id for operation in operations if not isinstance(operation, _REMEMBERED)}
    accounts: dict[str, RememberedAccount] = {}
    for account_id in loaded.books.keys() - others:
        book = loaded.books[account_id]
        account = accounts[account_id] = before.get(account_id) or RememberedAccount(book)
        account.book = book
        account.version = version if account_id in changes.books else loaded.versions.get(account_id, account.version)
    for subject, limits in loaded.subjects.items():
        if subject[0] in accounts:
            accounts[subject[0]].limit(subject, limits)
    for key, hold in loaded.holds.items():
        if key[0] in accounts:
            accounts[key[0]].note(key, hold)
    if not loaded.unconfirmed:
        _note_limits_read(operations, accounts)
    return accounts.values()


def _note_limits_read(operations: Iterable[Operation], accounts: Mapping[str, RememberedAccount]) -> None:
    """The limits that holds were to count against were looked for, also where they were refused."""
    for operation in operations:
        if isinstance(operation, CreateHold) and operation.account_id in accounts:
            accounts[operation.account_id].limited_by(operation.key_id, operation.workspace)


def _has_been_due(book: Book, now: datetime) -> bool:
    """Whether something is due that a worker has probably seen to: what is remembered is old."""
    due_at = book.next_event_at
    return due_at is not None and due_at <= now and (book.touched_at <= now - _BUSY or due_at <= now - _OVERDUE)
