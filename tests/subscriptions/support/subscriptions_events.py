"""Owns how tests tell the service what happens at Stripe: customers who subscribe there, signed events, work on them.

told.customer("acme")               an account here, a customer with a card there
told.subscribe("acme", "starter")   at Stripe; the service knows nothing of it yet
told.settle()                       events delivered and applied, deliveries made
told.later(days=31)                 Stripe's clock and ours, moved together
"""

import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta
from itertools import count

from google.api import httpbody_pb2
from subscriptions_stripe import PAYS, SECRET

from services.subscriptions.commands.setup_stripe import set_up
from services.subscriptions.model.account import AccountWords
from services.subscriptions.stripe.jobs import DueGrants

USD = 1_000_000_000
# Credit that the plans of these tests give for their price, a fifth of it.
STARTER_CREDIT, PROFESSIONAL_CREDIT = 3_800_000_000, 19_800_000_000
# Stripe's clocks move by at most two intervals of a subscription at once.
_STRIDE = timedelta(days=28)


def publish_professional(pricing):
    """The dearer plan, beside those that every test has."""
    pricing.publish(
        "professional", display_name="Professional", price_nanos=99 * USD, annual_discount_basis_points=1500,
        credit_nanos=PROFESSIONAL_CREDIT, tokens_per_cycle=5_000_000, requests_per_cycle=10_000,
        requests_per_minute=300, providers=["openai", "anthropic", "google"], models=["gpt-4o"],
    )  # fmt: skip


def signature(body, *, secret=SECRET, at=None):
    """The `Stripe-Signature` of a body, signed at a moment in seconds (default: now)."""
    at = int(time.time()) if at is None else at
    code = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={code}"


_numbers = count(1)


def event_body(kind, about, *, event_id=None, created=None, **more):
    """An event's body, as Stripe writes one, about an object."""
    event = {
        "id": f"evt_test_{next(_numbers)}" if event_id is None else event_id,
        "object": "event",
        "api_version": "2026-10-28",
        "created": int(time.time()) if created is None else created,
        "data": {"object": about},
        "livemode": False,
        "type": kind,
        **more,
    }
    return json.dumps(event, indent=2).encode()


def body_of(event):
    """The body of an event that Stripe listed."""
    return json.dumps(event.to_dict(), default=str).encode()


def send(caller, body, header=None):
    """Deliver a body as Stripe does, through the contract."""
    header = signature(body) if header is None else header
    request = httpbody_pb2.HttpBody(content_type="application/json", data=body)
    return caller.webhooks.ReceiveStripeEvent(request, metadata=(("stripe-signature", header),), timeout=20)


class Told:
    """One service and its Stripe, whose events reach it when the test says so."""

    def __init__(self, stripe, parts, clock, *, ledger, proxy, database):
        self.stripe = stripe
        self.parts = parts
        self.clock = clock
        self.ledger = ledger
        self.proxy = proxy
        self.database = database
        self.customers = {}
        self.stripe_clock = None
        set_up(parts, dry_run=False)
        self._newest = stripe.v1.events.list({"limit": 1}).data[0].id

    # At Stripe

    def start_clock(self):
        """From now on customers live by a clock that `later` moves."""
        self.stripe_clock = self.stripe.clock(self.clock())

    def customer(self, account_id="acme", *, card=PAYS, plan="free"):
        """An account, and its customer at Stripe."""
        self.parts.customers.create(AccountWords(account_id, "", "", plan))
        made = self.stripe.customer(account_id, card=card, clock=self.stripe_clock)
        self.customers[account_id] = made.id
        return made.id

    def price(self, plan, interval="month"):
        return self.stripe.v1.prices.list({"lookup_keys": [f"tk:{plan}:1:{interval}"]}).data[0].id

    def subscribe(self, account_id="acme", plan="starter", interval="month", **more):
        metadata = {"account_id": account_id, "plan": plan, "plan_version": "1", "interval": interval}
        params = {
            "customer": self.customers[account_id],
            "items": [{"price": self.price(plan, interval)}],
            "metadata": metadata,
            "billing_mode": {"type": "flexible"},
            **more,
        }
        return self.stripe.v1.subscriptions.create(params)

    def subscribed(self, plan="starter", interval="month", **more):
        """A customer `acme` whose subscription is paid and known."""
        self.customer()
        made = self.subscribe("acme", plan, interval, **more)
        self.settle()
        return made

    def period_end(self, subscription):
        """When what was paid for ends, in seconds."""
        return self.stripe.v1.subscriptions.retrieve(subscription.id)["items"].data[0].current_period_end

    def move(self, subscription, plan, interval="month", **more):
        """A change of plan that is paid at once."""
        item = self.stripe.v1.subscriptions.retrieve(subscription.id)["items"].data[0].id
        params = {
            "items": [{"id": item, "price": self.price(plan, interval)}],
            "proration_behavior": "always_invoice",
            "metadata": {"plan": plan, "interval": interval},
            **more,
        }
        return self.stripe.v1.subscriptions.update(subscription.id, params)

    def buy(self, account_id="acme", cents=2500):
        """Credit bought and paid."""
        params = {
            "amount": cents, "currency": "usd", "customer": self.customers[account_id], "confirm": True,
            "payment_method": self.stripe.v1.payment_methods.list({"customer": self.customers[account_id]}).data[0].id,
            "metadata": {"account_id": account_id, "purpose": "top_up", "request_id": "r1"}, "off_session": True,
        }  # fmt: skip
        return self.stripe.v1.payment_intents.create(params)

    def charge(self, account_id="acme"):
        """The newest charge that was paid."""
        return self.stripe.charges(self.customers[account_id])[0]

    def refund(self, charge, cents=None):
        return self.stripe.v1.refunds.create({"charge": charge.id, **({"amount": cents} if cents else {})})

    def later(self, *, until=None, **delta):
        """Both clocks move on. What Stripe does meanwhile is done; the service has not been told."""
        end = until or self.clock() + timedelta(**delta)
        while self.clock() < end:
            step = min(_STRIDE, end - self.clock())
            self.clock.forward(step)
            if end - self.clock() < timedelta(seconds=1):
                self.clock.forward(end - self.clock())
            if self.stripe_clock is not None:
                self.stripe.advance(self.stripe_clock, self.clock())

    # Telling of it

    def news(self):
        """What has happened since, oldest first; each event once."""
        listed = self.stripe.v1.events.list({"limit": 100, "ending_before": self._newest})
        new = list(listed.auto_paging_iter())  # read back from `ending_before`, hence the oldest first
        if new:
            self._newest = new[-1].id
        return new

    def tell(self, events):
        """Deliver events, in this order."""
        for event in events:
            self.receive(body_of(event))

    def receive(self, body):
        return self.parts.stripe_events.intake.receive(body, signature(body))

    def apply(self):
        """Do all that is due."""
        while self.parts.stripe_events.application.advance():
            pass
        self.deliver()

    def tick(self):
        """What the clock brings: subscriptions looked at again, grants that are due."""
        self.parts.stripe_events.application.refresh_due(limit=100)
        DueGrants(self.parts.engine, clock=self.clock)()
        self.deliver()

    def deliver(self):
        while self.parts.deliverer.deliver_next():
            pass
        assert self.database.rows("SELECT kind, last_error FROM outbox WHERE delivered_at IS NULL") == []

    def settle(self):
        """Tell of all that is new, and do it."""
        self.tell(self.news())
        self.apply()

    # What came of it

    def account(self, account_id="acme"):
        return self.parts.customers.get(account_id)

    def standing(self, account_id="acme"):
        """Plan and status here, the plan at the proxy, and the tokens that the ledger allows."""
        account = self.account(account_id)
        limit = self.ledger.books[account_id]["limits"].get("plan::tokens:cycle")
        return account.plan_id, account.status, self.proxy.entitlements[account_id].plan_id, limit and limit.amount

    def grants(self, account_id="acme"):
        """Credit that was paid for, by request id, less what was taken back: as the ledger has it."""
        left = self.ledger.books[account_id]["left"]
        return {key.removeprefix("tx-"): nanos for key, nanos in left.items() if not key.startswith("tx-promo:")}

    def credit(self, account_id="acme"):
        return sum(self.grants(account_id).values())

    def payments(self, account_id="acme"):
        return self.database.rows(
            "SELECT source_id, credit_nanos FROM stripe_payments WHERE account_id = :account ORDER BY source_id",
            account=account_id,
        )

    def statuses(self):
        """How many events are in each status."""
        return dict(self.database.rows("SELECT status, count(*) FROM stripe_events GROUP BY status"))

    def event(self, kind):
        """The id of the newest event of a type that Stripe has."""
        return self.stripe.v1.events.list({"type": kind, "limit": 1}).data[0]


FREE = ("free", "active", "free", 50_000)
STARTER = ("starter", "active", "starter", 500_000)
PROFESSIONAL = ("professional", "active", "professional", 5_000_000)


def moment(seconds):
    return datetime.fromtimestamp(seconds, UTC)
