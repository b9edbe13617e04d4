"""Owns one batch of operations on loaded accounts: runs each by the rules and collects the rows to be written.

Pure: whoever calls it has locked the accounts and read what the operations need (`Loaded`), and writes what is
collected (`Changes`) in the same database transaction. One refused operation leaves no trace and does not touch its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from services.kit.errors import Violation
from services.ledger.errors import (
    AccountClosed,
    AccountExists,
    AccountFull,
    AccountSuspended,
    GrantExpired,
    HoldEnded,
    HoldNotBillable,
    IdempotencyConflict,
    LedgerError,
    LinkedOperationFailed,
)
from services.ledger.model.book import (
    MAX_FUNDED,
    MAX_SPENT,
    Book,
    Grant,
    Hold,
    Limit,
    admit,
    lapses_at,
    set_limit,
)
from services.ledger.model.moves import Moves
from services.ledger.model.operations import (
    CREDIT_TYPES,
    AccountState,
    Answer,
    CreateHold,
    Credit,
    DeleteLimit,
    Done,
    HoldMade,
    HoldReleased,
    HoldSettled,
    LimitState,
    LimitWarning,
    OpenAccount,
    Operation,
    Posted,
    ReleaseHold,
    Result,
    SetLimit,
    SetStatus,
    SettleHold,
    Touch,
    UsageRow,
)
from services.ledger.model.rows import (
    transaction_id,
    usage_id,
)
from services.ledger.model.windows import cycle_containing, window_containing


class Batch(Moves):
    """One batch at one moment. `run` once for each linked group, in order; then write `changes`."""

    def run(self, group: Sequence[Operation]) -> list[Result]:
        """Do a linked group: all of it, or nothing. A group of one is an ordinary operation."""
        accounts = {operation.account_id for operation in group}
        for account_id in accounts - self._touched:
            self._let_happen(account_id)
        # A single operation checks everything before it changes anything; a group may be refused at its last.
        undo = self._saved(accounts) if len(group) > 1 else None
        results: list[Result] = []
        for operation in group:
            try:
                results.append(self._rules[type(operation)](self, operation))
            except LedgerError as refusal:
                if undo is None:
                    return [Result(refusal)]
                undo()
                position = len(results)
                others = LinkedOperationFailed(f"operation {position + 1} of the group failed: {refusal.reason}")
                return [Result(refusal if index == position else others) for index in range(len(group))]
        for account_id in accounts:
            book = self._loaded.books.get(account_id)
            if book is not None:
                book.check()
        return results

    def _saved(self, accounts: set[str]) -> Callable[[], None]:
        """What puts these accounts back as they are now."""
        loaded, changes = self._loaded, self.changes
        books = {a: loaded.books[a].copy() for a in accounts if a in loaded.books}
        holds = {k: replace(v) for k, v in loaded.holds.items() if k[0] in accounts}
        subjects = {k: [replace(x) for x in v] for k, v in loaded.subjects.items() if k[0] in accounts}
        lengths = len(changes.grants), len(changes.entries), len(changes.usage)
        keyed = (dict(changes.opened), dict(changes.books), dict(changes.holds), dict(changes.subjects))
        requests, past = dict(changes.requests), dict(loaded.requests)

        def restore() -> None:
            for account_id in accounts - books.keys():
                loaded.books.pop(account_id, None)
            loaded.books |= books
            loaded.holds = {k: v for k, v in loaded.holds.items() if k[0] not in accounts} | holds
            loaded.subjects = {k: v for k, v in loaded.subjects.items() if k[0] not in accounts} | subjects
            loaded.requests = past
            del changes.grants[lengths[0] :], changes.entries[lengths[1] :], changes.usage[lengths[2] :]
            changes.opened = {a: loaded.books[a] for a in keyed[0]}
            changes.books = {a: loaded.books[a] for a in keyed[1]}
            changes.holds = {k: loaded.holds[k] for k in keyed[2]}
            changes.subjects = {k: loaded.subjects[k] for k in keyed[3]}
            changes.requests = requests

        return restore

    # The rules, one for each operation

    def _open_account(self, operation: OpenAccount) -> Result:
        there = self._loaded.books.get(operation.account_id)
        if there is not None:
            if there.open_hash == operation.body_hash:
                return Result(AccountState(there.copy()), replayed=True)
            raise AccountExists(f"account {operation.account_id} is there already", accountId=operation.account_id)
        anchor = operation.cycle_anchor or self._now
        book = Book(
            account_id=operation.account_id,
            display_name=operation.display_name,
            status="open",
            status_reason="",
            overdraft_kind=operation.overdraft_kind,
            overdraft_limit=operation.overdraft_limit,
            cycle_anchor=anchor,
            created_at=self._now,
            open_hash=operation.body_hash,
            touched_at=self._now,
            cycle_end=cycle_containing(anchor, self._now)[1],
        )
        self._loaded.books[operation.account_id] = book
        self.changes.opened[operation.account_id] = book
        return Result(AccountState(book.copy()))

    def _set_status(self, operation: SetStatus) -> Result:
        book = self._book(operation.account_id)
        if self._replayed(operation.account_id, operation.request_id, operation.body_hash):
            return Result(AccountState(book.copy()), replayed=True)
        if book.status == "closed":
            raise AccountClosed(f"account {book.account_id} is closed", accountId=book.account_id)
        book.status, book.status_reason = operation.status, operation.why
        self.changes.books[book.account_id] = book
        self._remember(operation.account_id, operation.request_id, operation.body_hash, 0)
        return Result(AccountState(book.copy()))

    def _credit(self, operation: Credit) -> Result:
        book = self._book(operation.account_id)
        past = self._replayed(operation.account_id, operation.request_id, operation.body_hash)
        if past is not None:
            return Result(Posted(self._loaded.entries[operation.account_id, past.sequence]), replayed=True)
        if book.status == "closed":
            raise AccountClosed(f"account {book.account_id} is closed", accountId=book.account_id)
        if operation.expires_at is not None and operation.expires_at <= book.touched_at:
            raise GrantExpired("expires_at is past", violations=[Violation("expires_at", "must be in the future")])
        if book.funded + operation.amount > MAX_FUNDED:
            raise AccountFull(f"the account cannot take more than {MAX_FUNDED} nanos in all", funded=book.funded)
        grant = Grant(
            grant_id=f"grant-{book.sequence + 1}",
            source=operation.source,
            priority=operation.priority,
            order=book.sequence + 1,
            expires_at=operation.expires_at,
            amount=operation.amount,
            remaining=operation.amount,
        )
        book.add_grant(grant)
        # The entry names the new grant with a minus (filled), and what overdrawn spending it paid at once with a plus.
        uses = ((grant.grant_id, -operation.amount), *book.pay_overdrawn())
        entry = self._post(
            book,
            CREDIT_TYPES[operation.source],
            funding=-operation.amount,
            available=operation.amount,
            uses=uses,
            description=operation.description,
            request_id=operation.request_id,
        )
        self.changes.grants.append((book.account_id, replace(grant, remaining=operation.amount), book.touched_at))
        self._remember(operation.account_id, operation.request_id, operation.body_hash, entry.sequence)
        return Result(Posted(entry))

    def _create_hold(self, operation: CreateHold) -> Result:
        book = self._book(operation.account_id)
        key = (operation.account_id, operation.hold_id)
        there = self._loaded.holds.get(key)
        if there is not None:
            if there.body_hash != operation.body_hash:
                raise IdempotencyConflict(
                    f"hold_id {operation.hold_id} was used for another hold", holdId=operation.hold_id
                )
            made = self._loaded.entries.get((operation.account_id, there.sequence))
            first = replace(there, status="open", ended_at=None, settled=0)
            return Result(HoldMade(first, made.balance_after if made else book.available, ()), replayed=True)
        if book.status == "suspended":
            raise AccountSuspended(f"account {book.account_id} is suspended", accountId=book.account_id)
        if book.status == "closed":
            raise AccountClosed(f"account {book.account_id} is closed", accountId=book.account_id)
        limits = self._applying(operation.account_id, operation.key_id, operation.workspace)
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
        hold.sequence = self._post(book, "hold", available=-amount, held=amount, hold=hold).sequence
        for limit in limits:
            limit.held += hold.asked(limit.unit)
        self._counted(limits, book.account_id)
        book.expects(hold.expires_at)
        self._loaded.holds[key] = self.changes.holds[key] = hold
        return Result(HoldMade(replace(hold), book.available, _warnings(limits)))

    def _settle_hold(self, operation: SettleHold) -> Result:
        hold = self._hold(operation)
        book = self._book(operation.account_id)
        if hold.status == "settled":
            if hold.end_body_hash != operation.body_hash:
                raise IdempotencyConflict(f"hold {hold.hold_id} was settled otherwise", holdId=hold.hold_id)
            charged = self._loaded.entries[operation.account_id, hold.end_sequence] if hold.settled else None
            first = HoldSettled(replace(hold), charged, hold.end_available, hold.was_expired, warnings=())
            return Result(first, replayed=True)
        if hold.status == "released":
            raise HoldEnded(f"hold {hold.hold_id} was released", holdId=hold.hold_id, status=hold.status)
        if operation.amount and not hold.billable:
            violation = Violation("amount_nanos", "must be 0: the hold is not billable")
            raise HoldNotBillable(f"hold {hold.hold_id} is not billable", violations=[violation], holdId=hold.hold_id)
        if book.spent + operation.amount > MAX_SPENT:
            raise AccountFull(f"the account cannot spend more than {MAX_SPENT} nanos in all", spent=book.spent)
        return Result(self._settled(book, hold, operation))

    def _settled(self, book: Book, hold: Hold, operation: SettleHold) -> Answer:
        hold.was_expired = was_expired = hold.status == "expired"
        limits = self._applying(operation.account_id, hold.key_id, hold.workspace)
        for limit in limits:
            if limit.counts(hold):
                limit.held -= 0 if was_expired else hold.asked(limit.unit)
                limit.used += {"nanos": operation.amount, "tokens": operation.tokens}.get(limit.unit, hold.requests)
        self._counted(limits, book.account_id)
        freed = 0 if was_expired else hold.amount
        uses = book.spend_hold(replace(hold, reservations=(), unbacked=0) if was_expired else hold, operation.amount)
        uses += book.pay_overdrawn() if freed > operation.amount else ()
        usage = operation.usage
        if usage is not None:
            book.usage_sequence += 1
            hold.usage_id = usage_id(book.touched_at, book.usage_sequence)
        entry = None
        if freed or operation.amount:
            entry = self._post(
                book,
                "usage_deduction" if operation.amount else "hold_released",
                held=-freed,
                spent=operation.amount,
                available=freed - operation.amount,
                uses=uses,
                description=operation.description,
                hold=hold,
                usage_id=hold.usage_id,
                provider=usage.provider if usage else "",
                model=usage.model if usage else "",
            )
        hold.end_sequence = entry.sequence if entry else 0
        charged = entry if operation.amount else None
        hold.status, hold.settled, hold.ended_at = "settled", operation.amount, book.touched_at
        hold.end_body_hash = operation.body_hash
        self.changes.holds[hold.account_id, hold.hold_id] = hold
        if usage is not None:
            self.changes.usage.append(
                UsageRow(
                    account_id=book.account_id,
                    number=book.usage_sequence,
                    created_at=book.touched_at,
                    key_id=hold.key_id,
                    workspace=hold.workspace,
                    hold_id=hold.hold_id,
                    transaction_id=transaction_id(charged.created_at, charged.sequence) if charged else "",
                    billed=operation.amount,
                    billable=hold.billable,
                    usage=usage,
                )
            )
        self._expire_grants(book)
        hold.end_available = book.available
        return HoldSettled(replace(hold), charged, book.available, was_expired, _warnings(limits))

    def _release_hold(self, operation: ReleaseHold) -> Result:
        hold = self._hold(operation)
        if hold.status in {"released", "expired"}:
            return Result(HoldReleased(replace(hold)), replayed=hold.status == "released")
        if hold.status == "settled":
            raise HoldEnded(f"hold {hold.hold_id} was settled", holdId=hold.hold_id, status=hold.status)
        book = self._book(operation.account_id)
        self._give_back(book, hold, "released", "hold_released", operation.description)
        self._expire_grants(book)
        return Result(HoldReleased(replace(hold)))

    def _set_limit(self, operation: SetLimit) -> Result:
        book = self._book(operation.account_id)
        row = self._limit_row(operation)
        replayed = bool(operation.request_id) and self._replayed(
            operation.account_id, operation.request_id, operation.body_hash
        )
        start, end = window_containing(operation.window, book.cycle_anchor, book.touched_at)
        limit = Limit(
            scope=operation.scope,
            subject=operation.subject,
            unit=operation.unit,
            window=operation.window,
            amount=operation.amount,
            mode=operation.mode,
            warn_percent=operation.warn_percent,
            window_start=start,
            window_end=end,
            since_sequence=book.sequence,
        )
        if replayed:
            limit = next((there for there in row if there.limit_id == limit.limit_id), limit)
            return Result(LimitState(book.account_id, replace(limit)), replayed=True)
        limit = set_limit(row, limit)
        self._counted([limit], book.account_id)
        if operation.request_id:
            self._remember(operation.account_id, operation.request_id, operation.body_hash, 0)
        return Result(LimitState(book.account_id, replace(limit)))

    def _delete_limit(self, operation: DeleteLimit) -> Result:
        self._book(operation.account_id)
        row = self._limit_row(operation)
        for limit in row:
            if (limit.scope, limit.unit, limit.window) == (operation.scope, operation.unit, operation.window):
                row.remove(limit)
                self._counted([limit], operation.account_id)
                break
        return Result(Done())

    def _limit_row(self, operation: SetLimit | DeleteLimit) -> list[Limit]:
        """The list that a limit is kept in: the account's own, or its key's or workspace's."""
        book = self._loaded.books[operation.account_id]
        row = book.limits
        if operation.subject:
            key = (operation.account_id, operation.scope, operation.subject)
            row = self._loaded.subjects.setdefault(key, [])
        for limit in row:
            limit.turn(book.cycle_anchor, book.touched_at)
        return row

    def _touch(self, operation: Touch) -> Result:
        self._book(operation.account_id)
        return Result(Done())

    _rules: dict[type, Callable[[Batch, Any], Result]] = {  # noqa: RUF012 (never changed)
        OpenAccount: _open_account,
        SetStatus: _set_status,
        Credit: _credit,
        CreateHold: _create_hold,
        SettleHold: _settle_hold,
        ReleaseHold: _release_hold,
        SetLimit: _set_limit,
        DeleteLimit: _delete_limit,
        Touch: _touch,
    }


def _warnings(limits: list[Limit]) -> tuple[LimitWarning, ...]:
    """What the answer should warn of: limits past their warning share, or exceeded."""
    found = []
    for limit in limits:
        counted = limit.used + limit.held
        if counted > limit.amount:
            found.append(LimitWarning("LIMIT_EXCEEDED", replace(limit)))
        elif counted * 100 >= limit.amount * limit.warn_percent:
            found.append(LimitWarning("LIMIT_NEAR", replace(limit)))
    return tuple(found)
