"""Owns the moves operations are made of: finding what they name, posting entries, letting happen what is due."""

from __future__ import annotations

from datetime import datetime

from services.ledger.errors import AccountClosed, AccountNotFound, HoldNotFound, IdempotencyConflict, ResultArchived
from services.ledger.model.book import Book, Grant, GrantUses, Hold, Limit
from services.ledger.model.entry import Entry
from services.ledger.model.operations import LimitWarning, Quota, Usage, UsageRow
from services.ledger.model.rows import Changes, GrantRow, Loaded, PastRequest, transaction_id, usage_id
from services.ledger.model.windows import cycle_containing

MAX_WARNINGS = 8


class Moves:
    """The moves on what was loaded, at one moment; what they change is collected in `changes`."""

    def __init__(self, loaded: Loaded, now: datetime) -> None:
        self.loaded = loaded
        self.now = now
        self.changes = Changes()

    # What happens by itself

    def let_happen(self, account_id: str) -> None:
        """Let holds lapse and grants expire, each at its own time; then it is now, and `next_event_at` is exact."""
        book = self.loaded.books.get(account_id)
        if book is None:
            return
        # Another replica's clock may be ahead of ours: an account's time never goes back.
        now = max(self.now, book.touched_at)
        if book.next_event_at is not None and now >= book.next_event_at:
            for hold in self.loaded.lapsed.get(account_id, ()):
                self.expire_grants(book, hold.expires_at)
                _come_to(book, hold.expires_at)
                self.give_back(book, hold, "expired", "hold_expired", "the hold lapsed")
            self.expire_grants(book, now)
            self.changes.books[account_id] = book
            upcoming = (book.next_grant_expiry(now), self.loaded.next_lapse.get(account_id))
            book.next_event_at = min((moment for moment in upcoming if moment is not None), default=None)
        _come_to(book, now)

    def expire_grants(self, book: Book, until: datetime) -> None:
        """Let grants expire that do so by `until`, in order; what rolls over goes on for one more cycle."""
        while (grant := book.next_expiring(until)) is not None:
            assert grant.expires_at is not None
            _come_to(book, grant.expires_at)
            taken = book.take_expired(grant)
            carried = min(taken, grant.rollover_cap)
            grant.rollover_cap -= carried  # a hold may have kept some back, which expires later
            uses: GrantUses = ((grant.grant_id, taken),)
            if carried:
                ends = cycle_containing(book.cycle_anchor, grant.expires_at)[1]
                made = self.new_grant(book, carried, source=grant.source, priority=grant.priority, expires_at=ends)
                uses += ((made.grant_id, -carried),)
            self._count_expired(book, grant.grant_id, taken - carried)
            self.post(book, "expiry", available=carried - taken, expired=taken - carried, uses=uses)

    def _count_expired(self, book: Book, grant_id: str, amount: int) -> None:
        key = (book.account_id, grant_id)
        self.changes.expired[key] = self.changes.expired.get(key, 0) + amount
        if key in self.loaded.grants:
            self.loaded.grants[key].expired += amount

    def take_back_expired(self, book: Book, grant_id: str, amount: int) -> int:
        """Take up to `amount` of what expired of a grant as if it had not been given; how much it was."""
        row = self.loaded.grants.get((book.account_id, grant_id))
        part = min(row.expired, amount) if row else 0
        if part:
            self._count_expired(book, grant_id, -part)
        return part

    # Reading

    def book(self, account_id: str) -> Book:
        """The account. Raises AccountNotFound."""
        book = self.loaded.books.get(account_id)
        if book is None:
            raise AccountNotFound(f"there is no account {account_id}", accountId=account_id)
        return book

    def open_book(self, account_id: str) -> Book:
        """The account, not closed. Raises AccountNotFound, AccountClosed."""
        book = self.book(account_id)
        if book.status == "closed":
            raise AccountClosed(f"account {account_id} is closed", accountId=account_id)
        return book

    def hold(self, account_id: str, hold_id: str) -> Hold:
        """The hold. Raises HoldNotFound, ResultArchived."""
        hold = self.loaded.holds.get((account_id, hold_id))
        if (account_id, hold_id) in self.loaded.ended:
            raise ResultArchived(f"hold {hold_id} ended long ago", holdId=hold_id)
        if hold is None:
            raise HoldNotFound(f"the account has no hold {hold_id}", holdId=hold_id)
        return hold

    def applying(self, book: Book, key_id: str, workspace: str) -> list[Limit]:
        """The limits that a call with this key in this workspace counts against, in their present windows."""
        subjects = self.loaded.subjects
        limits = list(book.limits)
        if key_id:
            limits += subjects.get((book.account_id, "key", key_id), ())
        if workspace:
            limits += subjects.get((book.account_id, "workspace", workspace), ())
        now = book.touched_at
        for limit in limits:
            if now >= limit.window_end or limit.window == "cycle":  # no other begins one
                limit.turn(book, now)
        return limits

    def replayed(self, account_id: str, request_id: str, body_hash: bytes) -> PastRequest | None:
        """The request of this key, if it was done before. Raises IdempotencyConflict where it was another one."""
        past = self.loaded.requests.get((account_id, request_id)) if request_id else None
        if past is not None and past.body_hash != body_hash:
            raise IdempotencyConflict(f"request_id {request_id} was used for another request", requestId=request_id)
        return past

    def entry_of(self, account_id: str, past: PastRequest) -> Entry:
        """The entry that a request wrote. Raises ResultArchived where its month is gone."""
        return self.entry(account_id, past.sequence)

    def entry(self, account_id: str, sequence: int) -> Entry:
        """An entry that was read. Raises ResultArchived where its month is gone."""
        entry = self.loaded.entries.get((account_id, sequence))
        if entry is None:
            raise ResultArchived("this was done before, and its result is archived", accountId=account_id)
        return entry

    # Writing

    def post(
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
        hold_id: str = "",
        usage_id: str = "",
        key_id: str = "",
        workspace: str = "",
        provider: str = "",
        model: str = "",
        original_id: str = "",
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
            book.account_id, book.sequence, book.touched_at, entry_type, funding, available, held, spent, expired,
            book.available, uses, description, request_id, hold_id, usage_id, key_id, workspace, provider, model,
            original_id=original_id,
        )  # fmt: skip
        book.last_hash = entry.hash = entry.chained(book.last_hash)
        self.changes.books[book.account_id] = book
        self.changes.entries.append(entry)
        self.loaded.entries[book.account_id, entry.sequence] = entry
        return entry

    def new_grant(
        self,
        book: Book,
        amount: int,
        *,
        source: str,
        priority: int,
        expires_at: datetime | None = None,
        rollover_cap: int = 0,
    ) -> Grant:
        """Give a grant, named for the entry that is posted next."""
        order = book.sequence + 1
        grant = Grant(f"grant-{order}", source, priority, order, expires_at, amount, amount, 0, rollover_cap)
        row = GrantRow(grant, book.touched_at)
        self.changes.grants[book.account_id, grant.grant_id] = row
        self.loaded.grants[book.account_id, grant.grant_id] = row
        book.add_grant(grant)
        return grant

    def remember(self, account_id: str, request_id: str, body_hash: bytes, sequence: int = 0) -> None:
        """Keep that a request was done, and the entry it wrote, so that it is not done again."""
        if request_id:
            past = PastRequest(body_hash, sequence)
            self.changes.requests[account_id, request_id] = past
            self.loaded.requests[account_id, request_id] = past

    def count(self, limits: list[Limit], book: Book) -> None:
        """The use of these limits has changed: write the rows they are in."""
        for limit in limits:
            if limit.subject:
                key = (book.account_id, limit.scope, limit.subject)
                self.changes.subjects[key] = self.loaded.subjects[key]
        self.changes.books[book.account_id] = book

    def record(
        self,
        book: Book,
        usage: Usage,
        *,
        entry: Entry | None,
        amount: int,
        tokens: int,
        requests: int,
        key_id: str,
        workspace: str,
        hold_id: str = "",
        billable: bool = True,
        counted_at: datetime,
    ) -> None:
        """Write the usage record whose number `number_usage` took. `entry` paid for it."""
        self.changes.usage.append(
            UsageRow(
                book.account_id,
                book.usage_sequence,
                book.touched_at,
                key_id,
                workspace,
                hold_id,
                transaction_id(entry.created_at, entry.sequence) if entry else "",
                amount,
                billable,
                tokens,
                requests,
                counted_at,
                usage,
            )
        )

    def change_hold(self, hold: Hold, *, extended: bool = False) -> None:
        """Write what became of a hold; one that this batch makes is written as it ends up."""
        key = (hold.account_id, hold.hold_id)
        if key not in self.changes.made:
            self.changes.holds[key] = hold
            if extended:
                self.changes.extended.add(key)

    def number_usage(self, book: Book) -> str:
        """The id of the usage record that is written next."""
        book.usage_sequence += 1
        return usage_id(book.touched_at, book.usage_sequence)

    def give_back(self, book: Book, hold: Hold, status: str, entry_type: str, description: str) -> None:
        """Free a whole hold: its money, and its share of the limits that it counted in."""
        hold.status, hold.ended_at = status, book.touched_at
        limits, asked = self.applying(book, hold.key_id, hold.workspace), hold.asked
        for limit in limits:
            if limit.counts(hold):
                limit.held -= asked[limit.unit]
        book.spend_hold(hold, 0)
        self.count(limits, book)
        hold.end_sequence = self.post(
            book,
            entry_type,
            held=-hold.amount,
            available=hold.amount,
            uses=book.pay_overdrawn(),
            description=description,
            hold_id=hold.hold_id,
            key_id=hold.key_id,
            workspace=hold.workspace,
        ).sequence
        self.change_hold(hold)


def _come_to(book: Book, moment: datetime) -> None:
    """It is `moment` now at the account; its cycle turns if that is past its end."""
    book.touched_at = max(book.touched_at, moment)
    book.turn_cycle(book.touched_at)


def warnings_of(limits: list[Limit]) -> tuple[LimitWarning, ...]:
    """What an answer should warn of: limits past their warning share, or exceeded."""
    found = []
    for limit in limits:
        counted = limit.used + limit.held
        if counted * 100 >= limit.amount * limit.warn_percent:
            found.append(LimitWarning("LIMIT_EXCEEDED" if counted > limit.amount else "LIMIT_NEAR", limit.copy()))
    if not found:
        return ()
    # A batch of a thousand operations at an account of many limits is still an answer that clients take.
    return tuple(sorted(found, key=lambda warning: warning.reason)[:MAX_WARNINGS])


def quotas_of(book: Book) -> tuple[Quota, ...]:
    """What is left of the account's limits on tokens and requests in its cycle, which are in their present windows."""
    if not book.limits:  # most accounts, at each of their holds
        return ()
    quotas = [
        Quota(limit.unit, limit.amount, max(limit.room, 0), limit.window_end)
        for limit in book.limits
        if limit.window == "cycle" and limit.unit != "nanos"
    ]
    return tuple(quotas)
