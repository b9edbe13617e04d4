"""Owns what a call costs, the most it can cost, and how much output a balance can pay for: exact integers throughout.

A cost is the sum over its parts of quantity times rate, kept as one exact numerator and rounded once, half-even, to a
nano. The billed amount is that same exact sum times the plan's multiplier, rounded once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from services.rating.card import (
    INPUT_TOKEN_COMPONENTS,
    MAX_NANOS,
    OUTPUT_TOKEN_COMPONENTS,
    STANDARD,
    UNIT_COMPONENTS,
    PriceCard,
)
from services.rating.errors import ComponentNotPriced, CostTooLarge
from services.rating.usage import INPUT_PARTS, OUTPUT_PARTS, Usage, plain_tokens

AT_COST_MILLIONTHS = 1_000_000
# What `affordable_output_tokens` answers where output costs nothing: above any model's window, within 32 bits.
UNLIMITED_TOKENS = 2**31 - 1

# Numerators count billionths of a nano: rates are for 10^6 units, and time is counted in thousandths of its unit.
_PER_UNIT = 1_000
_SCALE = 1_000_000_000
_BILLED_SCALE = _SCALE * AT_COST_MILLIONTHS

_OUTPUT_COMPONENTS = frozenset((*OUTPUT_TOKEN_COMPONENTS, "image"))

# What a usage is costed by, in the order in which its parts are told, and the counts of all but plain input and output.
_COSTED = (*INPUT_TOKEN_COMPONENTS, *OUTPUT_TOKEN_COMPONENTS, *UNIT_COMPONENTS)
_PARTS_OF_INPUT = attrgetter(*INPUT_PARTS)
_OTHERS = attrgetter(*OUTPUT_PARTS, "images", "characters", "milliseconds", "requests")


class CostPart(NamedTuple):
    """One part of a cost. `cost_nanos` is rounded for itself, for display; the total is rounded from the exact sum.

    `quantity` is in the component's unit, but in milliseconds for `second`.
    """

    component: str
    quantity: int
    nanos_per_million: int
    cost_nanos: int


class Cost(NamedTuple):
    """What a call costs: the provider's price, what the customer is billed, and what it is made of, all in nanos.

    Fees per request, characters and seconds of audio count as input, images made as output. `input_cost_nanos` and
    `output_cost_nanos` are each rounded for themselves, so they may differ from `cost_nanos` by one in all.
    """

    cost_nanos: int
    billed_nanos: int
    input_cost_nanos: int
    output_cost_nanos: int
    price_version: int
    parts: tuple[CostPart, ...]


def half_even(numerator: int, denominator: int) -> int:
    """The quotient, to the nearest integer, ties to the even one; `denominator` is positive."""
    quotient, remainder = divmod(numerator, denominator)
    doubled = 2 * remainder
    if doubled > denominator or (doubled == denominator and quotient % 2):
        return quotient + 1
    return quotient


def cost(
    card: PriceCard,
    usage: Usage,
    *,
    service_tier: str = STANDARD,
    multiplier_millionths: int = AT_COST_MILLIONTHS,
) -> Cost:
    """What a call with this usage costs by this price.

    Raises ComponentNotPriced where a component with a quantity has no rate, InvalidUsage, CostTooLarge.
    """
    plain_input, plain_output = plain_tokens(usage)
    parts = []
    quantities = (plain_input, *_PARTS_OF_INPUT(usage), plain_output, *_OTHERS(usage))
    for component, quantity in zip(_COSTED, quantities, strict=True):
        if not quantity:
            continue
        rate = card.rate(component, service_tier, usage.input_tokens)
        if rate is not None:
            parts.append((component, quantity, rate))
        elif component != "request":  # most models ask no fee per request, and say so by not naming one
            raise _not_priced(card, component, service_tier)
    return _summed(card, parts, multiplier_millionths)


def upper_bound(
    card: PriceCard,
    max_input_tokens: int,
    max_output_tokens: int,
    *,
    images: int = 0,
    requests: int = 1,
    service_tier: str = STANDARD,
    multiplier_millionths: int = AT_COST_MILLIONTHS,
    components: Collection[str] | None = None,
) -> Cost:
    """The most that a call within these counts can cost: no usage within them costs or is billed more.

    All input is taken at the dearest input component, all output at the dearest output component, both at the dearest
    threshold that so much input can reach. `components` names the token components that the call can have besides plain
    `input` and `output` (a call without audio cannot be billed for any); None: any.
    Raises ComponentNotPriced where a component that the call can have has no rate, CostTooLarge, and ValueError for a
    negative count.
    """
    if min(max_input_tokens, max_output_tokens, images, requests) < 0:
        raise ValueError("a count must not be negative")
    parts = []
    for plain, quantity, possible in (
        ("input", max_input_tokens, INPUT_TOKEN_COMPONENTS),
        ("output", max_output_tokens, OUTPUT_TOKEN_COMPONENTS),
        ("image", images, ("image",)),
        ("request", requests, ("request",)),
    ):
        if not quantity:
            continue
        dearest = card.dearest(_allowed(plain, possible, components), service_tier, max_input_tokens)
        if dearest is not None and (plain == "request" or card.rate(plain, service_tier, 0) is not None):
            parts.append((dearest[0], quantity, dearest[1]))
        elif plain != "request":
            raise _not_priced(card, plain, service_tier)
    return _summed(card, parts, multiplier_millionths)


def most_billed(
    card: PriceCard,
    max_input_tokens: int,
    max_output_tokens: Iterable[int],
    *,
    service_tier: str = STANDARD,
    multiplier_millionths: int = AT_COST_MILLIONTHS,
    components: Collection[str] | None = None,
) -> tuple[int, ...]:
    """What `upper_bound` bills, in nanos, for one request of so much input and each of these amounts of output.

    It is asked for each call that is made, so the rates are looked up once for all of them. Raises as `upper_bound`.
    """
    outputs = tuple(max_output_tokens)
    if min(max_input_tokens, multiplier_millionths, *outputs) < 0:
        raise ValueError("a count must not be negative, nor the multiplier")
    allowed = None if components is None else frozenset(components)
    fixed = per_token = 0
    if max_input_tokens:
        fixed = _dearest_numerator(card, "input", allowed, service_tier, max_input_tokens) * max_input_tokens
    fee = card.dearest(("request",), service_tier, max_input_tokens)
    if fee is not None:
        fixed += _numerator("request", 1, fee[1])
    if any(outputs):
        per_token = _dearest_numerator(card, "output", allowed, service_tier, max_input_tokens)
    totals = [fixed + per_token * output for output in outputs]
    billed = tuple(half_even(total * multiplier_millionths, _BILLED_SCALE) for total in totals)
    if max(*billed, half_even(max(totals), _SCALE)) > MAX_NANOS:
        raise _too_large(card)
    return billed


def _dearest_numerator(
    card: PriceCard, plain: str, components: frozenset[str] | None, service_tier: str, max_input_tokens: int
) -> int:
    """What one token of input or output can cost at the most, as a numerator. Raises ComponentNotPriced."""
    dearest = card.dearest(_tokens_allowed(plain, components), service_tier, max_input_tokens)
    if dearest is None or card.rate(plain, service_tier, 0) is None:
        raise _not_priced(card, plain, service_tier)
    return _numerator(dearest[0], 1, dearest[1])


def affordable_output_tokens(
    card: PriceCard,
    nanos: int,
    input_tokens: int,
    *,
    images: int = 0,
    requests: int = 1,
    service_tier: str = STANDARD,
    multiplier_millionths: int = AT_COST_MILLIONTHS,
    components: Collection[str] | None = None,
) -> int:
    """The largest output cap whose `upper_bound` bills at most `nanos`, given at most `input_tokens` of input.

    0 where not one token of output can be paid for, also where the input alone is too dear; UNLIMITED_TOKENS at most.
    Raises as `upper_bound`.
    """
    fixed = upper_bound(
        card,
        input_tokens,
        0,
        images=images,
        requests=requests,
        service_tier=service_tier,
        components=components,
    )
    allowed = _allowed("output", OUTPUT_TOKEN_COMPONENTS, components)
    dearest = card.dearest(allowed, service_tier, input_tokens)
    if dearest is None or card.rate("output", service_tier, 0) is None:
        raise _not_priced(card, "output", service_tier)
    # What rounds half-even to `nanos` or less is at most nanos + ½, that half only where nanos is even.
    most = nanos * _BILLED_SCALE + _BILLED_SCALE // 2 - nanos % 2
    left = most - sum(_numerator(part.component, part.quantity, part.nanos_per_million) for part in fixed.parts) * (
        multiplier_millionths
    )
    if left < 0:
        return 0
    per_token = _numerator(dearest[0], 1, dearest[1]) * multiplier_millionths
    if per_token == 0:
        return UNLIMITED_TOKENS
    return min(left // per_token, UNLIMITED_TOKENS)


def _allowed(plain: str, possible: Collection[str], components: Collection[str] | None) -> list[str]:
    return [name for name in possible if name == plain or components is None or name in components]


@lru_cache(1024)
def _tokens_allowed(plain: str, components: frozenset[str] | None) -> tuple[str, ...]:
    """The token components of input or output that a call with these components can have."""
    return tuple(_allowed(plain, INPUT_TOKEN_COMPONENTS if plain == "input" else OUTPUT_TOKEN_COMPONENTS, components))


def _numerator(component: str, quantity: int, nanos_per_million: int) -> int:
    exact = quantity * nanos_per_million
    return exact if component == "second" else exact * _PER_UNIT


def _summed(card: PriceCard, parts: list[tuple[str, int, int]], multiplier_millionths: int) -> Cost:
    """The cost of (component, quantity, rate) parts. Raises CostTooLarge, and ValueError for a negative multiplier."""
    if multiplier_millionths < 0:
        raise ValueError("multiplier_millionths must not be negative")
    of_input = of_output = 0
    itemised = []
    for component, quantity, rate in parts:
        numerator = _numerator(component, quantity, rate)
        if component in _OUTPUT_COMPONENTS:
            of_output += numerator
        else:
            of_input += numerator
        itemised.append(CostPart(component, quantity, rate, half_even(numerator, _SCALE)))
    total = of_input + of_output
    found = Cost(
        cost_nanos=half_even(total, _SCALE),
        billed_nanos=half_even(total * multiplier_millionths, _BILLED_SCALE),
        input_cost_nanos=half_even(of_input, _SCALE),
        output_cost_nanos=half_even(of_output, _SCALE),
        price_version=card.version,
        parts=tuple(itemised),
    )
    if max(found.cost_nanos, found.billed_nanos) > MAX_NANOS:
        raise _too_large(card)
    return found


def _too_large(card: PriceCard) -> CostTooLarge:
    return CostTooLarge(f"a call of {card.provider}/{card.model} would cost more than {MAX_NANOS} nanos")


def _not_priced(card: PriceCard, component: str, service_tier: str) -> ComponentNotPriced:
    return ComponentNotPriced(provider=card.provider, model=card.model, component=component, service_tier=service_tier)
