"""Owns the RPCs of what moves money or counts use, and the way into a batch and out of it."""

from __future__ import annotations

from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.errors import ServiceError
from services.kit.paging import page_position, page_token
from services.kit.validation import Violations
from services.ledger.errors import LinkedOperationFailed
from services.ledger.model.operations import (
    Debited,
    HoldMade,
    HoldReleased,
    HoldSettled,
    LimitState,
    Operation,
    Posted,
)
from services.ledger.servicer.base import Context, Servicer, checked
from services.ledger.wire import answers, requests

MAX_OPERATIONS = 1000


class LedgerServicer(Servicer, contract.LedgerServiceServicer):
    """What moves money or counts use."""

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        v = Violations()
        v.count("operations", request.operations, at_least=1, at_most=MAX_OPERATIONS)
        if request.operations and request.operations[-1].linked:
            v.add(f"operations[{len(request.operations) - 1}].linked", "the last operation cannot be linked to a next")
        v.raise_if_any()
        response = pb.ApplyResponse()
        found = [response.results.add() for _ in request.operations]
        groups, places = _groups(request, found)
        results = await self._ledger.apply(groups) if groups else []
        for place, result in zip(places, results, strict=True):
            answers.fill_result(found[place], result)
        return response

    async def CreditAccount(self, request: pb.CreditAccountRequest, context: Context) -> resources.Transaction:
        posted: Posted = await self._do(checked(requests.credit, request), context)
        return answers.transaction_message(posted.entry, posted.undone)

    async def DebitAccount(self, request: pb.DebitAccountRequest, context: Context) -> pb.DebitAccountResponse:
        debited: Debited = await self._do(checked(requests.debit, request), context)
        response = pb.DebitAccountResponse()
        answers.fill_debited(response, debited)
        return response

    async def AdjustBalance(self, request: pb.AdjustBalanceRequest, context: Context) -> resources.Transaction:
        posted: Posted = await self._do(checked(requests.adjust, request), context)
        return answers.transaction_message(posted.entry, posted.undone)

    async def RefundTransaction(self, request: pb.RefundTransactionRequest, context: Context) -> resources.Transaction:
        posted: Posted = await self._do(checked(requests.refund, request), context)
        return answers.transaction_message(posted.entry, posted.undone)

    async def ReverseTransaction(
        self, request: pb.ReverseTransactionRequest, context: Context
    ) -> resources.Transaction:
        posted: Posted = await self._do(checked(requests.reverse, request), context)
        return answers.transaction_message(posted.entry, posted.undone)

    async def CreateHold(self, request: pb.CreateHoldRequest, context: Context) -> pb.CreateHoldResponse:
        made: HoldMade = await self._do(checked(requests.create_hold, request), context)
        response = pb.CreateHoldResponse()
        answers.fill_hold_made(response, made)
        return response

    async def ExtendHold(self, request: pb.ExtendHoldRequest, context: Context) -> pb.CreateHoldResponse:
        made: HoldMade = await self._do(checked(requests.extend_hold, request), context)
        response = pb.CreateHoldResponse()
        answers.fill_hold_made(response, made)
        return response

    async def SettleHold(self, request: pb.SettleHoldRequest, context: Context) -> pb.SettleHoldResponse:
        settled: HoldSettled = await self._do(checked(requests.settle_hold, request), context)
        response = pb.SettleHoldResponse()
        answers.fill_hold_settled(response, settled)
        return response

    async def ReleaseHold(self, request: pb.ReleaseHoldRequest, context: Context) -> resources.Hold:
        released: HoldReleased = await self._do(checked(requests.release_hold, request), context)
        return answers.hold_message(released.hold)

    async def GetHold(self, request: pb.GetHoldRequest, context: Context) -> resources.Hold:
        v = Violations()
        v.identifier("account_id", request.account_id)
        v.identifier("hold_id", request.hold_id)
        v.raise_if_any()
        return answers.hold_message(await self._ledger.hold(request.account_id, request.hold_id))

    async def ListHolds(self, request: pb.ListHoldsRequest, context: Context) -> pb.ListHoldsResponse:
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        if request.status:
            v.one_of("status", request.status, ("open", "settled", "released", "expired"))
        size = v.page_size("page_size", request.page_size, default=100)
        position = page_position(v, request, int)
        v.raise_if_any()
        holds, before = await self._ledger.holds(
            account_id, status=request.status, before=position[0] if position else None, count=size + 1
        )
        following = holds[size - 1].sequence if len(holds) > size else before
        return pb.ListHoldsResponse(
            holds=[answers.hold_message(hold) for hold in holds[:size]],
            next_page_token=page_token(request, following) if following > 1 else "",
        )

    async def SetLimit(self, request: pb.SetLimitRequest, context: Context) -> resources.Limit:
        state: LimitState = await self._do(checked(requests.set_limit, request), context)
        return answers.limit_message(state.account_id, state.limit)

    async def DeleteLimit(self, request: pb.DeleteLimitRequest, context: Context) -> pb.DeleteLimitResponse:
        await self._do(checked(requests.delete_limit, request), context)
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
