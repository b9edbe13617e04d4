"""A worker killed, again and again: totals are exact, here and at the meters.

At random, while events come in, a fifth of them twice: 20 000 events unless `TOLLKEEPER_TEST_METERED_EVENTS` says how
many. And at each point where something has been done and its note has not been committed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from subscriptions_metering import METERS_URL
from subscriptions_meters import FakeMeters
from subscriptions_peers import eventually

from services.subscriptions.metering import store
from services.subscriptions.metering.model import UsageEvent, in_minutes
from services.subscriptions.model.account import AccountWords

EVENTS = int(os.environ.get("TOLLKEEPER_TEST_METERED_EVENTS", "20000"))
SEED = int(os.environ.get("TOLLKEEPER_TEST_SEED", "0")) or random.randrange(2**32)
KILLS = 5
ACCOUNTS = [f"account-{number}" for number in range(5)]
PROGRAM = Path(__file__).parents[1] / "support" / "subscriptions_metering.py"


@pytest.fixture
def meters():
    with FakeMeters().serve() as fake:
        yield fake


@pytest.fixture
def start(settings, meters, tmp_path):
    """Starts a worker that is killed when the test ends; its log is in `worker.log`."""
    running = []

    def make():
        values = settings(poll_seconds=0.02, meter_report_seconds=0.2)
        names = ("database_url", "service_token", "ledger_addr", "pricing_addr", "proxy_addr", "poll_seconds",
                 "meter_report_seconds")  # fmt: skip
        environment = os.environ | {f"TOLLKEEPER_SUBSCRIPTIONS_{n.upper()}": str(getattr(values, n)) for n in names}
        log = tmp_path / f"worker-{len(running)}.log"
        with log.open("wb") as stream:
            worker = subprocess.Popen(
                [sys.executable, PROGRAM], env=environment | {METERS_URL: meters.url}, stdout=stream, stderr=stream
            )
        worker.log = log
        running.append(worker)
        return worker

    yield make
    for worker in running:
        worker.kill()
        worker.wait()


def made_events(chance, begun):
    """Events by account in requests, and in which order they are sent; a fifth is sent twice."""
    requests = []
    for number in range(EVENTS):
        metric = chance.choice(("llm_tokens", "api_calls", "agent_executions"))
        at = begun - timedelta(seconds=chance.uniform(180, 1200))
        requests.append((chance.choice(ACCOUNTS), UsageEvent(f"e{number}", metric, chance.randrange(1, 1000), at)))
    sent = requests + chance.sample(requests, EVENTS // 5)
    chance.shuffle(sent)
    return requests, sent


def chunks(sent):
    """At most 1000 of one account at a time; small ones, so that there are many."""
    size = max(20, min(1000, EVENTS // 1000))
    by_account = {account: [event for owner, event in sent if owner == account] for account in ACCOUNTS}
    return [
        (account, events[start : start + size])
        for account, events in by_account.items()
        for start in range(0, len(events), size)
    ]


def _is_done(database, ledger):
    """Whether all is added up, reported and noted."""
    return database.rows(
        "SELECT NOT EXISTS (SELECT 1 FROM usage_events WHERE NOT aggregated)"
        " AND NOT EXISTS (SELECT 1 FROM usage_minutes WHERE due_since IS NOT NULL)"
        " AND NOT EXISTS (SELECT 1 FROM meter_reports WHERE sent_at IS NULL)"
        f" AND (SELECT cursor = '{len(ledger.records)}' FROM usage_feed)"
    )[0][0]


@pytest.mark.timeout(120 + EVENTS // 500)
def test_totals_are_exact_though_the_worker_is_killed_at_random(  # noqa: PLR0917 (fixtures)
    start, parts, meters, ledger, pricing, database
):
    chance = random.Random(SEED)
    print(f"seed {SEED}, {EVENTS} events")
    pricing.publish_metered()
    made = parts()
    for account in ACCOUNTS:
        made.customers.create(AccountWords(account, "", "", "metered-standard"))
    database.rows("UPDATE accounts SET cycle_anchor = cycle_anchor - interval '10 days'")
    begun = datetime.now(UTC)
    requests, sent = made_events(chance, begun)
    waiting = chunks(sent)
    chance.shuffle(waiting)
    expected = Counter()
    for account, event in requests:
        expected[account, event.metric] += event.quantity

    def emit(chunk):
        return made.metering.emit(*chunk).accepted

    accepted = 0
    for part in range(KILLS):
        worker = start()
        eventually(lambda worker=worker: "leading" in worker.log.read_text(), 30)
        portion = waiting[part::KILLS]
        with ThreadPoolExecutor(2) as pool:
            sending = [pool.submit(emit, chunk) for chunk in portion]
            for _ in range(200):
                account, tokens = chance.choice(ACCOUNTS), chance.randrange(1, 5000)
                ledger.use(account, tokens, begun - timedelta(seconds=chance.uniform(180, 1200)))
                expected[account, "llm_tokens"] += tokens
                expected[account, "api_calls"] += 1
            # Somewhere in the work, or just after it.
            time.sleep(chance.uniform(0.05, 1.0))
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            accepted += sum(future.result() for future in sending)
    assert accepted == EVENTS
    start()

    def done():
        # Spares the test the minutes until the killed ones' claims lapse.
        database.rows("UPDATE meter_reports SET next_attempt_at = now() WHERE sent_at IS NULL AND attempts = 1")
        return _is_done(database, ledger)

    eventually(done, 60 + EVENTS // 500)
    with made.engine.connect() as connection:
        for account in ACCOUNTS:
            cycle = in_minutes(made.customers.get(account).cycle_at(begun))
            use = store.cycle_use(connection, account, cycle)
            for metric in ("llm_tokens", "api_calls", "agent_executions"):
                assert use[metric].used == expected[account, metric], (account, metric, SEED)
                assert meters.total(f"cus_{account}", metric) == expected[account, metric], (account, metric, SEED)
    sums = "SELECT sum(emitted + proxied) FROM usage_{}"
    assert database.rows(sums.format("hours")) == database.rows(sums.format("minutes"))


@contextmanager
def stalled(database, table, when):
    """Whoever does this to the table waits in the middle of it; gives what tells that somebody does."""
    key = 4711
    with database.engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        holder.commit()
        database.rows(
            f"CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN PERFORM pg_advisory_xact_lock({key}); RETURN NEW; END $$"
        )
        database.rows(f"CREATE TRIGGER stall BEFORE {when.format(table=table)} EXECUTE FUNCTION stall()")
        try:
            yield lambda: database.rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")[0][
                0
            ]
        finally:
            holder.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
            holder.commit()
            eventually(
                lambda: (
                    database.rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == [(0,)]
                )
            )
            database.rows("DROP FUNCTION stall CASCADE")


@pytest.mark.parametrize(
    ("table", "when"),
    [
        ("usage_hours", "INSERT ON {table} FOR EACH ROW"),
        ("usage_feed", "UPDATE ON {table} FOR EACH ROW"),
        ("usage_minutes", "UPDATE ON {table} FOR EACH ROW WHEN (NEW.due_since IS NULL)"),
        ("meter_reports", "UPDATE ON {table} FOR EACH ROW WHEN (NEW.sent_at IS NOT NULL)"),
    ],
    ids=["events marked, not added", "calls added, cursor not moved", "report made, minute due", "sent, not noted"],
)
def test_worker_killed_in_the_middle_of_its_work_leaves_totals_exact(  # noqa: PLR0917 (fixtures)
    start, parts, meters, ledger, pricing, database, table, when
):
    pricing.publish_metered()
    made = parts()
    made.customers.create(AccountWords("acme", "", "", "metered-standard"))
    database.rows("UPDATE accounts SET cycle_anchor = cycle_anchor - interval '10 days'")
    at = datetime.now(UTC) - timedelta(minutes=10)
    made.metering.emit("acme", [UsageEvent(f"e{number}", "api_calls", 7, at) for number in range(100)])
    for _ in range(50):
        ledger.use("acme", 11, at)
    with stalled(database, table, when) as somebody_waits:
        worker = start()
        eventually(somebody_waits, 30)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    meters.keeps_idempotency_keys = False  # the identifier alone has to do
    start()

    def told():
        database.rows("UPDATE meter_reports SET next_attempt_at = now() WHERE sent_at IS NULL AND attempts = 1")
        return [meters.total("cus_acme", metric) for metric in ("api_calls", "llm_tokens")]

    eventually(lambda: told() == [750, 550] and _is_done(database, ledger), 30)
    with made.engine.connect() as connection:
        use = store.cycle_use(connection, "acme", in_minutes(made.customers.get("acme").cycle_at(at)))
    assert (use["api_calls"].used, use["llm_tokens"].used) == (750, 550)
    assert told() == [750, 550]
