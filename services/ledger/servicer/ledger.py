"""Owns the RPCs of what moves money or counts use, and the way into a batch and out of it."""

from __future__ import annotations

from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.errors import ServiceError
from services.kit.paging import page_position, page_token
from services.kit.validation import Violations
from services.ledger.errors import LinkedOperationFailed
from services.ledger.model.operations import Operation, Result
from services.ledger.servicer.base import Context, Servicer, checked, place
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
        groups, places, refused = _groups(request)

        def message(results: list[Result]) -> pb.ApplyResponse:
            response = pb.ApplyResponse()
            found = [response.results.add() for _ in request.operations]
            for at, refusal in refused.items():
                found[at].error.CopyFrom(answers.status_message(refusal))
            for at, result in zip(places, results, strict=True):
                answers.fill_result(found[at], result)
            return response

        return await self._ledger.apply(groups, message)

    async def CreditAccount(self, request: pb.CreditAccountRequest, context: Context) -> resources.Transaction:
        return await self._do(checked(requests.credit, request), context, answers.posted_message)

    async def DebitAccount(self, request: pb.DebitAccountRequest, context: Context) -> pb.DebitAccountResponse:
        return await self._do(checked(requests.debit, request), context, answers.debited_message)

    async def AdjustBalance(self, request: pb.AdjustBalanceRequest, context: Context) -> resources.Transaction:
        return await self._do(checked(requests.adjust, request), context, answers.posted_message)

    async def RefundTransaction(self, request: pb.RefundTransactionRequest, context: Context) -> resources.Transaction:
        return await self._do(checked(requests.refund, request), context, answers.posted_message)

    async def ReverseTransaction(
        self, request: pb.ReverseTransactionRequest, context: Context
    ) -> resources.Transaction:
        return await self._do(checked(requests.reverse, request), context, answers.posted_message)

    async def CreateHold(self, request: pb.CreateHoldRequest, context: Context) -> pb.CreateHoldResponse:
        return await self._do(checked(requests.create_hold, request), context, answers.hold_made_message)

    async def ExtendHold(self, request: pb.ExtendHoldRequest, context: Context) -> pb.CreateHoldResponse:
        return await self._do(checked(requests.extend_hold, request), context, answers.hold_made_message)

    async def SettleHold(self, request: pb.SettleHoldRequest, context: Context) -> pb.SettleHoldResponse:
        return await self._do(checked(requests.settle_hold, request), context, answers.hold_settled_message)

    async def ReleaseHold(self, request: pb.ReleaseHoldRequest, context: Context) -> resources.Hold:
        return await self._do(checked(requests.release_hold, request), context, answers.released_message)

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
        before = page_position(v, request, int)
        v.raise_if_any()
        holds, searched_to = await self._ledger.holds(
            account_id, status=request.status, before=place(before), count=size + 1
        )
        following = holds[size - 1].sequence if len(holds) > size else searched_to
        return pb.ListHoldsResponse(
            holds=[answers.hold_message(hold) for hold in holds[:size]],
            next_page_token=page_token(request, following) if following > 1 else "",
        )

    async def SetLimit(self, request: pb.SetLimitRequest, context: Context) -> resources.Limit:
        return await self._do(checked(requests.set_limit, request), context, answers.limit_state_message)

    async def DeleteLimit(self, request: pb.DeleteLimitRequest, context: Context) -> pb.DeleteLimitResponse:
        return await self._do(checked(requests.delete_limit, request), context, lambda _: pb.DeleteLimitResponse())

    async def ListLimits(self, request: pb.ListLimitsRequest, context: Context) -> pb.ListLimitsResponse:
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        if request.scope:
            v.one_of("scope", request.scope, requests.SCOPES)
        v.identifier("subject", request.subject, required=False)
        v.raise_if_any()
        limits = await self._ledger.limits(account_id, scope=request.scope, subject=request.subject)
        return pb.ListLimitsResponse(limits=[answers.limit_message(account_id, limit) for limit in limits])


def _groups(request: pb.ApplyRequest) -> tuple[list[list[Operation]], list[int], dict[int, ServiceError]]:
    """The well-formed linked groups of a batch, the place of each of their operations in it, and the others' refusals.

    Of a group with an operation that is malformed, that one is refused with what is wrong, the others as linked.
    """
    groups: list[list[Operation]] = []
    places: list[int] = []
    refused: dict[int, ServiceError] = {}
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
            refused.update((place, refusals.get(place, others)) for place in members)
        group, first, refusals = [], index + 1, {}
    return groups, places, refused
