"""Owns the JSON documents inside rows: an account's grants and limits, a hold's reservations, an entry's grant uses."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import orjson

from services.ledger.model.book import Grant, GrantUses, Limit


def grants_json(grants: Iterable[Grant]) -> str:
    """The grants of an account's row."""
    return orjson.dumps([_fields(grant) for grant in grants]).decode()


def grants_of(document: list[dict[str, Any]]) -> list[Grant]:
    """The same, read back."""
    return [Grant(**fields | {"expires_at": _moment(fields["expires_at"])}) for fields in document]


def limits_json(limits: Iterable[Limit]) -> str:
    """The limits of an account's, a key's or a workspace's row."""
    return orjson.dumps([_fields(limit) for limit in limits]).decode()


def limits_of(document: list[dict[str, Any]]) -> list[Limit]:
    """The same, read back."""
    return [
        Limit(
            **fields
            | {
                "window_start": datetime.fromisoformat(fields["window_start"]),
                "window_end": datetime.fromisoformat(fields["window_end"]),
            }
        )
        for fields in document
    ]


def uses_json(uses: GrantUses) -> str:
    """Pairs of grant and amount."""
    return orjson.dumps(uses).decode()


def uses_of(document: list[list[Any]]) -> GrantUses:
    """The same, read back."""
    return tuple((grant_id, amount) for grant_id, amount in document)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _fields(row: Grant | Limit) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}
