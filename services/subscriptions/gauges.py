"""Owns the gauges that only the leading worker sets: whoever leads no more forgets them, since another measures then.

An alert on what is left standing would never end.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Gauge

_PLAIN: list[Gauge] = []
_LABELLED: list[Gauge] = []


def leaders_gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    """A gauge that `forget` sets back: to 0, or to no series at all where it has labels."""
    gauge = Gauge(name, documentation, labels)
    (_LABELLED if labels else _PLAIN).append(gauge)
    return gauge


def forget() -> None:
    """Say nothing more of what was measured."""
    for gauge in _PLAIN:
        gauge.set(0)
    for gauge in _LABELLED:
        gauge.clear()
