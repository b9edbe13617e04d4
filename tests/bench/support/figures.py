"""Owns the arithmetic of figures: percentiles, medians of rounds and their spread."""

import math
import statistics
from collections.abc import Iterable, Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that `percent` of them do not exceed. Raises ValueError where there are none."""
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def median(values: Iterable[float]) -> float:
    """The median. Raises statistics.StatisticsError where there are none."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """How far rounds lie apart: largest less smallest, as a share of the median; 0 for one round."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def rounded(value: float, digits: int = 4) -> float:
    """`value` to so many significant digits, for people and for JSON."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
