"""Lives of customers that chance makes up: whatever they ask for, however Stripe tells of it, credit is what was paid.

What they ask here, do at Stripe's dashboard and pages, and what the clock brings is chosen by a seed; so are the events
that are told twice, in another order, or only at the end. What is found then is compared with Stripe's own invoices.
"""

import random
from contextlib import suppress
from fractions import Fraction

import pytest
import stripe
from subscriptions_events import USD

from services.kit.errors import ServiceError
from services.subscriptions.commands.setup_stripe import set_up
from services.subscriptions.stripe.changes import Wish

PLANS = ("starter", "professional", "business")
_STEPS = 14
# Each plan's credit is a fifth of its price; by the year that is the credit of twelve months, for 15 % less.
_SHARE, _YEARLY = Fraction(1, 5), Fraction(100, 85)


class Life:
    """One customer, and what chance has it do."""

    def __init__(self, told, seed):
        self.told, self.chance = told, random.Random(seed)
        self.customer_id, self.v1 = told.customer(), told.stripe.v1
        self.commands = told.parts.stripe_use_cases
        self.held = []
        self.subscribes()
        told.settle()

    @property
    def subscription(self):
        listed = self.v1.subscriptions.list({"customer": self.customer_id, "status": "all"}).data
        return next((one for one in listed if one.status in {"active", "trialing", "past_due", "unpaid"}), None)

    def step(self):
        with suppress(ServiceError, stripe.StripeError):  # what is refused changes nothing
            if self.subscription is None:
                self.subscribes()
            self.chance.choice((
                self.moves, self.moves, self.moves, self.ends, self.resumes, self.waits, self.waits, self.hears,
                self.hears, self.changes_card, self.is_refunded, self.is_edited_at_the_dashboard,
            ))()  # fmt: skip

    def subscribes(self):
        self.told.subscribe("acme", self.chance.choice(PLANS), self.chance.choice(("month", "month", "year")))

    def moves(self):
        wish = Wish(self.chance.choice(PLANS), self.chance.choice(("", "", "year")))
        self.commands.update("acme", wish, "")

    def ends(self):
        self.commands.cancel("acme", now=self.chance.random() < 0.2, request_id="")

    def resumes(self):
        self.commands.update("acme", Wish(resume=True), "")

    def waits(self):
        self.told.later(days=self.chance.choice((0.1, 3, 11, 31)))

    def hears(self):
        events = self.told.news()
        self.chance.shuffle(events)
        late = [event for event in events if self.chance.random() < 0.2]
        self.held += late
        self.told.tell([event for event in events if event not in late] + events[:2])
        self.told.apply()

    def changes_card(self):
        self.told.stripe.give_card(self.customer_id, self.chance.choice(("pm_card_chargeCustomerFail", "pm_card_visa")))

    def is_refunded(self):
        charges = [charge for charge in self.told.stripe.charges(self.customer_id) if not charge.refunded]
        charge = self.chance.choice(charges)
        self.told.refund(charge, self.chance.randint(1, charge.amount - charge.amount_refunded))

    def is_edited_at_the_dashboard(self):
        own = self.subscription["items"].data[0]
        change = self.chance.choice((
            {"quantity": self.chance.choice((1, 2))},
            {"price": self.told.price(self.chance.choice(PLANS), own.price.recurring.interval)},
        ))  # fmt: skip
        behavior = self.chance.choice(("always_invoice", "create_prorations", "none"))
        params = {"items": [{"id": own.id, **change}], "proration_behavior": behavior}
        self.v1.subscriptions.update(self.subscription.id, params)

    def comes_to_rest(self):
        self.told.settle()
        self.told.tell(self.held)
        self.told.apply()
        self.told.later(hours=3)
        self.told.settle()
        self.told.tick()
        self.told.settle()

    def worth(self):
        """What the lines of each paid invoice are worth, by its id: with its total, in nanos."""
        paid = self.v1.invoices.list({"customer": self.customer_id, "status": "paid", "limit": 100}).data
        return {one.id: (sum(map(self._line_worth, self._lines(one))), one.total * 10**7) for one in paid}

    def _lines(self, invoice):
        return self.v1.invoices.line_items.list(invoice.id, {"limit": 100}).data

    def _line_worth(self, line):
        key = self.v1.prices.retrieve(line.pricing.price_details.price).lookup_key
        return line.amount * 10**7 * _SHARE * (_YEARLY if key.endswith(":year") else 1)


@pytest.mark.parametrize("seed", [201, 263])
def test_credit_is_what_was_paid_for_whatever_was_asked_and_told(told, pricing, database, seed):
    price, credit = 499 * USD, 499 * USD // 5
    pricing.publish("business", price_nanos=price, annual_discount_basis_points=1500, credit_nanos=credit, models=["*"])
    set_up(told.parts, dry_run=False)
    told.start_clock()
    life = Life(told, seed)
    for _ in range(_STEPS):
        life.step()
    life.comes_to_rest()
    worth = life.worth()
    known = database.rows("SELECT source_id, credit_nanos, returned FROM stripe_payments")
    payments = {source_id: (nanos, returned) for source_id, nanos, returned in known}
    assert payments.keys() == worth.keys()
    brought = sum(max(0, nanos) for nanos, _ in worth.values())
    given_back = -sum(min(0, nanos) for nanos, _ in worth.values())
    kept = sum(nanos for nanos, _ in payments.values())
    assert brought - given_back - len(worth) <= kept <= brought + len(worth)
    left = dict(database.rows("SELECT source_id, sum(amount_nanos - taken_back_nanos) FROM stripe_grants GROUP BY 1"))
    for invoice_id, nanos in left.items():
        credit_nanos, returned = payments[invoice_id]
        total = worth[invoice_id][1]
        share = max(Fraction(0), 1 - Fraction(sum(returned.values()) * 10**7, total)) if total > 0 else 1
        assert abs(int(nanos) - credit_nanos * share) <= 1
    given = "SELECT coalesce(sum(amount_nanos - taken_back_nanos), 0) FROM stripe_grants WHERE transaction_id <> ''"
    assert told.credit() == database.rows(given)[0][0]
    assert told.statuses().keys() <= {"applied", "ignored"}
    if life.subscription is None:
        assert told.account().plan_id == "free"
