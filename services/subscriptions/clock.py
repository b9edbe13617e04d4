"""Owns the present moment, so that a test may set it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Now, in UTC, to the microsecond: what Postgres keeps, so that a moment read back is the one written."""
    return datetime.now(UTC)
