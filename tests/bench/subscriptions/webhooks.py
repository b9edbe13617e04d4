"""Owns what is measured of webhooks: deliveries taken in, beside what the same Postgres commits of single rows."""

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import psycopg
from google.api.httpbody_pb2 import HttpBody
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import WebhookServiceStub

from tests.bench.subscriptions.served import WEBHOOK_SECRET, Served
from tests.bench.support.figures import median, percentile, rounded

# Stripe sends what it sends at once over many connections; more than these wait for each other.
_CLIENTS = 16
_COPIES = 2
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, and in each so many events, every one of them delivered twice."""

    rounds: int
    events: int


DEFAULT, QUICK = Plan(rounds=3, events=2000), Plan(rounds=1, events=500)


def _delivery(event_id: str) -> tuple[HttpBody, tuple[tuple[str, str], ...]]:
    """An event about an invoice, of the size that Stripe's are of, and the header that signs it."""
    about = {"object": "invoice", "id": f"in_{event_id}", "customer": f"cus_{event_id}", "lines": "x" * 4000}
    now = int(time.time())
    event = {"id": event_id, "object": "event", "type": "invoice.paid", "created": now, "data": {"object": about}}
    body = json.dumps(event).encode()
    signed = hmac.new(WEBHOOK_SECRET.encode(), b"%d.%b" % (now, body), hashlib.sha256).hexdigest()
    return HttpBody(content_type="application/json", data=body), (("stripe-signature", f"t={now},v1={signed}"),)


def _shared(work: Sequence[Callable[[], object]]) -> float:
    """Seconds in which as many threads as clients have done all of this, each its share."""
    barrier = threading.Barrier(_CLIENTS + 1)

    def run(own: Sequence[Callable[[], object]]) -> None:
        barrier.wait()
        for step in own:
            step()

    with ThreadPoolExecutor(_CLIENTS) as pool:
        done = [pool.submit(run, work[client::_CLIENTS]) for client in range(_CLIENTS)]
        barrier.wait()
        begun = time.perf_counter()
        for future in done:
            future.result()
        return time.perf_counter() - begun


def _taken_in(served: Served, plan: Plan, number: int) -> tuple[float, list[float]]:
    """Deliveries a second, and how long each took."""
    took: list[float] = []
    made = [_delivery(f"evt_{number}_{index}") for index in range(plan.events)]
    with grpc.insecure_channel(served.address) as channel:
        stub = WebhookServiceStub(channel)

        def deliver(body: HttpBody, headers: tuple[tuple[str, str], ...]) -> None:
            begun = time.perf_counter()
            stub.ReceiveStripeEvent(body, metadata=headers, timeout=_TIMEOUT_SECONDS)
            took.append(time.perf_counter() - begun)

        work = [lambda one=one: deliver(*one) for _ in range(_COPIES) for one in made]
        return len(work) / _shared(work), took


def _committed(served: Served, plan: Plan, number: int) -> float:
    """Rows a second that as many clients insert, each with a commit of its own: what taking in cannot pass."""
    own = threading.local()
    connections: list[psycopg.Connection] = []
    body = "x" * 4300

    def insert(key: str) -> None:
        if not hasattr(own, "connection"):
            own.connection = psycopg.connect(served.database_url, autocommit=True)
            connections.append(own.connection)
        own.connection.execute("INSERT INTO bench_rows VALUES (%s, %s) ON CONFLICT DO NOTHING", (key, body))

    try:
        work = [lambda key=f"{number}-{index}": insert(key) for _ in range(_COPIES) for index in range(plan.events)]
        return len(work) / _shared(work)
    finally:
        for connection in connections:
            connection.close()


def measure(plan: Plan, served: Served) -> dict[str, float]:
    """All figures of webhooks. Raises AssertionError where not every event is kept once."""
    with psycopg.connect(served.database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE bench_rows (key text PRIMARY KEY, body text)")
        rates, commits, took = [], [], []
        for number in range(plan.rounds):
            rate, seconds = _taken_in(served, plan, number)
            rates.append(rate)
            took += seconds
            commits.append(_committed(served, plan, number))
        row = connection.execute("SELECT count(*) FROM stripe_events").fetchone()
    assert row == (plan.rounds * plan.events,), f"{row} events are kept"
    return {
        "deliveries_per_second": rounded(median(rates)),
        "delivery_p50_ms": rounded(percentile(took, 50) * 1000),
        "delivery_p99_ms": rounded(percentile(took, 99) * 1000),
        "single_row_commits_per_second": rounded(median(commits)),
        "share_of_commits": rounded(median([rate / commit for rate, commit in zip(rates, commits, strict=True)])),
    }
