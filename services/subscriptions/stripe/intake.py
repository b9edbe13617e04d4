"""Owns the taking in of Stripe's events: the signature on the raw body, and the commit that the answer waits for."""

from __future__ import annotations

from collections.abc import Sequence

import stripe
from prometheus_client import Counter
from sqlalchemy import Engine

from services.kit.logs import get_logger
from services.subscriptions.errors import StripeNotConfigured, WebhookRefused
from services.subscriptions.stripe import events_store, mirror_store
from services.subscriptions.stripe.events import APPLIED_TYPES, NotAnEventError, ReadEvent, read_event

_log = get_logger(__name__)

MAX_BODY_BYTES = 1024 * 1024

_EVENTS = Counter(
    "tollkeeper_subscriptions_stripe_events", "Stripe events, by type and by what became of them", ["type", "outcome"]
)


def count_event(event_type: str, outcome: str) -> None:
    """Count what became of an event; types that are not acted upon are counted together."""
    _EVENTS.labels(event_type if event_type in APPLIED_TYPES else "other", outcome).inc()


class Intake:
    """Takes events in."""

    def __init__(self, engine: Engine, *, secrets: Sequence[str], tolerance_seconds: int) -> None:
        self._engine = engine
        self._secrets = tuple(secrets)
        self._tolerance_seconds = tolerance_seconds

    def receive(self, raw: bytes, signature: str) -> bool:
        """Keep a delivered event, committed when this returns; False where it was kept before.

        Raises WebhookRefused for what Stripe has not signed, just now, with one of the secrets; StripeNotConfigured
        without any.
        """
        if not self._secrets:
            raise StripeNotConfigured("events are not taken in here: there is no secret to verify them with")
        try:
            body = self._verified(raw, signature)
            event = read_event(body)
        except (stripe.SignatureVerificationError, ValueError, TypeError) as error:
            why = _told(error)
            count_event("", "refused")
            _log.warning("webhook refused", why=why, bytes=len(raw))
            raise WebhookRefused(f"not an event that Stripe has signed: {why}") from error
        return self.keep(event, body)

    def _verified(self, raw: bytes, signature: str) -> str:
        """The body as text, where one of the secrets has signed it. Raises SignatureVerificationError, ValueError."""
        if len(raw) > MAX_BODY_BYTES:
            raise NotAnEventError(f"more than {MAX_BODY_BYTES} bytes")
        body = raw.decode("utf-8")
        if "\x00" in body:
            raise NotAnEventError("not JSON")
        for secret in self._secrets[:-1]:
            try:
                stripe.WebhookSignature.verify_header(body, signature, secret, self._tolerance_seconds)
            except (stripe.SignatureVerificationError, TypeError):
                continue
            return body
        stripe.WebhookSignature.verify_header(body, signature, self._secrets[-1], self._tolerance_seconds)
        return body

    def keep(self, event: ReadEvent, body: str) -> bool:
        """Keep an event that came from Stripe; False where it is kept already."""
        with self._engine.begin() as connection:
            account_id = mirror_store.account_of(connection, event.customer_id) if event.customer_id else ""
            is_new = events_store.insert_event(connection, event, body, account_id=account_id)
        count_event(event.type, "received" if is_new else "repeated")
        return is_new


def _told(error: Exception) -> str:
    """Why, in a line, repeating nothing of what was sent."""
    if isinstance(error, NotAnEventError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    said = str(error)
    if "tolerance" in said:
        return "signed too long ago"
    return "no valid signature"
