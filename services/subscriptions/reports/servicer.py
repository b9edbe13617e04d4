"""Owns ReportService on the wire."""

from __future__ import annotations

from typing import Any

from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import ReportServiceServicer

from services.subscriptions.reports.messages import overview_report
from services.subscriptions.reports.service import Reports


class ReportServicer(ReportServiceServicer):
    """Operators' reports."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    def GetOverviewReport(self, request: pb.GetOverviewReportRequest, context: Any) -> pb.OverviewReport:
        """See the contract."""
        return overview_report(self._reports.overview())
