"""One batch: the rules of each operation, and what happens by itself, at chosen moments."""

from datetime import timedelta

import pytest

from services.ledger.errors import (
    AccountFull,
    GrantExpired,
    HoldNotBillable,
    IdempotencyConflict,
    InsufficientCredit,
    LimitExceeded,
)
from tests.ledger.support.ledger_memory import (
    START,
    Memory,
    as_in_its_row,
    credit,
    debit,
    delete_limit,
    extend,
    hold,
    opened,
    release,
    set_limit,
    settle,
    suspend,
    touch,
    usage,
)


@pytest.fixture
def ledger():
    ledger = Memory()
    ledger.do(opened())
    return ledger


def grants(ledger):
    return {g.grant_id: (g.remaining, g.reserved) for g in ledger.books["acme"].grants}


def figures(ledger):
    book = ledger.books["acme"]
    return book.available, book.held, book.spent, book.expired


def limits(ledger):
    return {limit.limit_id: (limit.used, limit.held) for limit in ledger.books["acme"].limits}


# Credit: order, expiry


def test_credit_is_spent_by_priority_then_expiry_then_age(ledger):
    soon, later = ledger.now + timedelta(hours=1), ledger.now + timedelta(hours=2)
    for number, (priority, expires_at) in enumerate(
        [(100, None), (100, later), (100, soon), (50, None), (100, later), (100, None)]
    ):
        ledger.do(credit(10, f"c{number}", priority=priority, expires_at=expires_at))
    ledger.do(hold(60, "h"))
    ledger.do(settle(60, "h"))
    assert [grant_id for grant_id, _ in ledger.journal()[-1].grant_uses] == [
        f"grant-{number}" for number in (4, 3, 2, 5, 1, 6)
    ]


def test_grant_expires_to_the_second_though_a_hold_reserved_it_when_expiry_was_last_looked_at(ledger):
    ledger.do(credit(100, "c1", expires_at=ledger.now + timedelta(seconds=100)))
    ledger.do(hold(40, "short", ttl_seconds=10))
    ledger.do(hold(60, "long", ttl_seconds=300))
    ledger.do(release("short"))
    ledger.do(hold(40, "short2", ttl_seconds=300))
    ledger.wait(11)
    ledger.do(touch())  # something was due; at this moment no part of the grant is free
    ledger.wait(39)
    ledger.do(settle(0, "long"))
    ledger.wait(60)
    with pytest.raises(InsufficientCredit):
        ledger.do(hold(60, "h"))
    assert figures(ledger) == (0, 40, 0, 60)


def test_held_credit_does_not_expire_under_its_hold_but_with_its_end(ledger):
    ledger.do(credit(100, "c1", expires_at=ledger.now + timedelta(seconds=10)))
    ledger.do(hold(70, "h1", ttl_seconds=100))
    ledger.wait(10)
    ledger.do(touch())
    assert figures(ledger) == (0, 70, 0, 30)
    ledger.do(settle(50, "h1"))
    assert figures(ledger) == (0, 0, 50, 50)
    assert [entry.type for entry in ledger.journal()][-3:] == ["expiry", "usage_deduction", "expiry"]


def test_credit_that_has_expired_already_is_refused_but_its_replay_is_not(ledger):
    given = credit(100, "c1", expires_at=ledger.now + timedelta(seconds=10))
    first = ledger.do(given)
    ledger.wait(11)
    with pytest.raises(GrantExpired):
        ledger.do(credit(5, "c2", expires_at=ledger.now))
    (again,) = ledger.apply([given])
    assert again.replayed
    assert again.outcome == first
    assert figures(ledger) == (0, 0, 0, 100)


def test_two_hundred_and_first_grant_is_refused_and_writes_nothing(ledger):
    ledger.apply(*([credit(1, f"c{number}")] for number in range(200)))
    with pytest.raises(AccountFull):
        ledger.do(credit(1, "one-more"))
    assert figures(ledger)[0] == 200


# Holds


def test_replayed_settlement_of_an_expired_hold_says_again_that_it_had_expired(ledger):
    ledger.do(credit(100, "c1"))
    ledger.do(hold(60, "h1", ttl_seconds=1))
    ledger.wait(2)
    first = ledger.do(settle(50, "h1"))
    assert first.was_expired
    ledger.do(credit(1_000, "c2"))
    (again,) = ledger.apply([settle(50, "h1")])
    assert again.replayed
    assert again.outcome == first


@pytest.mark.parametrize(("held", "charged"), [(0, 0), (0, 7), (70, 0), (70, 70), (70, 30), (70, 200)])
def test_replayed_settlement_gives_the_first_answer_whatever_came_between(ledger, held, charged):
    ledger.do(credit(100, "c1", expires_at=ledger.now + timedelta(seconds=10)))
    ledger.do(hold(held, "h1"))
    ledger.wait(11)
    first = ledger.do(settle(charged, "h1", usage=usage(provider="openai")))
    ledger.do(credit(1_000, "c2"))
    assert ledger.do(settle(charged, "h1", usage=usage(provider="openai"))) == first
    assert len(ledger.usage) == 1


def test_hold_that_lapses_and_is_settled_in_one_batch_lapses_once(ledger):
    ledger.do(credit(100, "c1"))
    ledger.do(set_limit(500))
    ledger.do(hold(60, "h1", ttl_seconds=1))
    ledger.wait(2)
    _, second, third = ledger.apply([touch()], [settle(50, "h1")], [settle(50, "h1")])
    assert (second.outcome.was_expired, third.replayed) == (True, True)
    assert [entry.type for entry in ledger.journal()] == [
        "credit_purchase", "hold", "hold_expired", "usage_deduction",
    ]  # fmt: skip
    assert limits(ledger) == {"account::nanos:day": (50, 0)}
    ledger.do(touch())
    assert len(ledger.journal()) == 4


def test_releasing_an_expired_hold_succeeds_and_is_no_replay(ledger):
    ledger.do(credit(100, "c1"))
    ledger.do(hold(60, "h1", ttl_seconds=1))
    ledger.wait(2)
    (result,) = ledger.apply([release("h1")])
    assert (result.outcome.hold.status, result.replayed) == ("expired", False)


def test_hold_that_is_not_billable_cannot_be_charged(ledger):
    ledger.do(credit(100, "c1"))
    ledger.do(hold(0, "h1", billable=False))
    with pytest.raises(HoldNotBillable) as caught:
        ledger.do(settle(5, "h1"))
    assert [violation.field for violation in caught.value.violations] == ["amount_nanos"]
    ledger.do(settle(0, "h1"))
    assert figures(ledger) == (100, 0, 0, 0)


def test_hold_on_overdraft_is_paid_by_credit_that_comes_before_it_is_settled():
    ledger = Memory()
    ledger.do(opened(overdraft_kind="fixed", overdraft_limit=50))
    ledger.do(hold(50, "h1"))
    with pytest.raises(InsufficientCredit):
        ledger.do(hold(1, "h2"))
    ledger.do(credit(80, "c1"))
    assert figures(ledger) == (30, 50, 0, 0)
    ledger.do(settle(45, "h1"))
    book = ledger.books["acme"]
    assert (book.available, book.overdrawn, book.unbacked, grants(ledger)) == (35, 0, 0, {"grant-2": (35, 0)})


def test_released_credit_pays_what_is_overdrawn(ledger):
    ledger.do(credit(100, "c1"))
    ledger.do(hold(60, "h1"))
    ledger.do(hold(40, "h2"))
    ledger.do(settle(90, "h2"))  # 50 that nothing pays for yet
    assert ledger.books["acme"].overdrawn == 50
    ledger.do(release("h1"))
    assert (ledger.books["acme"].overdrawn, grants(ledger)) == (0, {"grant-1": (10, 0)})
    assert ledger.journal()[-1].grant_uses == (("grant-1", 50), ("", -50))


def test_what_a_settlement_leaves_of_its_hold_pays_what_is_overdrawn(ledger):
    ledger.do(credit(100, "c1"))
    ledger.do(hold(60, "h1"))
    ledger.do(hold(40, "h2"))
    ledger.do(settle(90, "h2"))
    ledger.do(settle(20, "h1"))
    assert (figures(ledger), ledger.books["acme"].overdrawn) == ((-10, 0, 110, 0), 10)
    assert ledger.journal()[-1].grant_uses == (("grant-1", 20), ("grant-1", 40), ("", -40))


def test_unlimited_overdraft_ends_before_the_numbers_do():
    ledger = Memory()
    ledger.do(opened(overdraft_kind="unlimited"))
    for number in range(4):
        ledger.do(hold(10**18, f"h{number}"))
        ledger.do(settle(10**18, f"h{number}"))
    with pytest.raises(InsufficientCredit):
        ledger.do(hold(10**18, "too-much"))
    ledger.do(hold(0, "none"))
    with pytest.raises(AccountFull):
        ledger.do(settle(10**18, "none"))
    assert ledger.books["acme"].spent == 4 * 10**18


def test_credit_ends_before_the_numbers_do(ledger):
    for number in range(4):
        ledger.do(credit(10**18, f"c{number}"))
    with pytest.raises(AccountFull):
        ledger.do(credit(1, "one-more"))


# Limits


def test_hold_counts_in_the_window_it_was_made_in(ledger):
    ledger.do(credit(1_000, "c1"))
    ledger.do(set_limit(100))
    ledger.do(hold(100, "before", ttl_seconds=86_400))
    ledger.do(hold(0, "free", ttl_seconds=86_400))
    ledger.wait(12 * 3600)  # midnight
    ledger.do(hold(90, "after"))
    assert limits(ledger) == {"account::nanos:day": (0, 90)}
    ledger.do(settle(70, "before"))
    ledger.do(release("free"))
    assert limits(ledger) == {"account::nanos:day": (0, 90)}
    ledger.do(settle(90, "after"))
    with pytest.raises(LimitExceeded):
        ledger.do(hold(11, "more"))


def test_new_limit_counts_what_its_window_has_seen(ledger):
    ledger.do(credit(1_000, "c1"))
    ledger.do(hold(70, "yesterday"))
    ledger.wait(12 * 3600)  # midnight
    ledger.do(hold(100, "open", key_id="k1"))
    ledger.do(debit(5, "d1", key_id="k1"))
    ledger.do(hold(30, "used"))
    ledger.do(settle(20, "used"))
    ledger.do(settle(70, "yesterday"))
    ledger.do(set_limit(500))
    ledger.do(set_limit(500, scope="key", subject="k1"))
    ledger.do(set_limit(500, window="lifetime"))
    assert limits(ledger) == {"account::nanos:day": (25, 100), "account::nanos:lifetime": (95, 100)}
    (limit,) = ledger.subjects["acme", "key", "k1"]
    assert (limit.used, limit.held) == (5, 100)
    ledger.do(settle(60, "open"))
    assert limits(ledger)["account::nanos:day"] == (85, 0)


def test_quotas_say_what_is_left_after_each_operation(ledger):
    ledger.do(credit(1000, "c"))
    ends = ledger.books["acme"].cycle_end
    ledger.do(set_limit(100, scope="plan", unit="tokens", window="cycle"))
    ledger.do(set_limit(3, scope="plan", unit="requests", window="cycle", mode="soft"))
    assert ledger.do(hold(10, "h1", tokens=60)).quotas == (("tokens", 100, 40, ends), ("requests", 3, 2, ends))
    assert ledger.do(extend(1, "h1", "e", tokens=15)).quotas == (("tokens", 100, 25, ends), ("requests", 3, 2, ends))
    assert ledger.do(settle(5, "h1", tokens=20)).quotas == (("tokens", 100, 80, ends), ("requests", 3, 2, ends))
    # More than was held, more than there is, and past the soft limit: nothing is left, and never less.
    ledger.do(hold(10, "h2", tokens=1, requests=5))
    assert ledger.do(settle(5, "h2", tokens=90)).quotas == (("tokens", 100, 0, ends), ("requests", 3, 0, ends))


def test_quotas_are_of_the_cycle_and_of_the_whole_account_alone(ledger):
    ledger.do(credit(1000, "c"))
    assert ledger.do(hold(10, "h1", tokens=1)).quotas == ledger.do(settle(5, "h1", tokens=1)).quotas == ()
    for words in ({"window": "day"}, {"window": "lifetime"}, {"window": "cycle", "scope": "key", "subject": "k1"}):
        ledger.do(set_limit(100, unit="tokens", **words))
    ledger.do(set_limit(1000, window="cycle"))
    assert ledger.do(hold(10, "h2", tokens=1, key_id="k1")).quotas == ()
    ledger.do(set_limit(100, unit="tokens", window="cycle"))
    assert [quota.remaining for quota in ledger.do(hold(10, "h3", tokens=7, key_id="k1")).quotas] == [91]


def test_extension_that_is_not_paid_for_is_told_so_before_limits_that_it_counts_in_no_window_of(ledger):
    ledger.do(credit(20, "c"))
    ledger.do(set_limit(100, unit="tokens"))
    ledger.do(hold(10, "h1", tokens=1, ttl_seconds=86_400))
    ledger.wait(13 * 3600)
    with pytest.raises(LimitExceeded):
        ledger.do(extend(10, "h1", "e1", tokens=1))
    with pytest.raises(InsufficientCredit):
        ledger.do(extend(11, "h1", "e2", tokens=1))


def test_quotas_begin_anew_with_the_cycle_and_a_replay_has_none(ledger):
    ledger.do(credit(1000, "c"))
    ledger.do(set_limit(100, scope="plan", unit="tokens", window="cycle"))
    held = hold(10, "h1", tokens=60, ttl_seconds=86_400)
    ledger.do(held)
    assert ledger.do(held).quotas == ()
    ledger.now = ledger.books["acme"].cycle_end
    settled = settle(10, "h1", tokens=60)
    # The hold was of the cycle before, and counts there.
    assert [quota.remaining for quota in ledger.do(settled).quotas] == [100]
    assert ledger.do(settled).quotas == ()
    (quota,) = ledger.do(hold(10, "h2", tokens=30)).quotas
    assert (quota.remaining, quota.resets_at) == (70, ledger.books["acme"].cycle_end)
    assert quota.resets_at > ledger.now


def test_limit_made_again_counts_what_the_deleted_one_did(ledger):
    ledger.do(credit(1_000, "c1"))
    ledger.do(set_limit(50))
    ledger.do(hold(50, "h1"))
    results = ledger.apply([delete_limit()], [settle(50, "h1")], [set_limit(50)])
    assert results[-1].outcome.limit.used == 50
    assert limits(ledger) == {"account::nanos:day": (50, 0)}


def test_hold_cut_to_the_least_of_balance_and_limits_counts_what_it_holds(ledger):
    ledger.do(credit(80, "c1"))
    ledger.do(set_limit(60))
    ledger.do(set_limit(40, scope="key", subject="k1"))
    made = ledger.do(hold(500, "h1", minimum=10, key_id="k1"))
    assert made.hold.amount == 40
    assert ledger.subjects["acme", "key", "k1"][0].held == 40
    assert limits(ledger) == {"account::nanos:day": (0, 40)}


def test_limit_that_was_written_before_is_written_with_its_new_window_and_terms(ledger):
    ledger.do(set_limit(60, window="day"))
    ledger.do(set_limit(70, window="cycle"))

    def terms():
        of = as_in_its_row(ledger.books["acme"].limits)
        return [(limit.amount, limit.mode, limit.window_start - START) for limit in of]

    today, cycle, never = timedelta(hours=-12), timedelta(), "never"
    assert terms() == [(60, "hard", today), (70, "hard", cycle)]
    ledger.wait(86_400)
    ledger.do(set_limit(80, window="day", mode="soft"))
    assert terms() == [(80, "soft", today + timedelta(days=1)), (70, "hard", cycle)]
    ledger.wait(86_400)
    refused = ledger.apply([set_limit(90, window="day"), set_limit(90, window="cycle"), settle(0, never)])
    assert [result.outcome.reason for result in refused][-1] == "HOLD_NOT_FOUND"
    assert terms()[1] == (70, "hard", cycle)
    ledger.do(credit(100, "c1"))
    ledger.do(hold(10, "h1"))
    assert terms() == [(80, "soft", today + timedelta(days=2)), (70, "hard", cycle)]
    ledger.wait(40 * 86_400)
    ledger.do(hold(10, "h2"))
    assert terms() == [(80, "soft", today + timedelta(days=42)), (70, "hard", timedelta(days=30))]


def test_replayed_limit_does_not_undo_a_later_change(ledger):
    first = set_limit(50, request_id="l1")
    ledger.do(first)
    ledger.do(set_limit(90, request_id="l2"))
    (again,) = ledger.apply([first])
    assert again.replayed
    assert ledger.books["acme"].limits[0].amount == 90
    with pytest.raises(IdempotencyConflict):
        ledger.do(set_limit(70, request_id="l1"))


# Linked groups


def test_linked_group_is_undone_as_a_whole(ledger):
    ledger.do(credit(100, "c1"))
    ledger.do(set_limit(90, scope="key", subject="k1"))
    ledger.do(hold(10, "open", key_id="k1"))
    before = ledger.load()
    results = ledger.apply(
        [
            opened("other"),
            credit(7, "c2", account_id="other"),
            settle(5, "open"),
            hold(20, "h2", key_id="k1"),
            set_limit(10, scope="workspace", subject="w1"),
            suspend("s1"),
            hold(10**6, "h3", key_id="k1"),
        ]
    )
    reasons = [result.outcome.reason for result in results]
    assert reasons == ["LINKED_OPERATION_FAILED"] * 6 + ["ACCOUNT_SUSPENDED"]
    after = ledger.load()
    assert (after.books, after.holds, after.subjects, after.requests) == (
        before.books, before.holds, before.subjects, before.requests,
    )  # fmt: skip
    assert [entry.type for entry in ledger.journal()] == ["credit_purchase", "hold"]


def test_what_follows_an_undone_group_in_its_batch_is_written(ledger):
    ledger.do(credit(100, "c1"))
    ledger.do(set_limit(90, scope="key", subject="k1"))
    results = ledger.apply(
        [hold(10, "h1", key_id="k1")],
        [settle(4, "h1"), hold(20, "h2", key_id="k1"), hold(500, "h3")],
        [settle(6, "h1")],
        [hold(30, "h2", key_id="k1")],
    )
    assert [getattr(result.outcome, "reason", "") for result in results] == [
        "", "LINKED_OPERATION_FAILED", "LINKED_OPERATION_FAILED", "INSUFFICIENT_CREDIT", "", "",
    ]  # fmt: skip
    assert figures(ledger) == (64, 30, 6, 0)
    (limit,) = ledger.subjects["acme", "key", "k1"]
    assert (limit.used, limit.held) == (6, 30)
    assert [entry.sequence for entry in ledger.journal()] == [1, 2, 3, 4]


def test_account_opened_by_an_undone_group_is_not_there_for_the_next(ledger):
    results = ledger.apply(
        [opened("other"), credit(5, "c1", account_id="other"), hold(6, "h1", account_id="other")],
        [credit(5, "c1", account_id="other")],
        [opened("other"), credit(9, "c1", account_id="other")],
    )
    assert [getattr(result.outcome, "reason", "") for result in results][3:] == ["ACCOUNT_NOT_FOUND", "", ""]
    assert ledger.books["other"].available == 9


def test_group_that_was_done_is_replayed_as_a_whole(ledger):
    group = [credit(100, "c1"), hold(60, "h1"), settle(50, "h1"), hold(50, "h2")]
    ledger.apply(group)
    results = ledger.apply(group)
    assert all(result.replayed for result in results)
    assert figures(ledger) == (0, 50, 50, 0)


def test_request_key_used_for_another_operation_is_refused(ledger):
    ledger.do(suspend("same"))
    with pytest.raises(IdempotencyConflict):
        ledger.do(credit(100, "same"))
