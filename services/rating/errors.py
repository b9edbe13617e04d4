"""Owns what price arithmetic refuses, as plain exceptions that know no transport.

RatingError
├── ComponentNotPriced   the usage has a component that the price says nothing about
├── InvalidUsage         the counts contradict each other
├── InvalidPriceCard     the rates contradict each other, or are not rates
└── CostTooLarge         the cost does not fit 64 bits
"""

from __future__ import annotations

from dataclasses import dataclass


class RatingError(Exception):
    """Base of what price arithmetic refuses."""


class ComponentNotPriced(RatingError):  # noqa: N818 (it names the refusal, as the contract does)
    """The usage has a component that the price says nothing about: it is refused, never free by mistake."""

    def __init__(self, *, provider: str, model: str, component: str, service_tier: str) -> None:
        super().__init__(f"{provider}/{model} has no {service_tier} rate for {component}")
        self.provider = provider
        self.model = model
        self.component = component
        self.service_tier = service_tier


class InvalidUsage(RatingError, ValueError):  # noqa: N818
    """Counts that contradict each other: a negative one, or parts above their whole. `field` says which."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field} {description}")
        self.field = field
        self.description = description


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a price: the path of the field (`rates[2].component`) and what it must be."""

    field: str
    description: str


class InvalidPriceCard(RatingError, ValueError):  # noqa: N818
    """Rates that contradict each other, or are not rates. `faults` names all of them."""

    def __init__(self, name: str, faults: list[Fault]) -> None:
        super().__init__(f"{name}: " + "; ".join(f"{fault.field} {fault.description}" for fault in faults))
        self.faults = faults


class CostTooLarge(RatingError, OverflowError):  # noqa: N818
    """The cost does not fit a signed 64-bit number of nanos (9.2 billion dollars)."""
