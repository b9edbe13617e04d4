"""Owns customers as the tests of checkout and changes see them: who ask a served instance, and pay at Stripe's pages.

acme = shop.customer()            an account of its own, on free
acme.subscribe("starter")         checkout, paid by card
acme.update(plan="professional")  any RPC of theirs
acme.invoices()                   what Stripe has of it
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
from subscriptions_events import publish_professional
from subscriptions_peers import USD
from subscriptions_stripe import VISA, fresh
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1 import credits_service_pb2 as credits_pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as operator_pb

from services.kit.identity import Role
from services.subscriptions.commands.setup_stripe import set_up

CENT = 10_000_000


def publish_plans(pricing):
    """Beside those that every test has: a dearer plan, a dearest one, and the metered ones."""
    publish_professional(pricing)
    pricing.publish("business", price_nanos=499 * USD, annual_discount_basis_points=1500, providers=["*"], models=["*"])
    pricing.publish_metered()
    standard = pricing.versions["metered-standard"][0]
    dearer = type(standard)()
    dearer.CopyFrom(standard)
    for metric in dearer.metrics:
        metric.included *= 10
        metric.overage_nanos_per_million //= 2
    pricing.publish(
        "metered-enterprise", kind="metered", price_nanos=499 * USD, providers=["*"], models=["*"],
        metrics=dearer.metrics,
    )  # fmt: skip


class Shop:
    """A served instance, its Stripe, and who calls it."""

    def __init__(self, address, connect, sandbox, database, clock):
        self.address = address
        self.connect = connect
        self.sandbox = sandbox
        self.database = database
        self.clock = clock
        self.operator = connect(address, Role.ADMIN)
        self.stripe_clock = None

    @classmethod
    def stocked(cls, address, connect, sandbox, database, clock, parts):  # noqa: PLR0917 (fixtures)
        """With a catalogue at Stripe; a sandbox that was set up before has it."""
        if not getattr(sandbox, "is_stocked", False):
            assert set_up(parts, dry_run=False) > 0
            sandbox.is_stocked = True
        return cls(address, connect, sandbox, database, clock)

    def customer(self, name="acme", *, plan="free"):
        """An account of its own; on the test clock, where one was started."""
        account_id = fresh(name)
        self.operator(
            self.operator.customers.CreateAccount,
            operator_pb.CreateAccountRequest(account_id=account_id, plan=plan, email=f"{account_id}@example.com"),
        )
        if self.stripe_clock is not None:
            made = self.sandbox.customer(account_id, card=None, clock=self.stripe_clock)
            self.keep_customer(account_id, made.id)
        return Customer(self, account_id)

    def keep_customer(self, account_id, customer_id):
        words = "INSERT INTO stripe_customers (customer_id, account_id) VALUES (:customer, :account)"
        self.database.rows(words, customer=customer_id, account=account_id)

    def start_clock(self):
        """From now on customers live by a clock that `later` moves together with ours."""
        self.stripe_clock = self.sandbox.clock(self.clock())

    def later(self, **delta):
        """Move Stripe's clock, and ours to the same moment."""
        at = self.sandbox.v1.test_helpers.test_clocks.retrieve(self.stripe_clock.id).frozen_time
        to = at + int(timedelta(**delta).total_seconds())
        self.sandbox.advance(self.stripe_clock, to)
        self.clock.offset += timedelta(seconds=to) - timedelta(seconds=self.clock().timestamp())


class Customer:
    """One account, as its own caller."""

    def __init__(self, shop, account_id):
        self.shop = shop
        self.account_id = account_id
        self.caller = shop.connect(shop.address, Role.ACCOUNT, account_id)
        self.billing, self.credits = self.caller.billing, self.caller.credits

    # What it asks

    def ask(self, method, request):
        return self.caller(method, request)

    def refused(self, method, request):
        return self.caller.refused(method, request)

    def answered(self, method, request):
        """The answer; None where it is to be asked for again."""
        try:
            return self.ask(method, request)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise

    def checkout(self, plan="starter", **more):
        return self.ask(self.billing.CreateCheckout, pb.CreateCheckoutRequest(plan=plan, **more))

    def top_up(self, amount_usd="25.00", **more):
        return self.ask(self.billing.CreateTopUp, pb.CreateTopUpRequest(amount_usd=amount_usd, **more))

    def subscribe(self, plan="starter", card=VISA, **more):
        """Checkout, paid; the subscription's id."""
        return self.shop.sandbox.pay(self.checkout(plan, **more).checkout_url, card)["subscription"]

    def update(self, **wish):
        return self.ask(self.billing.UpdateSubscription, pb.UpdateSubscriptionRequest(**wish))

    def update_refused(self, **wish):
        return self.refused(self.billing.UpdateSubscription, pb.UpdateSubscriptionRequest(**wish))

    def cancel(self, **how):
        return self.ask(self.billing.CancelSubscription, pb.CancelSubscriptionRequest(**how))

    def preview(self, plan, interval=""):
        return self.ask(self.billing.PreviewSubscription, pb.PreviewSubscriptionRequest(plan=plan, interval=interval))

    def upgrade(self, tier, **more):
        return self.ask(self.credits.UpgradeTier, credits_pb.UpgradeTierRequest(tier=tier, **more)).checkout_url

    def list_invoices(self, **more):
        return self.ask(self.billing.ListInvoices, pb.ListInvoicesRequest(**more))

    def set_recharge(self, threshold, amount, cap=0, *, enabled=True):
        """Amounts in dollars."""
        rule = pb.AutoRecharge(
            enabled=enabled, threshold_nanos=threshold * USD, amount_nanos=amount * USD, monthly_cap_nanos=cap * USD
        )
        return self.ask(self.billing.SetAutoRecharge, pb.SetAutoRechargeRequest(auto_recharge=rule))

    # What there is

    @property
    def customer_id(self):
        rows = self.shop.database.rows(
            "SELECT customer_id FROM stripe_customers WHERE account_id = :a AND deleted_at IS NULL", a=self.account_id
        )
        return rows[0][0] if rows else None

    @property
    def subscription(self):
        """The newest one at Stripe."""
        return self.subscriptions()[0]

    def subscriptions(self, status="all"):
        listed = self.shop.sandbox.v1.subscriptions.list({"customer": self.customer_id, "status": status})
        return listed.data

    def invoices(self):
        """At Stripe, newest first."""
        return self.shop.sandbox.v1.invoices.list({"customer": self.customer_id, "limit": 100}).data

    def charged(self):
        """What was charged, in cents, oldest first."""
        return [charge.amount for charge in self.shop.sandbox.charges(self.customer_id)][::-1]

    def open_pages(self):
        listed = self.shop.sandbox.v1.checkout.sessions.list({"customer": self.customer_id, "limit": 100})
        return [page.id for page in listed.data if page.status == "open"]

    def give_card(self, card):
        """A new default card, of the customer and of its subscriptions."""
        method = self.shop.sandbox.give_card(self.customer_id, card)
        for subscription in self.subscriptions():
            if subscription.status not in {"canceled", "incomplete_expired"}:
                self.shop.sandbox.v1.subscriptions.update(subscription.id, {"default_payment_method": method.id})


def own_price(subscription):
    """The lookup key of what a subscription pays."""
    keys = [item.price.lookup_key for item in subscription["items"].data]
    return next(key for key in keys if key.endswith((":month", ":year")))


def at_once(*calls):
    """What these calls, made at the same time, gave: results and errors."""
    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(call) for call in calls]
        return [one.exception() or one.result() for one in running]
