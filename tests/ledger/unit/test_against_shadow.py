"""Any sequence of batches: ledger and shadow agree on each answer, balance, hold and limit; the journal adds up."""

from copy import copy
from dataclasses import replace
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.ledger.model.operations import HoldMade, HoldSettled
from tests.ledger.support.ledger_chance import Chance
from tests.ledger.support.ledger_memory import Memory, opened, touch
from tests.ledger.support.ledger_shadow import Shadow

OVERDRAFTS = {"none": 0, "some": 25, "house": 10**15}
USED = {"none": 5, "some": 3, "house": 1}


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
        chance = Chance(seed, self.ledger, USED)
        batch = chance.batch()
        results = self.ledger.apply(*batch)
        assert [answer(result) for result in results] == self.shadow.apply(batch, self.ledger.now, chance.names)
        for result, left in zip(results, self.shadow.quotas, strict=True):
            if isinstance(result.outcome, HoldMade | HoldSettled):
                assert set(result.outcome.quotas) == (set() if result.replayed else left)

    @rule(seconds=st.sampled_from([1, 31, 61, 3600, 43_200, 500_000]))
    def wait(self, seconds):
        self.ledger.wait(seconds)

    @rule()
    def look(self):
        batch = [[touch(account_id)] for account_id in OVERDRAFTS]
        self.ledger.apply(*batch)
        self.shadow.apply(batch, self.ledger.now, {})
        for account_id, account in self.shadow.accounts.items():
            book = self.ledger.books[account_id]
            assert book.status == account.status
            found = [replace(limit) for limit in book.limits]
            for key, limits in self.ledger.subjects.items():
                found += [replace(limit) for limit in limits if key[0] == account_id]
            now = copy(book)
            now.turn_cycle(max(self.ledger.now, book.touched_at))
            for limit in found:
                limit.turn(now, max(self.ledger.now, book.touched_at))
            assert {x.limit_id: (x.amount, x.used, x.held) for x in found} == account.limit_use()

    @invariant()
    def agree(self):
        for account_id, account in self.shadow.accounts.items():
            book = self.ledger.books[account_id]
            figures = (book.available, book.held, book.funded, book.spent, book.expired, book.overdrawn)
            turned = copy(book)
            turned.turn_cycle(account.now)
            assert (*figures, turned.cycle_spent) == account.figures()
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
