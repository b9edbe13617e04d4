"""Deliveries through outages, lost answers, several deliverers and kills, on a real Postgres."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, timedelta

import grpc
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from prometheus_client import REGISTRY
from sqlalchemy.exc import OperationalError
from subscriptions_peers import USD, eventually, refusal
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from services.kit.identity import Role
from services.subscriptions import store
from services.subscriptions.model.account import AccountWords
from services.subscriptions.tables import metadata
from services.subscriptions.worker import work_as_leader


def words(account_id="acme", plan_id="free"):
    return AccountWords(account_id, "", "", plan_id)


def drain(deliverer):
    while deliverer.deliver_next():
        pass


def due_now(database):
    """Let every backoff and lease be over."""
    database.rows("UPDATE outbox SET next_attempt_at = now(), leased_until = NULL WHERE delivered_at IS NULL")


def waiting(database):
    return database.rows("SELECT count(*) FROM outbox WHERE delivered_at IS NULL")[0][0]


def test_account_created_while_ledger_is_down_is_provisioned_later(served, connect, ledger, proxy):
    ledger.down = True
    with served(jobs=True) as address:
        operator = connect(address, Role.ADMIN)
        account = operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id="acme"))
        assert not account.provisioned
        assert proxy.entitlements == {}, "the door is not opened before the ledger knows the account"
        ledger.down = False
        get = pb.GetCustomerRequest(account_id="acme")
        eventually(lambda: operator(operator.customers.GetCustomer, get).provisioned)
    assert len(ledger.books["acme"]["grants"]) == 1
    assert proxy.entitlements["acme"].plan_id == "free"


def test_account_created_while_nothing_listens_at_the_proxy_is_provisioned_by_a_repeat(parts, proxy, ledger):
    with socket.socket() as taken:  # bound, never listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        made = parts(proxy_addr=f"127.0.0.1:{taken.getsockname()[1]}")
        begun = time.monotonic()
        assert not made.customers.create(words()).account.provisioned
        assert time.monotonic() - begun < 6
    again = parts().customers.create(words())
    assert (again.replayed, again.account.provisioned) == (True, True)
    assert len(ledger.books["acme"]["grants"]) == 1


def test_answer_comes_in_time_although_a_peer_hangs(parts, ledger, database):
    ledger.gate = threading.Event()
    begun = time.monotonic()
    account = parts(inline_delivery_seconds=1).customers.create(words()).account
    assert time.monotonic() - begun < 2
    assert not account.provisioned
    assert waiting(database) == 4


def test_repeated_delivery_grants_once(parts, ledger, proxy, database):
    made = parts()
    ledger.lost_answers = proxy.lost_answers = 6  # more than the channel retries by itself
    assert not made.customers.create(words()).account.provisioned
    for _ in range(20):
        due_now(database)
        drain(made.deliverer)
    assert waiting(database) == 0
    assert [len(ledger.named(name)) for name in ("OpenAccount", "Apply")] == [7, 14]
    assert len(ledger.books["acme"]["grants"]) == 1
    assert len(ledger.books["acme"]["limits"]) == 2


def test_whole_outbox_delivered_again_changes_nothing(parts, ledger, proxy, database):
    """What a restored backup, or a deliverer that wakes from a long pause, may do."""
    made = parts()
    made.customers.create(words())
    made.customers.set_plan("acme", "starter", "m1")
    before = list(ledger.applied), dict(proxy.entitlements)
    database.rows("UPDATE outbox SET delivered_at = NULL WHERE kind != 'set_plan_limits' OR sequence > 4")
    drain(made.deliverer)
    assert waiting(database) == 0
    assert (ledger.applied, proxy.entitlements) == before


def test_two_deliverers_deliver_in_order(parts, ledger, proxy, database):
    accounts = [f"a{number}" for number in range(6)]
    ledger.down = True
    made = parts(inline_delivery_seconds=0)
    for account_id in accounts:
        made.customers.create(words(account_id))
        for number, plan in enumerate(["payg", "starter", "payg", "free", "starter"]):
            made.customers.set_plan(account_id, plan, f"m{number}")
    ledger.down = False
    expected = waiting(database)
    assert expected == len(accounts) * (4 + 5 * 2)
    deliverers = [parts().deliverer for _ in range(2)]

    ends = time.monotonic() + 30

    def run(deliverer):
        while waiting(database) and time.monotonic() < ends:
            if not deliverer.deliver_next():
                time.sleep(0.005)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, deliverers * 2))
    assert waiting(database) == 0
    for account_id in accounts:
        revisions = [
            x.entitlement.revision for x in proxy.named("SetEntitlement") if x.entitlement.account_id == account_id
        ]
        assert revisions == list(range(revisions[0], revisions[0] + 6))
        steps = [what for account, what in ledger.applied if account == account_id]
        assert steps[0] == "open"
        numbers = [int(step.split(":")[1]) for step in steps if step.startswith("plan-limit")]
        assert numbers == sorted(numbers)
        assert proxy.entitlements[account_id].plan_id == "starter"
    assert database.rows("SELECT max(attempts) FROM outbox") == [(1,)], "nothing was claimed twice"


def test_claim_of_a_deliverer_that_died_is_taken_over_when_it_lapses(parts, ledger, database):
    made = parts(inline_delivery_seconds=0)
    made.customers.create(words())
    with database.engine.begin() as connection:
        assert store.claim_due(connection, lease_seconds=0.4).sequence == 1
    assert not made.deliverer.deliver_next(), "claimed by another, and what comes behind it has to wait"
    time.sleep(0.5)
    drain(made.deliverer)
    assert waiting(database) == 0


def test_failure_noted_late_does_not_undo_a_newer_claim(parts, database):
    made = parts(inline_delivery_seconds=0)
    made.customers.create(words())
    with database.engine.begin() as connection:
        stale = store.claim_due(connection, lease_seconds=0)
    with database.engine.begin() as connection:
        newer = store.claim_due(connection, lease_seconds=60)
        assert (newer.sequence, newer.attempts) == (1, 2)
        store.mark_failed(connection, stale, error="late", delay_seconds=0)
    assert not made.deliverer.deliver_next()


def test_refused_delivery_stays_waits_long_and_says_why(parts, ledger, proxy, database):
    ledger.refuse["credit"] = refusal(grpc.StatusCode.FAILED_PRECONDITION, "ACCOUNT_SUSPENDED")
    made = parts()
    assert not made.customers.create(words()).account.provisioned
    sql = (
        "SELECT kind, last_error, next_attempt_at > now() + interval '3 minutes' FROM outbox"
        " WHERE attempts > 0 AND delivered_at IS NULL"
    )
    assert database.rows(sql) == [("grant_credit", "FAILED_PRECONDITION ACCOUNT_SUSPENDED account_suspended", True)]
    assert proxy.entitlements == {}
    ledger.refuse.clear()
    assert made.customers.create(words()).account.provisioned


def test_refused_account_does_not_hold_up_the_others(parts, ledger, database):
    made = parts()
    ledger.refuse["credit"] = refusal(grpc.StatusCode.FAILED_PRECONDITION, "ACCOUNT_SUSPENDED")
    made.customers.create(words("stuck"))
    ledger.refuse.clear()
    assert made.customers.create(words("fine")).account.provisioned


def test_account_that_the_ledger_has_closed_is_closed_here_and_nothing_of_it_waits(parts, ledger, database, clock):
    made = parts()
    account = made.customers.create(words()).account
    ledger.books["acme"]["status"] = "closed"
    clock.forward(account.cycle_at(clock()).end - clock())
    assert made.customers.grant_due_promotions(limit=10) == 1
    drain(made.deliverer)
    assert waiting(database) == 0
    assert made.customers.get("acme").status == "closed"
    clock.forward(timedelta(days=31))
    assert made.customers.grant_due_promotions(limit=10) == 0


def test_new_account_whose_book_is_closed_is_closed(parts, ledger, database):
    made = parts()
    made.customers.create(words())
    ledger.books["acme"]["status"] = "closed"
    for table in ("outbox", "accounts"):  # as a restore leaves them
        database.rows(f"DELETE FROM {table}")
    made.customers.create(words())
    assert (made.customers.get("acme").status, waiting(database)) == ("closed", 0)


def test_grant_that_lapsed_undelivered_is_dropped_and_the_rest_goes_on(parts, ledger, proxy, clock):
    ledger.down = True
    made = parts()
    made.customers.create(words())
    ledger.down = False
    clock.forward(timedelta(days=40))
    assert made.deliverer.deliver_account("acme", within_seconds=5)
    assert ledger.books["acme"]["grants"] == []
    assert "acme" in proxy.entitlements


def test_each_cycle_brings_one_promotion(parts, ledger, clock, database):
    made = parts()
    account = made.customers.create(words()).account
    assert made.customers.grant_due_promotions(limit=10) == 0
    first = account.cycle_at(clock())
    clock.forward(first.end - clock())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: made.customers.grant_due_promotions(limit=10), range(4)))
    drain(made.deliverer)
    assert made.customers.grant_due_promotions(limit=10) == 0
    assert database.rows("SELECT count(*) FROM outbox WHERE kind = 'grant_credit'") == [(2,)]
    grants = ledger.books["acme"]["grants"]
    assert [grant.amount_nanos for grant in grants] == [5 * USD, 5 * USD]
    assert grants[1].request_id == f"promo:{first.end.date().isoformat()}"
    second = account.cycle_at(first.end)
    assert grants[1].expires_at.ToDatetime(tzinfo=UTC) == second.end


def test_promotion_that_another_process_is_granting_is_not_granted_again(parts, database, clock):
    made = parts()
    made.customers.create(words())
    clock.forward(timedelta(days=31))
    with ThreadPoolExecutor(1) as pool:
        with database.engine.begin() as connection:
            account = store.lock_account(connection, "acme")
            granting = pool.submit(made.customers.grant_due_promotions, limit=10)
            time.sleep(0.3)
            store.update_account(connection, replace(account, granted_until=account.cycle_at(clock()).end))
        granting.result()
    assert database.rows("SELECT count(*) FROM outbox WHERE kind = 'grant_credit'") == [(1,)]


def test_cycles_slept_through_are_not_made_up_for(parts, ledger, clock):
    made = parts()
    made.customers.create(words())
    clock.forward(timedelta(days=100))
    made.customers.grant_due_promotions(limit=10)
    drain(made.deliverer)
    assert len(ledger.books["acme"]["grants"]) == 2
    assert made.customers.grant_due_promotions(limit=10) == 0


def test_account_that_left_the_free_plan_gets_no_further_promotion(parts, ledger, clock):
    made = parts()
    made.customers.create(words())
    made.customers.set_plan("acme", "payg", "m1")
    clock.forward(timedelta(days=40))
    assert made.customers.grant_due_promotions(limit=10) == 0
    made.customers.set_plan("acme", "free", "m2")
    assert len(ledger.books["acme"]["grants"]) == 2


def test_pricing_down_delays_promotions_and_loses_none(parts, ledger, pricing, clock):
    parts().customers.create(words())
    clock.forward(timedelta(days=40))
    made = parts()  # a process that has not seen the plan
    pricing.down = True
    with pytest.raises(grpc.RpcError):
        made.customers.grant_due_promotions(limit=10)
    pricing.down = False
    made.customers.grant_due_promotions(limit=10)
    drain(made.deliverer)
    assert len(ledger.books["acme"]["grants"]) == 2


def test_what_was_delivered_is_deleted_after_its_retention_and_what_waits_is_kept(parts, database, ledger):
    made = parts(outbox_retention_days=7)
    made.customers.create(words())
    ledger.down = True
    made.customers.create(words("later"))
    database.rows(
        "UPDATE outbox SET delivered_at = now() - interval '8 days' WHERE account_id = 'acme' AND sequence < 3"
    )
    made.background_jobs()._upkeep()
    assert database.rows("SELECT account_id, count(*) FROM outbox GROUP BY 1 ORDER BY 1") == [("acme", 2), ("later", 4)]


def test_no_transaction_is_open_while_a_peer_is_called(parts, ledger, database):
    ledger.gate = threading.Event()
    made = parts()
    with ThreadPoolExecutor(1) as pool:
        creating = pool.submit(made.customers.create, words())
        assert ledger.arrived.wait(10)
        sql = "SELECT state FROM pg_stat_activity WHERE application_name = 'tollkeeper-subscriptions'"
        states = {state for (state,) in database.rows(sql + " AND datname = current_database()")}
        ledger.gate.set()
        assert creating.result().account.provisioned
    assert states == {"idle"}


@pytest.fixture
def start(settings, tmp_path):
    """`start("serve")`: a real process of the service; its log is in `process.log`."""
    running = []

    def make(command, **changes):
        values = settings(**changes)
        names = ("database_url", "identity_jwks_file", "service_token", "ledger_addr", "pricing_addr", "proxy_addr",
                 "poll_seconds", "listen", "deliver_in_serve")  # fmt: skip
        environment = os.environ | {f"TOLLKEEPER_SUBSCRIPTIONS_{n.upper()}": str(getattr(values, n)) for n in names}
        log = tmp_path / f"{command}-{len(running)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.subscriptions", command], env=environment, stdout=stream, stderr=stream
            )
        process.log = log
        running.append(process)
        return process

    yield make
    for process in running:
        process.kill()
        process.wait()


def address_of(process):
    def serving():
        assert process.poll() is None, process.log.read_text()
        for line in process.log.read_text().splitlines():
            if line.startswith("{") and (entry := json.loads(line))["event"] == "serving":
                return entry["address"]
        return None

    return eventually(serving, 20)


def test_kill_between_commit_and_delivery_is_recovered(start, connect, ledger, proxy, database):
    ledger.gate = threading.Event()
    first = start("serve")
    operator = connect(address_of(first), Role.ADMIN)
    request = pb.CreateAccountRequest(account_id="acme")
    call = operator.customers.CreateAccount.future(request, metadata=operator.metadata)
    assert ledger.arrived.wait(10), "the account is committed, its first delivery under way"
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert call.exception() is not None
    ledger.gate.set()
    assert waiting(database) == 4
    due_now(database)  # spares the test the half minute until the dead one's claim lapses
    second = start("serve")
    operator = connect(address_of(second), Role.ADMIN)
    get = pb.GetCustomerRequest(account_id="acme")
    eventually(lambda: operator(operator.customers.GetCustomer, get).provisioned)
    assert len(ledger.books["acme"]["grants"]) == 1
    assert operator(operator.customers.CreateAccount, request).provisioned


def test_workers_take_turns_and_another_leads_when_the_leader_is_killed(start, parts, ledger, database):
    ledger.down = True
    parts(inline_delivery_seconds=0).customers.create(words())
    workers = [start("work"), start("work")]

    def leaders():
        return [worker for worker in workers if '"leading"' in worker.log.read_text()]

    eventually(leaders, 20)
    time.sleep(1.5)
    (leader,) = leaders()
    leader.send_signal(signal.SIGKILL)
    leader.wait()
    workers.remove(leader)
    eventually(leaders, 20)
    ledger.down = False
    due_now(database)
    eventually(lambda: waiting(database) == 0)
    workers[0].send_signal(signal.SIGTERM)
    assert workers[0].wait(10) == 0


def test_worker_that_leads_no_more_says_nothing_of_what_another_measures_now(parts, ledger):
    def measured():
        return REGISTRY.get_sample_value("tollkeeper_subscriptions_outbox_waiting")

    def lags():
        found = (metric for metric in REGISTRY.collect() if metric.name == "tollkeeper_metering_lag_seconds")
        return [sample for metric in found for sample in metric.samples]

    ledger.down = True
    worker, stop = parts(inline_delivery_seconds=0), threading.Event()
    worker.customers.create(words())
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work_as_leader, worker.engine, worker.background_jobs, stop)
        try:
            eventually(lambda: measured() and lags())
        finally:
            stop.set()
        working.result(30)
    assert measured() == 0
    assert lags() == []


def test_worker_says_which_of_its_jobs_fail_and_that_it_cannot_lead(parts, database, monkeypatch):
    def failing(task):
        return REGISTRY.get_sample_value("tollkeeper_job_failing", {"task": task})

    worker, stop = parts(), threading.Event()
    asked = store.try_lead

    def away(*_):
        raise OperationalError("SELECT 1", {}, Exception("away"))

    database.rows("ALTER TABLE outbox RENAME TO elsewhere")
    monkeypatch.setattr(store, "try_lead", away)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work_as_leader, worker.engine, worker.background_jobs, stop)
        try:
            eventually(lambda: failing("lead") == 1)
            monkeypatch.setattr(store, "try_lead", asked)
            eventually(lambda: (failing("lead"), failing("upkeep")) == (0, 1), 60)
            database.rows("ALTER TABLE elsewhere RENAME TO outbox")
            eventually(lambda: failing("upkeep") == 0, 60)
        finally:
            stop.set()
        working.result(30)
    assert failing("upkeep") is None


def test_serve_told_not_to_deliver_leaves_it_to_the_worker(start, connect, ledger, database):
    ledger.down = True
    process = start("serve", deliver_in_serve=False)
    operator = connect(address_of(process), Role.ADMIN)
    operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id="acme"))
    ledger.down = False
    due_now(database)
    time.sleep(1)
    assert waiting(database) == 4
    start("work")
    eventually(lambda: waiting(database) == 0, 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_serve_refuses_a_database_that_was_not_migrated(start, database_url):
    process = start("serve", database_url=database_url("subscriptions"))
    assert process.wait(20) == 1
    assert "run `python -m services.subscriptions migrate`" in process.log.read_text()


def test_schema_of_the_migrations_is_that_of_the_tables(database):
    with database.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    foreign_keys = [d for d in differences if d[0] == "remove_fk"]
    assert [d for d in differences if d not in foreign_keys] == []
