"""Customers' lives as Stripe tells of them: changes of plan, refunds and disputes, payments that fail, trials.

The sandbox Stripe, a real Postgres, faked peers; `told` is in support/subscriptions_events.py.
"""

from datetime import UTC, timedelta

import pytest
import stripe
from subscriptions_events import FREE, PROFESSIONAL, STARTER, STARTER_CREDIT, USD, moment

from services.subscriptions.errors import SubscriptionExists

CENT = 10_000_000


# Plan changes


def move_down(told):
    """Subscribe to the dearer plan, and move to the cheaper one when what was paid for ends."""
    told.start_clock()
    made = told.subscribed("professional")
    ends = told.period_end(made)
    told.move(
        made, "starter", proration_behavior="none",
        metadata={"plan": "starter", "keeps_plan": "professional", "keeps_plan_version": "1", "keeps_until": str(ends)},
    )  # fmt: skip
    told.settle()


def test_upgrade_mid_cycle_keeps_paid_credits_and_adds_what_was_paid(told):
    told.start_clock()
    made = told.subscribed()
    told.later(days=10)
    changed = told.move(made, "professional", payment_behavior="error_if_incomplete")
    told.settle()
    invoice = told.stripe.v1.invoices.retrieve(changed.latest_invoice)
    assert len(invoice.lines.data) == 2
    assert told.standing() == PROFESSIONAL
    assert told.grants()[f"invoice:{made.latest_invoice}"] == STARTER_CREDIT
    assert told.grants()[f"invoice:{invoice.id}"] == invoice.total * CENT // 5


def test_upgrade_that_is_not_paid_gives_nothing(told):
    made = told.subscribed()
    told.stripe.give_card(told.customers["acme"], "pm_card_chargeCustomerFail")
    with pytest.raises(stripe.CardError):
        told.move(made, "professional", payment_behavior="error_if_incomplete")
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)


def test_cheaper_plan_comes_when_what_was_paid_for_ends(told):
    move_down(told)
    paid = told.credit()
    assert told.standing() == PROFESSIONAL
    assert told.database.rows("SELECT plan_id, pending_plan_id FROM subscriptions") == [("professional", "starter")]
    told.later(days=31, hours=2)
    told.settle()
    assert told.standing() == STARTER
    assert told.credit() == paid + STARTER_CREDIT


def test_cheaper_plan_comes_by_the_clock_though_no_event_tells(told):
    move_down(told)
    told.later(days=31, hours=2)
    told.tick()
    assert told.standing() == STARTER
    told.later(hours=2)
    told.tick()
    assert len(told.grants()) == 2, "the renewal's invoice was found by looking again"


def test_moving_up_and_down_with_prorations_gives_no_credit_that_is_not_paid(told):
    """Prorated the other way, money goes back to the customer's balance, and its credit goes with it."""
    told.start_clock()
    made = told.subscribed()
    told.later(days=1)
    for plan in ("professional", "starter") * 3:
        told.move(made, plan)
        told.settle()
    customer = told.stripe.v1.customers.retrieve(told.customers["acme"])
    paid = sum(charge.amount for charge in told.stripe.charges(customer.id)) + customer.balance
    assert told.standing() == STARTER
    assert abs(told.credit() - paid * CENT // 5) <= 6


def test_prorations_told_of_backwards_come_to_the_same_credit(told):
    told.start_clock()
    told.customer()
    made = told.subscribe()
    told.later(days=3)
    for plan in ("professional", "starter", "professional", "starter"):
        told.move(made, plan)
    for event in told.news()[::-1]:
        told.tell([event])
        told.apply()
    customer = told.stripe.v1.customers.retrieve(told.customers["acme"])
    paid = sum(charge.amount for charge in told.stripe.charges(customer.id)) + customer.balance
    assert told.standing() == STARTER
    assert abs(told.credit() - paid * CENT // 5) <= 6


def test_cancelled_at_the_end_of_the_period_keeps_the_plan_until_then(told):
    told.start_clock()
    made = told.subscribed()
    told.stripe.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})
    told.settle()
    assert told.standing() == STARTER
    told.later(days=31, hours=2)
    told.settle()
    assert told.standing() == FREE
    assert told.credit() == STARTER_CREDIT


def test_operator_moves_an_account_beside_no_subscription_which_would_take_it_back(told):
    made = told.subscribed()
    with pytest.raises(SubscriptionExists):
        told.parts.customers.set_plan("acme", "professional", "by-agreement")
    assert told.standing() == STARTER
    told.stripe.v1.subscriptions.cancel(made.id)
    told.settle()
    told.parts.customers.set_plan("acme", "professional", "by-agreement")
    told.settle()
    assert told.account().plan_id == "professional"


def test_renewal_gives_the_next_credit_once(told):
    told.start_clock()
    told.subscribed()
    told.later(days=31, hours=2)
    told.settle()
    assert told.standing() == STARTER
    assert sorted(told.grants().values()) == [STARTER_CREDIT] * 2


def test_annual_plan_grants_each_month_what_twelve_months_pay_for(told):
    told.start_clock()
    made = told.subscribed(interval="year")
    assert told.grants() == {f"invoice:{made.latest_invoice}:1": STARTER_CREDIT}
    for month in range(2, 13):
        told.later(days=31)
        told.tick()
        told.tick()
        assert len(told.grants()) == month
    assert sorted(told.grants().values()) == [STARTER_CREDIT] * 12
    expiries = sorted(g.expires_at.seconds for g in told.ledger.books["acme"]["grants"] if g.source == "subscription")
    assert len(set(expiries)) == 12
    assert expiries[-1] == told.period_end(made)


def test_annual_plan_that_is_refunded_grants_nothing_more(told):
    told.start_clock()
    told.subscribed(interval="year")
    charge = told.charge()
    told.refund(charge, charge.amount // 2)
    told.settle()
    assert told.credit() == STARTER_CREDIT, "half of it is still to come; the months that come last go first"
    told.refund(charge, charge.amount - charge.amount // 2)
    told.settle()
    told.later(days=62)
    told.tick()
    assert told.credit() == 0


# Refunds and disputes


def test_refunds_partial_full_and_twice_take_back_exactly_their_share(told):
    told.subscribed()
    charge = told.charge()
    told.refund(charge, 500)
    told.settle()
    assert told.credit() == 2_800_000_000
    told.refund(charge, 400)
    told.settle()
    assert told.credit() == 2_000_000_000
    told.refund(charge)
    told.settle()
    assert told.credit() == 0
    for (event_id,) in told.database.rows("SELECT event_id FROM stripe_events"):
        told.parts.stripe_events.log.replay(event_id)
    told.deliver()
    assert told.credit() == 0
    assert len(told.ledger.books["acme"]["reversals"]) == 3


def test_refund_of_credit_bought_takes_it_back(told):
    told.customer()
    told.buy(cents=2500)
    told.settle()
    told.refund(told.charge(), 1000)
    told.settle()
    assert told.credit() == 15 * USD


def test_dispute_takes_credit_back_and_won_restores_it_exactly(told):
    told.subscribed()
    dispute = told.stripe.dispute(told.charge().id)
    told.settle()
    assert told.credit() == 0
    told.stripe.close_dispute(dispute["id"], "won")
    told.settle()
    assert told.credit() == STARTER_CREDIT
    assert told.standing() == STARTER


@pytest.mark.parametrize(("spent", "back"), [(0, 0), (1_000_000_000, 1_000_000_000), (99 * USD, STARTER_CREDIT)])
def test_dispute_won_after_the_cycle_gives_again_what_was_spent_and_no_more(told, spent, back):
    """What was not spent would have expired with its cycle; for what was, the dispute took other credit."""
    told.start_clock()
    told.subscribed()
    (grant,) = told.grants()
    dispute = told.stripe.dispute(told.charge().id)
    told.ledger.books["acme"]["spent"][f"tx-{grant}"] = spent
    told.settle()
    told.later(days=32)
    told.settle()
    assert told.credit() == STARTER_CREDIT
    told.stripe.close_dispute(dispute["id"], "won")
    told.settle()
    told.tell(told.stripe.events(type="charge.dispute.closed"))
    told.apply()
    assert told.credit() == STARTER_CREDIT + back


def test_dispute_lost_leaves_it_taken_back(told):
    told.subscribed()
    dispute = told.stripe.dispute(told.charge().id, amount=950)
    told.settle()
    assert told.credit() == STARTER_CREDIT // 2
    told.stripe.close_dispute(dispute["id"], "lost")
    told.settle()
    assert told.credit() == STARTER_CREDIT // 2


def test_dispute_and_refund_of_one_charge_take_back_no_more_than_it_gave(told):
    told.subscribed()
    told.refund(told.charge(), 950)
    told.settle()
    told.stripe.dispute(told.charge().id, amount=1900)
    told.settle()
    assert told.credit() == 0


# Payments that fail


def failing(told):
    """A renewal that was not paid, an hour or two ago."""
    told.start_clock()
    made = told.subscribed()
    told.stripe.give_card(told.customers["acme"], "pm_card_chargeCustomerFail")
    told.later(until=moment(told.period_end(made)) + timedelta(hours=2))
    told.settle()
    return made


def alerts(told):
    return [kind for (kind,) in told.database.rows("SELECT type FROM alerts")]


def test_failed_renewal_goes_from_grace_to_limits_to_free(told):
    failing(told)
    assert told.standing() == ("starter", "grace", "starter", 500_000)
    assert alerts(told) == ["payment_failed"]
    told.later(days=13)
    told.settle()
    told.tick()
    assert told.standing() == ("starter", "grace", "starter", 500_000)
    told.later(days=1)
    told.tick()
    assert told.standing() == ("free", "limited", "free", 50_000)
    told.later(days=4)
    told.settle()
    assert told.stripe.v1.subscriptions.list({"customer": told.customers["acme"]}).data == []
    assert told.standing() == FREE
    assert alerts(told) == ["payment_failed"], "raised once, though four attempts failed"
    assert told.credit() == STARTER_CREDIT


@pytest.mark.parametrize("days", [1, 14], ids=["in grace", "limited"])
def test_paid_invoice_restores_plan_and_credit(told, days):
    made = failing(told)
    told.later(days=days)
    told.tick()
    told.stripe.give_card(told.customers["acme"], "pm_card_visa")
    told.stripe.v1.invoices.pay(told.stripe.v1.subscriptions.retrieve(made.id).latest_invoice)
    told.settle()
    assert told.standing() == STARTER
    assert told.credit() == 2 * STARTER_CREDIT
    assert told.database.rows("SELECT grace_until FROM subscriptions") == [(None,)]


def test_whoever_owes_is_given_nothing_free(told):
    failing(told)
    told.later(days=14)
    told.tick()
    assert told.account().status == "limited"
    promotions = [g.request_id for g in told.ledger.books["acme"]["grants"] if g.source == "promotion"]
    told.parts.customers.grant_due_promotions(limit=10)
    told.deliver()
    assert [g.request_id for g in told.ledger.books["acme"]["grants"] if g.source == "promotion"] == promotions


def test_promotion_goes_on_after_cycles_were_moved_on_the_day_of_an_earlier_one(told):
    """Subscribed on the day of sign-up and cancelled at once: cycles begin hours later than the promotion did."""
    told.customer()
    told.clock.forward(timedelta(hours=3))
    told.start_clock()
    made = told.subscribe()
    told.settle()
    told.stripe.v1.subscriptions.cancel(made.id)
    told.settle()
    first = told.account().granted_until
    for moment_ in (first + timedelta(hours=1), told.account().cycle_at(first).end + timedelta(hours=1)):
        told.clock.forward(moment_ - told.clock())
        told.parts.customers.grant_due_promotions(limit=10)
        told.deliver()  # which holds that nothing is refused
    given = [grant for grant in told.ledger.books["acme"]["grants"] if grant.source == "promotion"]
    assert len(given) == 2
    assert given[1].expires_at.ToDatetime(UTC) - given[0].expires_at.ToDatetime(UTC) > timedelta(days=28)


# Closed accounts


def test_payment_of_a_closed_account_gives_nothing_and_its_refund_ends_it(told, capsys):
    """Nothing is left waiting in the outbox, which `settle` holds: a closed book takes nothing any more."""
    told.subscribed()
    told.ledger.books["acme"]["status"] = "closed"
    told.buy()
    told.settle()
    assert (told.account().status, told.credit()) == ("closed", STARTER_CREDIT)
    assert "refund it at Stripe" in capsys.readouterr().out
    told.refund(told.charge())
    told.settle()
    assert (told.account().status, told.credit()) == ("closed", STARTER_CREDIT)


# Trials and pauses


def test_trial_gives_the_plan_and_its_credit_when_it_is_paid(told):
    told.start_clock()
    told.subscribed(trial_period_days=14)
    assert (told.standing(), told.credit()) == (STARTER, 0)
    told.later(days=14, hours=2)
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)


def test_paused_subscription_gives_nothing_until_it_is_resumed(told):
    told.start_clock()
    told.customer(card=None)
    made = told.subscribe(
        trial_period_days=5, trial_settings={"end_behavior": {"missing_payment_method": "pause"}}
    )  # fmt: skip
    told.settle()
    assert told.standing() == STARTER
    told.later(days=6)
    told.settle()
    assert (told.standing(), told.credit()) == (FREE, 0)
    told.stripe.give_card(told.customers["acme"], "pm_card_visa")
    told.stripe.v1.subscriptions.resume(made.id)
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)


def test_customer_deleted_at_stripe_loses_the_plan_and_may_come_again(told):
    told.subscribed()
    told.stripe.v1.customers.delete(told.customers["acme"])
    told.settle()
    assert told.standing() == FREE
    told.customers["acme"] = told.stripe.customer("acme").id
    told.subscribe()
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, 2 * STARTER_CREDIT)
