"""Owns chance: random operations that suit a ledger as it stands."""

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


class Chance:
    """Random operations that suit the ledger as it stands: most can be done, and all that can go wrong sometimes does.

    Drawn from a seed, not one by one by Hypothesis, whose own choices are too alike to get deep into an account's life.
    """

    def __init__(self, seed, ledger, accounts, *, real_time=False):
        """`ledger`: its holds, requests and entries so far; `accounts`: their names, by how much each is used.

        In real time nothing is to end by itself, nor at midnight: what is drawn would not be done at that moment.
        """
        self._random, self._ledger, self._accounts = Random(seed), ledger, accounts
        self._real_time = real_time
        self._made = list(ledger.holds)
        self._open = [key for key in self._made if ledger.holds[key].status == "open"]
        # Of transactions that are to be undone: what the shadow calls them.
        self.names = {}

    def batch(self):
        """Linked groups: most of one operation, some of several."""
        sizes = self._random.choices([1, 2, 3], [14, 2, 1], k=self._random.randint(1, 8))
        return [[self.operation() for _ in range(size)] for size in sizes]

    def operation(self):
        kinds = {
            self.hold: 30, self.settle: 22, self.release: 6, self.extend: 6, self.credit: 14, self.debit: 8,
            self.adjust: 3, self.undo: 9, self.limit: 12, self.touch: 3, self.status: 2, self.update: 2,
        }  # fmt: skip
        (kind,) = self._random.choices(list(kinds), list(kinds.values()))
        return kind()

    def often(self, percent):
        return self._random.randrange(100) < percent

    def account(self):
        return self._random.choices(list(self._accounts), list(self._accounts.values()))[0]

    def request_id(self):
        used = len(self._ledger.requests)
        return f"r{self._random.randrange(used + 1) if self.often(5) else used + self._random.randrange(40)}"

    def place(self):
        """Mostly an open hold; else any, or one that was never made."""
        if self._open and self.often(85):
            return self._random.choice(self._open)
        return self._random.choice([*self._made, (self.account(), "never")])

    def hold(self):
        billable = self.often(90)
        amount, tokens = (self._random.randint(0, 40) if billable else 0), self._random.randint(0, 40)
        account_id, hold_id = self.account(), f"h{len(self._made) + self._random.randrange(40)}"
        if self._made and self.often(5):
            account_id, hold_id = self._random.choice(self._made)
        return hold(
            amount,
            hold_id,
            account_id,
            minimum=self._random.choice([amount, self._random.randint(0, amount)]),
            tokens=tokens,
            minimum_tokens=self._random.randint(0, tokens),
            requests=self._random.randint(0, 2),
            key_id=self._random.choice(["", "k1", "k2"]),
            ttl_seconds=86_400 if self._real_time else self._random.choice([1, 30, 60, 86_400]),
            billable=billable,
        )

    def settle(self):
        account_id, hold_id = self.place()
        there = self._ledger.holds.get((account_id, hold_id))
        amount = self._random.randint(0, 50) if there is None or there.billable or self.often(10) else 0
        return settle(amount, hold_id, account_id, self._random.randint(0, 40))

    def release(self):
        account_id, hold_id = self.place()
        return release(hold_id, account_id)

    def extend(self):
        account_id, hold_id = self.place()
        there = self._ledger.holds.get((account_id, hold_id))
        billable = there is None or there.billable or self.often(10)
        return extend(
            self._random.randint(0, 20) if billable else 0,
            hold_id,
            self.request_id(),
            account_id,
            tokens=self._random.randint(1, 20),
            ttl_seconds=0 if self._real_time else self._random.choice([0, 1, 60, 3600]),
        )

    def credit(self):
        later = self._ledger.now + timedelta(seconds=self._random.choice([0, 1, 60, 3600, 50_000]))
        expires_at = later if self.often(60) and not self._real_time else None
        return credit(
            self._random.randint(1, 120),
            self.request_id(),
            self.account(),
            priority=self._random.choice([50, 100]),
            expires_at=expires_at,
            rollover_cap=self._random.choice([0, 0, 20, 200]) if expires_at else 0,
        )

    def debit(self):
        return debit(
            self._random.randint(0, 40),
            self.request_id(),
            self.account(),
            tokens=self._random.randint(0, 40),
            requests=self._random.randint(0, 2),
            key_id=self._random.choice(["", "k1", "k2"]),
        )

    def adjust(self):
        return adjust(self._random.choice([-40, -7, 9, 30]), self.request_id(), self.account())

    def undo(self):
        """Mostly of what can be undone; the newest most of all, since older ones are soon undone wholly."""
        kinds = {"usage_deduction"} if self.often(70) else {entry.type for entry in self._ledger.entries.values()}
        chosen = [entry for entry in self._ledger.entries.values() if entry.type in kinds][-20:]
        if not chosen or self.often(3):
            return undo("refund", "txn-202611-999", self.request_id(), None, self.account())
        entry = self._random.choice(chosen)
        name = transaction_id(entry.created_at, entry.sequence)
        called = ("other",)
        if entry.type == "usage_deduction":
            called = ("hold", entry.hold_id) if entry.hold_id else ("debit", entry.request_id)
        elif entry.funding < 0:
            called = ("credit", entry.request_id)
        self.names[entry.account_id, name] = called
        kind = "refund" if entry.type == "usage_deduction" or self.often(5) else "reversal"
        amount = self._random.choice([None, self._random.randint(1, 30)])
        return undo(kind, name, self.request_id(), amount, entry.account_id)

    def limit(self):
        scope, subject = self._random.choice([("account", ""), ("plan", ""), ("key", "k1"), ("key", "k2")])
        words = {
            "account_id": self.account(),
            "scope": scope,
            "subject": subject,
            "unit": self._random.choice(["nanos", "tokens", "requests"]),
            "window": self._random.choice(["cycle", "lifetime", *([] if self._real_time else ["day", "month"])]),
            "request_id": self.request_id() if self.often(20) else "",
        }
        if self.often(25):
            return delete_limit(**words)
        amount, mode = self._random.randint(0, 250), self._random.choice(["hard", "hard", "soft"])
        return set_limit(amount, mode=mode, **words)

    def touch(self):
        return touch(self.account())

    def status(self):
        if self.often(25):
            return suspend(self.request_id(), self.account())
        if self.often(3):
            return close(self.request_id(), self.account())
        return SetStatus(self.account(), "open", "", self.request_id(), b"resume")

    def update(self):
        if self.often(50):
            overdraft = self._random.choice([("none", 0), ("fixed", 25), ("fixed", 60)])
            return update(self.request_id(), self.account(), overdraft=overdraft)
        moved = self._ledger.now + timedelta(days=self._random.randint(-40, 40))
        return update(self.request_id(), self.account(), display_name="n", cycle_anchor=moved)
