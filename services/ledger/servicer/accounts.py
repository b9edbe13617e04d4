"""Owns the RPCs of accounts and their balances."""

from __future__ import annotations

from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.paging import page_position, page_token
from services.kit.times import moment_of
from services.kit.validation import Violations
from services.ledger.service import Ledger
from services.ledger.servicer.base import Context, Servicer, checked, named_account, place
from services.ledger.verifying import Verifier
from services.ledger.wire import answers, requests


class AccountServicer(Servicer, contract.AccountServiceServicer):
    """Accounts and their balances."""

    def __init__(self, ledger: Ledger, verifier: Verifier) -> None:
        super().__init__(ledger)
        self._verifier = verifier

    async def OpenAccount(self, request: pb.OpenAccountRequest, context: Context) -> resources.Account:
        return await self._do(checked(requests.open_account, request), context, answers.account_state_message)

    async def GetAccount(self, request: pb.GetAccountRequest, context: Context) -> resources.Account:
        return answers.account_message(await self._ledger.account(named_account(request.account_id)))

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

    async def UpdateAccount(self, request: pb.UpdateAccountRequest, context: Context) -> resources.Account:
        return await self._do(checked(requests.update_account, request), context, answers.account_state_message)

    async def SuspendAccount(self, request: pb.SuspendAccountRequest, context: Context) -> resources.Account:
        operation = checked(lambda v, r: requests.set_status(v, r, "suspended", r.reason), request)
        return await self._do(operation, context, answers.account_state_message)

    async def ResumeAccount(self, request: pb.ResumeAccountRequest, context: Context) -> resources.Account:
        operation = checked(lambda v, r: requests.set_status(v, r, "open", ""), request)
        return await self._do(operation, context, answers.account_state_message)

    async def CloseAccount(self, request: pb.CloseAccountRequest, context: Context) -> resources.Account:
        operation = checked(lambda v, r: requests.set_status(v, r, "closed", r.reason), request)
        return await self._do(operation, context, answers.account_state_message)

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> resources.Balance:
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        as_of = moment_of(v, "as_of", request.as_of) if request.HasField("as_of") else None
        v.raise_if_any()
        if as_of is None:
            return answers.balance_message(await self._ledger.balance(account_id))
        return answers.balance_message(await self._ledger.past_balance(account_id, as_of))

    async def ListGrants(self, request: pb.ListGrantsRequest, context: Context) -> pb.ListGrantsResponse:
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        size = v.page_size("page_size", request.page_size, default=100)
        before = page_position(v, request, int)
        v.raise_if_any()
        views = await self._ledger.grants(
            account_id, include_spent=request.include_spent, before=place(before), count=size + 1
        )
        return pb.ListGrantsResponse(
            grants=[answers.grant_message(view) for view in views[:size]],
            next_page_token=page_token(request, views[size - 1].grant.order) if len(views) > size else "",
        )

    async def VerifyAccount(self, request: pb.VerifyAccountRequest, context: Context) -> pb.VerifyAccountResponse:
        found = await self._verifier.account(named_account(request.account_id))
        return pb.VerifyAccountResponse(
            sound=not found.findings,
            transactions_checked=found.entries,
            discrepancies=[
                pb.Discrepancy(reason=wrong.reason, transaction_id=wrong.transaction_id, detail=wrong.detail)
                for wrong in found.findings
            ],
        )
