"""Owns the tests of money on the wire: exact, integer, and refusing whatever is not plainly an amount."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit import amounts
from services.kit.amounts import AmountError, format_usd, parse_usd, request_amount
from services.kit.refusals import InvalidArgument
from services.kit.validation import Violations


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("10.00", 10_000_000_000),
        ("0", 0),
        ("0.000000001", 1),
        ("5", 5_000_000_000),
        ("007.5", 7_500_000_000),
        ("9223372036.854775807", 2**63 - 1),
    ],
)
def test_decimal_dollars_become_exact_nanos(text, nanos):
    assert parse_usd(text) == nanos


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1e3", "without exponent"),
        ("1E-9", "without exponent"),
        ("+1", "sign +"),
        ("", "decimal number"),
        (".5", "decimal number"),
        ("5.", "decimal number"),
        ("1,000.00", "separators"),
        ("1_000", "separators"),
        (" 1", "decimal number"),
        ("1\n", "decimal number"),
        ("\u0661", "decimal number"),  # an Arabic digit one
        ("\uff11", "decimal number"),  # a full-width one
        ("NaN", "decimal number"),
        ("inf", "decimal number"),
        ("0x10", "decimal number"),
        ("9" * 10_000, "decimal number"),
        ("0.0000000001", "nine decimals"),
        ("-1", "negative"),
        ("9223372036.854775808", "out of range"),
        (1.5, "not a float"),
        (1, "not a int"),
        (None, "not a NoneType"),
    ],
)
def test_what_is_not_plainly_an_amount_is_refused(text, complaint):
    with pytest.raises(AmountError, match=complaint):
        parse_usd(text)


def test_negative_amounts_only_where_allowed():
    assert parse_usd("-1.5", allow_negative=True) == -1_500_000_000
    assert parse_usd("-9223372036.854775808", allow_negative=True) == -(2**63)
    with pytest.raises(AmountError, match="out of range"):
        parse_usd("-9223372036.854775809", allow_negative=True)


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(0, "0.00"), (1, "0.000000001"), (-1, "-0.000000001"), (10_500_000_001, "10.500000001"), (5_000_000_000, "5.00")],
)
def test_an_amount_has_two_decimals_or_as_many_as_it_needs(nanos, text):
    assert format_usd(nanos) == text


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_formatting_loses_nothing(nanos):
    assert parse_usd(format_usd(nanos), allow_negative=True) == nanos


def test_credits_are_cents_and_exact():
    assert amounts.credits(65_000_000) == Decimal("6.5")
    assert amounts.credits(1) * amounts.NANOS_PER_CREDIT == 1
    assert amounts.NANOS_PER_USD == 100 * amounts.NANOS_PER_CREDIT


def _amount(*given_amounts, **rules):
    violations = Violations()
    amount = request_amount(violations, *given_amounts, **rules)
    return amount, [(v.field, v.description) for v in violations.found]


def test_request_names_its_amount_once():
    assert _amount(12, "") == (12, [])
    assert _amount(0, "0.000000012") == (12, [])
    assert _amount(12, "0.01") == (0, [("amount_usd", "give amount_nanos or amount_usd, not both")])
    assert _amount(0, "", required=False) == (0, [])


@pytest.mark.parametrize(
    ("nanos", "usd", "field"),
    [
        (0, "", "amount_nanos"),
        (-1, "", "amount_nanos"),
        (0, "-1", "amount_usd"),
        (0, "0", "amount_usd"),
        (0, "x", "amount_usd"),
    ],
)
def test_amount_that_is_none_is_a_violation_of_its_field(nanos, usd, field):
    _, violations = _amount(nanos, usd)
    assert [name for name, _ in violations] == [field]


def test_zero_and_negative_amounts_where_allowed():
    assert _amount(0, "", allow_zero=True) == (0, [])
    assert _amount(None, "", allow_zero=True)[1] == [("amount_nanos", "give amount_nanos or amount_usd")]
    assert _amount(0, "0.01", allow_zero=True)[1] == [("amount_usd", "give amount_nanos or amount_usd, not both")]
    assert _amount(None, "0.00", allow_zero=True) == (0, [])
    assert _amount(-5, "", allow_negative=True) == (-5, [])
    assert _amount(0, "-0.000000005", allow_negative=True) == (-5, [])


def test_amount_fields_can_have_other_names():
    violations = Violations()
    request_amount(violations, 0, "1.2345678901", nanos_field="limit_nanos", usd_field="daily_limit_usd")
    with pytest.raises(InvalidArgument, match="daily_limit_usd"):
        violations.raise_if_any()
