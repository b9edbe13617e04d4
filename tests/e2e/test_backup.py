"""A suite dumped while it works, killed, and restored into a fresh server, by the commands of docs/operating/backup.md.

The four databases are of different moments: what happens between the dumps, and after the last, is what tells.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from e2e_books import Books
from e2e_outages import Stream, chat
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import CustomerServiceStub

from deploy.local import suite as local_suites
from deploy.local.ports import free_port
from deploy.local.postgres import SERVICES, EmbeddedPostgres, binaries, create_databases

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/operating/backup.md"
# What a home has that is no data: "Secrets, not data". Stripe, too, is where it was.
KEPT = ("secrets.json", "identity.*", "stripe.sqlite*")
# Long enough for the ledger to go away meanwhile.
LASTING = "[[sandbox output_tokens=8 chunk_tokens=1 delay_ms=300]] What is a toll?"
USD = 10**9


def commands(heading):
    """The blocks of commands of one section of the page, each a list of lines."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)^## ", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)
    return [[line.strip() for line in block.splitlines()] for block in blocks]


class Terminal:
    """Where an operator types the page's commands: a folder for the dumps, and a suite's settings."""

    def __init__(self, suite, folder):
        self._folder = folder
        self.local = local_suites.of(suite.environment, say=lambda _line: None)
        path = os.pathsep.join([str(binaries()), str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment = {"PATH": path, "PYTHONPATH": str(ROOT), "TOLLKEEPER_LOG_LEVEL": "warning"}
        for service in SERVICES:
            self._environment |= self.local.settings(service)

    def type(self, line):
        """Run one command; what it printed. Fails with that where it fails."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def dumps():
    with tempfile.TemporaryDirectory(prefix="tollkeeper dumps-") as folder:
        yield Path(folder)


@pytest.fixture
def fresh_server():
    """A Postgres that has never seen the suite."""
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper restored-"))
    folder.chmod(0o711)
    server = EmbeddedPostgres(folder=folder / "server", port=free_port(), password=secrets.token_hex(8), durable=False)
    with server.serving(folder / "server.log"):
        yield server
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def restored_home(old, server):
    """A suite not started yet, in a home of its own on another server, with the old one's secrets, and Stripe."""
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper restored-"))
    folder.chmod(0o711)
    suite = old.elsewhere(folder / "home", TOLLKEEPER_DATABASE_URL=server.url())
    suite.home.mkdir(mode=0o711)
    for file in (file for pattern in KEPT for file in old.home.glob(pattern)):
        shutil.copy(file, suite.home)
    try:
        yield suite
    finally:
        suite.command("down")
        shutil.rmtree(folder, ignore_errors=True)


def kill(suite):
    """End every process of a suite at once, as when its machine is gone."""
    for record in (suite.home / "run").glob("*.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)


class Happenings:
    """What customers do to a suite before, between and after its dumps, and what has to hold of it afterwards."""

    def __init__(self, suite, eventually):
        self.eventually = eventually
        self.at(suite)
        self.caller = suite.customer(credit_nanos=10**10)
        self.buyer = suite.customer()
        self.mover = suite.customer(plan="free")
        self.leaver = suite.customer()
        self.paid, self.kept = [], []

    def at(self, suite):
        """Go on at this suite."""
        self.suite, self.books = suite, Books(suite)

    def call(self, customer=None):
        """A model call of the caller's, or of another's."""
        return self.suite.post("/v1/chat/completions", chat(), (customer or self.caller).key)

    def billed_call(self):
        """A call of the caller's that is answered; its id."""
        answer = self.call()
        assert answer.status == 200, answer.body
        return answer.headers["x-tollkeeper-request-id"]

    def top_up(self, usd):
        """Buy credit, and wait until it is there."""
        body = {"amountUsd": f"{usd}.00", "requestId": f"top-up-{usd}"}
        page = self.suite.post("/api/billing/topup", body, self.buyer.key)
        assert page.status == 200, page.body
        self.suite.sandbox_stripe().pay(page.body["checkoutUrl"])
        self.paid.append(usd * USD)
        self.eventually(lambda: self.suite.available(self.buyer.key) == sum(self.paid))

    def sign_up(self):
        made = self.suite.post("/api/admin/accounts", {"accountId": "newcomer", "plan": "free"}, self.suite.admin_key)
        assert made.body["provisioned"], made.body

    def move(self, plan, request_id):
        with self.suite.channel("subscriptions") as channel:
            request = pb.SetAccountPlanRequest(account_id=self.mover.account_id, plan=plan, request_id=request_id)
            assert CustomerServiceStub(channel).SetAccountPlan(request).provisioned

    def revoke(self):
        revoked = self.suite.call("DELETE", f"/api/admin/keys/{self.leaver.key_id}", self.suite.admin_key)
        assert revoked.status == 200, revoked.body
        assert self.call(self.leaver).status == 401

    def end_calls_without_the_ledger(self):
        """Two calls that end while the ledger is away, so that the outbox has their bills. The proxy goes, too."""
        streams = [Stream(self.suite, self.caller.key, LASTING) for _ in range(2)]
        self.eventually(lambda: self.books.provider()["in_flight"] == 2)
        os.kill(self.suite.pid("ledger"), signal.SIGKILL)
        assert all(stream.end()[1][-1] == "[DONE]" for stream in streams)
        self.eventually(lambda: len(self.books.outbox()) == 2)
        os.kill(self.suite.pid("proxy"), signal.SIGKILL)
        return [
            hold_id for (hold_id,) in self.books.rows("proxy", "UPDATE outbox SET due_at = now() RETURNING hold_id")
        ]

    def dumped(self, terminal):
        """Dump the suite, and have something happen between any two dumps, and after the last."""
        ((dump_subscriptions, dump_proxy, dump_pricing, dump_ledger),) = commands("Dump")
        self.top_up(10)
        self.kept.append(self.billed_call())
        self.prices = self.prices_now()
        terminal.type(dump_subscriptions)
        self.top_up(11)
        self.move("payg", "lost")
        self.sign_up()
        taken, self.waiting = self.end_calls_without_the_ledger()
        terminal.type(dump_proxy)
        terminal.type(dump_pricing)
        self.books.rows("proxy", "UPDATE outbox SET due_at = 'infinity' WHERE hold_id = %s RETURNING 1", self.waiting)
        self.suite.start()
        self.eventually(lambda: self.books.outbox() == [(self.waiting, "settle", None)])
        # Half a second may pass before subscriptions tries again to reach the ledger that was away.
        self.eventually(lambda: self.suite.get("/api/credits/balance", self.buyer.key).status == 200)
        self.kept += [taken, self.billed_call()]
        terminal.type(dump_ledger)
        self.billed_call()
        self.top_up(12)
        self.revoke()
        self.bills = self.bills_now()

    # What is to be seen

    def prices_now(self):
        paths = ("/api/admin/prices?pageSize=100", "/api/admin/plans?pageSize=100")
        return [self.suite.get(path, self.suite.admin_key).body for path in paths]

    def bills_now(self):
        """What each call of the caller was billed, each once."""
        statement = "SELECT hold_id, billed FROM usage WHERE account_id = %s"
        rows = self.books.rows("ledger", statement, self.caller.account_id)
        assert len(rows) == len(dict(rows)), "a call was billed twice"
        return dict(rows)

    def terms(self):
        """The mover's plan at the proxy, and how many limits its account has at the ledger."""
        plan = "SELECT plan_id FROM entitlements WHERE account_id = %s"
        limits = "SELECT json_array_length(limits) FROM accounts WHERE account_id = %s"
        account_id = self.mover.account_id
        return self.books.rows("proxy", plan, account_id) + self.books.rows("ledger", limits, account_id)

    # What has to hold of the suite that was restored

    def assert_each_call_is_billed_once(self):
        """The outbox had one bill that the ledger's dump has, and one that it lacks; only what came after is lost."""
        anew = self.billed_call()
        self.eventually(lambda: self.books.outbox() == [])
        found = self.bills_now()
        assert found.keys() == {*self.kept, self.waiting, anew}
        assert {call: found[call] for call in self.kept} == {call: self.bills[call] for call in self.kept}
        assert self.suite.available(self.caller.key) == 10**10 - sum(found.values())

    def assert_each_payment_is_credited_once(self):
        """Those paid before, between and after the dumps, and all of them when Stripe tells of them again."""
        assert self.purchases() == self.paid
        stripe = self.suite.sandbox_stripe()
        for event in stripe.events(types=["checkout.session.completed", "payment_intent.succeeded"]):
            stripe.resend(event.id)
        stripe.drain()
        pending = "SELECT 1 FROM stripe_events WHERE status = 'pending'"
        self.eventually(lambda: self.books.rows("subscriptions", pending) == [])
        assert self.purchases() == self.paid
        assert self.suite.available(self.buyer.key) == sum(self.paid)

    def purchases(self):
        listed = self.suite.get("/api/billing/transactions?type=credit_purchase", self.buyer.key).body["transactions"]
        return sorted(int(purchase["amountNanos"]) for purchase in listed)

    def assert_what_subscriptions_lost_can_be_done_again(self):
        """A move between plans, undone at ledger and proxy too; a sign-up, whose promotion is given once."""
        assert self.terms() == [("free",), (2,)]
        self.move("payg", "again")
        assert self.terms() == [("payg",), (0,)]
        self.sign_up()
        promotions = "SELECT count(*) FROM journal WHERE account_id = 'newcomer' AND type = 'promotion'"
        assert self.books.rows("ledger", promotions) == [(1,)]

    def assert_a_key_is_to_be_revoked_again(self):
        """As the page warns."""
        assert self.call(self.leaver).status == 402
        self.revoke()


@pytest.mark.timeout(300)
def test_suite_dumped_at_work_is_restored_and_goes_on_by_the_pages_commands(own_suite, dumps, fresh_server, eventually):
    old = own_suite()
    happenings = Happenings(old, eventually)
    happenings.dumped(Terminal(old, dumps))
    kill(old)
    with restored_home(old, fresh_server) as suite:
        terminal = Terminal(suite, dumps)
        passwords = {service: terminal.local.credentials.own(f"postgres_{service}") for service in SERVICES}
        create_databases(fresh_server.url(), passwords)
        restore, tell_again = commands("Restore")
        for line in restore:
            terminal.type(line)
        suite.start(but=("subscriptions", "subscriptions-worker", "envoy"))
        for line in tell_again:
            terminal.type(line)
        suite.up()
        happenings.at(suite)
        assert suite.admin_key == old.admin_key
        assert happenings.prices_now() == happenings.prices
        happenings.assert_each_call_is_billed_once()
        happenings.assert_each_payment_is_credited_once()
        happenings.assert_what_subscriptions_lost_can_be_done_again()
        happenings.assert_a_key_is_to_be_revoked_again()
        verify = restore[-1]
        assert verify == "python -m services.ledger verify"
        terminal.type(verify)
