"""Two replicas of each service behind Envoy: what holds for one proxy holds for both together, to call and nano.

And each is restarted in turn, one replica after the other, under load: not one request fails.
"""

import concurrent.futures
import json
import time
import urllib.request

import grpc
import psycopg
import pytest
from e2e_rolling import Load, restart
from google.api import httpbody_pb2
from tollkeeper.proxy.v1.wire_service_pb2_grpc import WireServiceStub

from services.kit.errors import RemoteError

AT_ONCE = 48
# What a call uses, exactly: as many tokens out as its cap allows.
BODY = {
    "model": "gpt-4o",
    "messages": [{"role": "user", "content": "What is a toll? [[sandbox output_tokens=8]]"}],
    "max_tokens": 8,
}
CAP_NANOS = 10 * 10**6
SEEN_SECONDS = 1
SERVICES = ("ledger", "pricing", "subscriptions", "proxy")
# Both replicas of those that a call passes, one of the others.
ROLLED = ("ledger", "ledger-2", "pricing", "subscriptions", "proxy", "proxy-2")
CREDIT_NANOS = 10**12


@pytest.fixture(scope="module")
def replicated(own_suite):
    """A suite with two of each service."""
    replicas = {f"TOLLKEEPER_{service.upper()}_REPLICAS": "2" for service in SERVICES}
    # Two of Envoy's health checks, and a little.
    suite = own_suite(TOLLKEEPER_DRAIN_SECONDS="5", **replicas)
    ports = json.loads((suite.home / "ports.json").read_text())
    suite.proxies = [f"127.0.0.1:{ports[name]}" for name in ("proxy", "proxy-2")]
    suite.envoy_admin = f"http://127.0.0.1:{ports['envoy-admin']}"
    return suite


@pytest.fixture(autouse=True)
def both_are_called(replicated):
    """Each test has calls go through Envoy to both, or it has shown nothing."""
    before = requests_by_replica(replicated)
    yield
    after = requests_by_replica(replicated)
    assert all(after[address] > before[address] for address in replicated.proxies), (before, after)


def requests_by_replica(suite):
    """How many requests Envoy has sent to each proxy."""
    with urllib.request.urlopen(suite.envoy_admin + "/clusters?format=json", timeout=5) as answer:
        clusters = json.load(answer)["cluster_statuses"]
    (proxy,) = [cluster for cluster in clusters if cluster["name"] == "proxy"]
    return {
        f"{host['address']['socket_address']['address']}:{host['address']['socket_address']['port_value']}": int(
            next(stat.get("value", 0) for stat in host["stats"] if stat["name"] == "rq_total")
        )
        for host in proxy["host_statuses"]
    }


def at_once(suite, key, count=AT_ONCE, body=BODY):
    """So many calls at once; their answers."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: suite.post("/v1/chat/completions", body, key), range(count)))


def until_refused(suite, key):
    """Calls at once, then one after the other until one is refused; what all were answered with."""
    found = statuses(at_once(suite, key))
    while True:
        found.append(suite.post("/v1/chat/completions", BODY, key).status)
        if found[-1] != 200:
            return found


def statuses(answers):
    return [answer.status for answer in answers]


def billed(suite, customer):
    """What each of a customer's calls cost."""
    records = suite.get("/api/billing/usage?pageSize=1000", customer.key).body["records"]
    return [int(record["billedNanos"]) for record in records]


def most_held(suite, customer):
    """The most that was set aside for one call: what it could have cost."""
    holds = suite.get("/api/billing/transactions?type=hold&pageSize=1000", customer.key).body["transactions"]
    return max(int(posting["amountNanos"]) for hold in holds for posting in hold["postings"])


def test_requests_per_minute_of_a_key_are_exact_across_replicas(replicated):
    customer = replicated.customer(credit_nanos=10**10, requestsPerMinute=13)
    answers = at_once(replicated, customer.key)
    assert sorted(statuses(answers)) == [200] * 13 + [429] * (AT_ONCE - 13)
    refused = [answer for answer in answers if answer.status == 429]
    assert all(0 < int(answer.headers["retry-after"]) <= 61 for answer in refused)
    assert statuses(at_once(replicated, customer.key, count=8)) == [429] * 8


def test_requests_per_minute_of_a_plan_are_exact_across_replicas_and_keys(replicated):
    customer = replicated.customer(plan="free")
    second = {"accountId": customer.account_id, "name": "second"}
    keys = [customer.key, replicated.post("/api/admin/keys", second, replicated.admin_key).body["key"]]
    body = BODY | {"model": "gpt-3.5-turbo"}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = [
            answer for found in pool.map(lambda key: at_once(replicated, key, 24, body), keys) for answer in found
        ]
    assert sorted(statuses(answers)) == [200] * 10 + [429] * 38


def test_tokens_per_minute_are_shared_by_replicas(replicated):
    customer = replicated.customer(credit_nanos=10**10)
    used = replicated.post("/v1/chat/completions", BODY, customer.key).body["usage"]["total_tokens"]
    limited = {"accountId": customer.account_id, "name": "limited", "tokensPerMinute": str(40 * used)}
    key = replicated.post("/api/admin/keys", limited, replicated.admin_key).body["key"]
    admitted = 0
    while (found := statuses(at_once(replicated, key, count=16)).count(200)) > 0:
        admitted += found
    # Tokens are counted by a guess, and truly when the call is over: those under way at once may be too many.
    assert 40 - 16 <= admitted < 40 + 16


def test_spending_cap_is_exact_across_replicas(replicated):
    customer = replicated.customer(credit_nanos=10**12)
    cap = {"scope": "account", "unit": "nanos", "window": "day", "amountNanos": str(CAP_NANOS), "mode": "hard"}
    limits = f"/api/admin/accounts/{customer.account_id}/limits"
    assert replicated.post(limits, cap, replicated.admin_key).status == 200
    found = until_refused(replicated, customer.key)
    assert set(found) == {200, 429}
    costs = billed(replicated, customer)
    assert len(costs) == found.count(200)
    counted = replicated.post(limits, cap, replicated.admin_key).body
    assert int(counted["used"]) == sum(costs) <= CAP_NANOS
    assert int(counted["held"]) == 0
    assert 10**12 - replicated.available(customer.key) == sum(costs)
    # Nor is a call refused that could be held for.
    assert CAP_NANOS - sum(costs) < most_held(replicated, customer)


def test_credit_is_never_spent_twice_across_replicas(replicated):
    probe = replicated.customer(credit_nanos=10**9)
    assert replicated.post("/v1/chat/completions", BODY, probe.key).status == 200
    (cost,) = billed(replicated, probe)
    customer = replicated.customer(credit_nanos=20 * cost)
    found = until_refused(replicated, customer.key)
    assert set(found) == {200, 402}
    costs = billed(replicated, customer)
    assert len(costs) == found.count(200)
    assert replicated.available(customer.key) == 20 * cost - sum(costs) >= 0


@pytest.fixture
def replicas(replicated):
    """Each replica for itself, over gRPC: `call(key)` makes a model call there; the refusal's reason, or None."""
    channels = [grpc.insecure_channel(address) for address in replicated.proxies]

    def calling(stub):
        def call(key):
            request = httpbody_pb2.HttpBody(data=json.dumps(BODY).encode())
            try:
                list(stub.ChatCompletions(request, metadata=(("authorization", f"Bearer {key}"),), timeout=10))
            except grpc.RpcError as error:
                return RemoteError.from_rpc(error).reason
            return None

        return call

    yield [calling(WireServiceStub(channel)) for channel in channels]
    for channel in channels:
        channel.close()


def test_revoked_key_is_refused_by_both_replicas_within_a_second(replicated, replicas):
    customer = replicated.customer(credit_nanos=10**10)
    at_once(replicated, customer.key, count=16)
    for _ in range(5):  # each knows the key, and has it in its memory
        assert [call(customer.key) for call in replicas] == [None, None]
    revoked = replicated.call("DELETE", f"/api/admin/keys/{customer.key_id}", replicated.admin_key)
    assert revoked.status == 200
    at = time.monotonic()
    while time.monotonic() - at < SEEN_SECONDS:  # used without a pause, so that no memory of it lapses unused
        for call in replicas:
            call(customer.key)
    assert [call(customer.key) for call in replicas for _ in range(5)] == ["API_KEY_REVOKED"] * 10
    assert statuses(at_once(replicated, customer.key, count=16)) == [401] * 16


@pytest.mark.timeout(400)
def test_rolling_restart_of_every_service_fails_no_request(replicated):
    customer = replicated.customer(credit_nanos=CREDIT_NANOS)
    load = Load(replicated, customer)
    try:
        for name in ROLLED:
            done = load.calls
            restart(replicated, name)
            assert load.calls > done, "there was no load meanwhile"
    finally:
        load.stop()
    assert load.failures == []
    with psycopg.connect(replicated.database("ledger")) as connection:
        billed, cost = connection.execute(
            "SELECT count(*), coalesce(sum(billed), 0) FROM usage WHERE account_id = %s", (customer.account_id,)
        ).fetchone()
        open_holds = connection.execute("SELECT count(*) FROM holds WHERE status = 'open'").fetchone()
    assert billed == load.calls
    assert open_holds == (0,)
    assert replicated.available(customer.key) == CREDIT_NANOS - int(cost)
