"""What each outage refuses, what goes on meanwhile, and that nothing is lost, billed or granted twice when it is over.

`TOLLKEEPER_OUTAGE_SECONDS` says how long Postgres and Stripe are away at least (0: for as long as the checks take).
"""

import concurrent.futures
import json
import os
import time

import pytest
from e2e_books import Books
from e2e_clocked import ClockedCustomer
from e2e_outages import QUESTION, Stream, chat, frozen, gone
from subscriptions_stripe import DAY

AWAY_SECONDS = float(os.environ.get("TOLLKEEPER_OUTAGE_SECONDS", "0"))
SETTINGS = {
    "TOLLKEEPER_PROXY_REPLICAS": "2",
    "TOLLKEEPER_PROXY_HOLD_TTL_SECONDS": "20",
    "TOLLKEEPER_PROXY_LEDGER_TIMEOUT_SECONDS": "2",
    # A hanging provider is let go of soon. Its circuit stays closed: each of its calls is looked at by itself.
    "TOLLKEEPER_PROXY_UPSTREAM_FIRST_BYTE_SECONDS": "3",
    "TOLLKEEPER_PROXY_UPSTREAM_IDLE_SECONDS": "2",
    "TOLLKEEPER_PROXY_UPSTREAM_BREAKER_FAILURES": "1000000",
    "TOLLKEEPER_SUBSCRIPTIONS_METER_REPORT_SECONDS": "2",
    "TOLLKEEPER_SUBSCRIPTIONS_STRIPE_TIMEOUT_SECONDS": "2",
}
pytestmark = pytest.mark.timeout(300 + 2 * AWAY_SECONDS)
# Odd, so that what two replicas let through by their shares is less than what they share.
REQUESTS_PER_MINUTE = 13
HANGING = 24


@pytest.fixture(scope="module")
def shaken(own_suite):
    """A suite that outages happen to."""
    return own_suite(**SETTINGS)


@pytest.fixture(scope="module")
def whole_books(shaken):
    return Books(shaken)


@pytest.fixture
def books(whole_books, eventually):
    """The books of the suite, which agree when a test has ended, over all that was called until then."""
    yield whole_books
    eventually(whole_books.settled, seconds=60)
    whole_books.audit()


@pytest.fixture
def stripe(shaken):
    return shaken.sandbox_stripe()


def ask(suite, customer, text=QUESTION, model="gpt-4o", **more):
    return suite.post("/v1/chat/completions", chat(text, model, **more), customer.key)


def assert_refused(answer, reason, status=503):
    """An answer at `/v1/chat/completions` says why in the shape that OpenAI's SDK reads, and when to come again."""
    assert answer.status == status, answer.body
    error = answer.body["error"]
    assert (error["code"], error["type"]) == (reason.lower(), "server_error"), error
    assert error["message"]
    assert status != 503 or int(answer.headers["retry-after"]) > 0


def assert_api_refused(answer, reason):
    """An answer at `/api/*` is a 503 with one ErrorInfo."""
    assert answer.status == 503, answer.body
    details = [each for each in answer.body["details"] if each["@type"].endswith("ErrorInfo")]
    assert [each["reason"] for each in details] == [reason]


def assert_refused_by_gateway(answer):
    """A 503 of Envoy's own, where nobody stands behind it."""
    assert_api_refused(answer, "SERVICE_UNAVAILABLE")


def assert_whole(stream):
    """A stream came to its end, with what it cost, though an outage began in the midst of it."""
    status, events = stream.end()
    assert (status, events[-1]) == (200, "[DONE]")
    assert int(json.loads(events[-2])["credits"]["costNanos"]) > 0


def buy_credit(suite, customer):
    """The page at Stripe's where ten dollars are paid."""
    body = {"amountUsd": "10.00", "requestId": f"top-up-{customer.account_id}"}
    answer = suite.post("/api/billing/topup", body, customer.key)
    assert answer.status == 200, answer.body
    return answer.body["checkoutUrl"]


# ---------------------------------------------------------------------------------------------- services of the suite


def test_without_the_ledger_nothing_is_called_and_running_calls_are_settled_afterwards(shaken, books, eventually):
    customer = books.prepaid()
    stream = Stream(shaken, customer.key)
    eventually(lambda: books.provider()["in_flight"] == 1)
    with gone(shaken, "ledger"):
        before = books.provider()["requests"]
        assert_refused(ask(shaken, customer), "LEDGER_UNAVAILABLE")
        assert_api_refused(shaken.get("/api/credits/balance", customer.key), "PEER_UNAVAILABLE")
        assert shaken.get("/v1/models", customer.key).status == 200
        assert stream.runs(), "the stream ended too early to show anything"
        assert_whole(stream)
        assert books.provider()["requests"] == before
        eventually(lambda: "settle" in [kind for _, kind, _ in books.outbox()])
    assert ask(shaken, customer).status == 200


def test_without_pricing_calls_go_on_by_the_prices_that_are_known(shaken, books):
    customer = books.prepaid()
    with gone(shaken, "pricing"):
        assert [ask(shaken, customer, model=model).status for model in ("gpt-4o", "claude-3-haiku")] == [200] * 2
        assert_api_refused(shaken.get("/api/credits/tiers", customer.key), "PEER_UNAVAILABLE")
        assert_refused_by_gateway(shaken.get("/api/admin/prices", shaken.admin_key))
    assert shaken.get("/api/credits/tiers", customer.key).status == 200


def test_without_subscriptions_calls_go_on_and_events_wait_at_stripe(shaken, books, stripe, eventually):
    customer = books.prepaid()
    page = buy_credit(shaken, customer)
    with gone(shaken, "subscriptions", "subscriptions-worker"):
        assert ask(shaken, customer).status == 200
        assert_refused_by_gateway(shaken.get("/api/billing/quotas", customer.key))
        assert_refused_by_gateway(shaken.post("/api/billing/portal", {}, customer.key))
        stripe.pay(page)
        eventually(lambda: stripe.deliveries(state="pending")["deliveries"])
    stripe.retry()
    stripe.drain()
    books.buys(customer, 10**10)


# --------------------------------------------------------------------------------------------------------------- Redis


def at_once(suite, customer, count):
    """The statuses of so many calls at once."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [answer.status for answer in pool.map(lambda _: ask(suite, customer), range(count))]


def served_within_limit(suite, books):
    """Of many calls at once of a new key with a limit per minute, how many are served; the others are 429s."""
    statuses = at_once(suite, books.prepaid(requestsPerMinute=REQUESTS_PER_MINUTE), 3 * REQUESTS_PER_MINUTE)
    assert set(statuses) == {200, 429}
    return statuses.count(200)


def test_without_redis_replicas_count_their_shares_and_a_revoked_key_is_refused(shaken, books, eventually):
    leaver, metered = books.prepaid(), shaken.customer(plan="metered-free")
    assert set(at_once(shaken, leaver, 8)) == {200}  # each replica remembers the key
    with gone(shaken, "redis"):
        assert REQUESTS_PER_MINUTE // 2 <= served_within_limit(shaken, books) <= REQUESTS_PER_MINUTE // 2 * 2
        assert set(at_once(shaken, leaver, 8)) == {200}
        assert shaken.call("DELETE", f"/api/admin/keys/{leaver.key_id}", shaken.admin_key).status == 200
        eventually(lambda: set(at_once(shaken, leaver, 8)) == {401}, seconds=10)
        event = {"id": "one", "metric": "agent_executions", "quantity": "7"}
        assert shaken.post("/api/billing/events", {"events": [event]}, metered.key).status == 200
        eventually(lambda: used(shaken, metered)["agent_executions"] == 7)
    # Limits are shared again when both replicas have found Redis: one that had not would let its share through besides.
    eventually(lambda: served_within_limit(shaken, books) == REQUESTS_PER_MINUTE, seconds=30)


def used(suite, customer):
    """What of each metric's quota is used."""
    quotas = suite.get("/api/billing/quotas", customer.key).body["quotas"]
    return {quota["metric"]: int(quota["used"]) for quota in quotas}


# ------------------------------------------------------------------------------------------------------------ Postgres


FORMS = (
    ("/v1/chat/completions", chat(), lambda body: body["error"]["type"] == "server_error"),
    (
        "/v1/messages",
        chat(model="claude-3-haiku"),
        lambda body: body["type"] == "error" and body["error"]["type"] in {"api_error", "overloaded_error"},
    ),
    (
        "/v1beta/models/gemini-1.5-pro:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]},
        lambda body: (body["error"]["code"], body["error"]["status"]) == (503, "UNAVAILABLE"),
    ),
)


@pytest.mark.parametrize("way", [frozen, gone], ids=["frozen", "killed"])
def test_without_postgres_nothing_new_is_called_and_nothing_is_lost(shaken, books, stripe, eventually, way):
    services = ("ledger", "pricing", "subscriptions", "proxy", "proxy-2")
    customer, pids = books.prepaid(), [shaken.pid(name) for name in services]
    page = buy_credit(shaken, customer)
    stream = Stream(shaken, customer.key)
    eventually(lambda: books.provider()["in_flight"] == 1)
    before, began = books.provider()["requests"], time.monotonic()
    with way(shaken, "postgres"):
        with concurrent.futures.ThreadPoolExecutor(len(FORMS)) as pool:
            refusals = list(pool.map(lambda form: (shaken.post(form[0], form[1], customer.key), form[2]), FORMS))
        for answer, has_its_shape in refusals:
            assert answer.status == 503, answer.body
            assert has_its_shape(answer.body), answer.body
        assert_whole(stream)
        assert books.provider()["requests"] == before
        stripe.pay(page)
        eventually(lambda: stripe.deliveries(state="pending")["deliveries"])
        time.sleep(max(0.0, began + AWAY_SECONDS - time.monotonic()))
        assert stripe.deliveries(state="pending")["deliveries"]
    eventually(lambda: ask(shaken, customer).status == 200, seconds=30)
    assert [shaken.pid(name) for name in services] == pids, "services were started anew; they connect by themselves"
    stripe.retry()
    stripe.drain()
    books.buys(customer, 10**10)


# ----------------------------------------------------------------------------------------------------------- providers


def test_provider_that_hangs_costs_nothing_and_holds_up_no_other(shaken, books):
    customer, other = books.prepaid(), books.prepaid()
    with concurrent.futures.ThreadPoolExecutor(HANGING) as pool:
        texts = ("[[sandbox hang]] Hello?", "[[sandbox first_byte_ms=60000]] Hello?")
        hanging = [
            pool.submit(ask, shaken, customer, texts[number % 2], stream=number % 4 > 1) for number in range(HANGING)
        ]
        for model in ("claude-3-haiku", "gemini-1.5-pro", "gpt-4o"):
            assert ask(shaken, other, model=model).status == 200
        assert not any(call.done() for call in hanging), "others were served only when what hung had ended"
        for call in concurrent.futures.as_completed(hanging):
            assert_refused(call.result(), "PROVIDER_TIMEOUT", 504)
    assert books.paid_by(customer) == 0


def test_stream_that_hangs_midway_ends_with_an_error_and_is_billed_for_what_came(shaken, books):
    customer, other = books.prepaid(), books.prepaid()
    hanging = Stream(shaken, customer.key, "[[sandbox hang after=3 chunk_tokens=1]] Hello?")
    assert ask(shaken, other, model="claude-3-haiku").status == 200
    assert hanging.runs()
    status, events = hanging.end()
    ended = json.loads(events[-1])
    assert (status, ended["error"]["code"]) == (200, "provider_stream_broken")
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") for event in events[:-1]]
    assert len(list(filter(None, pieces))) == 3
    assert books.paid_by(customer) == int(ended["credits"]["costNanos"]) > 0


def test_provider_that_is_slow_is_waited_for_and_billed(shaken, books):
    customer = books.prepaid()
    slow = Stream(shaken, customer.key, "[[sandbox output_tokens=4 chunk_tokens=1 delay_ms=1200]] Hello?")
    assert ask(shaken, customer, model="claude-3-haiku").status == 200
    assert slow.runs()
    assert_whole(slow)


# -------------------------------------------------------------------------------------------------------------- Stripe


EMITTED = {"llm_tokens": 1_200_000, "agent_executions": 5_003}


@pytest.fixture
def subscriber(shaken, eventually):
    """A customer on metered-standard since fifteen days ago, by Stripe's time, which it now is there too."""
    now = int(time.time())
    customer = ClockedCustomer(shaken, eventually, plan="metered-free", begins=now - 15 * DAY)
    customer.subscribe("metered-standard")
    customer.stripe.advance(customer.clock, now)
    customer.settle()
    yield customer
    customer.close()


def test_without_stripe_only_checkout_waits_and_all_is_told_once_afterwards(
    shaken, books, stripe, subscriber, eventually
):
    customer, subscribing = books.prepaid(), shaken.customer()
    page, began = buy_credit(shaken, customer), time.monotonic()
    emit(shaken, subscriber, EMITTED)
    stripe.hold()
    stripe.pay(page)
    stripe.outage(3600)
    try:
        checkout = {"plan": "starter", "requestId": "wanted"}
        refused = shaken.post("/api/billing/checkout", checkout, subscribing.key)
        assert_api_refused(refused, "STRIPE_UNAVAILABLE")
        assert int(refused.headers["retry-after"]) > 0
        assert ask(shaken, customer).status == 200
        # What Stripe tells all the same is taken in, and waits.
        stripe.release()
        stripe.drain()
        eventually(lambda: untold(books, "stripe_events", "status = 'pending' AND attempts > 0"))
        assert shaken.available(customer.key) < 10**10
        let_minutes_pass(books, subscriber, eventually)
        eventually(lambda: untold(books, "meter_reports", "sent_at IS NULL AND attempts > 0"), seconds=30)
        time.sleep(max(0.0, began + AWAY_SECONDS - time.monotonic()))
    finally:
        stripe.outage(0)
    # The first report after it takes effect, and its answer is lost.
    stripe.fault("cut", "/v1/billing/meter_events")
    assert shaken.post("/api/billing/checkout", checkout, subscribing.key).status == 200
    books.buys(customer, 10**10)
    come_due(books)
    eventually(lambda: not untold(books, "stripe_events", "status = 'pending'"), seconds=30)
    eventually(lambda: not untold(books, "meter_reports", "sent_at IS NULL"), seconds=30)
    assert stripe.call("GET", "/sandbox/faults")["faults"] == [], "no answer was lost"
    assert {name: count for name, count in counted_by_stripe(subscriber).items() if count} == EMITTED


def emit(suite, customer, quantities):
    events = [{"id": metric, "metric": metric, "quantity": str(count)} for metric, count in quantities.items()]
    answer = suite.post("/api/billing/events", {"events": events}, customer.key)
    assert answer.status == 200, answer.body


def untold(books, table, where):
    """How many rows of subscriptions' are in this state."""
    return books.rows("subscriptions", f"SELECT count(*) FROM {table} WHERE {where}")[0][0]


def let_minutes_pass(books, customer, eventually):
    """Let the minutes of use be over for so long that Stripe is told of them, as if that time had passed."""
    added_up = "SELECT sum(emitted) FROM usage_minutes WHERE account_id = %s"
    whole = sum(EMITTED.values())
    eventually(lambda: books.rows("subscriptions", added_up, customer.account_id)[0][0] == whole)
    past = "UPDATE usage_minutes SET minute = minute - interval '3 minutes' WHERE account_id = %s RETURNING 1"
    books.rows("subscriptions", past, customer.account_id)


def come_due(books):
    """Have what was put off come due, as if that time had passed."""
    now = "SET next_attempt_at = now()"
    books.rows("subscriptions", f"UPDATE stripe_events {now} WHERE status = 'pending' RETURNING 1")
    books.rows("subscriptions", f"UPDATE meter_reports {now} WHERE sent_at IS NULL RETURNING 1")


def counted_by_stripe(customer):
    """What each of Stripe's meters has counted of a customer since it subscribed."""
    now = int(time.time())
    span = {
        "customer": customer.customer_id,
        "start_time": now // 60 * 60 - 15 * DAY - 60,
        "end_time": now // 60 * 60 + 60,
    }
    counted = {}
    for meter in customer.stripe.v1.billing.meters.list({"status": "active", "limit": 100}).data:
        summaries = customer.stripe.v1.billing.meters.event_summaries.list(meter.id, span).data
        counted[meter.event_name.removeprefix("tollkeeper_")] = sum(int(one.aggregated_value) for one in summaries)
    return counted
