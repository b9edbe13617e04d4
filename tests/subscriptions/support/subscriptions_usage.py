# ruff: noqa: N802 (RPCs are named by their contracts)
"""Owns a ledger that sums usage as its contract says: by account and over all, by its dimensions, in a period."""

from datetime import UTC, datetime

import grpc
from subscriptions_peers import FakeLedger
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

_SUMMED = ("total_tokens", "cost_nanos", "billed_nanos")


class SummingLedger(FakeLedger):
    """`book_call` books a call; a period holds what was booked at or after its start and before its end."""

    def book_call(self, account_id, moment, **fields):
        record = resources.UsageRecord(account_id=account_id, **fields)
        record.created_at.FromDatetime(moment)
        with self.lock:
            self.records.append(record)

    def SummarizeUsage(self, request, context):
        with self.call("SummarizeUsage", request, context):
            if request.account_id not in self.books:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such account")
            of_account = [record for record in self.records if record.account_id == request.account_id]
            return ledger_pb.SummarizeUsageResponse(summaries=_summaries(of_account, request))

    def SummarizeAllUsage(self, request, context):
        with self.call("SummarizeAllUsage", request, context):
            return ledger_pb.SummarizeAllUsageResponse(summaries=_summaries(self.records, request))


def _summaries(records, request):
    start, end = request.from_time.ToDatetime(tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
    if request.HasField("to_time"):
        end = request.to_time.ToDatetime(tzinfo=UTC)
    assert start <= end
    found = {}
    for record in records:
        if not start <= record.created_at.ToDatetime(tzinfo=UTC) < end:
            continue
        group = tuple(getattr(record, name) for name in request.group_by)
        summary = found.setdefault(group, resources.UsageSummary(**dict(zip(request.group_by, group, strict=True))))
        summary.requests += 1
        for name in _SUMMED:
            setattr(summary, name, getattr(summary, name) + getattr(record, name))
    return list(found.values()) or ([] if request.group_by else [resources.UsageSummary()])
