"""The rule of limits per minute, in this process: exact against a log of every call, bounded, and what headers say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.errors import wire_form
from services.proxy import rates
from services.proxy.errors import RateLimited
from services.proxy.rates import TOKENS, Limit, RateLimits, RateStanding, Standing, duration


class Clock:
    def __init__(self, now=1_000.0):
        self.now = now

    def __call__(self):
        return self.now


def requests(amount, cost=1, *, subject="account", account="acme"):
    return Limit(account, subject, "requests", amount, cost)


def tokens(amount, cost, *, subject="account"):
    return Limit("acme", subject, "tokens", amount, cost)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limits(clock):
    return RateLimits(None, clock=clock)


async def admitted(limits, *asked):
    try:
        await limits.take(asked)
    except RateLimited:
        return False
    return True


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 5)), max_size=60))
def test_no_sixty_seconds_admit_more_than_the_limit(amount, calls):
    """And a call is refused only where the last 61 seconds have no room for it."""
    clock = Clock(1_000.0)
    counts, log, now = rates.LocalCounts(clock), [], 1_000_000
    for wait_ms, cost in calls:
        now += wait_ms
        clock.now = now / 1000
        refused, retry_ms, _, used, _ = counts.take([requests(amount, cost)])
        if refused:
            assert sum(c for at, c in log if at > now - 61_000) + cost > amount
            assert (retry_ms == -1) == (cost > amount)
        else:
            log.append((now, cost))
            assert used >= sum(c for at, c in log if at > now - 60_000)
        assert sum(c for at, c in log if at > now - 60_000) <= amount


@pytest.mark.parametrize("begun", [1_000.0, 1_000.999])
async def test_retry_after_is_when_there_is_room(limits, clock, begun):
    clock.now = begun
    assert await admitted(limits, requests(2))
    clock.now += 10
    assert await admitted(limits, requests(2))
    with pytest.raises(RateLimited) as caught:
        await limits.take([requests(2)])
    wait = caught.value.retry_after_seconds
    clock.now += wait - 0.01
    assert not await admitted(limits, requests(2))
    clock.now += 0.01
    assert await admitted(limits, requests(2))


async def test_refused_call_counts_against_no_limit(limits):
    assert not await admitted(limits, requests(5), tokens(10, 11))
    assert not await admitted(limits, requests(5), tokens(10, 11))
    standing = await limits.take([requests(5), tokens(10, 10)])
    assert [one.remaining for one in standing.limits] == [4, 0]


async def test_call_larger_than_its_limit_is_told_so_and_not_to_wait(limits):
    with pytest.raises(RateLimited, match="this call alone counts 11 tokens; 10 may be used") as caught:
        await limits.take([tokens(10, 11)])
    assert caught.value.retry_after_seconds is None


async def test_limit_of_zero_is_none(limits):
    standing = await limits.take([requests(0), tokens(-1, 10**30)])
    assert standing == RateStanding()
    assert standing.headers() == ()


async def test_costs_and_limits_beyond_counting_are_cut(limits):
    assert not await admitted(limits, tokens(10**11, 2**80))
    assert await admitted(limits, tokens(2**63 - 1, 2**80))
    assert await admitted(limits, tokens(10, -(2**80), subject="key:k"))


async def test_headers_say_the_limit_with_the_least_left(limits, clock):
    clock.now = 1_000.25
    await limits.take([requests(9, 2, subject="key:k")])
    standing = await limits.take(
        [requests(9, subject="key:k"), requests(8), tokens(100, 30, subject="key:k"), tokens(90, 30)]
    )
    assert dict(standing.headers()) == {
        "x-ratelimit-limit-requests": "9",
        "x-ratelimit-remaining-requests": "6",
        "x-ratelimit-reset-requests": "1m0.75s",
        "x-ratelimit-limit-tokens": "90",
        "x-ratelimit-remaining-tokens": "60",
        "x-ratelimit-reset-tokens": "1m0.75s",
    }


async def test_refusal_carries_the_same_headers_on_the_wire(limits):
    await limits.take([requests(1)])
    with pytest.raises(RateLimited) as caught:
        await limits.take([requests(1)])
    trailing = dict(wire_form(caught.value)[2])
    assert trailing["x-ratelimit-limit-requests"] == "1"
    assert trailing["x-ratelimit-remaining-requests"] == "0"
    assert trailing["x-ratelimit-reset-requests"] == "1m1s"
    assert trailing["retry-after"] == "61"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (20, "20ms"),
        (1_000, "1s"),
        (1_500, "1.5s"),
        (1_001, "1.001s"),
        (60_000, "1m0s"),
        (90_951, "1m30.951s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
    ],
)
def test_durations_are_in_openais_form(milliseconds, text):
    assert duration(milliseconds) == text


async def test_correction_gives_back_what_was_not_used(limits):
    standing = await limits.take([requests(9), tokens(100, 80)])
    limits.correct(standing, 20)
    after = await limits.take([requests(9), tokens(100, 0)])
    assert [one.used for one in after.limits] == [2, 20]


async def test_correction_counts_what_was_used_above_the_guess(limits, clock):
    standing = await limits.take([tokens(100, 10)])
    clock.now += 30
    limits.correct(standing, 150)
    assert not await admitted(limits, tokens(100, 0))
    clock.now += 31
    assert not await admitted(limits, tokens(100, 0))  # 140 of them were known only 31 seconds ago
    clock.now += 30
    assert await admitted(limits, tokens(100, 100))


async def test_correction_after_a_minute_gives_nothing_back_twice(limits, clock):
    long_call = await limits.take([tokens(100, 80)])
    clock.now += 100
    await limits.take([tokens(100, 70)])
    limits.correct(long_call, 10)
    assert not await admitted(limits, tokens(100, 31))


async def test_correction_never_counts_below_nothing(limits):
    first = await limits.take([tokens(100, 10)])
    limits.correct(first, 0)
    limits.correct(first, 0)
    assert (await limits.take([tokens(100, 0)])).limits[0].used == 0


async def test_replicas_without_redis_share_a_limit(clock):
    alone = RateLimits(None, replicas=4, clock=clock)
    assert [await admitted(alone, requests(8)) for _ in range(3)] == [True, True, False]
    assert [await admitted(alone, requests(2, account="small")) for _ in range(2)] == [True, False]


async def test_counts_in_this_process_are_bounded(limits, monkeypatch):
    monkeypatch.setattr(rates, "_LOCAL_ENTRIES", 3)
    for account in ("a", "b", "c", "d"):
        await limits.take([requests(1, account=account)])
    assert len(limits._local._counts) == 3
    assert await admitted(limits, requests(1, account="a"))  # the oldest was let go
    assert not await admitted(limits, requests(1, account="d"))


def test_remaining_is_never_below_nothing():
    assert Standing(tokens(100, 1), 150, 5).remaining == 0


@pytest.mark.parametrize(("subject", "whose"), [("account", "of its plan"), ("key:a", "this key's own")])
@pytest.mark.parametrize("cost", [1, 11])
async def test_refusal_says_whose_limit_it_is(limits, subject, whose, cost):
    limit = Limit("acme", subject, TOKENS, 10, cost)
    for _ in range(10 if cost == 1 else 0):
        await limits.take([limit])
    with pytest.raises(RateLimited, match=whose) as caught:
        await limits.take([limit])
    assert caught.value.metadata["scope"] == subject.partition(":")[0]
