"""Owns the moves operations are made of: finding what they name, posting entries, letting happen what is due."""

from __future__ import annotations

from datetime import datetime

from services.ledger.errors import AccountNotFound, HoldNotFound, IdempotencyConflict
from services.ledger.model.book import Book, Entry, GrantUses, Hold, Limit
from services.ledger.model.operations import ReleaseHold, SettleHold
from services.ledger.model.rows import Changes, Loaded, PastRequest


class Moves:
    """The moves on what was loaded, at one moment; what they change is collected in `changes`."""

    def __init__(self, loaded: Loaded, now: datetime) -> None:
        self._loaded = loaded
        self._now = now
        self.changes = Changes()
        self._touched: set[str] = set()

    # What happens by itself

    def _let_happen(self, account_id: str) -> None:
        """Let holds lapse and grants expire, as of now; then `next_event_at` is exact."""
        self._touched.add(account_id)
        book = self._loaded.books.get(account_id)
        if book is None:
            return
        # Another replica's clock may be ahead of ours: an account's time never goes back.
        book.touched_at = max(self._now, book.touched_at)
        now = book.touched_at
        book.turn_cycle(now)
        if book.next_event_at is None or now < book.next_event_at:
            return
        self.changes.books[account_id] = book
        for hold in self._loaded.lapsed.get(account_id, ()):
            self._give_back(book, hold, "expired", "hold_expired", "the hold lapsed")
        self._expire_grants(book)
        upcoming = (book.next_grant_expiry(now), self._loaded.next_lapse.get(account_id))
        book.next_event_at = min((moment for moment in upcoming if moment is not None), default=None)

    def _expire_grants(self, book: Book) -> None:
        uses = book.expire_grants(book.touched_at)
        if uses:
            amount = sum(part for _, part in uses)
            self._post(book, "expiry", available=-amount, expired=amount, uses=uses)

    # Reading

    def _book(self, account_id: str) -> Book:
        book = self._loaded.books.get(account_id)
        if book is None:
            raise AccountNotFound(f"there is no account {account_id}", accountId=account_id)
        return book

    def _hold(self, operation: SettleHold | ReleaseHold) -> Hold:
        hold = self._loaded.holds.get((operation.account_id, operation.hold_id))
        if hold is None:
            raise HoldNotFound(f"the account has no hold {operation.hold_id}", holdId=operation.hold_id)
        return hold

    def _applying(self, account_id: str, key_id: str, workspace: str) -> list[Limit]:
        """The limits that a call with this key in this workspace counts against."""
        subjects = self._loaded.subjects
        limits = list(self._loaded.books[account_id].limits)
        if key_id:
            limits += subjects.get((account_id, "key", key_id), ())
        if workspace:
            limits += subjects.get((account_id, "workspace", workspace), ())
        book = self._loaded.books[account_id]
        for limit in limits:
            limit.turn(book.cycle_anchor, book.touched_at)
        return limits

    def _replayed(self, account_id: str, request_id: str, body_hash: bytes) -> PastRequest | None:
        past = self._loaded.requests.get((account_id, request_id))
        if past is not None and past.body_hash != body_hash:
            raise IdempotencyConflict(f"request_id {request_id} was used for another request", requestId=request_id)
        return past

    # Writing

    def _post(
        self,
        book: Book,
        entry_type: str,
        *,
        funding: int = 0,
        available: int = 0,
        held: int = 0,
        spent: int = 0,
        expired: int = 0,
        uses: GrantUses = (),
        description: str = "",
        request_id: str = "",
        hold: Hold | None = None,
        usage_id: str = "",
        provider: str = "",
        model: str = "",
    ) -> Entry:
        """Write one journal entry and move the book's balances by it."""
        assert funding + available + held + spent + expired == 0, entry_type
        book.sequence += 1
        book.available += available
        book.held += held
        book.funded -= funding
        book.spent += spent
        book.cycle_spent += spent
        book.expired += expired
        entry = Entry(
            account_id=book.account_id,
            sequence=book.sequence,
            created_at=book.touched_at,
            type=entry_type,
            funding=funding,
            available=available,
            held=held,
            spent=spent,
            expired=expired,
            balance_after=book.available,
            grant_uses=uses,
            description=description,
            request_id=request_id,
            hold_id=hold.hold_id if hold else "",
            usage_id=usage_id,
            key_id=hold.key_id if hold else "",
            workspace=hold.workspace if hold else "",
            provider=provider,
            model=model,
        )
        book.last_hash = entry.hash = entry.chained(book.last_hash)
        self.changes.books[book.account_id] = book
        self.changes.entries.append(entry)
        self._loaded.entries[book.account_id, entry.sequence] = entry
        return entry

    def _remember(self, account_id: str, request_id: str, body_hash: bytes, sequence: int) -> None:
        past = PastRequest(body_hash, sequence)
        self.changes.requests[account_id, request_id] = past
        self._loaded.requests[account_id, request_id] = past

    def _counted(self, limits: list[Limit], account_id: str) -> None:
        """Their use has changed: write the rows they are in."""
        for limit in limits:
            if limit.subject:
                key = (account_id, limit.scope, limit.subject)
                self.changes.subjects[key] = self._loaded.subjects[key]
        self.changes.books[account_id] = self._loaded.books[account_id]

    def _give_back(self, book: Book, hold: Hold, status: str, entry_type: str, description: str) -> None:
        """Free a whole hold: its money, and its share of the limits that it counted in."""
        hold.status, hold.ended_at = status, book.touched_at
        limits = self._applying(book.account_id, hold.key_id, hold.workspace)
        for limit in limits:
            if limit.counts(hold):
                limit.held -= hold.asked(limit.unit)
        book.spend_hold(hold, 0)
        self._counted(limits, book.account_id)
        hold.end_sequence = self._post(
            book,
            entry_type,
            held=-hold.amount,
            available=hold.amount,
            uses=book.pay_overdrawn(),
            description=description,
            hold=hold,
        ).sequence
        self.changes.holds[hold.account_id, hold.hold_id] = hold
