"""Owns the JSON inside rows: an account's grants and limits, a hold's reservations, an entry's grant uses.

Grants and limits are lists of values in the order of their fields: they are read and written with every operation.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import datetime
from operator import attrgetter
from typing import Any

from services.ledger.model.book import Grant, GrantUses, Limit

_grant_fields = attrgetter(*Grant.__slots__)
_limit_fields = attrgetter(*Limit.__slots__)


def grant_lists(grants: Iterable[Grant]) -> list[Any]:
    """The grants of an account's row."""
    return list(map(_grant_fields, grants))


def grants_of(document: list[list[Any]]) -> list[Grant]:
    """The same, read back."""
    return [
        Grant(i, source, priority, order, _moment(expires_at), *amounts)
        for i, source, priority, order, expires_at, *amounts in document
    ]


def limit_lists(limits: Iterable[Limit]) -> list[Any]:
    """The limits of an account's, a key's or a workspace's row."""
    return list(map(_limit_fields, limits))


def limits_of(document: list[list[Any]]) -> list[Limit]:
    """The same, read back."""
    return [
        Limit(scope, subject, unit, window, amount, mode, warn, _moment_of(start), _moment_of(end), used, held)
        for scope, subject, unit, window, amount, mode, warn, start, end, used, held in document
    ]


def uses_of(document: list[list[Any]]) -> GrantUses:
    """Pairs of grant and amount."""
    return tuple((grant_id, amount) for grant_id, amount in document)


# Windows of all accounts begin and end at few moments.
_moment_of = functools.lru_cache(4096)(datetime.fromisoformat)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
