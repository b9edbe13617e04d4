"""Owns how Stripe's meters are told and asked, through the official client."""

from __future__ import annotations

from datetime import datetime

import stripe

from services.subscriptions.metering.model import MeterEvent, meter_event_name
from services.subscriptions.metering.reporting import ReportFailedError

# Answers that say no; all else (no answer, too many requests, a fault of theirs) may go by.
_REFUSALS = (stripe.InvalidRequestError, stripe.AuthenticationError, stripe.PermissionError, stripe.CardError)
# The only sign by which a repeat is told from other invalid requests: it has no code of its own.
_ALREADY_THERE = "already exists with identifier"
_MAX_METERS = 1000
_PAGE_SIZE = 100


class StripeMeterReporter:
    """Stripe's meters. The meters themselves are made by the set-up command."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self._client = client
        self._meters: dict[str, str] = {}

    def report(self, event: MeterEvent) -> None:
        """See MeterReporter. Each attempt has a key of its own: the identifier alone is what makes it count once.

        Under one key a fault of Stripe's would be the answer to every repeat, for a day, and the invoice final by then.
        Source: docs.stripe.com/api/idempotent_requests.
        """
        try:
            self._client.v1.billing.meter_events.create(
                params={
                    "event_name": meter_event_name(event.metric),
                    "payload": {"stripe_customer_id": event.customer_id, "value": str(event.value)},
                    "identifier": event.identifier,
                    "timestamp": int(event.stamped_at.timestamp()),
                }
            )
        except stripe.StripeError as error:
            if isinstance(error, stripe.InvalidRequestError) and _ALREADY_THERE in str(error):
                return
            raise _failure(error) from error

    def counted(self, customer_id: str, metric: str, start: datetime, end: datetime) -> int:
        """See MeterReporter. Stripe sums up a little later than it takes in."""
        try:
            summaries = self._client.v1.billing.meters.event_summaries.list(
                self._meter_id(metric),
                params={
                    "customer": customer_id,
                    "start_time": int(start.timestamp()),
                    "end_time": int(end.timestamp()),
                },
            )
            # Without a grouping window there is one summary, or none where nothing was counted.
            return sum(int(summary.aggregated_value) for summary in summaries.data)
        except stripe.StripeError as error:
            raise _failure(error) from error

    def _meter_id(self, metric: str) -> str:
        name = meter_event_name(metric)
        if name not in self._meters:
            listed = self._client.v1.billing.meters.list(params={"status": "active", "limit": _PAGE_SIZE})
            found = {}
            for number, meter in enumerate(listed.auto_paging_iter()):
                if number >= _MAX_METERS:
                    break
                found[meter.event_name] = meter.id
            self._meters = found
        if name not in self._meters:
            raise ReportFailedError(f"there is no meter of event name {name}: run the set-up command", refused=True)
        return self._meters[name]


def _failure(error: stripe.StripeError) -> ReportFailedError:
    return ReportFailedError(f"{type(error).__name__}: {error}", refused=isinstance(error, _REFUSALS))
