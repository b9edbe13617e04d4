"""Owns the response headers that say what is left of a plan's quotas: of several, the one nearest to its end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources_pb

from services.kit.errors import ServiceError
from services.proxy.calls.delivery import Metadata

QUOTA_HEADERS = frozenset(f"x-quota-{what}" for what in ("metric", "limit", "remaining", "reset"))

# What plans call the units that the ledger counts.
_METRICS = {"tokens": "llm_tokens", "requests": "api_calls"}
# Limits of the whole account in its cycle, as the ledger names them: `{scope}:{subject}:{unit}:{window}`.
_METRIC_OF_LIMIT = {f"{scope}::{unit}:cycle": _METRICS[unit] for scope in ("plan", "account") for unit in _METRICS}


def quota_headers(quotas: Sequence[ledger_resources_pb.Quota]) -> Metadata:
    """The headers of the quota with the smallest share left; none where the ledger told of none."""
    if not quotas:
        return ()
    nearest = min(quotas, key=_share_left)
    metric = _METRICS.get(nearest.unit, nearest.unit)
    return _headers(metric, nearest.amount, nearest.remaining, nearest.resets_at.seconds)


def refusal_headers(refusal: ServiceError) -> Metadata:
    """The headers of the quota that refused a hold; none where something else did."""
    said = refusal.metadata
    metric = _METRIC_OF_LIMIT.get(said.get("limitId", ""))
    if metric is None or refusal.reason != "LIMIT_EXCEEDED":
        return ()
    try:
        amount = int(said["amount"])
        remaining = amount - int(said["used"]) - int(said["held"])
        resets_at = datetime.fromisoformat(said["resetsAt"])
    except (KeyError, ValueError):
        return ()  # the refusal itself matters more than what is said beside it
    return _headers(metric, amount, max(remaining, 0), int(resets_at.timestamp()))


def _share_left(quota: ledger_resources_pb.Quota) -> float:
    return quota.remaining / quota.amount if quota.amount else 0.0


def _headers(metric: str, limit: int, remaining: int, resets_at: int) -> Metadata:
    """As CheckQuota sends them: of what, its limit, what is left, when it begins anew in seconds since 1970."""
    return (
        ("x-quota-metric", metric),
        ("x-quota-limit", str(limit)),
        ("x-quota-remaining", str(remaining)),
        ("x-quota-reset", str(resets_at)),
    )
