"""Owns price arithmetic, shared by pricing and proxy: what a call costs, and the most it can cost. No I/O."""

from services.rating.arithmetic import (
    AT_COST_MILLIONTHS,
    UNLIMITED_TOKENS,
    Cost,
    CostPart,
    affordable_output_tokens,
    cost,
    half_even,
    most_billed,
    upper_bound,
)
from services.rating.card import COMPONENTS, MODES, SERVICE_TIERS, STANDARD, PriceCard, Rate, rate_faults
from services.rating.errors import (
    ComponentNotPriced,
    CostTooLarge,
    Fault,
    InvalidPriceCard,
    InvalidUsage,
    RatingError,
)
from services.rating.usage import USAGE_FIELDS, Usage

__all__ = [
    "AT_COST_MILLIONTHS",
    "COMPONENTS",
    "MODES",
    "SERVICE_TIERS",
    "STANDARD",
    "UNLIMITED_TOKENS",
    "USAGE_FIELDS",
    "ComponentNotPriced",
    "Cost",
    "CostPart",
    "CostTooLarge",
    "Fault",
    "InvalidPriceCard",
    "InvalidUsage",
    "PriceCard",
    "Rate",
    "RatingError",
    "Usage",
    "affordable_output_tokens",
    "cost",
    "half_even",
    "most_billed",
    "rate_faults",
    "upper_bound",
]
