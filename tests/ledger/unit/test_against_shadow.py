"""Any sequence of batches: ledger and shadow agree on each answer, balance, hold and limit; the journal adds up."""

from datetime import timedelta
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.ledger.model.operations import SetStatus
from tests.ledger.support.ledger_memory import (
    START,
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

accounts = st.sampled_from(["none", "none", "some", "house"])
small = st.integers(0, 40)
moments = st.one_of(
    st.none(), st.sampled_from([30, 90, 1800, 5000, 50_000]).map(lambda seconds: START + timedelta(seconds=seconds))
)
units, windows = st.sampled_from(["nanos", "tokens", "requests"]), st.sampled_from(["day", "month", "lifetime"])
request_ids = st.integers(0, 60).map("r{}".format)


def resume(request_id, account_id):
    return SetStatus(account_id, "open", "", request_id, b"resume")


@st.composite
def holds(draw, made):
    """Mostly a new hold; now and then one under an id that was used."""
    billable = draw(st.integers(0, 9)) > 0
    amount, tokens = (draw(small) if billable else 0), draw(small)
    again = made and draw(st.integers(0, 7)) == 0
    account_id, hold_id = (
        draw(st.sampled_from(made)) if again else (draw(accounts), f"h{len(made) + draw(st.integers(0, 5))}")
    )
    return hold(
        amount,
        hold_id,
        account_id,
        minimum=draw(st.integers(0, amount)),
        tokens=tokens,
        minimum_tokens=draw(st.integers(0, tokens)),
        requests=draw(st.integers(0, 2)),
        key_id=draw(st.sampled_from(["", "k1", "k2"])),
        ttl_seconds=draw(st.sampled_from([1, 60, 3600, 86_400])),
        billable=billable,
    )


@st.composite
def ends(draw, made, still_open):
    """Mostly the end of an open hold; now and then of any, or of one that was never made."""
    places = [*still_open, *still_open, *made, ("none", "never"), ("house", f"h{len(made)}")]
    account_id, hold_id = draw(st.sampled_from(places))
    if draw(st.integers(0, 3)) == 0:
        return release(hold_id, account_id)
    return settle(draw(st.integers(0, 60)), hold_id, account_id, draw(small))


@st.composite
def limits(draw):
    scope, subject = draw(st.sampled_from([("account", ""), ("plan", ""), ("key", "k1"), ("key", "k2")]))
    words = {"account_id": draw(accounts), "scope": scope, "subject": subject}
    words |= {"unit": draw(units), "window": draw(windows)}
    if draw(st.integers(0, 3)) == 0:
        return delete_limit(**words)
    return set_limit(draw(st.integers(0, 100)), mode=draw(st.sampled_from(["hard", "hard", "soft"])), **words)


def batches(made, still_open):
    """Batches of linked groups, given which holds were made, and which of them are open."""
    usual = st.one_of(
        holds(made),
        holds(made),
        ends(made, still_open),
        ends(made, still_open),
        st.builds(
            credit,
            st.integers(1, 150),
            request_ids,
            accounts,
            priority=st.sampled_from([50, 100]),
            expires_at=moments,
        ),
        limits(),
        st.builds(touch, accounts),
    )
    seldom = st.one_of(st.builds(suspend, request_ids, accounts), st.builds(resume, request_ids, accounts))
    operations = st.integers(0, 19).flatmap(lambda number: usual if number else seldom)
    alone = operations.map(lambda operation: [operation])
    return st.lists(st.one_of(alone, alone, st.lists(operations, min_size=2, max_size=4)), min_size=1, max_size=8)


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

    @rule(data=st.data())
    def apply(self, data):
        made = list(self.ledger.holds)
        still_open = [key for key in made if self.ledger.holds[key].status == "open"]
        batch = data.draw(batches(made, still_open))
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
            found = [*book.limits]
            for key, limits in self.ledger.subjects.items():
                found += limits if key[0] == account_id else []
            for limit in found:
                limit.turn(book.cycle_anchor, book.touched_at)
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
TestLedgerAndShadow.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
