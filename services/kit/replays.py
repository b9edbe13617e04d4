"""Owns how an answer says that it repeats the first answer to the same request."""

from __future__ import annotations

from typing import Any

REPLAYED = ("idempotency-replayed", "true")


def tell_replayed(context: Any) -> None:
    """Say in the trailing metadata of the call's `context`, sync or aio, that its answer is a repetition."""
    context.set_trailing_metadata((REPLAYED,))
