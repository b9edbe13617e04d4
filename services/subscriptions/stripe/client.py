"""Owns the one client of Stripe: its key, address, timeouts and retries, and what Stripe's errors mean to a caller.

The library retries by itself what did not arrive, lock and rate refusals, and faults of Stripe's, each time with the
same idempotency key; what is left after that is told apart here:

    stripe.CardError                                     → PaymentFailed, with Stripe's words for the customer
    no answer, 409, 429, 5xx                             → StripeUnavailable; the same request may be sent again
    stripe.AuthenticationError, stripe.PermissionError   → StripeKeyInvalid, logged: an operator has to act
    stripe.IdempotencyError                              → IdempotencyConflict
    nothing to charge                                    → PaymentMethodMissing
    anything else                                        → StripeRefused, logged with Stripe's request id
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import stripe

from services.kit.logs import get_logger
from services.subscriptions.errors import (
    IdempotencyConflict,
    PaymentFailed,
    PaymentMethodMissing,
    StripeKeyInvalid,
    StripeNotConfigured,
    StripeRefused,
    StripeUnavailable,
    SubscriptionsError,
)
from services.subscriptions.settings import SubscriptionsSettings

_log = get_logger(__name__)

_RETRY_AFTER_SECONDS = 5.0
_CONFLICT, _TOO_MANY, _SERVER_FAULT = 409, 429, 500


def stripe_client(settings: SubscriptionsSettings) -> stripe.StripeClient | None:
    """Stripe's own client as the settings say; None without a key. Safe to share between threads."""
    key = settings.stripe_api_key.strip()  # as files and shells give it, with the line's end
    if not key:
        return None
    timeout = (settings.stripe_timeout_seconds, settings.stripe_timeout_seconds)
    base = settings.stripe_api_base.rstrip("/")
    return stripe.StripeClient(
        key,
        base_addresses={"api": base, "meter_events": base} if base else None,
        max_network_retries=settings.stripe_retries,
        http_client=stripe.RequestsClient(timeout=timeout),
    )


class StripeAccess:
    """The client, where there is one."""

    def __init__(self, client: stripe.StripeClient | None) -> None:
        self._client = client

    @property
    def configured(self) -> bool:
        """Whether there is a key."""
        return self._client is not None

    @property
    def client(self) -> stripe.StripeClient:
        """The client. Raises StripeNotConfigured."""
        if self._client is None:
            raise StripeNotConfigured("payments are not set up here: there is no key of Stripe's")
        return self._client

    def check(self) -> None:
        """Make the cheapest call that needs the key. Raises what `client` and `refusal` say."""
        with stripe_errors("check the key"):
            self.client.v1.products.list(params={"limit": 1})

    def check_soon(self) -> None:
        """Check the key, where there is one, without holding anybody up; what is wrong with it is logged."""
        if self.configured:
            threading.Thread(target=self._checked, name="stripe-check", daemon=True).start()

    def _checked(self) -> None:
        with suppress(SubscriptionsError):  # it has been logged
            self.check()
            _log.info("Stripe accepts the key")


@contextmanager
def stripe_errors(what: str, **logged: str) -> Iterator[None]:
    """Turn Stripe's errors inside into refusals of ours; `what` was asked and `logged` (ids) go to the log only."""
    try:
        yield
    except stripe.StripeError as error:
        raise refusal(error, what, **logged) from error


def refusal(error: stripe.StripeError, what: str, **logged: str) -> SubscriptionsError:
    """The refusal that an error of Stripe's becomes; all but a declined payment is logged."""
    if isinstance(error, stripe.CardError):
        return PaymentFailed(
            error.user_message or "the payment was declined",
            code=error.code or "",
            decline_code=decline_code(error),
        )
    if isinstance(error, stripe.IdempotencyError):
        return IdempotencyConflict("the request id was used before with other words")
    if _lacks_payment_method(error):
        return PaymentMethodMissing("there is no payment method that could be charged")
    told = {
        "asked": what,
        "error": type(error).__name__,
        "code": error.code or "",
        "said": error.user_message or "",
        "stripe_request_id": error.request_id or "",
        **logged,
    }
    if is_retryable(error):
        _log.warning("Stripe did not answer", **told)
        return StripeUnavailable("Stripe cannot be reached now", retry_after_seconds=_RETRY_AFTER_SECONDS)
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        _log.error("Stripe does not accept the key: set TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_KEY", **told)
        return StripeKeyInvalid("payments are not set up rightly here: Stripe does not accept the key")
    _log.error("Stripe refused", **told)
    return StripeRefused("Stripe refused the request", stripe_request_id=error.request_id or "", code=error.code or "")


def is_retryable(error: stripe.StripeError) -> bool:
    """Whether the same request, with the same idempotency key, may succeed later."""
    if isinstance(error, stripe.APIConnectionError | stripe.RateLimitError):
        return True
    status = error.http_status or 0
    return status in (_CONFLICT, _TOO_MANY) or status >= _SERVER_FAULT


def is_remembered(error: stripe.StripeError) -> bool:
    """Whether a fault of Stripe's is what it answers to every repeat with this idempotency key, for a day."""
    headers = error.headers or {}
    return (error.http_status or 0) >= _SERVER_FAULT and headers.get("idempotent-replayed") == "true"


def is_missing(error: stripe.StripeError) -> bool:
    """Whether the error says that there is no such object."""
    return isinstance(error, stripe.InvalidRequestError) and error.code == "resource_missing"


def _lacks_payment_method(error: stripe.StripeError) -> bool:
    # Stripe has no code of its own for it: "This customer has no attached payment source or default payment method."
    return is_missing(error) and "default payment method" in (error.user_message or "")


def decline_code(error: stripe.CardError) -> str:
    """Why the bank declined, in Stripe's terms; empty where it does not say."""
    return (error.error.decline_code or "") if error.error is not None else ""
