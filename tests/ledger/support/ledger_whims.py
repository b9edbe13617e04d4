"""Owns whims: random operations, in calls that are made at once, which suit what was answered so far."""

from datetime import timedelta
from random import Random

from services.ledger.model.operations import CreateHold, ReleaseHold, SetStatus, SettleHold
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

ACCOUNTS = {
    "plain": {},
    "other": {},
    "some": {"overdraft_kind": "fixed", "overdraft_limit": 25},
    "house": {"overdraft_kind": "unlimited"},
}
KEYS, WORKSPACES = ("", "k1", "k2"), ("", "", "w1", "w2")


class Whims:
    """Draws operations that suit what was done so far: most can be done, and all that can go wrong sometimes does."""

    def __init__(self, seed, clock):
        self.random, self._clock = Random(seed), clock
        self.calm = True
        self._numbers = 0
        self._holds = {}  # by account and name: what asked for it
        self._open = []
        self._before = []  # operations that were done, to be done again
        self._posted = []  # account, transaction, and how it is undone

    def calls(self):
        """Calls that are made at once, each of some linked groups.

        For some steps on end they are few, and what goes with model calls alone: then most is remembered.
        """
        self._drawn = []
        if self.often(6):
            self.calm = not self.calm
            if self.calm:
                return [
                    [[SetStatus(name, "open", "", self._name(), b"resume")], [credit(300, self._name(), name)]]
                    for name in ACCOUNTS
                ]
        if self.calm:
            return [self._call(self._usual, most=2)]
        kinds = self._usual if self.often(75) else self._any
        return [self._call(kinds, most=8) for _ in range(self.random.choice([1, 1, 2, 3]))]

    def often(self, percent):
        return self.random.randrange(100) < percent

    def note(self, operation, result):
        """What became of an operation."""
        if isinstance(result.outcome, Exception):
            return
        key = (operation.account_id, getattr(operation, "hold_id", ""))
        if isinstance(operation, CreateHold) and not result.replayed:
            self._holds[key] = operation
            self._open.append(key)
        elif isinstance(operation, SettleHold | ReleaseHold) and key in self._open:
            self._open.remove(key)
        self._before = [*self._before[-60:], operation]
        entry = getattr(result.outcome, "entry", None)
        if entry is not None and not result.replayed:
            kind = "refund" if entry.type == "usage_deduction" else "reversal"
            self._posted.append((entry.account_id, transaction_id(entry.created_at, entry.sequence), kind))

    def _call(self, kinds, most):
        sizes = self.random.choices([1, 2, 3], [14, 2, 1], k=self.random.choice([1, 1, 2, most]))
        self._at = self._account()
        return [self._group(kinds, size) for size in sizes]

    def _group(self, kinds, size):
        """Mostly of one account."""
        if self.often(20):
            self._at = self._account()
        group = []
        for _ in range(size):
            if self.often(4):
                self._at = self._account()
            weights = kinds()
            (kind,) = self.random.choices(list(weights), list(weights.values()))
            group.append(kind())
            self._drawn.append(group[-1])
        return group

    def _usual(self):
        return {self._hold: 50, self._settle: 40, self._release: 8, self._again: 3 if self.calm else 10}

    def _any(self):
        return {kind: weight // 2 for kind, weight in self._usual().items()} | {
            self._extend: 6, self._credit: 16, self._debit: 6, self._adjust: 3, self._undo: 6, self._limit: 14,
            self._touch: 3, self._status: 5, self._update: 2,
        }  # fmt: skip

    def _account(self):
        return self.random.choices(list(ACCOUNTS), [6, 3, 3, 2])[0]

    def _name(self):
        self._numbers += 1
        return f"n{self._numbers}"

    def _place(self):
        """Mostly an open hold of the account at hand, or one that was asked for at the same moment."""
        names = [key for key in self._open[-12:] if key[0] == self._at]
        if self.often(0 if self.calm else 25):
            names = [(x.account_id, x.hold_id) for x in self._drawn if isinstance(x, CreateHold)]
        if not names or self.often(3 if self.calm else 12):
            names = [*list(self._holds)[-40:], (self._at, "never")]
        return self.random.choice(names)

    def _hold(self):
        billable = self.often(90)
        most = 7 if self.calm else 45
        amount, tokens = self.random.randint(0, most) if billable else 0, self.random.randint(0, most)
        account_id, hold_id = self._at, self._name()
        if self.often(3):
            account_id, hold_id = self._place()
        return hold(
            amount,
            hold_id,
            account_id,
            minimum=self.random.choice([amount, self.random.randint(0, amount)]),
            tokens=tokens,
            minimum_tokens=self.random.randint(0, tokens),
            requests=self.random.randint(0, 2),
            key_id=self.random.choice(KEYS[:2] if self.calm else KEYS),
            workspace=self.random.choice(WORKSPACES[1:3] if self.calm else WORKSPACES),
            ttl_seconds=self.random.choice([3, 30, 300, 86_400] if self.calm else [1, 2, 3, 5, 30, 86_400]),
            billable=billable,
        )

    def _settle(self):
        account_id, hold_id = self._place()
        asked = self._holds.get((account_id, hold_id))
        billable = asked is None or asked.billable or self.often(10)
        amount = self.random.choice([0, 1, asked.amount if asked else 3, 30, 60]) if billable else 0
        return settle(amount, hold_id, account_id, self.random.randint(0, 40))

    def _release(self):
        account_id, hold_id = self._place()
        return release(hold_id, account_id)

    def _again(self):
        found = [x for x in self._before if x.account_id == self._at or self.often(5)]
        usual = [x for x in found if isinstance(x, CreateHold | SettleHold | ReleaseHold)]
        return self.random.choice((usual if self.often(80) else found) or [touch(self._at)])

    def _extend(self):
        account_id, hold_id = self._place()
        asked = self._holds.get((account_id, hold_id))
        return extend(
            self.random.randint(0, 20) if asked is None or asked.billable else 0,
            hold_id,
            self._name(),
            account_id,
            tokens=self.random.randint(0, 20),
            ttl_seconds=self.random.choice([0, 1, 5, 3600]),
        )

    def _credit(self):
        expires_at = (
            self._clock.now + timedelta(seconds=self.random.choice([0, 1, 3, 9, 3600])) if self.often(60) else None
        )
        return credit(
            self.random.choice([5, 40, 120]),
            self._name(),
            self._at,
            priority=self.random.choice([50, 100]),
            expires_at=expires_at,
            rollover_cap=self.random.choice([0, 0, 20, 200]) if expires_at else 0,
        )

    def _debit(self):
        return debit(
            self.random.randint(0, 40),
            self._name(),
            self._at,
            tokens=self.random.randint(0, 40),
            key_id=self.random.choice(KEYS),
            workspace=self.random.choice(WORKSPACES),
        )

    def _adjust(self):
        return adjust(self.random.choice([-40, -7, 9, 60]), self._name(), self._at)

    def _undo(self):
        account_id, transaction, kind = self.random.choice(self._posted[-20:] or [(self._at, "txn-202611-9", "refund")])
        return undo(kind, transaction, self._name(), self.random.choice([None, 1, 20]), account_id)

    def _limit(self):
        subjects = [
            ("account", ""),
            ("plan", ""),
            ("key", "k1"),
            ("key", "k2"),
            ("workspace", "w1"),
            ("workspace", "w2"),
        ]
        scope, subject = self.random.choice(subjects)
        words = {
            "scope": scope,
            "subject": subject,
            "unit": self.random.choice(["nanos", "tokens", "requests"]),
            "window": self.random.choice(["day", "month", "cycle", "lifetime"]),
            "request_id": self._name() if self.often(20) else "",
        }
        if self.often(35):
            return delete_limit(self._at, **words)
        amount = self.random.choice([0, 20, 100, 400, 2000])
        return set_limit(amount, self._at, mode=self.random.choice(["hard", "hard", "soft"]), **words)

    def _touch(self):
        return touch(self._at)

    def _status(self):
        if self.often(1):
            return close(self._name(), self._at)
        if self.often(40):
            return suspend(self._name(), self._at)
        return SetStatus(self._at, "open", "", self._name(), b"resume")

    def _update(self):
        if self.often(50):
            return update(self._name(), self._at, overdraft=self.random.choice([("none", 0), ("fixed", 25)]))
        moved = self._clock.now + timedelta(days=self.random.randint(-40, 40))
        return update(self._name(), self._at, cycle_anchor=moved)
