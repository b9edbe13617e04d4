"""Owns the proof of what counts as a payment, and that every nano of a report is in one line and in the total."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.pricing.economics import stripe_fee_nanos
from services.pricing.margins import AccountMonth, Credit, Customer, MarginReports, Month, Payment, payments
from services.pricing.shipped import load_shipped

USD = 1_000_000_000
PLANS = {plan.plan_id: plan for plan in load_shipped().plans}
MONTH = Month(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
NOTHING = AccountMonth((), (), 0)


def on(plan_id, name="acme"):
    begun = datetime(2026, 11, 3, tzinfo=UTC)
    return Customer(name, plan_id, 1, "active", begun, begun)


@pytest.mark.parametrize(
    ("plan_id", "booked", "paid"),
    [
        ("professional", AccountMonth((Credit(19_800_000_000, 0),), (), 0), [Payment(99 * USD, 99 * USD)]),
        ("professional", AccountMonth((Credit(3, 1),), (), 0), [Payment(99 * USD, 66 * USD)]),
        ("professional", AccountMonth((Credit(3, 3),), (), 0), [Payment(99 * USD, 0)]),
        ("free", AccountMonth((Credit(5 * USD, 0),), (), 0), []),
        ("payg", AccountMonth((), (Credit(10 * USD, 4 * USD),), 0), [Payment(10 * USD, 6 * USD)]),
        ("payg", AccountMonth((Credit(1, 0),), (), 0), []),
        ("metered-standard", NOTHING, [Payment(99 * USD, 99 * USD)]),
        ("metered-free", NOTHING, []),
    ],
)
def test_what_counts_as_a_payment(plan_id, booked, paid):
    assert list(payments(PLANS[plan_id], on(plan_id), booked, MONTH)) == paid


given_credits = st.builds(Credit, st.integers(1, 10**13), st.just(0)).flatmap(
    lambda credit: st.builds(Credit, st.just(credit.amount_nanos), st.integers(0, credit.amount_nanos))
)
months = st.builds(
    AccountMonth,
    st.lists(given_credits, max_size=3).map(tuple),
    st.lists(given_credits, max_size=3).map(tuple),
    st.integers(0, 10**13),
)


@given(st.lists(st.tuples(st.sampled_from(sorted(PLANS)), months), max_size=12))
def test_lines_add_up_to_the_total_and_to_every_customer(booked):
    customers = [on(plan_id, str(number)) for number, (plan_id, _) in enumerate(booked)]
    fakes = SimpleNamespace(
        pages=lambda: iter([customers[:5], customers[5:]]),
        months_of=lambda account_ids, _month: {each: booked[int(each)][1] for each in account_ids},
        plan=lambda plan_id, _version: PLANS[plan_id],
    )
    lines, total = MarginReports(fakes, fakes, fakes).of_month(MONTH)
    paid = [
        payment
        for customer, (plan_id, month) in zip(customers, booked, strict=True)
        for payment in payments(PLANS[plan_id], customer, month, MONTH)
    ]
    assert total.revenue_nanos == sum(line.revenue_nanos for line in lines) == sum(one.kept_nanos for one in paid)
    assert total.stripe_fee_nanos == sum(stripe_fee_nanos(one.paid_nanos) for one in paid)
    assert total.api_cost_nanos == sum(month.api_cost_nanos for _, month in booked)
    assert total.profit_nanos == total.revenue_nanos - total.api_cost_nanos - total.stripe_fee_nanos
    assert total.customers == len(booked)
