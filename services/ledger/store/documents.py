"""Owns the JSON inside rows: an account's grants and limits, a hold's reservations, an entry's grant uses.

Grants and limits are lists of values in the order of their fields: they are read and written with every operation,
and most of a limit is the same each time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import datetime
from operator import attrgetter
from typing import Any

import orjson

from services.ledger.model.book import Grant, GrantUses, Limit

_grant_fields = attrgetter(*Grant.__slots__)
_limit_terms = attrgetter(*Limit.__slots__[:9])
assert Limit.__slots__[9:] == ("used", "held", "terms")  # they are read by position


def grants_json(grants: Iterable[Grant]) -> str:
    """The grants of an account's row."""
    return orjson.dumps(list(map(_grant_fields, grants))).decode()


def grants_of(document: list[list[Any]]) -> list[Grant]:
    """The same, read back."""
    return [
        Grant(i, source, priority, order, _moment(expires_at), *amounts)
        for i, source, priority, order, expires_at, *amounts in document
    ]


def limits_json(limits: Iterable[Limit]) -> str:
    """The limits of an account's, a key's or a workspace's row."""
    return f"[{','.join([f'[{limit.terms or _written(limit)},{limit.used},{limit.held}]' for limit in limits])}]"


def _written(limit: Limit) -> str:
    """A limit's terms, which it keeps as they are written."""
    limit.terms = _json_of(_limit_terms(limit))
    return limit.terms


@functools.lru_cache(4096)  # those of many accounts are the same
def _json_of(terms: tuple[Any, ...]) -> str:
    return orjson.dumps(terms)[1:-1].decode()


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
