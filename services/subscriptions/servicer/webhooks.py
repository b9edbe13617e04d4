"""Owns WebhookService on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from google.api import httpbody_pb2  # type: ignore[import-untyped]
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb
from tollkeeper.subscriptions.v1 import resources_pb2 as resources
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import WebhookServiceServicer

from services.kit.paging import page_position, page_token
from services.kit.times import moment_of, timestamp
from services.kit.validation import Violations
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.stripe.events import STATUSES, StoredEvent
from services.subscriptions.stripe.intake import Intake
from services.subscriptions.stripe.reconcile import DEFAULT_SINCE, LONGEST_SINCE, Reconciliation
from services.subscriptions.stripe.replay import EventLog

_SIGNATURE = "stripe-signature"
_DEFAULT_PAGE_SIZE = 100
_MAX_TEXT = 255


class WebhookServicer(WebhookServiceServicer):
    """Stripe's events."""

    def __init__(
        self, intake: Intake, events: EventLog, reconciliation: Reconciliation, *, clock: Clock = utc_now
    ) -> None:
        self._intake = intake
        self._events = events
        self._reconciliation = reconciliation
        self._clock = clock

    def ReceiveStripeEvent(self, request: httpbody_pb2.HttpBody, context: Any) -> pb.ReceiveStripeEventResponse:
        """See the contract."""
        signatures = [value for key, value in context.invocation_metadata() if key == _SIGNATURE]
        self._intake.receive(request.data, signatures[0] if len(signatures) == 1 else "")
        return pb.ReceiveStripeEventResponse(received=True)

    def ListStripeEvents(self, request: pb.ListStripeEventsRequest, context: Any) -> pb.ListStripeEventsResponse:
        """See the contract."""
        v = Violations()
        status = v.one_of("status", request.status, STATUSES) if request.status else ""
        event_type = v.text("type", request.type, max_length=_MAX_TEXT)
        page_size = v.page_size("page_size", request.page_size, default=_DEFAULT_PAGE_SIZE)
        position = page_position(v, request, datetime, str)
        v.raise_if_any()
        before = (position[0], position[1]) if position else None
        page, more = self._events.list(status=status, event_type=event_type, before=before, page_size=page_size)
        token = page_token(request, page[-1].received_at, page[-1].event_id) if more else ""
        return pb.ListStripeEventsResponse(events=[stripe_event(event) for event in page], next_page_token=token)

    def ReplayStripeEvent(self, request: pb.ReplayStripeEventRequest, context: Any) -> resources.StripeEvent:
        """See the contract."""
        v = Violations()
        event_id = v.text("event_id", request.event_id, max_length=_MAX_TEXT, required=True)
        v.raise_if_any()
        return stripe_event(self._events.replay(event_id))

    def ReconcileStripe(self, request: pb.ReconcileStripeRequest, context: Any) -> pb.ReconcileStripeResponse:
        """See the contract."""
        now = self._clock()
        since = now - DEFAULT_SINCE
        if request.HasField("since"):
            v = Violations()
            since = moment_of(v, "since", request.since)
            if not v.found and not now - LONGEST_SINCE <= since <= now:
                v.add("since", "must be within the last 30 days, for which Stripe keeps events")
            v.raise_if_any()
        found = self._reconciliation.events(since)
        return pb.ReconcileStripeResponse(events_seen=found.seen, events_recovered=found.recovered)


def stripe_event(event: StoredEvent) -> resources.StripeEvent:
    """An event as it is kept."""
    return resources.StripeEvent(
        event_id=event.event_id,
        type=event.type,
        status=event.status,
        created_at=timestamp(event.created_at),
        received_at=timestamp(event.received_at),
        applied_at=timestamp(event.applied_at),
        last_error=event.last_error,
        attempts=event.attempts,
    )
