"""Owns the JSON inside rows: an account's grants and limits, a hold's reservations, an entry's grant uses.

Grants and limits are lists of values in the order of their fields: they are read and written with every operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import orjson

from services.ledger.model.book import Grant, GrantUses, Limit


def grants_json(grants: Iterable[Grant]) -> str:
    """The grants of an account's row."""
    return orjson.dumps(
        [
            (g.grant_id, g.source, g.priority, g.order, g.expires_at, g.amount, g.remaining, g.reserved, g.rollover_cap)
            for g in grants
        ]
    ).decode()


def grants_of(document: list[list[Any]]) -> list[Grant]:
    """The same, read back."""
    return [
        Grant(i, source, priority, order, _moment(expires_at), *amounts)
        for i, source, priority, order, expires_at, *amounts in document
    ]


def limits_json(limits: Iterable[Limit]) -> str:
    """The limits of an account's, a key's or a workspace's row."""
    return orjson.dumps(
        [
            (
                x.scope, x.subject, x.unit, x.window, x.amount, x.mode, x.warn_percent,
                x.window_start, x.window_end, x.used, x.held,
            )
            for x in limits
        ]
    ).decode()  # fmt: skip


def limits_of(document: list[list[Any]]) -> list[Limit]:
    """The same, read back."""
    moment = datetime.fromisoformat
    return [
        Limit(scope, subject, unit, window, amount, mode, warn, moment(start), moment(end), used, held)
        for scope, subject, unit, window, amount, mode, warn, start, end, used, held in document
    ]


def uses_json(uses: GrantUses) -> str:
    """Pairs of grant and amount."""
    return orjson.dumps(uses).decode()


def uses_of(document: list[list[Any]]) -> GrantUses:
    """The same, read back."""
    return tuple((grant_id, amount) for grant_id, amount in document)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
