"""Any sequence of batches: ledger and shadow agree on each answer, balance, hold and limit; the journal adds up."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.ledger.model.operations import SetStatus
from tests.ledger.support.ledger_memory import (
    Memory,
    credit,
    delete_limit,
    hold,
    opened,
    release,
    set_limit,
    settle,
    suspend,
    touch,
)
from tests.ledger.support.ledger_shadow import Shadow

OVERDRAFTS = {"none": 0, "some": 25, "house": 10**15}


class Chance:
    """Random operations that suit the ledger as it stands: most can be done, and all that can go wrong sometimes does.

    Drawn from a seed, not one by one by Hypothesis, whose own choices are too alike to get deep into an account's life.
    """

    def __init__(self, seed, ledger):
        self._random, self._ledger = Random(seed), ledger
        self._made = list(ledger.holds)
        self._open = [key for key in self._made if ledger.holds[key].status == "open"]

    def batch(self):
        """Linked groups: most of one operation, some of several."""
        sizes = self._random.choices([1, 2, 3], [14, 2, 1], k=self._random.randint(1, 8))
        return [[self.operation() for _ in range(size)] for size in sizes]

    def operation(self):
        kinds = [self.hold, self.settle, self.release, self.credit, self.limit, self.touch, self.status]
        (kind,) = self._random.choices(kinds, [35, 25, 7, 15, 12, 4, 2])
        return kind()

    def often(self, percent):
        return self._random.randrange(100) < percent

    def account(self):
        return self._random.choices(list(OVERDRAFTS), [5, 3, 1])[0]

    def request_id(self):
        used = len(self._ledger.requests)
        return f"r{self._random.randrange(used + 1) if self.often(5) else used + self._random.randrange(40)}"

    def place(self):
        """Mostly an open hold; else any, or one that was never made."""
        if self._open and self.often(85):
            return self._random.choice(self._open)
        return self._random.choice([*self._made, ("none", "never")])

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
            ttl_seconds=self._random.choice([1, 60, 3600, 86_400]),
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

    def credit(self):
        later = self._ledger.now + timedelta(seconds=self._random.choice([0, 1, 60, 3600, 50_000]))
        return credit(
            self._random.randint(1, 120),
            self.request_id(),
            self.account(),
            priority=self._random.choice([50, 100]),
            expires_at=later if self.often(60) else None,
        )

    def limit(self):
        scope, subject = self._random.choice([("account", ""), ("plan", ""), ("key", "k1"), ("key", "k2")])
        words = {
            "account_id": self.account(),
            "scope": scope,
            "subject": subject,
            "unit": self._random.choice(["nanos", "tokens", "requests"]),
            "window": self._random.choice(["day", "month", "lifetime"]),
        }
        if self.often(25):
            return delete_limit(**words)
        return set_limit(self._random.randint(0, 250), mode=self._random.choice(["hard", "hard", "soft"]), **words)

    def touch(self):
        return touch(self.account())

    def status(self):
        if self.often(25):
            return suspend(self.request_id(), self.account())
        return SetStatus(self.account(), "open", "", self.request_id(), b"resume")


def answer(result):
    if isinstance(result.outcome, Exception):
        return result.outcome.reason
    return "replayed" if result.replayed else "done"


class LedgerAndShadow(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.ledger = Memory()
        self.ledger.apply(
            [opened("none")],
            [opened("some", overdraft_kind="fixed", overdraft_limit=25)],
            [opened("house", overdraft_kind="unlimited")],
        )
        self.shadow = Shadow(OVERDRAFTS, self.ledger.now)

    @rule(seed=st.integers(0, 2**32 - 1))
    def apply(self, seed):
        batch = Chance(seed, self.ledger).batch()
        results = self.ledger.apply(*batch)
        assert [answer(result) for result in results] == self.shadow.apply(batch, self.ledger.now)

    @rule(seconds=st.sampled_from([1, 31, 61, 3600, 43_200]))
    def wait(self, seconds):
        self.ledger.wait(seconds)

    @rule()
    def look(self):
        batch = [[touch(account_id)] for account_id in OVERDRAFTS]
        self.ledger.apply(*batch)
        self.shadow.apply(batch, self.ledger.now)
        for account_id, account in self.shadow.accounts.items():
            book = self.ledger.books[account_id]
            assert book.status == account.status
            found = [replace(limit) for limit in book.limits]
            for key, limits in self.ledger.subjects.items():
                found += [replace(limit) for limit in limits if key[0] == account_id]
            for limit in found:
                limit.turn(book.cycle_anchor, max(self.ledger.now, book.touched_at))
            assert {x.limit_id: (x.amount, x.used, x.held) for x in found} == account.limit_use()

    @invariant()
    def agree(self):
        for account_id, account in self.shadow.accounts.items():
            book = self.ledger.books[account_id]
            figures = (book.available, book.held, book.funded, book.spent, book.expired, book.overdrawn)
            assert figures == account.figures()
            holds = {key[1]: h for key, h in self.ledger.holds.items() if key[0] == account_id}
            assert {name: (h.status, h.amount, h.tokens) for name, h in holds.items()} == {
                name: (h.status, h.amount, h.tokens) for name, h in account.holds.items()
            }
            assert sum(h.amount for h in holds.values() if h.status == "open") == book.held

    @invariant()
    def journal_adds_up(self):
        for account_id, book in self.ledger.books.items():
            entries = self.ledger.journal(account_id)
            assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
            previous, available = b"", 0
            for entry in entries:
                assert entry.funding + entry.available + entry.held + entry.spent + entry.expired == 0
                available += entry.available
                assert entry.balance_after == available
                assert entry.hash == entry.chained(previous)
                previous = entry.hash
            assert all(older.created_at <= newer.created_at for older, newer in pairwise(entries))
            assert book.last_hash == previous
            assert book.available == available
            assert book.held == sum(entry.held for entry in entries)
            for grant in book.grants:
                taken = sum(part for entry in entries for name, part in entry.grant_uses if name == grant.grant_id)
                assert grant.remaining == -taken


TestLedgerAndShadow = LedgerAndShadow.TestCase
TestLedgerAndShadow.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
