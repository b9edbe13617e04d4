"""kill -9 of any one process under load: after `make up` the suite serves; no call is lost or billed twice."""

import concurrent.futures
import os
import signal
import threading
import time
from http.client import HTTPException

import psycopg
import pytest

PARTS = (
    "ledger",
    "ledger-worker",
    "subscriptions-worker",
    "pricing",
    "subscriptions",
    "proxy",
    "postgres",
    "redis",
    "envoy",
    "sandbox-provider",
    "sandbox-stripe",
)
CALLERS = 4
ANSWERS = 8  # two of each caller: the load is on
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "What is a toll?"}], "max_tokens": 8}


class Load:
    """Callers that go on until told to stop, and what they were told of calls that were answered."""

    def __init__(self, suite, key):
        self._suite, self._key = suite, key
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._answered = self._unanswered = 0
        self._pool = concurrent.futures.ThreadPoolExecutor(CALLERS)
        self._callers = [self._pool.submit(self._call) for _ in range(CALLERS)]

    def _call(self):
        answered = {}
        while not self._stop.is_set():
            try:
                answer = self._suite.post("/v1/chat/completions", BODY, self._key)
            except (OSError, HTTPException):  # no answer, or half of one
                self._count(0)
                time.sleep(0.05)
                continue
            self._count(answer.status == 200)
            if answer.status == 200 and "x-tollkeeper-cost-credits" in answer.headers:
                answered[answer.headers["x-tollkeeper-request-id"]] = answer.headers["x-tollkeeper-cost-credits"]
            time.sleep(0.2)  # a load, not all that the machine can do: what is killed starts again beside it
        return answered

    def _count(self, answered):
        with self._changed:
            self._answered += answered
            self._unanswered += not answered
            self._changed.notify_all()

    def goes_on(self, *, unanswered=0, seconds=30):
        """Wait for so many more answers, or for some calls without one; whether they came in time."""
        with self._changed:
            answers, failures = self._answered + ANSWERS, self._unanswered + (unanswered or float("inf"))
            return self._changed.wait_for(
                lambda: self._answered >= answers or self._unanswered >= failures, timeout=seconds
            )

    def stop(self):
        """Each answered call's id and what it cost, in credits."""
        self._stop.set()
        answered = {}
        for caller in self._callers:
            answered |= caller.result(60)
        self._pool.shutdown()
        return answered


def audit(suite, account_id):
    """Assert that an account's journal, balance, holds and usage agree; what each settled call cost, by hold."""
    with psycopg.connect(suite.database("ledger")) as ledger:
        sums = ledger.execute(
            "SELECT sum(available), sum(held), sum(spent), sum(funding), count(*), max(sequence) FROM journal "
            "WHERE account_id = %s",
            (account_id,),
        ).fetchone()
        book = ledger.execute(
            "SELECT available, held, spent, -funded, sequence, sequence FROM accounts WHERE account_id = %s",
            (account_id,),
        ).fetchone()
        assert tuple(map(int, sums)) == book
        open_holds = ledger.execute(
            "SELECT coalesce(sum(amount), 0) FROM holds WHERE account_id = %s AND status = 'open'", (account_id,)
        ).fetchone()
        assert int(open_holds[0]) == book[1]
        billed = ledger.execute("SELECT hold_id, billed FROM usage WHERE account_id = %s", (account_id,)).fetchall()
        assert len(billed) == len(dict(billed)), "a call was billed twice"
        assert sum(nanos for _, nanos in billed) == book[2]
        return dict(billed)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", PARTS)
def test_killed_process_loses_no_settled_call(suite, part, eventually):
    customer = suite.customer(credit_nanos=10**12)
    load = Load(suite, customer.key)
    assert load.goes_on()
    os.kill(suite.pid(part), signal.SIGKILL)
    load.goes_on(unanswered=CALLERS, seconds=1)  # calls that miss it, or go on without it; or else they wait for it
    suite.up()
    load.goes_on(seconds=1)
    answered = load.stop()
    # A provider that was away is left alone for some seconds more.
    other = suite.customer(credit_nanos=10**9)
    eventually(lambda: suite.post("/v1/chat/completions", BODY, other.key).status == 200)
    # What was settled to the outbox while the ledger was away arrives by itself.
    eventually(lambda: answered.keys() <= audit(suite, customer.account_id).keys(), seconds=30)
    billed = audit(suite, customer.account_id)
    assert {call: float(cost) for call, cost in answered.items()} == {call: billed[call] / 10**7 for call in answered}
    assert answered, "no call was answered: the load did nothing"


def test_money_held_by_a_killed_proxy_comes_back_when_the_hold_expires(suite, eventually):
    customer = suite.customer(credit_nanos=10**9)
    slow = {"model": "gpt-4o", "messages": [{"role": "user", "content": "[[sandbox delay_ms=20000]] wait"}]}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: suite.post("/v1/chat/completions", slow, customer.key))
        eventually(lambda: suite.get("/api/credits/balance", customer.key).body["heldCredits"] > 0)
        os.kill(suite.pid("proxy"), signal.SIGKILL)
        assert call.result(60).status >= 500
    suite.up()
    # The hold lasts as long as a call may. Bring its end forward, as if that time had passed.
    with psycopg.connect(suite.database("ledger")) as ledger:
        past = "now() - interval '1 second'"
        ledger.execute(f"UPDATE holds SET expires_at = {past} WHERE account_id = %s", (customer.account_id,))
        ledger.execute(f"UPDATE accounts SET next_event_at = {past} WHERE account_id = %s", (customer.account_id,))
    eventually(lambda: suite.available(customer.key) == 10**9)
    expired = suite.get("/api/billing/transactions?type=hold_expired", customer.key).body["transactions"]
    assert len(expired) == 1
    audit(suite, customer.account_id)


def test_suite_keeps_its_state_and_keys_over_a_restart(suite):
    customer = suite.customer(credit_nanos=123)
    keys = suite.admin_key, suite.env["TOLLKEEPER_DEMO_KEY"]
    suite.command("down")
    suite.up()
    assert (suite.admin_key, suite.env["TOLLKEEPER_DEMO_KEY"]) == keys
    assert suite.available(customer.key) == 123
