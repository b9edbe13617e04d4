"""Limits per minute in a real Redis: shared, exact, and what becomes of them when it is away."""

import asyncio
import random

import pytest
import redis as sync_redis
import redis.asyncio as aio_redis
import redis.crc
import redis.exceptions
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from deploy.local import ports
from deploy.local.redis import EmbeddedRedis
from services.proxy import rates
from services.proxy.assembly import redis_client
from services.proxy.errors import RateLimited
from services.proxy.rates import Limit, LocalCounts, RateLimits


def requests(amount, cost=1, *, subject="account"):
    return Limit("acme", subject, "requests", amount, cost)


def tokens(amount, cost, *, subject="account"):
    return Limit("acme", subject, "tokens", amount, cost)


async def admitted(limits, *asked):
    try:
        await limits.take(asked)
    except RateLimited:
        return False
    return True


def connected(url):
    """The proxy's client, with more time: a busy machine is not what is tested here."""
    return redis_client(url, timeout_seconds=5)


@pytest.fixture
async def client(redis_url):
    async with connected(redis_url) as found:
        await found.flushdb()
        yield found


@pytest.fixture
def limits(client):
    return RateLimits(client)


@pytest.fixture
def own_redis(tmp_path):
    """`own_redis()` serves a Redis of this test's own as a context manager; always the same port."""
    port = ports.free_port()

    def serve():
        return EmbeddedRedis(folder=tmp_path, port=port, password="of-a-test").serving(tmp_path / "redis.log")

    return serve


async def test_replicas_at_once_never_pass_a_limit_together(client, redis_url):
    async with connected(redis_url) as second:
        replicas = [RateLimits(client), RateLimits(second)]
        passed = await asyncio.gather(*(admitted(replicas[n % 2], requests(50), tokens(9_999, 3)) for n in range(300)))
        assert passed.count(True) == 50
        assert not any(replica._failing for replica in replicas)  # though each had more calls than connections
        assert (await replicas[0].take([tokens(9_999, 0)])).limits[0].used == 150


def likely(limits, *asked):
    """Whether a call is taken for one that will be admitted. It is not counted here."""
    limits._scripts, scripts = None, limits._scripts
    try:
        return limits.begin(asked).likely
    finally:
        limits._scripts = scripts


async def test_call_is_likely_only_within_half_of_each_limit_as_counted_a_moment_ago(client):
    now = 1_000.0
    limits = RateLimits(client, clock=lambda: now)
    call = requests(10), tokens(100, 10)
    assert not likely(limits, *call)  # nothing is known
    await limits.take(call)
    # 4 requests and 40 tokens of the first halves are left; those that are likely take them, counted or not.
    assert [likely(limits, *call) for _ in range(5)] == [True] * 4 + [False]
    await limits.take(call)
    assert not likely(limits, requests(10), tokens(100, 31))
    assert not likely(limits, requests(10))  # these are not the limits that were counted
    assert likely(limits, *call)
    now += 1
    assert not likely(limits, *call)  # others may have used them up since


async def test_no_call_is_likely_that_was_refused_a_moment_ago(limits):
    assert await admitted(limits, requests(2), tokens(100, 1))
    assert await admitted(limits, requests(2), tokens(100, 1))
    assert not await admitted(limits, requests(2), tokens(100, 1))
    assert not likely(limits, requests(2), tokens(100, 1))


async def test_no_call_is_likely_that_a_replica_counts_alone(own_redis, monkeypatch):
    monkeypatch.setattr(rates, "_RETRY_SECONDS", 0.0)
    with own_redis() as server:
        client = connected(server.url)
        limits = RateLimits(client)
        await limits.take([requests(100)])
    await limits.take([requests(100)])
    assert not likely(limits, requests(100))
    await client.aclose()


async def test_callers_whose_room_is_remembered_are_bounded(limits, monkeypatch):
    monkeypatch.setattr(rates, "_LOCAL_ENTRIES", 3)
    for number in range(5):
        await limits.take([requests(100, subject=f"key:{number}")])
    assert [likely(limits, requests(100, subject=f"key:{number}")) for number in range(5)] == [False] * 2 + [True] * 3


async def test_script_and_local_rule_say_the_same(client, monkeypatch):
    """Any order of calls, corrections and refusals, by a clock of the test's, gives the same answers."""
    monkeypatch.setattr(rates, "NOW", "local now = tonumber(redis.call('GET', 'test:now'))\n")
    monkeypatch.setattr(rates, "_CORRECTED_WITHIN_SECONDS", 0)
    draw = random.Random(7)
    now = 1_700_000_000_000
    shared, local = RateLimits(client), LocalCounts(lambda: now / 1000)
    taken = []
    for _ in range(400):
        now += draw.choice((0, 1, 300, 999, 5_000, 20_000, 61_000))
        await client.set("test:now", now)
        asked = [requests(8, draw.randint(0, 4)), tokens(50, draw.randint(0, 30)), tokens(40, 7, subject="key:k")]
        expected = local.take(asked)
        if expected[0]:
            number, wait_ms = expected[:2]
            with pytest.raises(RateLimited) as caught:
                await shared.take(asked)
            assert caught.value.metadata["limit"] == str(asked[number - 1].amount)
            assert caught.value.retry_after_seconds == (wait_ms / 1000 if wait_ms >= 0 else None)
        else:
            standing = await shared.take(asked)
            taken.append(standing)
            assert expected[1:3] == [0, standing.second]
            assert expected[3:] == [number for one in standing.limits for number in (one.used, one.reset_ms)]
        if taken and draw.random() < 0.4:
            standing = draw.choice(taken[-5:])
            changed = [(one.limit, draw.randint(-30, 30)) for one in standing.limits if one.limit.unit == "tokens"]
            local.correct(standing.second, changed)
            await shared._corrected(standing.second, changed)
    assert len(taken) > 100


async def test_clock_that_goes_back_locks_nobody_out_for_more_than_a_minute(client, monkeypatch):
    monkeypatch.setattr(rates, "NOW", "local now = tonumber(redis.call('GET', 'test:now'))\n")
    limits = RateLimits(client)
    now = 1_700_000_000_000
    await client.set("test:now", now)
    assert await admitted(limits, requests(1))
    await client.set("test:now", now - 3_600_000)
    with pytest.raises(RateLimited) as caught:
        await limits.take([requests(1)])
    assert caught.value.retry_after_seconds == 61
    await client.set("test:now", now - 3_600_000 + 61_000)
    assert await admitted(limits, requests(1))


async def test_clock_that_goes_back_and_forth_forgets_nothing(client, monkeypatch):
    monkeypatch.setattr(rates, "NOW", "local now = tonumber(redis.call('GET', 'test:now'))\n")
    limits, used = RateLimits(client), []
    for moved in (0, 1_000, 500, 1_500, 0, 999):
        await client.set("test:now", 1_700_000_000_000 + moved)
        standing = await limits.take([tokens(100, 10)])
        await limits._corrected(standing.second, [(standing.limits[0].limit, -9)])
        used.append((await limits.take([tokens(100, 0)])).limits[0].used)
    assert used == [1, 2, 3, 4, 5, 6]


async def test_refused_call_counts_against_no_limit(limits):
    for _ in range(3):
        assert not await admitted(limits, requests(5), tokens(10, 11))
    assert [one.used for one in (await limits.take([requests(5), tokens(10, 10)])).limits] == [1, 10]


async def test_costs_and_limits_beyond_counting_are_cut(limits):
    assert not await admitted(limits, tokens(10**11, 2**80))
    assert await admitted(limits, tokens(2**63 - 1, 2**80))
    assert (await limits.take([tokens(2**63 - 1, 0)])).limits[0].used == 10**12


async def test_counts_expire_by_themselves(client, limits):
    await limits.take([requests(5), tokens(10, 1)])
    names = await client.keys("*")
    assert len(names) == 2
    assert all([60_000 < await client.pttl(name) <= 62_000 for name in names])


async def test_limits_of_an_account_are_in_one_slot_of_a_cluster():
    asked = [requests(1), tokens(1, 1), requests(1, subject="key:a"), tokens(1, 1, subject="key:b")]
    assert len({redis.crc.key_slot(limit.key.encode()) for limit in asked}) == 1
    assert len({limit.key for limit in asked}) == 4


async def test_scripts_are_loaded_again_where_redis_forgot_them(client, limits):
    standing = await limits.take([tokens(10, 5)])
    await client.script_flush()
    limits.correct(standing, 3)
    await limits.drained()
    await client.script_flush()
    assert (await limits.take([tokens(10, 0)])).limits[0].used == 3
    assert not limits._failing


async def test_correction_counts_before_the_next_call(limits):
    """It waits for that, or for a moment: a replica's own calls never see a guess that it knows better than."""
    limits.correct(await limits.take([tokens(100, 20)]), 10)
    await limits.drained()  # Redis knows the scripts now
    limits.correct(await limits.take([tokens(100, 80)]), 20)
    assert (await limits.take([tokens(100, 0)])).limits[0].used == 30


async def test_many_at_once_each_get_their_own_answer(client, limits):
    asked = [Limit("acme", f"key:{number}", "requests", number, 1) for number in range(1, 1501)]
    standings = await asyncio.gather(*(limits.take([one]) for one in asked))
    assert [standing.limits[0].remaining for standing in standings] == list(range(1500))


async def test_correction_reaches_every_replica(client, limits):
    standing = await limits.take([requests(9), tokens(100, 80), tokens(200, 80, subject="key:k")])
    limits.correct(standing, 20)
    await limits.drained()
    other = RateLimits(client)
    after = await other.take([requests(9), tokens(100, 0), tokens(200, 0, subject="key:k")])
    assert [one.used for one in after.limits] == [2, 20, 20]
    other.correct(await other.take([tokens(100, 5)]), 105)
    await other.drained()
    assert not await admitted(limits, tokens(100, 0))


async def test_correction_never_raises_and_never_waits(own_redis):
    with own_redis() as server:
        client = connected(server.url)
        limits = RateLimits(client)
        standing = await limits.take([tokens(100, 80)])
    limits.correct(standing, 20)
    await limits.drained()
    limits.correct(standing, 20)
    await limits.drained()
    await client.aclose()


def unshared():
    return REGISTRY.get_sample_value("tollkeeper_rate_unshared_total")


async def test_lost_redis_is_replaced_by_each_replicas_share_and_logged_once(own_redis, monkeypatch):
    monkeypatch.setattr(rates, "_RETRY_SECONDS", 0.0)
    with own_redis() as server:
        client = connected(server.url)
        replicas = [RateLimits(client, replicas=2) for _ in range(2)]
        assert [await admitted(replicas[n % 2], requests(4)) for n in range(5)] == [True] * 4 + [False]
    before = unshared()
    with capture_logs() as logged:
        assert [await admitted(replicas[n % 2], requests(4)) for n in range(5)] == [True] * 4 + [False]
        assert [entry["log_level"] for entry in logged] == ["error", "error"]  # one of each replica
    assert unshared() - before == 5  # an alert watches it
    with own_redis(), capture_logs() as logged:
        assert [await admitted(replicas[n % 2], requests(4)) for n in range(5)] == [True] * 4 + [False]
        assert [entry["log_level"] for entry in logged] == ["info", "info"]
        with sync_redis.Redis.from_url(server.url) as shared:
            assert shared.keys("*")
    await client.aclose()


async def test_connection_that_was_cut_is_made_anew_and_nobody_is_told(client, limits):
    await limits.take([requests(5)])
    with capture_logs() as logged:
        await client.client_kill_filter(_type="normal", skipme=True)
        assert (await limits.take([requests(5)])).limits[0].used == 2
    assert not logged


async def test_reply_that_comes_too_late_is_not_taken_for_another(own_redis, monkeypatch):
    monkeypatch.setattr(rates, "_RETRY_SECONDS", 0.0)
    with own_redis() as server, sync_redis.Redis.from_url(server.url) as other:
        client = aio_redis.Redis.from_url(server.url, socket_timeout=0.3, socket_connect_timeout=5)
        limits = RateLimits(client)
        await limits.take([tokens(100, 7)])
        other.client_pause(60_000, all=False)  # scripts are not run meanwhile
        assert not (await limits.take([tokens(100, 11)])).shared
        other.client_unpause()
        after = [await limits.take([tokens(100, 0)]), await limits.take([requests(9)])]
        assert all(standing.shared for standing in after)
        assert after[1].limits[0].used == 1
        assert after[0].limits[0].used in {7, 18}  # what was given up may have been run all the same
        await client.aclose()


async def test_redis_that_refuses_is_a_lost_redis(own_redis):
    with own_redis() as server:
        client = connected(server.url.replace("of-a-test", "guessed"))
        limits = RateLimits(client)
        assert [await admitted(limits, requests(1)) for _ in range(2)] == [True, False]
        await client.aclose()
