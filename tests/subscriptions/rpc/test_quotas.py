"""Quotas and their checks: caps, grace, overage, headers, and counters that are exact whatever becomes of Redis."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import redis
from sqlalchemy import text
from subscriptions_peers import USD, eventually
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1 import credits_service_pb2 as credits_pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as operator_pb

from services.kit.errors import RemoteError
from services.kit.identity import Role
from services.subscriptions.metering import store
from services.subscriptions.metering.aggregation import EventAggregator, FeedAggregator
from services.subscriptions.metering.counters import UseCounters, redis_client
from services.subscriptions.metering.limits import LimitGuard
from services.subscriptions.metering.model import METRICS, Use, in_minutes
from services.subscriptions.model.cycle import Cycle


@pytest.fixture
def cache(redis_url):
    client = redis.Redis.from_url(redis_url)
    client.flushdb()
    yield client
    client.close()


class Suite:
    """A served instance with Redis, its account's callers, and the jobs a test runs itself."""

    def __init__(self, address, connect, operator, parts):
        self.address = address
        self.operator = operator
        self.service = connect(address, Role.SERVICE)
        self.parts = parts
        self.count = 0

    def create(self, plan, account_id="acme"):
        request = operator_pb.CreateAccountRequest(account_id=account_id, plan=plan)
        return self.operator(self.operator.customers.CreateAccount, request)

    def emit(self, metric, quantity, time=None, account_id="acme"):
        self.count += 1
        event = pb.UsageEvent(id=f"e{self.count}", metric=metric, quantity=quantity)
        if time is not None:
            event.time.FromDatetime(time)
        request = pb.EmitEventsRequest(account_id=account_id, events=[event])
        assert self.service(self.service.metering.EmitEvents, request).accepted == 1

    def quotas(self, account_id="acme"):
        request = pb.ListQuotasRequest(account_id=account_id)
        return {quota.metric: quota for quota in self.service(self.service.metering.ListQuotas, request).quotas}

    def used(self, metric):
        return self.quotas()[metric].used

    def check(self, metric, quantity=0):
        """What a check answered, and its headers."""
        request = pb.CheckQuotaRequest(account_id="acme", metric=metric, quantity=quantity)
        call = self.service.metering.CheckQuota.future(request, metadata=self.service.metadata, timeout=20)
        headers = {key: value for key, value in call.initial_metadata() if key.startswith("x-quota")}
        refusal = RemoteError.from_rpc(call.exception()) if call.exception() else None
        return refusal or call.result(), headers

    def allows(self, metric, quantity=0):
        return not isinstance(self.check(metric, quantity)[0], RemoteError)

    def aggregate(self):
        while EventAggregator(self.parts.engine, events_at_once=7)():
            pass

    def feed(self):
        FeedAggregator(self.parts.engine, self.parts.feed, self.parts.counters)()

    def set_status(self, status):
        with self.parts.engine.begin() as connection:
            connection.execute(text("UPDATE accounts SET status = :status"), {"status": status})


@pytest.fixture
def suite(served, connect, parts, pricing, cache, redis_url):  # noqa: PLR0917 (fixtures)
    pricing.publish_metered()
    with served(redis_url=redis_url, quota_cache_seconds=60) as address:
        yield Suite(address, connect, connect(address, Role.ADMIN), parts(redis_url=redis_url, quota_cache_seconds=60))


def test_metered_plan_lists_its_five_metrics(suite):
    account = suite.create("metered-standard")
    quotas = suite.quotas()
    assert list(quotas) == list(METRICS)
    tokens = quotas["llm_tokens"]
    assert (tokens.limit, tokens.used, tokens.remaining, tokens.cap) == (1_000_000, 0, 1_000_000, "soft")
    assert tokens.resets_at == account.cycle_end
    assert quotas["user_seats"].limit == 25


@pytest.mark.parametrize(
    ("plan", "expected"),
    [("free", {"llm_tokens": 50_000, "api_calls": 100}), ("payg", {})],
)
def test_other_plans_list_their_tokens_and_requests(suite, plan, expected):
    suite.create(plan)
    assert {metric: quota.limit for metric, quota in suite.quotas().items()} == expected
    assert {quota.cap for quota in suite.quotas().values()} <= {"hard"}


def test_use_is_seen_at_once_and_the_same_after_aggregation(suite):
    suite.create("metered-standard")
    for number in range(20):
        suite.emit("api_calls", number + 1)
        assert suite.used("api_calls") == sum(range(1, number + 2))
    suite.aggregate()
    assert suite.used("api_calls") == 210
    suite.emit("api_calls", 5)
    assert suite.used("api_calls") == 215


def test_calls_through_the_proxy_count_by_themselves(suite, ledger):
    suite.create("metered-standard")
    now = datetime.now(UTC)
    for tokens in (120, 0, 30):
        ledger.use("acme", tokens, now)
    ledger.use("other", 1000, now)
    assert suite.used("llm_tokens") == 0
    suite.feed()
    assert (suite.used("llm_tokens"), suite.used("api_calls")) == (150, 3)
    suite.emit("llm_tokens", 50)
    assert suite.used("llm_tokens") == 200, "what did not pass the proxy counts beside it"
    suite.feed()
    assert suite.used("llm_tokens") == 200


def test_calls_of_internal_keys_count_in_no_quota(suite, ledger):
    suite.create("metered-standard")
    now = datetime.now(UTC)
    ledger.use("acme", 120, now)
    ledger.use("acme", 1000, now, internal=True)
    suite.feed()
    assert (suite.used("llm_tokens"), suite.used("api_calls")) == (120, 1)


def test_feed_batch_committed_elsewhere_is_not_added_again(suite, ledger):
    """Two processes read the same batch; whoever finds the cursor moved leaves it."""
    suite.create("metered-standard")
    for _ in range(50):
        ledger.use("acme", 10, datetime.now(UTC))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: suite.feed(), range(8)))
    assert suite.used("llm_tokens") == 500


def test_cursor_that_the_ledger_does_not_know_is_kept_and_counts_nothing_anew(suite, ledger, database):
    suite.create("metered-standard")
    ledger.use("acme", 10, datetime.now(UTC))
    database.rows("UPDATE usage_feed SET cursor = 'from-elsewhere'")
    suite.feed()
    assert suite.used("llm_tokens") == 0
    assert database.rows("SELECT cursor FROM usage_feed") == [("from-elsewhere",)]


def test_hard_cap_allows_up_to_what_is_included_and_no_more(suite):
    suite.create("metered-free")
    suite.emit("agent_executions", 98)
    assert suite.allows("agent_executions", 2)
    refusal, headers = suite.check("agent_executions", 3)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert refusal.metadata["limit"] == "100"
    assert refusal.metadata["used"] == "98"
    assert refusal.retry_after_seconds > 0
    assert (headers["x-quota-limit"], headers["x-quota-remaining"]) == ("100", "2")
    suite.emit("agent_executions", 50)
    assert not suite.allows("agent_executions")
    quota = suite.quotas()["agent_executions"]
    assert (quota.used, quota.remaining, quota.overage, quota.overage_nanos) == (148, 0, 48, 0)


def test_soft_cap_allows_overage_and_prices_it_exactly(suite):
    suite.create("metered-standard")
    suite.emit("llm_tokens", 1_000_003)
    answer, headers = suite.check("llm_tokens", 10**12)
    assert answer.allowed
    assert (answer.quota.overage, answer.quota.overage_nanos) == (3, 60_000), "$20 a million: 20 000 nanos each"
    assert answer.quota.percent_used == 100.0
    assert headers["x-quota-remaining"] == "0"
    suite.emit("agent_executions", 5010)
    assert suite.quotas()["agent_executions"].overage_nanos == 10 * USD // 10


def test_headers_say_limit_remaining_and_reset(suite):
    account = suite.create("metered-free")
    suite.emit("api_calls", 400)
    _, headers = suite.check("api_calls")
    assert headers == {
        "x-quota-metric": "api_calls",
        "x-quota-limit": "1000",
        "x-quota-remaining": "600",
        "x-quota-reset": str(account.cycle_end.seconds),
    }


def test_emission_from_outside_tells_of_the_quota_that_is_used_up_most(suite, connect):
    suite.create("metered-free")
    events = [
        pb.UsageEvent(id="runs", metric="agent_executions", quantity=30),
        pb.UsageEvent(id="calls", metric="api_calls", quantity=500),
    ]
    request = pb.EmitEventsRequest(account_id="acme", events=events)
    told = {}
    for role, words in ((Role.ACCOUNT, {"account_id": "acme"}), (Role.SERVICE, {})):
        caller = connect(suite.address, role, **words)
        _, call = caller.metering.EmitEvents.with_call(request, metadata=caller.metadata, timeout=20)
        told[role] = {key: value for key, value in call.initial_metadata() if key.startswith("x-quota")}
    assert told[Role.ACCOUNT]["x-quota-metric"] == "api_calls"
    assert (told[Role.ACCOUNT]["x-quota-limit"], told[Role.ACCOUNT]["x-quota-remaining"]) == ("1000", "500")
    assert told[Role.SERVICE] == {}


def test_metric_that_the_plan_says_nothing_of_is_allowed_without_headers(suite):
    suite.create("payg")
    answer, headers = suite.check("storage_gb", 5)
    assert answer.allowed
    assert (answer.quota.metric, answer.quota.limit, headers) == ("storage_gb", 0, {})


@pytest.mark.parametrize(
    ("status", "more", "allowed"),
    [("active", 2, True), ("grace", 2, True), ("limited", 2, False), ("limited", 1, True), ("suspended", 1, False)],
)
def test_unpaid_account_keeps_overage_in_grace_and_what_is_included_after_it(suite, status, more, allowed):
    suite.create("metered-standard")
    suite.emit("user_seats", 24)
    suite.set_status(status)
    assert suite.allows("user_seats", more) is allowed


def test_grace_that_is_over_limits_before_the_status_says_so(suite, clock):
    class Billing:
        def customer_ids(self, _account_ids):
            return {}

        def grace_until(self, _account_id):
            return clock() - timedelta(seconds=1)

    suite.create("metered-standard")
    suite.emit("user_seats", 25)
    suite.set_status("grace")
    suite.parts.metering._billing = Billing()
    assert not suite.parts.metering.check("acme", "user_seats", 1).allowed


def test_suspended_account_is_told_so(suite):
    suite.create("metered-standard")
    suite.set_status("suspended")
    assert suite.check("api_calls")[0].reason == "ACCOUNT_STOPPED"


@pytest.mark.parametrize("status", ["suspended", "closed"])
def test_account_that_the_ledger_alone_has_stopped_is_told_so(suite, ledger, status):
    suite.create("metered-standard")
    assert suite.allows("api_calls", 1)
    ledger.books["acme"]["status"] = status
    eventually(lambda: not suite.allows("api_calls", 1))
    refusal = suite.check("api_calls")[0]
    assert (refusal.reason, refusal.metadata["status"]) == ("ACCOUNT_STOPPED", status)
    ledger.books["acme"]["status"] = "open"
    eventually(lambda: suite.allows("api_calls", 1))


def test_ledger_is_asked_of_an_account_once_a_second_and_needs_no_answer(suite, ledger):
    suite.create("metered-standard")
    assert all(suite.allows("api_calls", 1) for _ in range(20))
    assert len(ledger.named("GetAccount")) < 20
    ledger.down = True
    suite.create("metered-standard", "beta")
    request = pb.CheckQuotaRequest(account_id="beta", metric="api_calls", quantity=1)
    assert suite.service(suite.service.metering.CheckQuota, request).allowed


# Gauges


def test_gauge_counts_its_high_water_mark_and_checks_against_its_level(suite):
    suite.create("metered-free")
    now = datetime.now(UTC)
    for aggregated in (False, True):
        suite.emit("user_seats", 3, now + timedelta(seconds=aggregated))
        suite.emit("user_seats", 2, now + timedelta(seconds=aggregated + 0.5))
        if aggregated:
            suite.aggregate()
        assert suite.used("user_seats") == 3
        assert suite.allows("user_seats", 1), "two seats now, one more is within three"
        assert not suite.allows("user_seats", 2)


def test_gauge_takes_the_latest_level_by_its_time_in_whatever_order_it_comes(suite):
    suite.create("metered-free")
    now = datetime.now(UTC)
    suite.emit("user_seats", 1, now)
    suite.emit("user_seats", 3, now - timedelta(minutes=10))
    suite.aggregate()
    suite.emit("user_seats", 2, now - timedelta(minutes=5))
    assert suite.allows("user_seats", 2), "one seat now"
    suite.aggregate()
    assert suite.allows("user_seats", 2)
    assert not suite.allows("user_seats", 3)


def test_gauge_begins_a_cycle_with_the_level_it_had(suite, clock):
    suite.create("metered-free")
    suite.emit("user_seats", 3)
    suite.emit("user_seats", 2)
    account = suite.parts.customers.get("acme")
    for at in (1, 2):
        clock.forward(account.cycle_at(clock()).end - clock() + timedelta(minutes=at))
        assert suite.used("user_seats") == 2, "in each cycle, though nobody says anything"
        suite.aggregate()


# Cycles


def test_use_begins_anew_with_the_cycle(suite, clock):
    suite.create("metered-standard")
    suite.emit("api_calls", 7)
    end = suite.parts.customers.get("acme").cycle_at(clock()).end
    clock.forward(end - clock() + timedelta(minutes=2))
    assert suite.used("api_calls") == 0
    suite.emit("api_calls", 5)
    suite.emit("api_calls", 3, end - timedelta(minutes=5))
    for _ in range(2):
        assert suite.used("api_calls") == 5, "a late event counts in the cycle it happened in"
        suite.aggregate()


def test_hours_and_minutes_add_up_to_what_each_minute_says(suite, clock):
    """Events in every part of a cycle that neither begins nor ends with an hour."""
    suite.create("metered-standard")
    account = suite.parts.customers.get("acme")
    cycle = in_minutes(account.cycle_at(clock()))
    moments = [cycle.start - timedelta(seconds=1), cycle.start, cycle.start + timedelta(minutes=59)]
    moments += [cycle.start + timedelta(hours=hours, minutes=hours % 60) for hours in range(1, 600, 7)]
    moments += [cycle.end - timedelta(seconds=1), cycle.end]
    rows = [store.UsageEvent(f"h{number}", "api_calls", 2**number % 997 + 1, at) for number, at in enumerate(moments)]
    expected = sum(row.quantity for row in rows if cycle.start <= row.occurred_at < cycle.end)
    with suite.parts.engine.begin() as connection:
        store.insert_events(connection, "acme", rows)
        assert store.cycle_use(connection, "acme", cycle)["api_calls"] == Use(expected, expected)
    suite.aggregate()
    with suite.parts.engine.begin() as connection:
        assert store.cycle_use(connection, "acme", cycle)["api_calls"] == Use(expected, expected)


# Counters in Redis


def kept(cache):
    return sorted(key.decode().split(":")[-1] for key in cache.keys("tollkeeper:metering:*"))


def test_second_check_is_answered_from_the_cache(suite, cache):
    suite.create("metered-standard")
    suite.emit("api_calls", 7)
    assert suite.used("api_calls") == 7
    assert kept(cache) == ["use", "version"]
    with suite.parts.engine.begin() as connection:
        connection.execute(text("UPDATE usage_events SET quantity = 70"))  # nobody is told
    assert suite.used("api_calls") == 7
    suite.emit("api_calls", 1)
    assert suite.used("api_calls") == 71, "a change makes the counter void"


def test_wiped_redis_is_rebuilt_exactly(suite, cache):
    suite.create("metered-standard")
    suite.emit("api_calls", 7)
    assert suite.used("api_calls") == 7
    cache.flushdb()
    assert suite.used("api_calls") == 7
    assert kept(cache) == ["use", "version"]


def test_lost_version_makes_a_counter_void(suite, cache):
    """As when Redis evicts one key of two."""
    suite.create("metered-standard")
    suite.emit("api_calls", 7)
    assert suite.used("api_calls") == 7
    with suite.parts.engine.begin() as connection:
        connection.execute(text("UPDATE usage_events SET quantity = 70"))
    (version,) = cache.keys("*:version")
    cache.delete(version)
    assert suite.used("api_calls") == 70


def test_redis_that_is_down_leaves_postgres_to_answer(served, connect, parts, pricing):
    pricing.publish_metered()
    dead = "redis://127.0.0.1:1"
    with served(redis_url=dead) as address:
        suite = Suite(address, connect, connect(address, Role.ADMIN), parts(redis_url=dead))
        suite.create("metered-free")
        for number in range(1, 4):
            suite.emit("api_calls", 300)
            assert suite.used("api_calls") == 300 * number
        assert suite.allows("api_calls", 100)
        assert not suite.allows("api_calls", 101)


def test_counter_worked_out_before_a_change_is_not_believed_after_it(cache, redis_url):
    """A reader asks Postgres, a writer commits and says so, the reader keeps its old answer last."""
    cycle = Cycle(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
    reader, writer = (UseCounters(redis_client(redis_url), seconds=60) for _ in range(2))
    version, counted = reader.read("acme", cycle)
    assert counted is None
    writer.changed(["acme"])
    reader.keep("acme", version, cycle, {"api_calls": Use(1, 1)})
    again, counted = reader.read("acme", cycle)
    assert counted is None
    reader.keep("acme", again, cycle, {"api_calls": Use(2, 2)})
    assert writer.read("acme", cycle)[1] == {"api_calls": Use(2, 2)}
    assert writer.read("acme", Cycle(cycle.end, cycle.end + timedelta(days=31)))[1] is None, "of another cycle"
    for counters in (reader, writer):
        counters.close()


def test_overage_of_a_metered_plan_is_what_its_meters_count(suite, ledger, pricing):
    """Calls with internal keys are billed by nobody; the ledger's limits count them."""
    suite.create("metered-standard")
    suite.emit("llm_tokens", 1_000_000)
    ledger.use("acme", 40_000, datetime.now(UTC))
    ledger.use("acme", 900_000, datetime.now(UTC), internal=True)
    suite.feed()
    ledger.books["acme"]["used"] = {"plan::tokens:cycle": 940_000, "plan::requests:cycle": 2}
    shown = suite.service(suite.service.credits.GetOverage, credits_pb.GetOverageRequest(account_id="acme"))
    assert (shown.tokens_included, shown.tokens_used) == (1_000_000, 1_040_000)
    assert pricing.named("QuoteOverage")[0].used == {"llm_tokens": suite.used("llm_tokens")}
    advice = credits_pb.GetRecommendationRequest(account_id="acme")
    suite.service(suite.service.credits.GetRecommendation, advice)
    assert [(asked.tokens, asked.requests) for asked in pricing.named("RecommendPlan")] == [(1_040_000, 1)]


# The ledger's limits


def test_emitted_use_lowers_the_ledgers_hard_limit_and_a_new_cycle_restores_it(suite, ledger, clock, database):
    guard = LimitGuard(suite.parts.engine, suite.parts.plans, clock=clock)

    def limited():
        guard()
        suite.parts.deliverer.deliver_account("acme", within_seconds=5)
        return {limit.unit: limit.amount for limit in ledger.books["acme"]["limits"].values()}

    suite.create("metered-free")
    suite.emit("agent_executions", 50)
    suite.aggregate()
    assert limited() == {"tokens": 10_000, "requests": 1000}
    suite.emit("llm_tokens", 4000)
    suite.aggregate()
    assert limited() == {"tokens": 6000, "requests": 1000}
    ledger.use("acme", 500, datetime.now(UTC))
    suite.feed()
    assert limited() == {"tokens": 6000, "requests": 1000}, "what passed the proxy the ledger has counted itself"
    pushes = len(ledger.named("Apply"))
    suite.emit("llm_tokens", 99)
    suite.aggregate()
    assert limited()["tokens"] == 6000, "less than a hundredth is not worth a push"
    assert len(ledger.named("Apply")) == pushes
    suite.emit("llm_tokens", 7000)
    suite.aggregate()
    assert limited()["tokens"] == 0
    suite.parts.customers.set_plan("acme", "metered-free", "again")
    assert limited()["tokens"] == 0, "terms pushed anew are lowered anew"
    clock.forward(suite.parts.customers.get("acme").cycle_at(clock()).end - clock() + timedelta(minutes=1))
    database.rows("UPDATE usage_limits SET look_at = now()")
    assert limited() == {"tokens": 10_000, "requests": 1000}


def test_hard_limit_is_whole_again_within_seconds_of_a_new_cycle(served, connect, pricing, ledger, database):
    """Whoever was told to come back at the quota's reset does so, and is to be refused no longer than it has to be."""
    pricing.publish_metered()
    with served(jobs=True) as address:
        operator = connect(address, Role.ADMIN)
        request = operator_pb.CreateAccountRequest(account_id="acme", plan="metered-free")
        operator(operator.customers.CreateAccount, request)
        limit = ledger.books["acme"]["limits"]
        events = [pb.UsageEvent(id="e", metric="llm_tokens", quantity=10_000)]
        operator(operator.metering.EmitEvents, pb.EmitEventsRequest(account_id="acme", events=events))
        eventually(lambda: limit["plan::tokens:cycle"].amount == 0, timeout_seconds=20)
        database.rows("UPDATE accounts SET cycle_anchor = now() + interval '1 minute'")  # before it, nothing counts
        database.rows("UPDATE usage_limits SET look_at = now()")
        eventually(lambda: limit["plan::tokens:cycle"].amount == 10_000, timeout_seconds=20)


def test_emitted_use_leaves_a_soft_limit_as_it_is(suite, ledger, clock):
    suite.create("metered-standard")
    before = dict(ledger.books["acme"]["limits"])
    suite.emit("llm_tokens", 2_000_000)
    suite.aggregate()
    LimitGuard(suite.parts.engine, suite.parts.plans, clock=clock)()
    suite.parts.deliverer.deliver_account("acme", within_seconds=5)
    assert ledger.books["acme"]["limits"] == before
    assert {limit.mode for limit in before.values()} == {"soft"}


def test_account_that_is_not_on_its_plans_limits_is_pushed_none(suite, ledger, clock):
    """After a failed payment's grace the ledger has other limits, which stay."""
    suite.create("metered-free")
    suite.set_status("limited")
    pushes = len(ledger.named("Apply"))
    suite.emit("llm_tokens", 5000)
    suite.aggregate()
    LimitGuard(suite.parts.engine, suite.parts.plans, clock=clock)()
    suite.parts.deliverer.deliver_account("acme", within_seconds=5)
    assert len(ledger.named("Apply")) == pushes
