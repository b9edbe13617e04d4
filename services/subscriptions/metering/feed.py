"""Owns the ledger's usage feed as metering sees it, and what the ledger sums, to reconcile with."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Protocol

import grpc
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1.ledger_service_pb2_grpc import JournalServiceStub

from services.kit.errors import RemoteError
from services.kit.times import timestamp
from services.subscriptions.metering.model import ProxiedCall
from services.subscriptions.model.plan import REQUESTS_METRIC, TOKENS_METRIC

_BATCH_SIZE = 1000
# Longest that one reading of the feed may take; the next one goes on where it ended.
_FEED_SECONDS = 60.0


class UsageFeed(Protocol):
    """The ledger's usage, as a feed and in sums."""

    def after(self, cursor: str) -> Iterator[tuple[list[ProxiedCall], str]]:
        """The calls after a cursor that are there now, in batches, each with the cursor behind it.

        Without those of internal keys, which nobody bills.
        """
        ...

    def sums(self, account_id: str, start: datetime, end: datetime) -> dict[str, int]:
        """Tokens and calls booked in `[start, end)`, by metric; without those of internal keys."""
        ...


class LedgerFeed:
    """The feed of a ledger. Raises RemoteError where the ledger refuses or does not answer."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._journal = JournalServiceStub(channel)

    def after(self, cursor: str) -> Iterator[tuple[list[ProxiedCall], str]]:
        """See UsageFeed."""
        request = pb.StreamUsageRequest(cursor=cursor, batch_size=_BATCH_SIZE, until_now=True)
        answers = self._journal.StreamUsage(request, timeout=_FEED_SECONDS)
        try:
            for answer in answers:
                calls = [
                    ProxiedCall(x.account_id, x.total_tokens, x.created_at.ToDatetime(tzinfo=UTC))
                    for x in answer.records
                    if not x.internal
                ]
                yield calls, answer.cursor
        except grpc.RpcError as error:
            raise RemoteError.from_rpc(error) from error
        finally:
            answers.cancel()

    def sums(self, account_id: str, start: datetime, end: datetime) -> dict[str, int]:
        """See UsageFeed."""
        request = pb.SummarizeUsageRequest(account_id=account_id, from_time=timestamp(start), to_time=timestamp(end))
        try:
            answer = self._journal.SummarizeUsage(request)
        except grpc.RpcError as error:
            raise RemoteError.from_rpc(error) from error
        return {
            TOKENS_METRIC: sum(x.total_tokens - x.internal_tokens for x in answer.summaries),
            REQUESTS_METRIC: sum(x.requests - x.internal_requests for x in answer.summaries),
        }
