"""What operators do by hand at Stripe's dashboard, and customers at its pages: credit and plan follow what is paid."""

from datetime import timedelta

import pytest
from subscriptions_events import FREE, PROFESSIONAL, PROFESSIONAL_CREDIT, STARTER, STARTER_CREDIT, moment

from services.subscriptions.commands.setup_stripe import set_up
from services.subscriptions.stripe.changes import Wish


def price_by_hand(told, cents, *, product="tk_starter"):
    """A price that somebody made at the dashboard, of a product of ours or another one."""
    return told.stripe.v1.prices.create(
        {"product": product, "currency": "usd", "unit_amount": cents, "recurring": {"interval": "month"}}
    )


def other_product(told):
    return told.stripe.v1.products.create({"name": "Socks"}).id


# Prices


def test_price_of_our_product_that_somebody_else_made_gives_credit_for_what_is_paid(told):
    told.customer()
    half = price_by_hand(told, 950)
    told.subscribe(items=[{"price": half.id}])
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT // 2)


def test_move_from_a_price_that_somebody_else_made_gives_back_its_credit_too(told):
    told.start_clock()
    told.customer()
    made = told.subscribe(items=[{"price": price_by_hand(told, 1900).id}])
    told.settle()
    told.move(made, "professional")
    told.settle()
    assert told.standing() == PROFESSIONAL
    assert told.credit() == pytest.approx(PROFESSIONAL_CREDIT, rel=1e-3)


def test_price_of_something_else_in_our_subscription_gives_no_credit(told):
    told.customer()
    help_desk = price_by_hand(told, 5000, product=other_product(told))
    told.subscribe(items=[{"price": help_desk.id}, {"price": told.price("starter")}])
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)
    moved = told.parts.stripe_use_cases.changes.update("acme", Wish(plan_id="professional"), "").answer
    told.settle()
    assert (moved.price_nanos, told.standing()) == (99 * 10**9, PROFESSIONAL)
    keys = {item.price.id for item in told.stripe.v1.subscriptions.retrieve(moved.subscription_id)["items"].data}
    assert keys == {help_desk.id, told.price("professional")}


# Subscriptions to something else


def test_credit_that_is_bought_arrives_though_the_customer_subscribes_to_something_else(told):
    told.customer()
    told.subscribe(items=[{"price": price_by_hand(told, 500, product=other_product(told)).id}], metadata={})
    told.buy(cents=2500)
    told.settle()
    assert (told.standing(), told.credit()) == (FREE, 25 * 10**9)
    assert "failed" not in told.statuses()


@pytest.mark.parametrize("ends", ["canceled", "past_due"])
def test_plan_follows_ours_though_something_else_goes_on(told, ends):
    told.start_clock()
    made = told.subscribed()
    told.subscribe(items=[{"price": price_by_hand(told, 500, product=other_product(told)).id}], metadata={})
    told.settle()
    if ends == "canceled":
        told.stripe.v1.subscriptions.cancel(made.id)
    else:
        failing = told.stripe.v1.payment_methods.attach(
            "pm_card_chargeCustomerFail", {"customer": told.customers["acme"]}
        )
        told.stripe.v1.subscriptions.update(made.id, {"default_payment_method": failing.id})
        told.later(until=moment(told.period_end(made)) + timedelta(hours=2))
    told.settle()
    assert told.account().status == ("active" if ends == "canceled" else "grace")
    assert told.account().plan_id == ("free" if ends == "canceled" else "starter")
    assert "failed" not in told.statuses()


# Moves at Stripe's own pages


@pytest.mark.parametrize("interval", ["month", "year"])
def test_dearer_plan_taken_at_the_portal_counts_though_another_one_was_kept(told, pricing, interval):
    pricing.publish(
        "business", price_nanos=499 * 10**9, credit_nanos=99_800_000_000, tokens_per_cycle=9_000_000, providers=["*"],
        models=["*"],
    )  # fmt: skip
    set_up(told.parts, dry_run=False)
    told.start_clock()
    made = told.subscribed("professional")
    kept = {"keeps_plan": "professional", "keeps_plan_version": "1", "keeps_until": str(told.period_end(made))}
    told.move(made, "starter", proration_behavior="none", metadata={"plan": "starter", **kept})
    told.settle()
    assert told.standing() == PROFESSIONAL
    told.move(made, "business", interval, metadata={})
    told.settle()
    assert told.account().plan_id == "business"


# Credit notes


def credit_note(told, cents, **back):
    invoice = told.stripe.v1.invoices.list({"customer": told.customers["acme"], "limit": 1}).data[0]
    return told.stripe.v1.credit_notes.create({"invoice": invoice.id, "amount": cents, **back})


def test_money_that_goes_back_to_the_customers_balance_gives_credit_once(told):
    told.start_clock()
    made = told.subscribed()
    credit_note(told, 1900, credit_amount=1900)
    told.settle()
    assert told.credit() == 0
    told.later(until=moment(told.period_end(made)) + timedelta(hours=2))
    told.settle()
    assert (told.credit(), len(told.stripe.charges(told.customers["acme"]))) == (STARTER_CREDIT, 1)


def test_credit_note_that_refunds_takes_its_share_back_once(told):
    told.subscribed()
    credit_note(told, 950, refund_amount=475, credit_amount=475)
    told.settle()
    assert told.credit() == STARTER_CREDIT // 2
    told.tell(told.stripe.events(types=["credit_note.created", "charge.refunded", "invoice.paid"]))
    told.apply()
    assert told.credit() == STARTER_CREDIT // 2


def test_key_that_may_not_read_credit_notes_holds_up_nothing_else(told):
    told.subscribed()
    credit_note(told, 950, credit_amount=950)
    told.buy()
    told.stripe.fault("status", "/v1/credit_notes*", method="GET", status=403, count=100)
    told.settle()
    assert told.credit() == STARTER_CREDIT + 25 * 10**9
    assert told.statuses()["failed"] == 1
    told.stripe.clear_faults()
    told.database.rows("UPDATE stripe_events SET next_attempt_at = now(), status = 'pending' WHERE status = 'failed'")
    told.apply()
    assert told.credit() == STARTER_CREDIT // 2 + 25 * 10**9


@pytest.mark.parametrize(("cents", "share"), [(1900, 0), (950, 2)])
def test_invoice_that_is_given_up_by_credit_note_gives_credit_for_what_is_paid(told, cents, share):
    told.start_clock()
    made = told.subscribed()
    told.stripe.v1.subscriptions.update(
        made.id,
        {"default_payment_method": told.stripe.v1.payment_methods.attach(
            "pm_card_chargeCustomerFail", {"customer": told.customers["acme"]}).id},
    )  # fmt: skip
    told.later(until=moment(told.period_end(made)) + timedelta(hours=2))
    told.settle()
    before = told.credit()
    note = credit_note(told, cents)
    if share:
        told.stripe.v1.invoices.pay(note.invoice, {"paid_out_of_band": True})
    told.settle()
    assert told.account().status == "active"
    assert told.credit() - before == (STARTER_CREDIT // share if share else 0)


# Credit taken back at the ledger first


@pytest.mark.parametrize("share", [0.25, 1])
def test_refund_of_credit_that_was_taken_back_at_the_ledger_takes_back_the_rest_and_holds_nothing_up(told, share):
    told.start_clock()
    told.subscribed()
    left = told.ledger.books["acme"]["left"]
    (grant,) = [key for key in left if key.startswith("tx-invoice:")]
    left[grant] -= int(STARTER_CREDIT * share)
    told.refund(told.charge())
    told.settle()
    assert told.credit() == 0
    told.buy()
    told.settle()
    assert told.credit() == 25 * 10**9
