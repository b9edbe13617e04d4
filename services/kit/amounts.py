"""Owns money on the wire and for people: integer nano-USD, decimal strings, credits. No float comes in or goes out."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.kit.validation import Violations

NANOS_PER_USD = 1_000_000_000
NANOS_PER_CREDIT = 10_000_000  # 1 credit = $0.01
MAX_NANOS = 2**63 - 1
MIN_NANOS = -(2**63)

_MAX_DECIMALS = 9
_MAX_CHARS = 40
_USD = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?")


class AmountError(ValueError):
    """Text that is no amount; the message says why and is fit for the caller."""


def parse_usd(text: str, *, allow_negative: bool = False) -> int:
    """Nanos of a decimal string of US dollars: "10.00" → 10_000_000_000.

    Exact: at most nine decimals, plain ASCII digits, no exponent, sign `+`, thousands separator or white space.
    Raises AmountError otherwise, also for a float, and for a value that does not fit 64 bits.
    """
    if not isinstance(text, str):
        raise AmountError(f'must be a decimal string such as "10.00", not a {type(text).__name__}')
    match = _USD.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if match is None:
        raise AmountError('must be a decimal number of dollars such as "10.00", without exponent, sign + or separators')
    sign, whole, decimals = match[1], match[2], match[3] or ""
    if len(decimals) > _MAX_DECIMALS:
        raise AmountError("must have at most nine decimals")
    nanos = int(whole) * NANOS_PER_USD + int(decimals.ljust(_MAX_DECIMALS, "0"))
    nanos = -nanos if sign else nanos
    if nanos < 0 and not allow_negative:
        raise AmountError("must not be negative")
    if not MIN_NANOS <= nanos <= MAX_NANOS:
        raise AmountError("is out of range")
    return nanos


def format_usd(nanos: int) -> str:
    """A decimal string of US dollars, exact, with at least two decimals: 10_500_000_001 → "10.500000001"."""
    whole, rest = divmod(abs(nanos), NANOS_PER_USD)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}{whole}.{decimals}"


def credits(nanos: int) -> Decimal:  # noqa: A001 (the field's term; nobody needs the interactive help's `credits` here)
    """Credits, exact: 65_000_000 → Decimal("6.5")."""
    return Decimal(nanos) / NANOS_PER_CREDIT


def request_amount(
    violations: Violations,
    amount_nanos: int | None,
    amount_usd: str | None,
    *,
    nanos_field: str = "amount_nanos",
    usd_field: str = "amount_usd",
    required: bool = True,
    allow_zero: bool = False,
    allow_negative: bool = False,
) -> int:
    """The nanos a request names, either as integer nanos or as a decimal string of dollars, never both.

    None, 0 and "" mean not given, as in proto3 (0 counts as given where zero is allowed). What is wrong is added to
    `violations`; then, and where nothing is given, the result is 0.
    """
    nanos_given = amount_nanos is not None if allow_zero else bool(amount_nanos)
    if amount_usd:
        if nanos_given:
            violations.add(usd_field, f"give {nanos_field} or {usd_field}, not both")
            return 0
        try:
            nanos, field = parse_usd(amount_usd, allow_negative=allow_negative), usd_field
        except AmountError as error:
            violations.add(usd_field, str(error))
            return 0
    elif amount_nanos is not None and nanos_given:
        nanos, field = amount_nanos, nanos_field
    else:
        if required:
            least = "" if allow_zero else ", greater than zero"
            violations.add(nanos_field, f"give {nanos_field} or {usd_field}{least}")
        return 0
    if nanos < 0 and not allow_negative:
        violations.add(field, "must not be negative")
        return 0
    if nanos == 0 and not allow_zero:
        violations.add(field, "must be greater than zero")
    return nanos
