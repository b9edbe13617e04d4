"""Owns the ledger's sums of usage as reports see them.

Methods raise grpc.RpcError where the ledger refuses or does not answer, except where their docstrings say more.
"""

from __future__ import annotations

from datetime import datetime

import grpc
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources
from tollkeeper.ledger.v1.ledger_service_pb2_grpc import JournalServiceStub

from services.kit.errors import RemoteError
from services.kit.times import timestamp
from services.subscriptions.errors import AccountNotProvisioned
from services.subscriptions.reports.model import ModelUse, Span, Use


class LedgerUsage:
    """Sums of usage records, by when calls were booked."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._journal = JournalServiceStub(channel)

    def of_account(self, account_id: str, span: Span) -> Use:
        """One account's. Raises AccountNotProvisioned."""
        request = pb.SummarizeUsageRequest(
            account_id=account_id, from_time=timestamp(span.start), to_time=timestamp(span.end)
        )
        try:
            answer = self._journal.SummarizeUsage(request)
        except grpc.RpcError as error:
            if RemoteError.from_rpc(error).code is grpc.StatusCode.NOT_FOUND:
                raise AccountNotProvisioned("the account is still being set up", retry_after_seconds=5) from error
            raise
        return sum(map(_use, answer.summaries), Use())

    def by_model(self, start: datetime) -> list[ModelUse]:
        """All accounts', by provider and model, until now: of whole days the ledger has sums."""
        request = pb.SummarizeAllUsageRequest(group_by=["provider", "model"], from_time=timestamp(start))
        answer = self._journal.SummarizeAllUsage(request)
        return [ModelUse(summary.provider, summary.model, _use(summary)) for summary in answer.summaries]


def _use(summary: resources.UsageSummary) -> Use:
    return Use(summary.requests, summary.total_tokens, summary.cost_nanos, summary.billed_nanos)
