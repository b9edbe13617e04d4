"""Owns what is measured of metering: events taken in and added up, and quota checks."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import create_engine, text
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb

from services.kit.db import parsed_url
from services.kit.identity import Role
from services.subscriptions.metering.aggregation import EventAggregator
from services.subscriptions.metering.model import SUMS
from tests.bench.subscriptions.served import Served
from tests.bench.support.figures import median, percentile, rounded

ACCOUNTS = [f"metered-{number}" for number in range(20)]
_PLAN = "metered-enterprise"
_EVENTS_A_REQUEST = 1000
_CLIENTS = 2
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, in each so many requests of a thousand events, and so many checks."""

    rounds: int
    requests: int
    checks: int


DEFAULT, QUICK = Plan(rounds=3, requests=60, checks=1000), Plan(rounds=1, requests=20, checks=300)


def requests_of(count: int, seed: int) -> list[pb.EmitEventsRequest]:
    """Requests of a thousand events each: every account's, in the last hour, a fifth of them twice."""
    chance, now = random.Random(seed), datetime.now(UTC)
    made = []
    for number in range(count):
        request = pb.EmitEventsRequest(account_id=ACCOUNTS[number % len(ACCOUNTS)])
        for index in range(_EVENTS_A_REQUEST):
            name = f"{seed}-{number}-{index if chance.random() >= 0.2 else index // 2}"
            event = request.events.add(id=name, metric=chance.choice(SUMS), quantity=chance.randrange(1, 1000))
            event.time.FromDatetime(now - timedelta(seconds=chance.uniform(0, 3600)))
        made.append(request)
    return made


def _emit(served: Served, requests: list[pb.EmitEventsRequest]) -> tuple[float, int]:
    """Seconds until all are answered, and how many events were new."""
    metadata = served.metadata(Role.SERVICE)

    def send(own: list[pb.EmitEventsRequest]) -> int:
        with served.metering() as stub:
            return sum(
                stub.EmitEvents(request, metadata=metadata, timeout=_TIMEOUT_SECONDS).accepted for request in own
            )

    with ThreadPoolExecutor(_CLIENTS) as pool:
        begun = time.perf_counter()
        accepted = sum(pool.map(send, [requests[client::_CLIENTS] for client in range(_CLIENTS)]))
        return time.perf_counter() - begun, accepted


def _check_seconds(served: Served, count: int, between: Callable[[], object]) -> list[float]:
    metadata, took = served.metadata(Role.SERVICE), []
    with served.metering() as stub:
        for number in range(count):
            between()
            request = pb.CheckQuotaRequest(account_id=ACCOUNTS[number % len(ACCOUNTS)], metric="llm_tokens")
            begun = time.perf_counter()
            stub.CheckQuota(request, metadata=metadata, timeout=_TIMEOUT_SECONDS)
            took.append(time.perf_counter() - begun)
    return took


def emission(plan: Plan, served: Served) -> dict[str, float]:
    """Events a second taken in, added up, and both one after the other. Raises AssertionError where totals differ."""
    for account_id in ACCOUNTS:
        served.create(account_id, _PLAN)
    engine = create_engine(parsed_url(served.database_url))
    aggregate = EventAggregator(engine)
    taken, added, both = [], [], []
    for number in range(plan.rounds):
        requests = requests_of(plan.requests, number)
        events = plan.requests * _EVENTS_A_REQUEST
        seconds, accepted = _emit(served, requests)
        begun = time.perf_counter()
        while aggregate():
            pass
        adding = time.perf_counter() - begun
        taken.append(events / seconds)
        added.append(accepted / adding)
        both.append(accepted / (seconds + adding))
    with engine.connect() as connection:
        sums = [
            connection.execute(text(f"SELECT sum({column}) FROM {table}")).scalar_one()
            for table, column in (
                ("usage_events", "quantity"),
                ("usage_minutes", "emitted"),
                ("usage_hours", "emitted"),
            )
        ]
    engine.dispose()
    assert len(set(sums)) == 1, f"events, minutes and hours differ: {sums}"
    return {
        "events_taken_in_per_second": rounded(median(taken)),
        "events_added_up_per_second": rounded(median(added)),
        "events_metered_per_second": rounded(median(both)),
    }


def checks(plan: Plan, served: Served) -> dict[str, float]:
    """Milliseconds of a quota check, one at a time: from the cache, and from the database after each change."""
    metadata, sent = served.metadata(Role.SERVICE), iter(range(10**9))
    found = {}
    with served.metering() as stub:

        def change() -> None:
            number = next(sent)
            request = pb.EmitEventsRequest(account_id=ACCOUNTS[number % len(ACCOUNTS)])
            request.events.add(id=f"between-{number}", metric="llm_tokens", quantity=1)
            stub.EmitEvents(request, metadata=metadata, timeout=_TIMEOUT_SECONDS)

        for name, between in (("cached", lambda: None), ("changed", change)):
            _check_seconds(served, len(ACCOUNTS), between)  # warm
            took = [seconds * 1000 for seconds in _check_seconds(served, plan.checks, between)]
            found[f"check_{name}_p50_ms"] = rounded(percentile(took, 50))
            found[f"check_{name}_p99_ms"] = rounded(percentile(took, 99))
    return found


def measure(plan: Plan, served: Served) -> dict[str, float]:
    """All figures of metering."""
    return emission(plan, served) | checks(plan, served)
