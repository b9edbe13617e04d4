"""Owns the checks of requests that several servicers share."""

from __future__ import annotations

from typing import Protocol

from services.kit.validation import Violations


class NamesAccount(Protocol):
    """A request about one account."""

    account_id: str


def account_named(request: NamesAccount) -> str:
    """The account a request is about. Raises InvalidArgument."""
    v = Violations()
    account_id = v.identifier("account_id", request.account_id)
    v.raise_if_any()
    return account_id
