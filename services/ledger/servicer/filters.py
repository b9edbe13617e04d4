"""Owns the reading of filters that lists and sums of the journal share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.times import moment_of
from services.kit.validation import Violations
from services.ledger.servicer.base import MAX_FILTER_CHARS


def dimensions(v: Violations, names: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """What to sum by, each once."""
    v.count("group_by", names, at_most=len(allowed))
    for number, name in enumerate(names[: len(allowed)]):
        v.one_of(f"group_by[{number}]", name, allowed)
        if name in names[:number]:
            v.add(f"group_by[{number}]", "is named twice")
    return list(names)


def period(v: Violations, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
    """From the present month's start until now, where nothing else is said."""
    now = datetime.now(UTC)
    start, end = start or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0), end or now
    if start > end:
        v.add("from", "must not be after `to`")
    return start, end


def common_filter(
    v: Violations, request: pb.ListTransactionsRequest | pb.ListUsageRequest | pb.SummarizeUsageRequest
) -> dict[str, Any]:
    """The part of a filter that lists and sums share; the account is checked, and not in it."""
    v.identifier("account_id", request.account_id)
    v.identifier("key", request.key_id, required=False)
    v.identifier("workspace", request.workspace, required=False)
    v.text("provider", request.provider, max_length=MAX_FILTER_CHARS)
    v.text("model", request.model, max_length=MAX_FILTER_CHARS)
    from_time = moment_of(v, "from", request.from_time) if request.HasField("from_time") else None
    to_time = moment_of(v, "to", request.to_time) if request.HasField("to_time") else None
    return {
        "from_time": from_time,
        "to_time": to_time,
        "key_id": request.key_id,
        "workspace": request.workspace,
        "provider": request.provider,
        "model": request.model,
    }
