"""Owns an account's book: its balances, grants, limits and holds, and the moves that keep them consistent.

The book's equations, which hold before and after every operation:

    available = sum of (remaining - reserved) over grants - overdrawn - unbacked
    held      = sum of amounts of open holds = sum of reserved over grants + unbacked
    funded    = available + held + spent + expired

`overdrawn` is what was spent and no grant has paid for yet; `unbacked` is what open holds set aside on overdraft.
Nothing is overdrawn while a grant has something free.
A book is changed in place by one operation at a time; each move checks everything before it changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import attrgetter

from services.ledger.errors import AccountFull
from services.ledger.model.windows import cycle_containing, window_containing

# An account's grants and limits live in its own row, which every operation reads and writes.
MAX_GRANTS = 200
MAX_LIMITS = 32

# Amounts and their sums stay clear of the end of 64 bits (9.2e18): a billion dollars at once, four billion given, and
# four billion spent, in an account's life.
MAX_AMOUNT = 10**18
MAX_FUNDED = 4 * 10**18
MAX_SPENT = 4 * 10**18
MAX_COUNTED = 2**63 - 1

_LAST = datetime.max.replace(tzinfo=UTC)

GrantUses = tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Grant:
    """What is left of one grant of credit. `order` is the transaction that gave it: lower is older."""

    grant_id: str
    source: str
    priority: int
    order: int
    expires_at: datetime | None
    amount: int
    remaining: int
    reserved: int = 0
    rollover_cap: int = 0

    @property
    def free(self) -> int:
        """What no open hold reserves."""
        return self.remaining - self.reserved


@dataclass(slots=True)
class Limit:
    """A cap on one unit in one kind of window, and its use in the present one."""

    scope: str
    subject: str
    unit: str
    window: str
    amount: int
    mode: str
    warn_percent: int
    window_start: datetime
    window_end: datetime
    used: int = 0
    held: int = 0
    # All but those two in JSON, as they were written last; empty where one of them has changed since.
    terms: str = field(default="", compare=False, repr=False)

    @property
    def limit_id(self) -> str:
        """`{scope}:{subject}:{unit}:{window}`."""
        return f"{self.scope}:{self.subject}:{self.unit}:{self.window}"

    def use(self, amount: int) -> None:
        """Count more, up to the end of its 64 bits: refunds give back money and not room, so it may come there."""
        self.used = min(self.used + amount, MAX_COUNTED)

    @property
    def room(self) -> int:
        """What may still be held; negative where it was lowered below what is used."""
        return self.amount - self.used - self.held

    def copy(self) -> Limit:
        """A copy that does not change with it."""
        return Limit(*_limit_fields(self))

    def counts(self, hold: Hold) -> bool:
        """Whether the hold counts in the present window: it was made in it."""
        return hold.created_at >= self.window_start

    def turn(self, book: Book, now: datetime) -> None:
        """Begin the window that `now` is in, if the last one is over. The book's cycle is turned before."""
        if self.window == "cycle":
            if self.window_start != book.cycle_start:
                self._begin(book.cycle_start, book.cycle_end)
        elif now >= self.window_end:
            self._begin(*window_containing(self.window, now))

    def _begin(self, start: datetime, end: datetime) -> None:
        self.window_start, self.window_end = start, end
        self.used = self.held = 0
        self.terms = ""

    def change(self, *, amount: int, mode: str, warn_percent: int) -> None:
        """Change what it allows, and not what is counted."""
        self.amount, self.mode, self.warn_percent = amount, mode, warn_percent
        self.terms = ""


_limit_fields = attrgetter(*Limit.__slots__)


@dataclass(slots=True)
class Hold:
    """Money and limit use set aside. `reservations` name the grants it will be paid from, in spending order."""

    account_id: str
    hold_id: str
    status: str
    amount: int
    tokens: int
    requests: int
    key_id: str
    workspace: str
    billable: bool
    created_at: datetime
    expires_at: datetime
    sequence: int
    reservations: GrantUses
    unbacked: int
    settled: int = 0
    ended_at: datetime | None = None
    body_hash: bytes = b""
    # How it ended, so that a replay gives the first answer again.
    end_body_hash: bytes = b""
    end_sequence: int = 0
    end_available: int = 0
    was_expired: bool = False
    usage_id: str = ""

    def copy(self) -> Hold:
        """A copy that does not change with it."""
        return Hold(*_hold_fields(self))

    @property
    def asked(self) -> dict[str, int]:
        """What the hold counts against a limit, by its unit."""
        return {"nanos": self.amount, "tokens": self.tokens, "requests": self.requests}


_hold_fields = attrgetter(*Hold.__slots__)


@dataclass(slots=True)
class Book:
    """One account. All amounts in nanos, all times UTC."""

    account_id: str
    display_name: str
    status: str
    status_reason: str
    overdraft_kind: str
    overdraft_limit: int
    cycle_anchor: datetime
    created_at: datetime
    open_hash: bytes
    touched_at: datetime
    cycle_start: datetime
    cycle_end: datetime
    sequence: int = 0
    usage_sequence: int = 0
    last_hash: bytes = b""
    available: int = 0
    held: int = 0
    funded: int = 0
    spent: int = 0
    expired: int = 0
    overdrawn: int = 0
    unbacked: int = 0
    cycle_spent: int = 0
    grants: list[Grant] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    # No grant expires and no open hold lapses before this; what does may be later.
    next_event_at: datetime | None = None

    def copy(self) -> Book:
        """A copy that shares nothing that changes."""
        return replace(self, grants=[replace(g) for g in self.grants], limits=[x.copy() for x in self.limits])

    def check(self) -> None:
        """Assert the book's equations."""
        free = reserved = 0
        for grant in self.grants:
            assert 0 <= grant.reserved <= grant.remaining <= grant.amount, self.account_id
            free += grant.remaining - grant.reserved
            reserved += grant.reserved
        assert self.available == free - self.overdrawn - self.unbacked, self.account_id
        assert self.held == reserved + self.unbacked, self.account_id
        assert self.funded == self.available + self.held + self.spent + self.expired, self.account_id
        assert min(self.held, self.spent, self.expired, self.overdrawn, self.unbacked) >= 0, self.account_id
        assert self.overdrawn == 0 or free == 0, self.account_id

    def turn_cycle(self, now: datetime) -> None:
        """Begin the cycle that `now` is in, if the last one is over."""
        if now >= self.cycle_end:
            self.cycle_start, self.cycle_end = cycle_containing(self.cycle_anchor, now)
            self.cycle_spent = 0

    def move_cycle(self, anchor: datetime, now: datetime) -> None:
        """Count cycles from another anchor: the present one ends now, and the next lasts until the anchor's day."""
        self.cycle_anchor = anchor
        self.cycle_start, self.cycle_end = now, cycle_containing(anchor, now)[1]
        self.cycle_spent = 0

    def expects(self, moment: datetime) -> None:
        """Something ends by itself at `moment`: look at the account then at the latest."""
        if self.next_event_at is None or moment < self.next_event_at:
            self.next_event_at = moment

    @property
    def payable(self) -> int:
        """The most that may be held or debited now, nanos; below zero where overdrawn."""
        to_spend = min(MAX_AMOUNT, MAX_SPENT - self.spent - self.held)
        if self.overdraft_kind == "unlimited":
            return to_spend
        return min(to_spend, self.available + (self.overdraft_limit if self.overdraft_kind == "fixed" else 0))

    def check_room_for_grant(self) -> None:
        """Raise AccountFull where the account has as many grants as it may."""
        if len(self.grants) >= MAX_GRANTS:
            raise AccountFull(f"the account has {MAX_GRANTS} grants with something left", grants=len(self.grants))

    def add_grant(self, grant: Grant) -> None:
        """Take a grant in, at its place in the spending order."""
        self.grants.append(grant)
        self.grants.sort(key=_spending_order)
        if grant.expires_at is not None:
            self.expects(grant.expires_at)

    def grant(self, grant_id: str) -> Grant | None:
        """A grant that has something left."""
        return next((grant for grant in self.grants if grant.grant_id == grant_id), None)

    def pay_overdrawn(self) -> GrantUses:
        """Let free credit pay what is overdrawn; what was taken from which grant, and how much was paid."""
        if self.overdrawn == 0:
            return ()
        before = self.overdrawn
        uses, self.overdrawn = self._take_free(before)
        self._drop_spent_grants()
        return (*uses, ("", self.overdrawn - before)) if uses else ()

    def reserve(self, amount: int) -> tuple[GrantUses, int]:
        """Reserve grants for a hold, in spending order; what is reserved of which, and what no grant backs."""
        reservations = []
        for grant in self.grants:
            if amount == 0:
                break
            part = min(grant.free, amount)
            if part > 0:
                grant.reserved += part
                amount -= part
                reservations.append((grant.grant_id, part))
        self.unbacked += amount
        return tuple(reservations), amount

    def spend_hold(self, hold: Hold, amount: int) -> GrantUses:
        """Spend `amount` from a hold's reservations, then from free grants, then on overdraft; free what is left of it.

        What was taken from which grant; the empty name is what no grant has paid.
        """
        uses = []
        by_id = {grant.grant_id: grant for grant in self.grants}
        for grant_id, reserved in hold.reservations:
            grant = by_id[grant_id]
            part = min(reserved, amount)
            grant.reserved -= reserved
            grant.remaining -= part
            amount -= part
            if part:
                uses.append((grant_id, part))
        self.unbacked -= hold.unbacked
        if amount:
            uses.extend(self.spend_free(amount))
        self._drop_spent_grants()
        return tuple(uses)

    def spend_free(self, amount: int) -> GrantUses:
        """Spend free credit, then overdraw; what was taken from which grant, and under the empty name from none."""
        uses, left = self._take_free(amount)
        self._drop_spent_grants()
        if left:
            self.overdrawn += left
            return (*uses, ("", left))
        return uses

    def next_expiring(self, until: datetime) -> Grant | None:
        """The grant that expires first of those that have by `until`, and have something no open hold reserves."""
        due = [g for g in self.grants if g.expires_at is not None and g.expires_at <= until and g.free > 0]
        return min(due, key=lambda grant: grant.expires_at or _LAST, default=None)

    def take_expired(self, grant: Grant) -> int:
        """Take away what is free of a grant that has expired; how much it was."""
        free = grant.free
        grant.remaining = grant.reserved
        self._drop_spent_grants()
        return free

    def take_from(self, grant_id: str, amount: int) -> int:
        """Take up to `amount` of what one grant has free; how much it was."""
        grant = self.grant(grant_id)
        part = min(grant.free, amount) if grant else 0
        if grant:
            grant.remaining -= part
            self._drop_spent_grants()
        return part

    def next_grant_expiry(self, now: datetime) -> datetime | None:
        """When the next grant expires, also one that is all reserved: its hold may end before that.

        What is reserved of a grant that has expired already goes with the end of its hold.
        """
        return min((g.expires_at for g in self.grants if g.expires_at is not None and g.expires_at > now), default=None)

    def _take_free(self, amount: int) -> tuple[GrantUses, int]:
        uses = []
        for grant in self.grants:
            if amount == 0:
                break
            part = min(grant.free, amount)
            if part > 0:
                grant.remaining -= part
                amount -= part
                uses.append((grant.grant_id, part))
        return tuple(uses), amount

    def _drop_spent_grants(self) -> None:
        if any(grant.remaining == 0 for grant in self.grants):
            self.grants = [grant for grant in self.grants if grant.remaining]


def _spending_order(grant: Grant) -> tuple[int, datetime, int]:
    """By priority, then earliest expiry (never comes last), then oldest."""
    return grant.priority, grant.expires_at or _LAST, grant.order
