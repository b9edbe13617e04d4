"""The pure parts: cents, tiers, calendar, proration; no process."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.sandbox.stripe import money
from deploy.local.sandbox.stripe.engine import periods, proration


@pytest.mark.parametrize(
    ("amount", "expected"), [("0.5", 1), ("-0.5", -1), ("0.499999999999", 0), ("1.5", 2), ("2.5", 3), ("-2.5", -3)]
)
def test_half_a_cent_goes_away_from_zero(amount, expected):
    assert money.cents(Decimal(amount)) == expected


def _tiered(mode, *tiers):
    names = ("up_to", "unit_amount_decimal", "flat_amount_decimal")
    found = [dict(zip(names, (*tier, None)[:3], strict=True)) for tier in tiers]
    return {"id": "p", "billing_scheme": "tiered", "tiers_mode": mode, "_tiers": found, "transform_quantity": None}


@given(st.integers(0, 5_000_000), st.integers(1, 2_000_000))
def test_graduated_tiers_bill_what_is_above_the_quota(quantity, quota):
    price = _tiered("graduated", (quota, "0"), (None, "0.002"))
    assert money.total(price, Decimal(quantity)) == money.cents(Decimal(max(0, quantity - quota)) * Decimal("0.002"))
    assert sum(charge.quantity for charge in money.charges(price, Decimal(quantity))) == quantity


def test_flat_amounts_and_volume_tiers():
    graduated = _tiered("graduated", (10, "5", "100"), (None, "1", "50"))
    assert money.total(graduated, Decimal(12)) == 50 + 100 + 2 + 50
    volume = _tiered("volume", (10, "5"), (None, "1"))
    assert (money.total(volume, Decimal(10)), money.total(volume, Decimal(11))) == (50, 11)


MOMENTS = st.integers(1_600_000_000, 2_000_000_000)
INTERVALS = st.sampled_from([("day", 1), ("week", 2), ("month", 1), ("month", 3), ("year", 1)])


@given(MOMENTS, INTERVALS, st.integers(-400 * 86_400, 2000 * 86_400))
def test_periods_follow_each_other_without_gap(anchor, interval, distance):
    moment = anchor + distance
    start, end = periods.around(anchor, *interval, moment)
    assert start <= moment < end
    assert periods.around(anchor, *interval, end)[0] == end
    assert periods.around(anchor, *interval, start - 1)[1] == start


def test_a_month_later_keeps_the_day_or_takes_the_last():
    def day(*parts):
        return int(dt.datetime(*parts, tzinfo=dt.UTC).timestamp())

    assert periods.after(day(2028, 1, 31), "month", 1) == day(2028, 2, 29)
    assert periods.after(day(2028, 1, 31), "month", 2) == day(2028, 3, 31)
    assert periods.after(day(2028, 2, 29), "year", 1) == day(2029, 2, 28)


@given(st.integers(0, 10**7), st.integers(0, 30 * 86_400), st.integers(0, 30 * 86_400))
def test_used_and_unused_time_add_up_to_what_was_debited(amount, first, second):
    whole = (0, 30 * 86_400)
    credit = proration.credits_for([proration.debit(amount, *whole)], first)
    rest = proration.charge_for(amount, whole, first)
    assert -sum(part.amount for part in credit) == rest.amount if first < whole[1] else not credit
    used = money.share(amount, first, whole[1])
    assert abs(used + rest.amount - amount) <= 1
    # A change of mind: what was charged for the rest of the time is what is credited of it.
    if first <= second < whole[1] and rest.amount:
        again = proration.credits_for([proration.debit(rest.amount, first, whole[1])], second)
        assert abs(-sum(part.amount for part in again) - money.share(amount, whole[1] - second, whole[1])) <= 1


def test_time_that_was_not_debited_is_not_credited():
    assert proration.credits_for([], 0) == []
    assert proration.credits_for([proration.debit(0, 0, 100)], 0) == []
    assert proration.credits_for([proration.debit(100, 0, 100)], 100) == []
