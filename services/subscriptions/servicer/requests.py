"""Owns the checks of requests that several servicers share."""

from __future__ import annotations

from typing import Protocol

from services.kit.validation import Violations
from services.subscriptions.stripe.checkout import ReturnUrls
from services.subscriptions.stripe.urls import return_url


class NamesAccount(Protocol):
    """A request about one account."""

    account_id: str


def account_named(request: NamesAccount) -> str:
    """The account a request is about. Raises InvalidArgument."""
    v = Violations()
    account_id = v.identifier("account_id", request.account_id)
    v.raise_if_any()
    return account_id


class ReturnsBrowser(Protocol):
    """A request for a page that a browser comes back from."""

    success_url: str
    cancel_url: str


def return_urls(v: Violations, request: ReturnsBrowser, default: str) -> ReturnUrls:
    """Where a browser goes afterwards."""
    return ReturnUrls(
        success=return_url(v, "success_url", request.success_url, default),
        cancel=return_url(v, "cancel_url", request.cancel_url, default),
    )
