"""Owns the ledger's RPCs: contract message → model → service → contract message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.errors import ServiceError
from services.kit.paging import page_position, page_token
from services.kit.validation import Violations
from services.ledger.errors import LinkedOperationFailed
from services.ledger.model.operations import (
    AccountState,
    HoldMade,
    HoldReleased,
    HoldSettled,
    LimitState,
    Operation,
    Posted,
)
from services.ledger.service import Ledger
from services.ledger.store.reads import TransactionFilter, UsageFilter
from services.ledger.store.summaries import DIMENSIONS, SummaryFilter
from services.ledger.wire import answers, requests

MAX_OPERATIONS = 1000
MAX_FILTER_CHARS = 200

Context = grpc.aio.ServicerContext[Any, Any]
_M = TypeVar("_M", bound=Message)


def _checked(build: Callable[[Violations, _M], Operation], request: _M) -> Operation:
    """The operation of a request. Raises InvalidArgument naming every field that is wrong."""
    v = Violations()
    operation = build(v, request)
    v.raise_if_any()
    return operation


class _Servicer:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def _do(self, operation: Operation, context: Context) -> Any:
        """Do one operation; its answer. A replay says so in trailing metadata. Raises its refusal."""
        result = await self._ledger.do(operation)
        if result.replayed:
            context.set_trailing_metadata((("idempotency-replayed", "true"),))
        return result.outcome


class AccountServicer(_Servicer, contract.AccountServiceServicer):
    """Accounts and their balances."""

    async def OpenAccount(self, request: pb.OpenAccountRequest, context: Context) -> resources.Account:
        state: AccountState = await self._do(_checked(requests.open_account, request), context)
        return answers.account_message(state.book)

    async def GetAccount(self, request: pb.GetAccountRequest, context: Context) -> resources.Account:
        return answers.account_message(await self._ledger.account(_account_id(request)))

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Context) -> pb.ListAccountsResponse:
        v = Violations()
        size = v.page_size("page_size", request.page_size, default=100)
        position = page_position(v, request, str)
        if request.status:
            v.one_of("status", request.status, ("open", "suspended", "closed"))
        v.raise_if_any()
        after = str(position[0]) if position else ""
        books = await self._ledger.accounts(after=after, status=request.status, count=size + 1)
        return pb.ListAccountsResponse(
            accounts=[answers.account_message(book) for book in books[:size]],
            next_page_token=page_token(request, books[size - 1].account_id) if len(books) > size else "",
        )

    async def SuspendAccount(self, request: pb.SuspendAccountRequest, context: Context) -> resources.Account:
        operation = _checked(lambda v, r: requests.set_status(v, r, "suspended", r.reason), request)
        state: AccountState = await self._do(operation, context)
        return answers.account_message(state.book)

    async def ResumeAccount(self, request: pb.ResumeAccountRequest, context: Context) -> resources.Account:
        operation = _checked(lambda v, r: requests.set_status(v, r, "open", ""), request)
        state: AccountState = await self._do(operation, context)
        return answers.account_message(state.book)

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> resources.Balance:
        v = Violations()
        v.identifier("account_id", request.account_id)
        if request.HasField("as_of"):
            v.add("as_of", "balances of past times are not served yet; leave it out")
        v.raise_if_any()
        return answers.balance_message(await self._ledger.balance(request.account_id))


class LedgerServicer(_Servicer, contract.LedgerServiceServicer):
    """What moves money or counts use."""

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        v = Violations()
        v.count("operations", request.operations, at_least=1, at_most=MAX_OPERATIONS)
        if request.operations and request.operations[-1].linked:
            v.add(f"operations[{len(request.operations) - 1}].linked", "the last operation cannot be linked to a next")
        v.raise_if_any()
        found: list[pb.OperationResult] = [pb.OperationResult() for _ in request.operations]
        groups, places = _groups(request, found)
        results = await self._ledger.apply(groups) if groups else []
        for place, result in zip(places, results, strict=True):
            found[place].CopyFrom(answers.result_message(result))
        return pb.ApplyResponse(results=found)

    async def CreditAccount(self, request: pb.CreditAccountRequest, context: Context) -> resources.Transaction:
        posted: Posted = await self._do(_checked(requests.credit, request), context)
        return answers.transaction_message(posted.entry)

    async def CreateHold(self, request: pb.CreateHoldRequest, context: Context) -> pb.CreateHoldResponse:
        made: HoldMade = await self._do(_checked(requests.create_hold, request), context)
        return answers.hold_made_message(made)

    async def SettleHold(self, request: pb.SettleHoldRequest, context: Context) -> pb.SettleHoldResponse:
        settled: HoldSettled = await self._do(_checked(requests.settle_hold, request), context)
        return answers.hold_settled_message(settled)

    async def ReleaseHold(self, request: pb.ReleaseHoldRequest, context: Context) -> resources.Hold:
        released: HoldReleased = await self._do(_checked(requests.release_hold, request), context)
        return answers.hold_message(released.hold)

    async def GetHold(self, request: pb.GetHoldRequest, context: Context) -> resources.Hold:
        v = Violations()
        v.identifier("account_id", request.account_id)
        v.identifier("hold_id", request.hold_id)
        v.raise_if_any()
        return answers.hold_message(await self._ledger.hold(request.account_id, request.hold_id))

    async def SetLimit(self, request: pb.SetLimitRequest, context: Context) -> resources.Limit:
        state: LimitState = await self._do(_checked(requests.set_limit, request), context)
        return answers.limit_message(state.account_id, state.limit)

    async def DeleteLimit(self, request: pb.DeleteLimitRequest, context: Context) -> pb.DeleteLimitResponse:
        await self._do(_checked(requests.delete_limit, request), context)
        return pb.DeleteLimitResponse()

    async def ListLimits(self, request: pb.ListLimitsRequest, context: Context) -> pb.ListLimitsResponse:
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        if request.scope:
            v.one_of("scope", request.scope, requests.SCOPES)
        v.identifier("subject", request.subject, required=False)
        v.raise_if_any()
        limits = await self._ledger.limits(account_id, scope=request.scope, subject=request.subject)
        return pb.ListLimitsResponse(limits=[answers.limit_message(account_id, limit) for limit in limits])


class JournalServicer(_Servicer, contract.JournalServiceServicer):
    """The journal and the usage records."""

    async def GetTransaction(self, request: pb.GetTransactionRequest, context: Context) -> resources.Transaction:
        v = Violations()
        v.identifier("account_id", request.account_id)
        v.identifier("transaction_id", request.transaction_id)
        v.raise_if_any()
        return answers.transaction_message(await self._ledger.transaction(request.account_id, request.transaction_id))

    async def ListTransactions(
        self, request: pb.ListTransactionsRequest, context: Context
    ) -> pb.ListTransactionsResponse:
        v = Violations()
        size = v.page_size("page_size", request.page_size, default=100)
        before = page_position(v, request, int)
        if request.type:
            v.one_of("type", request.type, requests.TYPES)
        wanted = TransactionFilter(
            type=request.type, **_common_filter(v, request), provider=request.provider, model=request.model
        )
        v.raise_if_any()
        entries = await self._ledger.transactions(wanted, before=_number(before), count=size + 1)
        return pb.ListTransactionsResponse(
            transactions=[answers.transaction_message(entry) for entry in entries[:size]],
            next_page_token=page_token(request, entries[size - 1].sequence) if len(entries) > size else "",
        )

    async def ListUsage(self, request: pb.ListUsageRequest, context: Context) -> pb.ListUsageResponse:
        v = Violations()
        size = v.page_size("page_size", request.page_size, default=100)
        before = page_position(v, request, int)
        if request.status:
            v.one_of("status", request.status, ("ok", "cut", "failed"))
        wanted = UsageFilter(
            session=v.text("session", request.session, max_length=MAX_FILTER_CHARS),
            status=request.status,
            **_common_filter(v, request),
            provider=request.provider,
            model=request.model,
        )
        v.raise_if_any()
        rows = await self._ledger.usage(wanted, before=_number(before), count=size + 1)
        return pb.ListUsageResponse(
            records=[answers.usage_message(row) for row in rows[:size]],
            next_page_token=page_token(request, rows[size - 1].usage_number) if len(rows) > size else "",
        )

    async def ListWorkspaces(self, request: pb.ListWorkspacesRequest, context: Context) -> pb.ListWorkspacesResponse:
        v = Violations()
        v.identifier("account_id", request.account_id)
        start, end = v.month("month", request.month)
        v.raise_if_any()
        rows = await self._ledger.summaries(SummaryFilter(request.account_id, start, end), ["workspace"])
        return pb.ListWorkspacesResponse(
            month=f"{start:%Y-%m}", workspaces=[answers.summary_message(row) for row in rows]
        )

    async def SummarizeUsage(self, request: pb.SummarizeUsageRequest, context: Context) -> pb.SummarizeUsageResponse:
        v = Violations()
        group_by = _dimensions(v, request.group_by, tuple(DIMENSIONS))
        common = _common_filter(v, request)
        common["from_time"], common["to_time"] = _period(v, common["from_time"], common["to_time"])
        v.raise_if_any()
        wanted = SummaryFilter(**common, provider=request.provider, model=request.model)
        rows = await self._ledger.summaries(wanted, group_by)
        return pb.SummarizeUsageResponse(summaries=[answers.summary_message(row) for row in rows])

    async def SummarizeAllUsage(
        self, request: pb.SummarizeAllUsageRequest, context: Context
    ) -> pb.SummarizeAllUsageResponse:
        v = Violations()
        group_by = _dimensions(v, request.group_by, ("day", "month", "provider", "model"))
        start = requests.moment(v, "from", request.from_time) if request.HasField("from_time") else None
        end = requests.moment(v, "to", request.to_time) if request.HasField("to_time") else None
        wanted = SummaryFilter("", *_period(v, start, end))
        v.raise_if_any()
        rows = await self._ledger.summaries(wanted, group_by)
        return pb.SummarizeAllUsageResponse(
            summaries=[answers.summary_message(row) for row in rows],
            active_accounts=await self._ledger.active_accounts(wanted),
        )


def _dimensions(v: Violations, names: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """What to sum by, each once."""
    v.count("group_by", names, at_most=len(allowed))
    for number, name in enumerate(names[: len(allowed)]):
        v.one_of(f"group_by[{number}]", name, allowed)
        if name in names[:number]:
            v.add(f"group_by[{number}]", "is named twice")
    return list(names)


def _period(v: Violations, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
    """From the present month's start until now, where nothing else is said."""
    now = datetime.now(UTC)
    start, end = start or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0), end or now
    if start > end:
        v.add("from", "must not be after `to`")
    return start, end


def _account_id(request: pb.GetAccountRequest) -> str:
    v = Violations()
    v.identifier("account_id", request.account_id)
    v.raise_if_any()
    return request.account_id


def _number(position: tuple[str | int, ...] | None) -> int | None:
    return int(position[0]) if position else None


def _common_filter(
    v: Violations, request: pb.ListTransactionsRequest | pb.ListUsageRequest | pb.SummarizeUsageRequest
) -> dict[str, Any]:
    """The part of a filter that lists and sums share."""
    v.identifier("account_id", request.account_id)
    v.identifier("key", request.key_id, required=False)
    v.identifier("workspace", request.workspace, required=False)
    v.text("provider", request.provider, max_length=MAX_FILTER_CHARS)
    v.text("model", request.model, max_length=MAX_FILTER_CHARS)
    from_time = requests.moment(v, "from", request.from_time) if request.HasField("from_time") else None
    to_time = requests.moment(v, "to", request.to_time) if request.HasField("to_time") else None
    return {
        "account_id": request.account_id,
        "from_time": from_time,
        "to_time": to_time,
        "key_id": request.key_id,
        "workspace": request.workspace,
    }


def _groups(request: pb.ApplyRequest, found: list[pb.OperationResult]) -> tuple[list[list[Operation]], list[int]]:
    """The well-formed linked groups of a batch, and the place of each of their operations in it.

    A group with an operation that is malformed is answered at once: that one with what is wrong, the others as linked.
    """
    groups: list[list[Operation]] = []
    places: list[int] = []
    group: list[Operation] = []
    first = 0
    refusals: dict[int, ServiceError] = {}
    for index, message in enumerate(request.operations):
        v = Violations()
        operation = requests.operation_of(v, message)
        try:
            v.raise_if_any()
        except ServiceError as refusal:
            refusals[index] = refusal
        if operation is not None:
            group.append(operation)
        if message.linked:
            continue
        members = range(first, index + 1)
        if not refusals:
            groups.append(group)
            places.extend(members)
        else:
            others = LinkedOperationFailed("another operation of the group is malformed")
            for place in members:
                found[place].error.CopyFrom(answers.status_message(refusals.get(place, others)))
        group, first, refusals = [], index + 1, {}
    return groups, places
