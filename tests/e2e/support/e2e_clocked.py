"""Owns a customer that lives by a test clock of Stripe's: made there by hand, and known to us by what Stripe tells."""

from subscriptions_stripe import VISA
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import CustomerServiceStub, WebhookServiceStub


class ClockedCustomer:
    """A customer of a suite, with a key, on a plan that costs nothing, and a card saved at Stripe. `close` ends it."""

    def __init__(self, suite, eventually, *, plan, begins):
        """`begins` is where the clock stands, in seconds or as a datetime."""
        self.suite, self.eventually, self.stripe = suite, eventually, suite.sandbox_stripe()
        self.channel = suite.channel("subscriptions")
        self.customers, self.webhooks = CustomerServiceStub(self.channel), WebhookServiceStub(self.channel)
        self._failed_before = self._events("failed")  # other tests' own
        made = suite.customer(plan=plan)
        self.account_id, self.key = made.account_id, made.key
        self.clock = self.stripe.clock(begins)
        self.customer_id = self.stripe.customer(self.account_id, card=None, clock=self.clock).id
        self._save_a_card()

    def close(self):
        self.channel.close()

    def _save_a_card(self):
        """At a page of Stripe's. From its event we learn which customer of Stripe's the account is."""
        page = self.stripe.v1.checkout.sessions.create(
            {"mode": "setup", "customer": self.customer_id, "currency": "usd", "success_url": "http://localhost/"}
        )
        self.stripe.pay(page.url)
        self.settle()

    def subscribe(self, plan):
        made = self.suite.post("/api/billing/checkout", {"plan": plan, "requestId": f"to-{plan}"}, self.key)
        assert made.status == 200, made.body
        assert self.stripe.v1.checkout.sessions.retrieve(made.body["sessionId"]).customer == self.customer_id
        self.stripe.pay(made.body["checkoutUrl"], VISA)
        self.settle()

    def settle(self):
        """Wait until all that Stripe has told is taken in, and what follows has arrived at ledger and proxy."""
        self.stripe.drain()
        self.eventually(lambda: not self._events("pending"))
        self.eventually(lambda: self.account().provisioned)
        assert self._events("failed") <= self._failed_before

    def _events(self, status):
        """The ids of the newest events in this status."""
        listed = self.webhooks.ListStripeEvents(pb.ListStripeEventsRequest(status=status))
        return {event.event_id for event in listed.events}

    def account(self):
        """As subscriptions has it."""
        return self.customers.GetCustomer(pb.GetCustomerRequest(account_id=self.account_id))

    def stands(self, plan, status):
        """Whether it is on this plan, in this status."""
        account = self.account()
        return (account.plan, account.status) == (plan, status)

    def subscription(self):
        """As Stripe has it."""
        return self.stripe.v1.subscriptions.list({"customer": self.customer_id, "status": "all"}).data[0]

    def period_end(self):
        return self.subscription().items.data[0].current_period_end

    def now(self):
        """Where the clock stands."""
        return self.stripe.v1.test_helpers.test_clocks.retrieve(self.clock.id).frozen_time
