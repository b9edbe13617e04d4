"""Owns MeteringService on the wire."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1 import resources_pb2 as resources
from tollkeeper.subscriptions.v1.billing_service_pb2_grpc import MeteringServiceServicer

from services.kit.call import current_identity
from services.kit.identity import Role
from services.kit.refusals import Overloaded
from services.kit.times import moment_of, timestamp
from services.kit.validation import Violations
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.errors import StreamTooLong
from services.subscriptions.metering.model import (
    MAX_EVENT_AGE,
    MAX_EVENT_LEAD,
    MAX_EVENTS,
    MAX_QUANTITY,
    METRICS,
    Quota,
    UsageEvent,
)
from services.subscriptions.metering.service import Metering
from services.subscriptions.model.credits import percent
from services.subscriptions.servicer.requests import account_named

_MAX_ID_CHARS = 100
_MAX_LABELS, _MAX_LABEL_CHARS = 20, 100
_MAX_INT64 = 2**63 - 1
# A stream occupies a thread while it lasts.
_MAX_STREAMS = 8
_MAX_STREAM_MESSAGES = 1000
_STREAM_SECONDS = 900.0


class MeteringServicer(MeteringServiceServicer):
    """Usage and quotas."""

    def __init__(self, metering: Metering, *, clock: Clock = utc_now) -> None:
        self._metering = metering
        self._clock = clock
        self._streams = threading.BoundedSemaphore(_MAX_STREAMS)

    def ListQuotas(self, request: pb.ListQuotasRequest, context: Any) -> pb.ListQuotasResponse:
        """See the contract."""
        quotas = self._metering.quotas(account_named(request))
        return pb.ListQuotasResponse(quotas=[_quota(quota, quota.terms.cap) for quota in quotas])

    def EmitEvents(self, request: pb.EmitEventsRequest, context: Any) -> pb.EmitEventsResponse:
        """See the contract. A service, which may emit thousands a second, gets no headers: each costs a look."""
        events = self._events(request, "events")
        emitted = self._metering.emit(request.account_id, events)
        if current_identity().role is not Role.SERVICE:
            quota = self._metering.nearest(request.account_id, {event.metric for event in events})
            if quota is not None:
                context.send_initial_metadata(_headers(quota))
        return pb.EmitEventsResponse(accepted=emitted.accepted, duplicates=emitted.duplicates)

    def StreamEvents(self, requests: Iterator[pb.StreamEventsRequest], context: Any) -> pb.StreamEventsResponse:
        """See the contract. Each message is committed before the next is read: a stream that breaks may be repeated."""
        if not self._streams.acquire(blocking=False):
            raise Overloaded(f"this process takes in its {_MAX_STREAMS} streams already", retry_after_seconds=5)
        ending = threading.Timer(_STREAM_SECONDS, context.cancel)
        ending.daemon = True
        ending.start()
        accepted = duplicates = 0
        try:
            for number, request in enumerate(requests):
                if number >= _MAX_STREAM_MESSAGES:
                    raise StreamTooLong(f"a stream takes at most {_MAX_STREAM_MESSAGES} messages; begin another one")
                emitted = self._metering.emit(request.account_id, self._events(request, f"messages[{number}].events"))
                accepted += emitted.accepted
                duplicates += emitted.duplicates
        finally:
            ending.cancel()
            self._streams.release()
        return pb.StreamEventsResponse(accepted=accepted, duplicates=duplicates)

    def CheckQuota(self, request: pb.CheckQuotaRequest, context: Any) -> pb.CheckQuotaResponse:
        """See the contract. The headers go out with a refusal too."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        metric = v.one_of("metric", request.metric, METRICS)
        quantity = request.quantity or 1
        v.between("quantity", quantity, 1, MAX_QUANTITY)
        v.raise_if_any()
        verdict = self._metering.check(account_id, metric, quantity)
        if verdict.quota is not None:
            context.send_initial_metadata(_headers(verdict.quota))
        verdict.raise_if_refused(self._clock())
        answer = pb.CheckQuotaResponse(allowed=True, quota=resources.Quota(metric=metric))
        if verdict.quota is not None:
            answer.quota.CopyFrom(_quota(verdict.quota, verdict.cap))
        return answer

    def _events(self, request: pb.EmitEventsRequest | pb.StreamEventsRequest, field: str) -> list[UsageEvent]:
        """The events of a request. Raises InvalidArgument naming what is wrong with any of them."""
        v = Violations()
        v.identifier("account_id", request.account_id)
        v.count(field, request.events, at_least=1, at_most=MAX_EVENTS)
        v.raise_if_any()
        now = self._clock()
        events = [_event(v, f"{field}[{number}]", event, now) for number, event in enumerate(request.events)]
        v.raise_if_any()
        return events


def _event(v: Violations, field: str, event: pb.UsageEvent, now: datetime) -> UsageEvent:
    v.text(f"{field}.id", event.id, max_length=_MAX_ID_CHARS, required=True)
    v.one_of(f"{field}.metric", event.metric, METRICS)
    v.between(f"{field}.quantity", event.quantity, 1, MAX_QUANTITY)
    occurred_at = now
    if event.HasField("time"):
        faults = len(v.found)
        occurred_at = moment_of(v, f"{field}.time", event.time)
        if len(v.found) == faults and not now - MAX_EVENT_AGE <= occurred_at <= now + MAX_EVENT_LEAD:
            v.add(f"{field}.time", "must be at most 35 days ago and 5 minutes ahead")
    v.count(f"{field}.labels", event.labels, at_most=_MAX_LABELS)
    for key, value in event.labels.items():
        v.text(f"{field}.labels", key, max_length=_MAX_LABEL_CHARS, required=True)
        v.text(f"{field}.labels[{key[:_MAX_LABEL_CHARS]}]", value, max_length=_MAX_LABEL_CHARS)
    return UsageEvent(event.id, event.metric, event.quantity, occurred_at, dict(event.labels))


def _headers(quota: Quota) -> Sequence[tuple[str, str]]:
    """The quota as Envoy passes it on: of what, its limit, what is left, when it begins anew in seconds since 1970."""
    return (
        ("x-quota-metric", quota.terms.metric),
        ("x-quota-limit", str(quota.terms.limit)),
        ("x-quota-remaining", str(quota.remaining)),
        ("x-quota-reset", str(int(quota.resets_at.timestamp()))),
    )


def _quota(quota: Quota, cap: str) -> resources.Quota:
    """A quota; sums beyond what the wire holds are the most that it holds."""
    return resources.Quota(
        metric=quota.terms.metric,
        limit=quota.terms.limit,
        used=min(quota.use.used, _MAX_INT64),
        remaining=quota.remaining,
        cap=cap,
        overage=min(quota.overage, _MAX_INT64),
        overage_nanos=min(quota.overage_nanos, _MAX_INT64),
        resets_at=timestamp(quota.resets_at),
        percent_used=float(percent(quota.use.used, quota.terms.limit)),
    )
