"""Owns exact arithmetic on amounts: decimals of a cent, tiers, shares of a period. No float ever holds money."""

from __future__ import annotations

import dataclasses
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Final

from deploy.local.sandbox.stripe.refusal import Obj

_PLACES: Final = 12


def cents(amount: Decimal) -> int:
    """A whole number of cents, halves away from zero, as Stripe rounds a line."""
    return int(amount.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def plain(amount: Decimal) -> str:
    """A decimal as Stripe writes it: no exponent, no trailing zeros."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def places(amount: Decimal) -> int:
    """How many digits stand behind the point."""
    exponent = amount.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def fits(amount: Decimal) -> bool:
    """Whether Stripe takes so many decimal places (12)."""
    return places(amount) <= _PLACES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Charged:
    """One line's worth of a price: a quantity at a unit amount, or a tier's flat amount."""

    quantity: int
    unit_amount: Decimal
    amount: int
    tier: int | None = None
    flat: bool = False


def charges(price: Obj, quantity: Decimal) -> list[Charged]:
    """What `quantity` costs at `price` (tiers in `_tiers`): one line, or one for each tier that is reached."""
    if price["billing_scheme"] == "tiered":
        return _volume(price, quantity) if price["tiers_mode"] == "volume" else _graduated(price, quantity)
    transform = price["transform_quantity"]
    if transform is not None:
        rounding = ROUND_CEILING if transform["round"] == "up" else ROUND_FLOOR
        quantity = (quantity / transform["divide_by"]).quantize(Decimal(1), rounding=rounding)
    unit = Decimal(price["unit_amount_decimal"])
    return [Charged(quantity=whole(quantity), unit_amount=unit, amount=cents(unit * quantity))]


def whole(quantity: Decimal) -> int:
    """A quantity as a line shows it."""
    return int(quantity.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def _graduated(price: Obj, quantity: Decimal) -> list[Charged]:
    found: list[Charged] = []
    below = Decimal(0)
    for number, tier in enumerate(price["_tiers"], start=1):
        top = quantity if tier["up_to"] is None else min(quantity, Decimal(tier["up_to"]))
        if top <= below and number > 1:
            break
        found += _in_tier(tier, number, max(top - below, Decimal(0)))
        below = top
    return found


def _volume(price: Obj, quantity: Decimal) -> list[Charged]:
    for number, tier in enumerate(price["_tiers"], start=1):
        if tier["up_to"] is None or quantity <= tier["up_to"]:
            return _in_tier(tier, number, quantity)
    raise AssertionError(price["id"])  # the last tier has no end


def _in_tier(tier: Obj, number: int, quantity: Decimal) -> list[Charged]:
    unit = Decimal(tier["unit_amount_decimal"] or 0)
    lines = [Charged(quantity=whole(quantity), unit_amount=unit, amount=cents(unit * quantity), tier=number)]
    if tier["flat_amount_decimal"] is not None and quantity > 0:
        flat = Decimal(tier["flat_amount_decimal"])
        lines.append(Charged(quantity=0, unit_amount=flat, amount=cents(flat), tier=number, flat=True))
    return lines


def total(price: Obj, quantity: Decimal) -> int:
    """What `quantity` costs at `price`, in cents."""
    return sum(charge.amount for charge in charges(price, quantity))


def share(amount: int, part_seconds: int, whole_seconds: int) -> int:
    """`amount` cents times a share of a period, to the second; halves of a cent away from zero.

    Source: docs.stripe.com/billing/subscriptions/prorations: Stripe prorates to the second.
    """
    return cents(Decimal(amount) * part_seconds / whole_seconds) if whole_seconds else 0


def unit(amount: Decimal, currency: str) -> str:
    """A unit amount in cents as a person reads it: `$19.00`, or `$0.00002` where it is finer than a cent."""
    return dollars(int(amount), currency) if amount == int(amount) else f"{plain(amount / 100)} {currency.upper()}"


def dollars(amount: int, currency: str = "usd") -> str:
    """An amount as a person reads it: `$19.00`."""
    sign = "-" if amount < 0 else ""
    text = f"{abs(amount) // 100:,}.{abs(amount) % 100:02d}"
    return f"{sign}${text}" if currency == "usd" else f"{sign}{text} {currency.upper()}"
