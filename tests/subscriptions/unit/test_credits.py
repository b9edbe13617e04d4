from datetime import UTC, datetime
from decimal import Decimal

import pytest

from services.subscriptions.model.credits import CreditsView, CycleUse, LedgerBalance, percent

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def view(available, held, spent):
    return CreditsView(None, LedgerBalance(available, held, spent, spent, NOW, NOW), CycleUse(0, 0))


def test_total_is_what_was_used_is_held_and_remains():
    shown = view(15_300_000_000, 0, 4_500_000_000)
    assert shown.total_nanos == 19_800_000_000
    assert shown.percent_used == Decimal("22.73")


def test_held_credit_counts_towards_the_total_and_not_as_used():
    shown = view(5, 3, 2)
    assert (shown.total_nanos, shown.percent_used) == (10, Decimal("20.00"))


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(0, 0, "0"), (5, 0, "100"), (5, -3, "100"), (1, 3, "33.33"), (2, 3, "66.67"), (11, 10, "110"), (1, 800, "0.12")],
)
def test_percent_has_two_decimals_and_no_division_by_nothing(part, whole, expected):
    assert percent(part, whole) == Decimal(expected)
