"""Owns chance: random operations that suit a ledger as it stands."""

from dataclasses import dataclass
from datetime import timedelta
from random import Random

from services.ledger.model.operations import SetStatus
from services.ledger.model.rows import transaction_id
from tests.ledger.support.ledger_memory import (
    adjust,
    close,
    credit,
    debit,
    delete_limit,
    extend,
    hold,
    release,
    set_limit,
    settle,
    suspend,
    touch,
    undo,
    update,
)


@dataclass(frozen=True)
class Ranges:
    """What names and figures are drawn from; none of `expiries`: credit does not expire."""

    most: int = 40  # money, or tokens, of a hold
    keys: tuple[str, ...] = ("", "k1", "k2")
    workspaces: tuple[str, ...] = ("",)
    # In seconds: of holds, what is added to them, of credit.
    lifetimes: tuple[int, ...] = (1, 30, 60, 86_400)
    extensions: tuple[int, ...] = (0, 1, 60, 3600)
    expiries: tuple[int, ...] = (0, 1, 60, 3600, 50_000)
    windows: tuple[str, ...] = ("cycle", "lifetime", "day", "month")
    # In percent: limits deleted, not set; accounts suspended, and of the others those closed.
    unlimited: int = 25
    suspended: int = 25
    closed: int = 3


# Nothing is to end by itself, nor at midnight: what is drawn would not be done at that moment.
REAL_TIME = Ranges(lifetimes=(86_400,), extensions=(0,), expiries=(), windows=("cycle", "lifetime"))


class Chance:
    """Random operations that suit the ledger as it stands: most can be done, and all that can go wrong sometimes does.

    Drawn from a seed, not one by one by Hypothesis, whose own choices are too alike to get deep into an account's life.
    """

    def __init__(self, seed, ledger, accounts, ranges=Ranges()):
        """`ledger`: its holds, requests and entries so far; `accounts`: their names, by how much each is used."""
        self.random, self._ledger, self._accounts = Random(seed), ledger, accounts
        self.ranges = ranges
        self._made = list(ledger.holds)
        self._open = [key for key in self._made if ledger.holds[key].status == "open"]
        # Of transactions that are to be undone: what the shadow calls them.
        self.names = {}

    def batch(self):
        """Linked groups: most of one operation, some of several."""
        sizes = self.random.choices([1, 2, 3], [14, 2, 1], k=self.random.randint(1, 8))
        return [[self.operation() for _ in range(size)] for size in sizes]

    def operation(self):
        kinds = self.kinds()
        (kind,) = self.random.choices(list(kinds), list(kinds.values()))
        return kind()

    def kinds(self):
        """What draws an operation of each kind, by how many there are of it."""
        return {
            self.hold: 30, self.settle: 22, self.release: 6, self.extend: 6, self.credit: 14, self.debit: 8,
            self.adjust: 3, self.undo: 9, self.limit: 12, self.touch: 3, self.status: 2, self.update: 2,
        }  # fmt: skip

    def often(self, percent):
        return self.random.randrange(100) < percent

    def account(self):
        return self.random.choices(list(self._accounts), list(self._accounts.values()))[0]

    def request_id(self):
        used = len(self._ledger.requests)
        return f"r{self.random.randrange(used + 1) if self.often(5) else used + self.random.randrange(40)}"

    def place(self):
        """Mostly an open hold; else any, or one that was never made."""
        if self._open and self.often(85):
            return self.random.choice(self._open)
        return self.random.choice([*self._made, (self.account(), "never")])

    def new_place(self):
        """Mostly one where no hold was made; else any."""
        fresh = self.account(), f"h{len(self._made) + self.random.randrange(40)}"
        return self.random.choice(self._made) if self._made and self.often(5) else fresh

    def spent(self, _there):
        """What a hold is settled at, which was made as `_there`, if at all."""
        return self.random.randint(0, 50)

    def allowed(self):
        """A limit's amount."""
        return self.random.randint(0, 250)

    def part(self):
        """What is undone of a transaction; None: all of it."""
        return self.random.choice([None, self.random.randint(1, 30)])

    def hold(self):
        billable, most = self.often(90), self.ranges.most
        amount, tokens = self.random.randint(0, most) if billable else 0, self.random.randint(0, most)
        account_id, hold_id = self.new_place()
        return hold(
            amount,
            hold_id,
            account_id,
            minimum=self.random.choice([amount, self.random.randint(0, amount)]),
            tokens=tokens,
            minimum_tokens=self.random.randint(0, tokens),
            requests=self.random.randint(0, 2),
            key_id=self.random.choice(self.ranges.keys),
            workspace=self.random.choice(self.ranges.workspaces),
            ttl_seconds=self.random.choice(self.ranges.lifetimes),
            billable=billable,
        )

    def settle(self):
        account_id, hold_id = self.place()
        there = self._ledger.holds.get((account_id, hold_id))
        amount = self.spent(there) if there is None or there.billable or self.often(10) else 0
        return settle(amount, hold_id, account_id, self.random.randint(0, 40))

    def release(self):
        account_id, hold_id = self.place()
        return release(hold_id, account_id)

    def extend(self):
        account_id, hold_id = self.place()
        there = self._ledger.holds.get((account_id, hold_id))
        billable = there is None or there.billable or self.often(10)
        amount = self.random.randint(0, 20) if billable else 0
        seconds = self.random.choice(self.ranges.extensions)
        tokens = self.random.randint(0 if amount or seconds else 1, 20)
        return extend(amount, hold_id, self.request_id(), account_id, tokens=tokens, ttl_seconds=seconds)

    def credit(self):
        expires_at = None
        if self.ranges.expiries and self.often(60):
            expires_at = self._ledger.now + timedelta(seconds=self.random.choice(self.ranges.expiries))
        return credit(
            self.random.randint(1, 120),
            self.request_id(),
            self.account(),
            priority=self.random.choice([50, 100]),
            expires_at=expires_at,
            rollover_cap=self.random.choice([0, 0, 20, 200]) if expires_at else 0,
        )

    def debit(self):
        return debit(
            self.random.randint(0, 40),
            self.request_id(),
            self.account(),
            tokens=self.random.randint(0, 40),
            requests=self.random.randint(0, 2),
            key_id=self.random.choice(self.ranges.keys),
            workspace=self.random.choice(self.ranges.workspaces),
        )

    def adjust(self):
        return adjust(self.random.choice([-40, -7, 9, 30]), self.request_id(), self.account())

    def undo(self):
        """Mostly of what can be undone; the newest most of all, since older ones are soon undone wholly."""
        kinds = {"usage_deduction"} if self.often(70) else {entry.type for entry in self._ledger.entries.values()}
        chosen = [entry for entry in self._ledger.entries.values() if entry.type in kinds][-20:]
        if not chosen or self.often(3):
            return undo("refund", "txn-202611-999", self.request_id(), None, self.account())
        entry = self.random.choice(chosen)
        name = transaction_id(entry.created_at, entry.sequence)
        called = ("other",)
        if entry.type == "usage_deduction":
            called = ("hold", entry.hold_id) if entry.hold_id else ("debit", entry.request_id)
        elif entry.funding < 0:
            called = ("credit", entry.request_id)
        self.names[entry.account_id, name] = called
        kind = "refund" if entry.type == "usage_deduction" or self.often(5) else "reversal"
        return undo(kind, name, self.request_id(), self.part(), entry.account_id)

    def limit(self):
        subjects = [("account", ""), ("plan", ""), ("key", "k1"), ("key", "k2")]
        subjects += [("workspace", name) for name in sorted({*self.ranges.workspaces} - {""})]
        scope, subject = self.random.choice(subjects)
        words = {
            "account_id": self.account(),
            "scope": scope,
            "subject": subject,
            "unit": self.random.choice(["nanos", "tokens", "requests"]),
            "window": self.random.choice(self.ranges.windows),
            "request_id": self.request_id() if self.often(20) else "",
        }
        if self.often(self.ranges.unlimited):
            return delete_limit(**words)
        amount, mode = self.allowed(), self.random.choice(["hard", "hard", "soft"])
        return set_limit(amount, mode=mode, **words)

    def touch(self):
        return touch(self.account())

    def status(self):
        if self.often(self.ranges.suspended):
            return suspend(self.request_id(), self.account())
        if self.often(self.ranges.closed):
            return close(self.request_id(), self.account())
        return SetStatus(self.account(), "open", "", self.request_id(), b"resume")

    def update(self):
        if self.often(50):
            overdraft = self.random.choice([("none", 0), ("fixed", 25), ("fixed", 60)])
            return update(self.request_id(), self.account(), overdraft=overdraft)
        moved = self._ledger.now + timedelta(days=self.random.randint(-40, 40))
        return update(self.request_id(), self.account(), display_name="n", cycle_anchor=moved)
