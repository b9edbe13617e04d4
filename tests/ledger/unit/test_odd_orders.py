"""Orders of things that are seldom and must hold all the same: found by an adversary, each once a fault."""

from datetime import timedelta

import pytest

from services.ledger.errors import AccountFull, LimitExceeded
from tests.ledger.support.ledger_memory import (
    Memory,
    adjust,
    credit,
    debit,
    extend,
    hold,
    opened,
    release,
    set_limit,
    settle,
    touch,
    undo,
)


@pytest.fixture
def ledger():
    ledger = Memory()
    ledger.do(opened())
    ledger.do(credit(10**9, "c0"))
    return ledger


def test_extension_after_midnight_does_not_pass_by_the_limits_of_the_day(ledger):
    ledger.do(set_limit(100))
    ledger.do(hold(90, "h1", ttl_seconds=86_400))
    ledger.wait(12 * 3600)  # midnight
    with pytest.raises(LimitExceeded):
        ledger.do(extend(1, "h1", "e1"))
    ledger.do(extend(0, "h1", "e2", ttl_seconds=60))


def test_no_more_than_the_cap_rolls_over_though_a_hold_kept_some_back():
    ledger = Memory()
    ledger.do(opened())
    ledger.do(credit(100, "c1", expires_at=ledger.now + timedelta(days=1), rollover_cap=20))
    ledger.do(hold(60, "h1", ttl_seconds=86_400))
    ledger.wait(80_000)
    ledger.do(extend(0, "h1", "e1", ttl_seconds=86_400))
    ledger.wait(10_000)
    ledger.do(touch())
    ledger.do(release("h1"))
    book = ledger.books["acme"]
    assert (book.available, book.expired) == (20, 80)


def test_numbers_end_in_a_refusal():
    ledger = Memory()
    ledger.do(opened(overdraft_kind="unlimited"))
    ledger.do(adjust(-(10**18), "a0"))
    ledger.do(adjust(-3 * 10**18, "a1"))
    with pytest.raises(AccountFull):
        ledger.do(adjust(-1, "a2"))
    for number in range(4):
        ledger.do(debit(10**18, f"d{number}"))
    assert ledger.books["acme"].available == -8 * 10**18


def test_limits_count_to_the_end_of_their_numbers_and_no_further(ledger):
    ledger.do(set_limit(10**18, window="lifetime", mode="soft"))
    for number in range(12):
        ledger.do(credit(10**18, f"c{number + 1}")) if number < 3 else None
        ledger.do(hold(0, f"h{number}"))
        entry = ledger.do(settle(10**18, f"h{number}")).entry
        ledger.do(undo("refund", f"txn-202611-{entry.sequence}", f"r{number}"))
    assert ledger.books["acme"].limits[0].used == 2**63 - 1
