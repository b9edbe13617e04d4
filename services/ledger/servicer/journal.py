"""Owns the RPCs that read the journal and the usage records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime

from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.paging import page_position, page_token
from services.kit.times import moment_of
from services.kit.validation import Violations
from services.ledger.export.files import FORMATS, new_file, pieces
from services.ledger.feed import UsageFeed
from services.ledger.model.windows import window_containing
from services.ledger.service import Ledger
from services.ledger.servicer.base import MAX_FILTER_CHARS, Context, Servicer, place
from services.ledger.servicer.filters import common_filter, dimensions, period
from services.ledger.store import day_sums
from services.ledger.store.exports import WHAT
from services.ledger.store.reads import TransactionFilter, UsageFilter
from services.ledger.store.summaries import DIMENSIONS, MAX_SUMMARIES, SummaryFilter
from services.ledger.wire import answers, requests

# Of which one question may be asked at once.
MAX_ACCOUNTS = 1_000


class JournalServicer(Servicer, contract.JournalServiceServicer):
    """The journal and the usage records."""

    def __init__(self, ledger: Ledger, feed: UsageFeed) -> None:
        super().__init__(ledger)
        self._feed = feed

    async def GetTransaction(self, request: pb.GetTransactionRequest, context: Context) -> resources.Transaction:
        v = Violations()
        v.identifier("account_id", request.account_id)
        v.identifier("transaction_id", request.transaction_id)
        v.raise_if_any()
        posted = await self._ledger.transaction(request.account_id, request.transaction_id)
        return answers.transaction_message(posted.entry, posted.undone)

    async def ListTransactions(
        self, request: pb.ListTransactionsRequest, context: Context
    ) -> pb.ListTransactionsResponse:
        v = Violations()
        size = v.page_size("page_size", request.page_size, default=100)
        before = page_position(v, request, int)
        if request.type:
            v.one_of("type", request.type, requests.TYPES)
        wanted = TransactionFilter(type=request.type, **common_filter(v, request))
        v.raise_if_any()
        found = await self._ledger.transactions(request.account_id, wanted, before=place(before), count=size + 1)
        return pb.ListTransactionsResponse(
            transactions=[answers.transaction_message(posted.entry, posted.undone) for posted in found[:size]],
            next_page_token=page_token(request, found[size - 1].entry.sequence) if len(found) > size else "",
        )

    async def ListUsage(self, request: pb.ListUsageRequest, context: Context) -> pb.ListUsageResponse:
        v = Violations()
        size = v.page_size("page_size", request.page_size, default=100)
        before = page_position(v, request, int)
        if request.status:
            v.one_of("status", request.status, ("ok", "cut", "failed"))
        if request.type:
            v.one_of("type", request.type, requests.TYPES)
        wanted = UsageFilter(
            type=request.type,
            session=v.text("session", request.session, max_length=MAX_FILTER_CHARS),
            status=request.status,
            **common_filter(v, request),
        )
        v.raise_if_any()
        rows = await self._ledger.usage(request.account_id, wanted, before=place(before), count=size + 1)
        return pb.ListUsageResponse(
            records=[answers.usage_message(row) for row in rows[:size]],
            next_page_token=page_token(request, rows[size - 1].usage_number) if len(rows) > size else "",
        )

    async def ListWorkspaces(self, request: pb.ListWorkspacesRequest, context: Context) -> pb.ListWorkspacesResponse:
        v = Violations()
        v.identifier("account_id", request.account_id)
        size = v.page_size("page_size", request.page_size, default=MAX_SUMMARIES, most=MAX_SUMMARIES)
        position = page_position(v, request, str, str)
        # Where none is asked for, the pages stay in the month in which the first was given.
        start, end = v.month("month", position[0] if position else request.month)
        v.raise_if_any()
        after = position[1] if position else None
        rows = await self._ledger.workspaces(request.account_id, SummaryFilter(start, end), after=after, count=size + 1)
        month = f"{start:%Y-%m}"
        return pb.ListWorkspacesResponse(
            month=month,
            workspaces=[answers.summary_message(row) for row in rows[:size]],
            next_page_token=page_token(request, month, rows[size - 1].by_workspace) if len(rows) > size else "",
        )

    async def SummarizeUsage(self, request: pb.SummarizeUsageRequest, context: Context) -> pb.SummarizeUsageResponse:
        v = Violations()
        group_by = dimensions(v, request.group_by, tuple(DIMENSIONS))
        common = common_filter(v, request)
        common["from_time"], common["to_time"] = period(v, common["from_time"], common["to_time"])
        v.raise_if_any()
        rows = await self._ledger.summaries(request.account_id, SummaryFilter(**common), group_by)
        return pb.SummarizeUsageResponse(summaries=[answers.summary_message(row) for row in rows])

    async def SummarizeAllUsage(
        self, request: pb.SummarizeAllUsageRequest, context: Context
    ) -> pb.SummarizeAllUsageResponse:
        v = Violations()
        group_by = dimensions(v, request.group_by, tuple(day_sums.DIMENSIONS))
        start = moment_of(v, "from", request.from_time) if request.HasField("from_time") else None
        end = moment_of(v, "to", request.to_time) if request.HasField("to_time") else None
        start, end = period(v, start, end or window_containing("day", datetime.now(UTC))[1])
        v.raise_if_any()
        wanted = SummaryFilter(start, end)
        rows = await self._ledger.all_summaries(wanted, group_by)
        return pb.SummarizeAllUsageResponse(
            summaries=[answers.summary_message(row) for row in rows],
            active_accounts=await self._ledger.active_accounts(wanted),
        )

    async def SummarizeAccounts(
        self, request: pb.SummarizeAccountsRequest, context: Context
    ) -> pb.SummarizeAccountsResponse:
        v = Violations()
        if not 1 <= len(request.account_ids) <= MAX_ACCOUNTS:
            v.add("account_ids", f"must be 1 to {MAX_ACCOUNTS}")
        for number, account_id in enumerate(request.account_ids[:MAX_ACCOUNTS]):
            v.identifier(f"account_ids[{number}]", account_id)
        for number, kind in enumerate(request.types[: len(requests.TYPES)]):
            v.one_of(f"types[{number}]", kind, requests.TYPES)
        if len(request.types) > len(requests.TYPES):
            v.add("types", f"must be at most {len(requests.TYPES)}")
        start = moment_of(v, "from", request.from_time) if request.HasField("from_time") else None
        end = moment_of(v, "to", request.to_time) if request.HasField("to_time") else None
        start, end = period(v, start, end)
        v.raise_if_any()
        costs, given = await self._ledger.costs_and_credits(request.account_ids, request.types, start, end)
        return pb.SummarizeAccountsResponse(accounts=answers.account_summaries(costs, given))

    async def GetMonthlySummary(self, request: pb.GetMonthlySummaryRequest, context: Context) -> pb.MonthlySummary:
        v = Violations()
        v.identifier("account_id", request.account_id)
        start, end = v.month("month", request.month)
        v.raise_if_any()
        view = await self._ledger.month(request.account_id, start, end)
        return answers.month_message(request.account_id, f"{start:%Y-%m}", view)

    async def Export(self, request: pb.ExportRequest, context: Context) -> AsyncIterator[pb.ExportResponse]:
        v = Violations()
        v.identifier("account_id", request.account_id)
        what = v.one_of("what", request.what or "usage", WHAT)
        form = v.one_of("format", request.format or "csv", FORMATS)
        start = moment_of(v, "from", request.from_time) if request.HasField("from_time") else None
        end = moment_of(v, "to", request.to_time) if request.HasField("to_time") else None
        start, end = period(v, start, end)
        v.raise_if_any()
        async with (
            self._ledger.export(request.account_id, what, start, end) as following,
            aclosing(pieces(following, new_file(what, form))) as found,
        ):
            async for chunk, rows in found:
                yield pb.ExportResponse(chunk=chunk, rows=rows)

    async def StreamUsage(
        self, request: pb.StreamUsageRequest, context: Context
    ) -> AsyncIterator[pb.StreamUsageResponse]:
        v = Violations()
        size = v.page_size("batch_size", request.batch_size, default=500)
        v.raise_if_any()
        feed = self._feed.follow(request.cursor, batch_size=size, until_now=request.until_now)
        async with aclosing(feed) as following:
            async for answer in following:
                records = [answers.usage_message(row) for row in answer.rows]
                yield pb.StreamUsageResponse(records=records, cursor=str(answer.cursor))
