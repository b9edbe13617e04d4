"""What the figures of reports mean: periods, shares, averages, who is a subscriber and who is lost."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from services.subscriptions.reports.model import (
    Churn,
    ModelUse,
    Overview,
    Revenue,
    Span,
    Stay,
    Use,
    churn,
    dearest_first,
    share,
    this_month,
    today,
)

USD = 1_000_000_000
PRICES = {("free", 1): 0, ("payg", 3): 0, ("starter", 1): 19 * USD, ("starter", 2): 25 * USD, ("pro", 1): 99 * USD}


def moment(*fields):
    return datetime(*fields, tzinfo=UTC)


def plan_of(plan_id, version):
    return SimpleNamespace(price_nanos=PRICES[plan_id, version])


def overview(nanos, payers, *costs):
    models = [ModelUse("openai", f"m{number}", Use(1, 10, cost, 0)) for number, cost in enumerate(costs)]
    return Overview(signups=0, tier_changes=0, revenue=Revenue(nanos, payers), churn=Churn(), models=models)


@pytest.mark.parametrize(
    ("now", "day", "month"),
    [
        (moment(2026, 11, 21, 16, 7, 9, 5), moment(2026, 11, 21), moment(2026, 11, 1)),
        (moment(2026, 12, 1), moment(2026, 12, 1), moment(2026, 12, 1)),
        (moment(2028, 2, 29, 23, 59, 59, 999_999), moment(2028, 2, 29), moment(2028, 2, 1)),
    ],
)
def test_day_and_month_begin_at_midnight_utc_and_last_until_now(now, day, month):
    assert (today(now), this_month(now)) == (Span(day, now), Span(month, now))


@pytest.mark.parametrize(
    ("part", "whole", "basis_points"),
    [
        (1, 3, 3333), (2, 3, 6667), (1, 1, 10_000), (0, 5, 0), (5, 0, 0), (5, -1, 0), (-3, 2, -15_000),
        # Halves go to the even neighbour.
        (1, 20_000, 0), (3, 20_000, 2), (5, 20_000, 2), (-1, 20_000, 0), (-3, 20_000, -2),
        # No float tells these two apart.
        (10**17 + 1, 2 * 10**21, 1), (10**17, 2 * 10**21, 0),
        # What 32 bits do not hold is the most that they hold.
        (-(10**18), 1, -(2**31)), (10**18, 1, 2**31 - 1),
    ],
)  # fmt: skip
def test_share_is_in_basis_points_rounded_once_half_even(part, whole, basis_points):
    assert share(part, whole) == basis_points


def test_profit_and_margin_follow_from_revenue_and_cost():
    found = overview(19 * USD, 1, 3 * USD, 800_000_001)
    assert found.use == Use(2, 20, 3_800_000_001, 0)
    assert found.profit_nanos == 15_199_999_999
    assert found.margin_basis_points == 8000


def test_loss_is_a_negative_profit_and_margin():
    found = overview(2 * USD, 1, 3 * USD)
    assert (found.profit_nanos, found.margin_basis_points) == (-USD, -5000)


def test_cost_without_revenue_is_a_loss_without_margin_or_average():
    found = overview(0, 0, 7)
    assert (found.profit_nanos, found.margin_basis_points, found.arpu_nanos) == (-7, 0, 0)


@pytest.mark.parametrize(("nanos", "payers", "arpu"), [(10, 4, 2), (14, 4, 4), (100, 3, 33), (2**62, 1, 2**62)])
def test_average_is_rounded_half_even(nanos, payers, arpu):
    assert overview(nanos, payers).arpu_nanos == arpu


def test_subscriber_is_lost_where_the_plan_has_no_price_now_or_the_account_is_closed():
    stays = [
        Stay(("starter", 1), ("starter", 1), is_closed=False, accounts=10),
        Stay(("starter", 1), ("starter", 2), is_closed=False, accounts=5),
        Stay(("starter", 1), ("pro", 1), is_closed=False, accounts=4),
        Stay(("starter", 1), ("free", 1), is_closed=False, accounts=2),
        Stay(("pro", 1), ("payg", 3), is_closed=False, accounts=1),
        Stay(("pro", 1), ("pro", 1), is_closed=True, accounts=1),
        Stay(("free", 1), ("starter", 1), is_closed=False, accounts=50),
        Stay(("free", 1), ("free", 1), is_closed=True, accounts=50),
        Stay(("payg", 3), ("payg", 3), is_closed=False, accounts=50),
    ]
    found = churn(stays, plan_of)
    assert found == Churn(subscribers=23, lost=4)
    assert found.basis_points == 1739


def test_churn_without_subscribers_is_none():
    assert churn([], plan_of).basis_points == 0


def test_models_stand_by_cost_then_by_name():
    models = [ModelUse(provider, model, Use(1, 1, cost, 0)) for provider, model, cost in
              (("b", "x", 5), ("a", "z", 5), ("a", "y", 5), ("c", "w", 9))]  # fmt: skip
    assert [(found.provider, found.model) for found in dearest_first(models)] == [
        ("c", "w"), ("a", "y"), ("a", "z"), ("b", "x"),
    ]  # fmt: skip
