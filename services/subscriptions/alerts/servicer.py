"""Owns the passage between AlertService's messages and alerts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb
from tollkeeper.subscriptions.v1 import operator_service_pb2_grpc, resources_pb2

from services.kit.paging import page_position, page_token
from services.kit.times import timestamp
from services.kit.validation import Violations
from services.subscriptions.alerts.service import Alerts, NewEndpoint, check_owner
from services.subscriptions.alerts.store import Endpoint, RaisedAlert

_MAX_ID_CHARS = 100


class AlertServicer(operator_service_pb2_grpc.AlertServiceServicer):
    """AlertService."""

    def __init__(self, alerts: Alerts) -> None:
        self._alerts = alerts

    def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:
        violations = Violations()
        violations.identifier("account_id", request.account_id)
        page_size = violations.page_size("page_size", request.page_size, default=100)
        before = page_position(violations, request, datetime, str)
        violations.raise_if_any()
        page, last = self._alerts.raised(request.account_id, before=before, page_size=page_size)
        token = page_token(request, last.created_at, last.alert_id) if last is not None else ""
        return pb.ListAlertsResponse(alerts=map(_alert, page), next_page_token=token)

    def ReplayAlert(self, request: pb.ReplayAlertRequest, context: Any) -> resources_pb2.Alert:
        violations = Violations()
        violations.text("alert_id", request.alert_id, max_length=_MAX_ID_CHARS, required=True)
        violations.raise_if_any()
        return _alert(self._alerts.replay(request.alert_id))

    def CreateAlertEndpoint(self, request: pb.CreateAlertEndpointRequest, context: Any) -> resources_pb2.AlertEndpoint:
        made = self._alerts.add_endpoint(NewEndpoint(request.account_id, request.url, tuple(request.types)))
        message = _endpoint(made)
        message.signing_secret = made.signing_secret
        return message

    def ListAlertEndpoints(self, request: pb.ListAlertEndpointsRequest, context: Any) -> pb.ListAlertEndpointsResponse:
        violations = Violations()
        check_owner(violations, request.account_id)
        violations.raise_if_any()
        return pb.ListAlertEndpointsResponse(endpoints=map(_endpoint, self._alerts.endpoints(request.account_id)))

    def DeleteAlertEndpoint(
        self, request: pb.DeleteAlertEndpointRequest, context: Any
    ) -> pb.DeleteAlertEndpointResponse:
        violations = Violations()
        check_owner(violations, request.account_id)
        violations.text("endpoint_id", request.endpoint_id, max_length=_MAX_ID_CHARS, required=True)
        violations.raise_if_any()
        self._alerts.delete_endpoint(request.account_id, request.endpoint_id)
        return pb.DeleteAlertEndpointResponse()


def _alert(alert: RaisedAlert) -> resources_pb2.Alert:
    return resources_pb2.Alert(
        alert_id=alert.alert_id,
        account_id=alert.account_id,
        type=alert.type,
        message=alert.message,
        created_at=timestamp(alert.created_at),
        delivery_status=alert.status,
        attempts=alert.attempts,
        next_attempt_at=timestamp(alert.next_attempt_at),
    )


def _endpoint(endpoint: Endpoint) -> resources_pb2.AlertEndpoint:
    return resources_pb2.AlertEndpoint(
        endpoint_id=endpoint.endpoint_id,
        account_id=endpoint.account_id,
        url=endpoint.url,
        types=endpoint.types,
        created_at=timestamp(endpoint.created_at),
    )
