"""Metered plans by REST: use counts once, a hard cap refuses, a soft cap bills; Stripe counts what the ledger holds."""

import time
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal

import grpc
import psycopg
import pytest
from e2e_clocked import ClockedCustomer
from subscriptions_stripe import DAY
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1.billing_service_pb2_grpc import MeteringServiceStub

from services.kit.errors import RemoteError

NANOS_PER_CENT = 10**7
STANDARD_CENTS = 9900
# What is included in metered-standard, and what 1 000 000 more cost, in nanos.
STANDARD = {
    "llm_tokens": (1_000_000, 20 * 10**9),
    "api_calls": (100_000, 1000 * 10**9),
    "agent_executions": (5_000, 100_000 * 10**9),
    "storage_gb": (100, 500_000 * 10**9),
    "user_seats": (25, 15_000_000 * 10**9),
}
FREE_TOKENS, FREE_EXECUTIONS = 10_000, 100
CALLS = 3


@pytest.fixture
def metering(suite):
    """Metering over gRPC, as an application of the operator's asks it."""
    with suite.channel("subscriptions") as channel:
        yield MeteringServiceStub(channel)


@pytest.fixture
def standard(suite, eventually):
    """A customer who subscribed to metered-standard fifteen days ago, by Stripe's time, which it now is there too."""
    customer = ClockedCustomer(suite, eventually, plan="metered-free", begins=int(time.time()) - 15 * DAY)
    customer.subscribe("metered-standard")
    customer.stripe.advance(customer.clock, int(time.time()))
    customer.settle()
    assert customer.stands("metered-standard", "active")
    yield customer
    customer.close()


def emit(suite, key, *events):
    """Emit (id, metric, quantity); how many were new, and how many were known."""
    body = [{"id": name, "metric": metric, "quantity": str(count)} for name, metric, count in events]
    answer = suite.post("/api/billing/events", {"events": body}, key)
    assert answer.status == 200, answer.body
    return int(answer.body["accepted"]), int(answer.body["duplicates"])


def call(suite, key, output_tokens=8):
    """One model call; its answer."""
    text = f"What is a toll? [[sandbox output_tokens={output_tokens}]]"
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], "max_tokens": output_tokens}
    return suite.post("/v1/chat/completions", body, key)


def told(answer):
    """What a model call's headers say of the quota that is nearest to its end."""
    headers = answer.headers
    return headers["x-quota-metric"], int(headers["x-quota-limit"]), int(headers["x-quota-remaining"])


def quotas(suite, key):
    return {quota["metric"]: quota for quota in suite.get("/api/billing/quotas", key).body["quotas"]}


def used(suite, key):
    return {metric: int(quota["used"]) for metric, quota in quotas(suite, key).items()}


def quota_of(metering, account_id, metric):
    """Whether one more may be used, and the headers that say how many."""
    request = pb.CheckQuotaRequest(account_id=account_id, metric=metric)
    try:
        answer, asked = metering.CheckQuota.with_call(request)
    except grpc.RpcError as error:
        refusal = RemoteError.from_rpc(error)
        assert refusal.reason == "QUOTA_EXCEEDED"
        allowed, headers = False, dict(error.initial_metadata())
    else:
        allowed, headers = answer.allowed, dict(asked.initial_metadata())
    return allowed, int(headers["x-quota-limit"]), int(headers["x-quota-remaining"]), int(headers["x-quota-reset"])


def test_hard_cap_refuses_and_headers_say_how_much_is_left(suite, metering, eventually):
    customer = suite.customer(plan="metered-free")
    executions = [(f"run-{number}", "agent_executions", 10) for number in range(9)]
    assert emit(suite, customer.key, *executions, executions[0]) == (9, 1)
    assert emit(suite, customer.key, *executions[:4]) == (0, 4)
    eventually(lambda: quota_of(metering, customer.account_id, "agent_executions")[2] == FREE_EXECUTIONS - 90)
    assert emit(suite, customer.key, ("run-9", "agent_executions", 10)) == (1, 0)
    eventually(lambda: not quota_of(metering, customer.account_id, "agent_executions")[0])
    _, limit, remaining, reset = quota_of(metering, customer.account_id, "agent_executions")
    kept = quotas(suite, customer.key)["agent_executions"]
    assert (limit, remaining, kept["cap"]) == (FREE_EXECUTIONS, 0, "hard")
    assert reset == int(datetime.fromisoformat(kept["resetsAt"]).timestamp())


def test_hard_cap_on_tokens_refuses_model_calls_and_costs_no_credit(suite, eventually):
    customer = suite.customer(plan="metered-free")
    spent = 0
    while (answer := call(suite, customer.key, output_tokens=2500)).status == 200:
        spent += answer.body["usage"]["total_tokens"]
        assert spent <= FREE_TOKENS
        assert told(answer) == ("llm_tokens", FREE_TOKENS, FREE_TOKENS - spent)
    assert answer.status == 429, answer.body
    assert told(answer) == ("llm_tokens", FREE_TOKENS, FREE_TOKENS - spent)
    assert FREE_TOKENS - spent < 3000
    eventually(lambda: used(suite, customer.key)["llm_tokens"] == spent)
    resets_at = datetime.fromisoformat(quotas(suite, customer.key)["llm_tokens"]["resetsAt"])
    assert int(answer.headers["x-quota-reset"]) == int(resets_at.timestamp())
    assert suite.available(customer.key) == 0


def test_soft_cap_bills_the_overage_that_stripe_counted_and_the_ledger_holds(suite, standard, metering, eventually):
    emitted = {"llm_tokens": 1_200_000, "agent_executions": 5_003, "storage_gb": 150, "user_seats": 27}
    events = [(f"use-{metric}", metric, quantity) for metric, quantity in emitted.items()]
    assert emit(suite, standard.key, *events, *events) == (4, 4)
    assert [call(suite, standard.key).status for _ in range(CALLS)] == [200] * CALLS
    proxied = in_the_ledger(suite, standard.key)
    assert proxied["api_calls"] == CALLS
    internal = {"accountId": standard.account_id, "name": "our own", "keyType": "internal"}
    assert call(suite, suite.post("/api/admin/keys", internal, suite.admin_key).body["key"]).status == 200
    eventually(lambda: in_the_ledger(suite, standard.key)["api_calls"] == CALLS + 1)  # and in nothing of what follows
    expected = {metric: emitted.get(metric, 0) + proxied.get(metric, 0) for metric in STANDARD}
    eventually(lambda: used(suite, standard.key) == expected)
    assert quota_of(metering, standard.account_id, "agent_executions")[:3] == (True, 5_000, 0)
    overage = {metric: max(0, expected[metric] - included) for metric, (included, _) in STANDARD.items()}
    costs = {metric: overage[metric] * rate // 10**6 for metric, (_, rate) in STANDARD.items()}
    shown = quotas(suite, standard.key)
    assert {metric: int(quota["overage"]) for metric, quota in shown.items()} == overage
    assert {metric: int(quota["overageNanos"]) for metric, quota in shown.items()} == costs

    half_a_minute_later(suite, standard.account_id, expected, eventually)
    eventually(lambda: counted_by_stripe(standard) == expected, seconds=30)
    invoice = next_invoice(standard)
    assert invoice.total == STANDARD_CENTS + sum(map(in_cents, costs.values()))
    assert invoice.status == "paid"
    assert suite.available(standard.key) == 0


def in_the_ledger(suite, key):
    """What the ledger's usage records say was used by model calls."""
    records = suite.get("/api/billing/usage?pageSize=100", key).body["records"]
    return {"llm_tokens": sum(int(record["totalTokens"]) for record in records), "api_calls": len(records)}


def half_a_minute_later(suite, account_id, expected, eventually):
    """Let the minutes of use be over for so long that Stripe is told of them, as if that time had passed."""
    with psycopg.connect(suite.database("subscriptions"), autocommit=True) as subscriptions:
        of = "FROM usage_minutes WHERE account_id = %s"

        def added_up():
            found = subscriptions.execute(f"SELECT metric, sum(emitted + proxied) {of} GROUP BY 1", (account_id,))
            return dict(found.fetchall())

        eventually(lambda: added_up() == expected)
        past = "minute - interval '3 minutes'"
        subscriptions.execute(f"UPDATE usage_minutes SET minute = {past} WHERE account_id = %s", (account_id,))


def counted_by_stripe(customer):
    """What each of Stripe's meters has counted of a customer since it subscribed."""
    start = int(time.time()) // 60 * 60 - 15 * DAY - 60
    span = {"customer": customer.customer_id, "start_time": start, "end_time": int(time.time()) // 60 * 60 + 60}
    counted = {}
    for meter in customer.stripe.v1.billing.meters.list({"status": "active", "limit": 100}).data:
        summaries = customer.stripe.v1.billing.meters.event_summaries.list(meter.id, span).data
        counted[meter.event_name.removeprefix("tollkeeper_")] = sum(int(one.aggregated_value) for one in summaries)
    return counted


def next_invoice(customer):
    """The one that the period's end brings."""
    customer.stripe.advance(customer.clock, customer.period_end() + 3660)
    customer.settle()
    return customer.stripe.v1.invoices.list({"customer": customer.customer_id, "limit": 1}).data[0]


def in_cents(nanos):
    """As Stripe bills a line: halves of a cent away from zero."""
    return int((Decimal(nanos) / NANOS_PER_CENT).quantize(Decimal(1), ROUND_HALF_UP))
