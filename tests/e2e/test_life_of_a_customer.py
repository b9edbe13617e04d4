"""The life of a customer, by REST and Stripe's pages: after each step ledger, Stripe and reports agree to the cent.

The customer lives by a test clock of Stripe's that begins in the past, so that our services, which live now, see its
whole life behind them. It ends in the present where that matters: the renewal fails twelve seconds before its grace is
over.
"""

import base64
import hashlib
import hmac
import http.server
import json
import queue
import threading
import time
from datetime import UTC, datetime

import pytest
from e2e_clocked import ClockedCustomer
from subscriptions_stripe import DAY, FAILS_LATER, VISA
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1.ledger_service_pb2_grpc import AccountServiceStub
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import AlertServiceStub

NANOS_PER_CENT = 10**7
STARTER_CENTS, PROFESSIONAL_CENTS = 1900, 9900
PROMOTION_NANOS = 5 * 10**9
# One part in five of what is paid becomes credit: the shipped plans have a margin of 80 %.
CREDIT_NANOS_PER_CENT = NANOS_PER_CENT // 5
GRACE_SECONDS = 14 * DAY
# The grace that is left when the renewal fails.
LEFT_SECONDS = 12
HALF_A_MONTH = 15 * DAY
REFUNDED_CENTS = 3300
QUESTION = [{"role": "user", "content": "What is a toll?"}]


def months_before(moment, months):
    """The same day and time so many months earlier; None where that month has no such day."""
    number = moment.year * 12 + moment.month - 1 - months
    try:
        return moment.replace(year=number // 12, month=number % 12 + 1)
    except ValueError:
        return None


class Receiver:
    """An endpoint for alerts. What was posted to it, with its headers, is in `got`."""

    def __init__(self):
        got = self.got = queue.Queue()

        class Post(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                got.put((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Post)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"

    def wait_for(self, kind, secret):
        """The next alert of a type, its signature checked as Standard Webhooks says."""
        while True:
            headers, body = self.got.get(timeout=20)
            told = json.loads(body)
            if told["type"] != f"alert.{kind}":
                continue
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            key = base64.b64decode(secret.removeprefix("whsec_"))
            expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
            assert headers["webhook-signature"] == f"v1,{expected}"
            return told["data"]

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Life(ClockedCustomer):
    """One customer: what is done to it, and what all have to say of it."""

    def __init__(self, suite, eventually):
        # The failing renewal is begun ten minutes, of Stripe's time, before it may fail.
        fails = datetime.fromtimestamp(int(time.time()) - GRACE_SECONDS - 600, UTC)
        self.months = next(months for months in (2, 3) if months_before(fails, months))
        self.suite = suite
        self._overview_before = self.overview()
        super().__init__(suite, eventually, plan="free", begins=months_before(fails, self.months))
        self.alerts = AlertServiceStub(self.channel)
        self._ledger_channel = suite.channel("ledger")
        self.ledger = AccountServiceStub(self._ledger_channel)

    def close(self):
        self._ledger_channel.close()
        super().close()

    # What the customer does

    def use_card(self, number):
        portal = self.suite.post("/api/billing/portal", {}, self.key).body["portalUrl"]
        self.stripe.portal(portal, "card", card=number)

    def call(self, model):
        """One model call; its status."""
        body = {"model": model, "messages": QUESTION, "max_tokens": 8}
        return self.suite.post("/v1/chat/completions", body, self.key).status

    def limit_requests(self, amount):
        limit = {"scope": "account", "unit": "requests", "window": "day", "amount": str(amount), "mode": "hard"}
        set_ = self.suite.post(f"/api/admin/accounts/{self.account_id}/limits", limit, self.suite.admin_key)
        assert set_.status == 200, set_.body

    # What Stripe's time brings

    def begin_period(self):
        """To a minute after the period's end: an hour before Stripe would collect the renewal that it has drafted."""
        self.stripe.advance(self.clock, self.period_end() + 60)

    def renew(self):
        """To a minute after the period's end, by which we have had the renewal paid."""
        before = len(self.invoices("paid"))
        self.begin_period()
        self.eventually(lambda: len(self.invoices("paid")) == before + 1)

    def fail_to_renew(self):
        """Begin the next period so that, when we have its invoice charged, a few seconds of grace are left."""
        assert self.period_end() < time.time() - GRACE_SECONDS
        self.stripe.advance(self.clock, int(time.time()) - GRACE_SECONDS + LEFT_SECONDS)
        self.eventually(lambda: [invoice.attempt_count for invoice in self.invoices("open")] == [1])

    # What all say

    def invoices(self, status=None):
        """Stripe's, newest first."""
        wanted = {"customer": self.customer_id, "limit": 100, **({"status": status} if status else {})}
        return self.stripe.v1.invoices.list(wanted).data

    def listed(self, path, name):
        found = self.suite.get(f"{path}?pageSize=100", self.key).body
        assert not found["nextPageToken"]
        return found[name]

    def overview(self):
        """The operator's report of this month."""
        found = self.suite.get("/api/admin/reports/overview", self.suite.admin_key)
        assert found.status == 200, found.body
        return found.body

    def tier_changes(self):
        """How many moves between plans the operator's report has of this customer."""
        return int(self.overview()["month"]["tierChanges"]) - int(self._overview_before["month"]["tierChanges"])

    def agrees(self):
        """Assert that Stripe, the ledger and the reports have the same figures."""
        self.settle()
        paid = sum(invoice.amount_paid for invoice in self.invoices("paid"))
        charges = self.stripe.v1.charges.list({"customer": self.customer_id, "limit": 100}).data
        assert sum(charge.amount for charge in charges if charge.paid) == paid
        returned = sum(charge.amount_refunded for charge in charges)
        by_type = {}
        for entry in self.listed("/api/billing/transactions", "transactions"):
            by_type[entry["type"]] = by_type.get(entry["type"], 0) + int(entry["amountNanos"])
        used = sum(int(record["billedNanos"]) for record in self.listed("/api/billing/usage", "records"))
        assert by_type.pop("promotion") == PROMOTION_NANOS
        assert by_type.pop("subscription_grant", 0) == paid * CREDIT_NANOS_PER_CENT
        assert by_type.pop("reversal", 0) == -returned * CREDIT_NANOS_PER_CENT
        assert by_type.pop("usage_deduction", 0) == -used
        assert not by_type
        credit = (paid - returned) * CREDIT_NANOS_PER_CENT
        assert self.suite.available(self.key) == PROMOTION_NANOS + credit - used
        verified = self.ledger.VerifyAccount(ledger_pb.VerifyAccountRequest(account_id=self.account_id))
        assert verified.sound, verified.discrepancies
        self._told_the_same()
        self._reports_the_same(used, charges)
        return paid, returned, used

    def _reports_the_same(self, used, charges):
        """The operator's and the customer's own reports say what the ledger and Stripe have."""
        records = self.listed("/api/billing/usage", "records")
        assert sum(int(record["costNanos"]) for record in records) == used  # credits are spent at the provider's price
        use = (len(records), sum(int(record["totalTokens"]) for record in records), used)
        month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
        kept = sum(
            charge.amount - charge.amount_refunded for charge in charges if charge.paid and charge.created >= month
        )
        figures = ("requests", "tokens", "apiCostNanos", "revenueNanos", "signups")
        before, now = self._overview_before["month"], self.overview()
        since = [int(now["month"][name]) - int(before[name]) for name in figures]
        assert since == [*use, kept * NANOS_PER_CENT, 1]
        assert int(now["month"]["profitNanos"]) == int(now["month"]["revenueNanos"]) - int(now["month"]["apiCostNanos"])
        plan = self.account().plan
        assert int(now["planMix"][plan]) == int(self._overview_before["planMix"].get(plan, 0)) + 1
        stats = self.suite.get("/api/billing/stats", self.key).body["month"]
        assert tuple(int(stats[name]) for name in ("requests", "tokens", "billedNanos")) == use

    def _told_the_same(self):
        """What we tell of invoices and the subscription is what Stripe has."""
        told = self.listed("/api/billing/invoices", "invoices")
        assert [(each["invoiceId"], each["status"], int(each["totalNanos"])) for each in told] == [
            (invoice.id, invoice.status, invoice.total * NANOS_PER_CENT) for invoice in self.invoices()
        ]
        kept = self.suite.get("/api/billing/subscription", self.key).body
        if kept["status"] != "none":
            found = self.subscription()
            assert (kept["stripeSubscriptionId"], kept["status"]) == (found.id, found.status)
            assert kept["cancelAtPeriodEnd"] == found.cancel_at_period_end
            assert int(kept["priceNanos"]) == found.items.data[0].price.unit_amount * NANOS_PER_CENT


@pytest.fixture
def life(suite, eventually):
    life = Life(suite, eventually)
    yield life
    life.close()


@pytest.fixture
def receiver(life):
    """An endpoint of the account's own for alerts."""
    receiver = Receiver()
    request = pb.CreateAlertEndpointRequest(account_id=life.account_id, url=receiver.url)
    receiver.secret = life.alerts.CreateAlertEndpoint(request).signing_secret
    yield receiver
    receiver.close()


def test_a_customers_life_adds_up_at_every_step(life, receiver, eventually):
    signs_up(life)
    subscribes_to_starter(life)
    is_told_at_80_percent(life, receiver)
    upgrades_in_mid_cycle_for_what_was_shown(life)
    renews(life)
    fails_to_renew_and_has_grace(life, receiver)
    is_limited_when_grace_is_over(life, eventually)
    pays_and_is_restored(life)
    cancels_at_the_periods_end(life)
    is_refunded(life)


def signs_up(life):
    assert life.agrees() == (0, 0, 0)
    assert life.stands("free", "active")
    assert life.call("gpt-3.5-turbo") == 200
    assert life.call("claude-3-haiku") == 403


def subscribes_to_starter(life):
    life.subscribe("starter")
    paid, _, _ = life.agrees()
    assert paid == STARTER_CENTS
    assert life.stands("starter", "active")


def is_told_at_80_percent(life, receiver):
    life.limit_requests(5)
    # The call that was made on the free plan counts, too.
    assert [life.call("claude-3-haiku") for _ in range(3)] == [200] * 3
    told = receiver.wait_for("limit_80", receiver.secret)
    assert (told["accountId"], told["amount"], told["used"]) == (life.account_id, "5", "4")
    assert [life.call("claude-3-haiku") for _ in range(2)] == [200, 429]
    life.limit_requests(1000)
    life.agrees()


def upgrades_in_mid_cycle_for_what_was_shown(life):
    assert life.call("gpt-4o") == 403
    life.stripe.advance(life.clock, life.now() + HALF_A_MONTH)
    shown = life.suite.post("/api/billing/subscription/preview", {"plan": "professional"}, life.key).body
    move = {"plan": "professional", "requestId": "upgrade"}
    assert life.suite.call("PATCH", "/api/billing/subscription", life.key, move).status == 200
    paid, _, _ = life.agrees()
    made = life.invoices()[0]
    assert made.billing_reason == "subscription_update"
    assert made.total * NANOS_PER_CENT == int(shown["totalNanos"])
    assert [line.amount * NANOS_PER_CENT for line in made.lines.data] == [
        int(line["amountNanos"]) for line in shown["lines"]
    ]
    assert paid == STARTER_CENTS + made.total
    # Something between a third and two thirds of a month was left.
    assert 1 / 3 < made.total / (PROFESSIONAL_CENTS - STARTER_CENTS) < 2 / 3
    assert life.stands("professional", "active")
    assert life.call("gpt-4o") == 200


def renews(life):
    for _ in range(life.months - 1):
        before, _, _ = life.agrees()
        life.renew()
        paid, _, _ = life.agrees()  # the credit, too, is there without waiting for the hour
        assert paid - before == PROFESSIONAL_CENTS
    assert life.stands("professional", "active")


def fails_to_renew_and_has_grace(life, receiver):
    life.use_card(FAILS_LATER)
    before = life.agrees()
    life.fail_to_renew()
    life.eventually(lambda: life.stands("professional", "grace"))
    assert life.call("gpt-4o") == 200
    told = receiver.wait_for("payment_failed", receiver.secret)
    until = datetime.fromisoformat(told["graceUntil"]).timestamp()
    assert 0 < until - time.time() <= LEFT_SECONDS
    assert life.agrees()[:2] == before[:2]


def is_limited_when_grace_is_over(life, eventually):
    eventually(lambda: life.stands("free", "limited"))
    life.agrees()
    assert life.call("gpt-4o") == 403
    assert life.suite.get("/api/credits/current-tier", life.key).body["tier"] == "free"


def pays_and_is_restored(life):
    before, _, _ = life.agrees()
    (owed,) = life.invoices("open")
    status, answer = life.stripe.form(f"{owed.hosted_invoice_url}/pay", card=VISA)
    assert status == 200, answer
    paid, _, _ = life.agrees()
    assert paid - before == PROFESSIONAL_CENTS
    assert life.stands("professional", "active")
    assert life.call("gpt-4o") == 200


def cancels_at_the_periods_end(life):
    ended = life.suite.call("DELETE", "/api/billing/subscription?requestId=cancel", life.key)
    assert ended.body["cancelAtPeriodEnd"] is True
    before = life.agrees()
    assert life.stands("professional", "active")
    life.begin_period()
    assert life.agrees() == before
    assert life.stands("free", "active")
    assert life.call("gpt-4o") == 403


def is_refunded(life):
    before = life.agrees()
    newest = life.invoices("paid")[0]
    (charge,) = [charge for charge in life.stripe.charges(life.customer_id) if charge.amount == newest.amount_paid][:1]
    life.stripe.v1.refunds.create({"charge": charge.id, "amount": REFUNDED_CENTS})
    assert life.agrees() == (before[0], REFUNDED_CENTS, before[2])
    # To starter and professional, to free and back when the renewal failed and was paid, to free at the end.
    assert life.tier_changes() == 5
