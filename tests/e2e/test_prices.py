"""Prices as they change: a running proxy charges them within a second, and what it had admitted before at the old."""

import time
from fractions import Fraction

import grpc
import openai
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.pricing.v1.pricing_service_pb2 import (
    CalculateCostRequest,
    DeletePriceOverrideRequest,
    RepriceRequest,
    SetPriceOverrideRequest,
)
from tollkeeper.pricing.v1.pricing_service_pb2_grpc import PricingServiceStub
from tollkeeper.pricing.v1.resources_pb2 import PriceOverride, Usage

MODEL = "toll-test-1"
PAYG_MULTIPLIER = Fraction(3, 2)
QUESTION = [{"role": "user", "content": "What is a toll?"}]
SLOW = [{"role": "user", "content": "[[sandbox output_tokens=60 chunk_tokens=1 fault=slow-chunks delay_ms=100]]"}]
SEEN_SECONDS = 1


@pytest.fixture
def publish(suite):
    """Publishes the model's price in dollars a million tokens; the catalogue version."""
    published = []

    def publishing(usd):
        rates = [{"component": component, "nanosPerMillion": usd * 10**9} for component in ("input", "output")]
        body = {
            "prices": [{"provider": "openai", "model": MODEL, "mode": "chat", "rates": rates}],
            "requestId": f"e2e-price-{usd}-{time.monotonic_ns()}",
            "reason": "a test",
        }
        made = suite.post("/api/admin/prices", body, suite.admin_key)
        assert made.status == 200, made.body
        published.append(made.body["version"])
        return made.body["version"]

    yield publishing
    if published:
        gone = {"provider": "openai", "model": MODEL, "withdrawn": True}
        body = {"prices": [gone], "requestId": f"e2e-price-gone-{published[-1]}"}
        assert suite.post("/api/admin/prices", body, suite.admin_key).status == 200


@pytest.fixture
def pricing(suite):
    """Pricing over gRPC, as a service calls it."""
    token = grpc.access_token_call_credentials(suite.service_token)
    credentials = grpc.composite_channel_credentials(grpc.local_channel_credentials(), token)
    with grpc.secure_channel(suite.env["TOLLKEEPER_PRICING_ADDR"], credentials) as channel:
        yield PricingServiceStub(channel)


def newest_record(suite, customer):
    return suite.get("/api/billing/usage?pageSize=1", customer.key).body["records"][0]


def until_charged(suite, customer, version):
    """Call until a call is charged by a version; how long that took since now. Refused ones are not charged."""
    begun = time.monotonic()
    while True:
        answer = suite.post("/v1/chat/completions", {"model": MODEL, "messages": QUESTION}, customer.key)
        took = time.monotonic() - begun
        if answer.status == 200 and newest_record(suite, customer)["priceVersion"] == version:
            return took
        assert took < 10 * SEEN_SECONDS, answer.body


def cost(usage, usd):
    exact = (usage.prompt_tokens + usage.completion_tokens) * Fraction(usd * 10**9, 10**6) * PAYG_MULTIPLIER
    assert exact.denominator == 1
    return int(exact)


def test_price_change_reaches_the_proxy_in_a_second_and_leaves_admitted_calls_alone(suite, publish):
    customer = suite.customer(credit_nanos=10**10)
    old = publish(2)
    assert until_charged(suite, customer, old) < SEEN_SECONDS  # a model that was not there before
    before = suite.available(customer.key)
    with openai.OpenAI(api_key=customer.key, base_url=f"{suite.url}/v1", max_retries=0, timeout=60) as client:
        stream = client.chat.completions.create(model=MODEL, messages=SLOW, stream=True)
        chunks = [next(stream)]  # so it was admitted
        other = suite.customer(credit_nanos=10**10)
        new = publish(20)
        assert until_charged(suite, other, new) < SEEN_SECONDS
        chunks += stream
    paid = cost(chunks[-1].usage, 2)
    assert int(chunks[-1].model_extra["credits"]["costNanos"]) == paid
    assert suite.available(customer.key) == before - paid
    assert newest_record(suite, customer)["priceVersion"] == old


def test_override_reaches_the_proxy_in_a_second_and_so_does_its_end(suite, publish, pricing):
    customer = suite.customer(credit_nanos=10**10)
    at_first = publish(2)
    assert until_charged(suite, customer, at_first) < SEEN_SECONDS
    own = PriceOverride(account_id=customer.account_id, provider="openai", model=MODEL, multiplier_millionths=1_234_567)
    request_id = f"e2e-override-{time.monotonic_ns()}"
    made = pricing.SetPriceOverride(SetPriceOverrideRequest(price_override=own, request_id=request_id), timeout=10)
    assert until_charged(suite, customer, str(made.version)) < SEEN_SECONDS
    record = newest_record(suite, customer)
    cost = pricing.CalculateCost(
        CalculateCostRequest(
            account_id=customer.account_id,
            provider="openai",
            model=MODEL,
            usage=Usage(input_tokens=int(record["inputTokens"]), output_tokens=int(record["outputTokens"])),
            multiplier_millionths=int(PAYG_MULTIPLIER * 10**6),
        ),
        timeout=10,
    )
    assert (cost.cost_nanos, cost.billed_nanos) == (int(record["costNanos"]), int(record["billedNanos"]))
    ending = DeletePriceOverrideRequest(
        account_id=customer.account_id, provider="openai", model=MODEL, request_id=f"{request_id}-end"
    )
    pricing.DeletePriceOverride(ending, timeout=10)
    assert until_charged(suite, customer, at_first) < SEEN_SECONDS


def test_month_is_repriced_and_reported_from_the_ledger(suite, publish, pricing):
    customer = suite.customer(credit_nanos=10**10)
    until_charged(suite, customer, publish(2))
    dearer = int(publish(3))
    (record,) = suite.get("/api/billing/usage", customer.key).body["records"]
    start, end = Timestamp(), Timestamp()
    start.FromJsonString(record["createdAt"])
    end.GetCurrentTime()
    start.seconds -= 60
    end.seconds += 60
    asked = RepriceRequest(account_id=customer.account_id, from_time=start, to_time=end, price_version=dearer)
    found = pricing.Reprice(asked, timeout=30)
    assert (found.cost_nanos, found.unpriced_requests) == (int(record["costNanos"]), 0)
    assert found.repriced_cost_nanos == found.cost_nanos * 3 // 2
    report = suite.get("/api/admin/reports/margin", suite.admin_key)
    assert report.status == 200, report.body
    (payg,) = [line for line in report.body["plans"] if line["planId"] == "payg"]
    assert int(payg["revenueNanos"]) >= 10**10
    assert int(payg["apiCostNanos"]) >= found.cost_nanos


def test_plan_is_made_and_changed_over_rest(suite):
    plan = {
        "planId": f"e2e-{time.monotonic_ns()}",
        "displayName": "Team",
        "kind": "subscription",
        "priceNanos": str(49 * 10**9),
        "marginBasisPoints": 8000,
        "multiplierMillionths": "1000000",
        "providers": ["openai"],
        "models": ["gpt-4o"],
        "warnPercent": 80,
    }
    made = suite.post("/api/admin/plans", {"plan": plan, "requestId": plan["planId"]}, suite.admin_key)
    assert (made.status, made.body.get("creditNanos")) == (200, "9800000000"), made.body
    path = f"/api/admin/plans/{plan['planId']}"
    changed = suite.call("PATCH", path, suite.admin_key, body={"priceNanos": str(59 * 10**9)})
    assert (changed.status, changed.body.get("version"), changed.body.get("displayName")) == (200, 2, "Team")
    refused = suite.call("PATCH", path, suite.admin_key, body={"warnPercent": 101})
    assert (refused.status, "plan.warn_percent" in str(refused.body)) == (400, True)
