"""Owns how tests call a ledger: its stubs, short forms of what they do most, and how refusals are read."""

import asyncio
import itertools
import time
from functools import partial

import grpc
import pytest
from google.rpc import error_details_pb2
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract

from services.kit.errors import RemoteError
from services.kit.identity import Role

_numbers = itertools.count(1)


class Client:
    """The ledger's stubs, as a service calls them, and short forms of what tests do most."""

    def __init__(self, channel, token, role=Role.SERVICE, **words):
        self.accounts = contract.AccountServiceStub(channel)
        self.ledger = contract.LedgerServiceStub(channel)
        self.journal = contract.JournalServiceStub(channel)
        self._channel, self._token = channel, token
        self.metadata = (("authorization", f"Bearer {token(role, **words)}"),)

    def acting_as(self, role, **words):
        """The same server's client with another identity."""
        return Client(self._channel, self._token, role, **words)

    def __getattr__(self, name):
        for stub in (self.ledger, self.accounts, self.journal):
            if hasattr(stub, name):
                return partial(getattr(stub, name), metadata=self.metadata, timeout=30)
        raise AttributeError(name)

    async def open(self, account_id="acme", credit=0, **words):
        await self.OpenAccount(pb.OpenAccountRequest(account_id=account_id, **words))
        if credit:
            await self.credit(credit, account_id)

    async def credit(self, nanos, account_id="acme", request_id="", **words):
        request_id = request_id or f"credit-{next(_numbers)}"
        return await self.CreditAccount(
            pb.CreditAccountRequest(account_id=account_id, amount_nanos=nanos, request_id=request_id, **words)
        )

    async def hold(self, nanos, hold_id, account_id="acme", **words):
        return await self.CreateHold(
            pb.CreateHoldRequest(account_id=account_id, hold_id=hold_id, amount_nanos=nanos, **words)
        )

    async def settle(self, nanos, hold_id, account_id="acme", **words):
        return await self.SettleHold(
            pb.SettleHoldRequest(account_id=account_id, hold_id=hold_id, amount_nanos=nanos, **words)
        )

    async def release(self, hold_id, account_id="acme"):
        return await self.ReleaseHold(pb.ReleaseHoldRequest(account_id=account_id, hold_id=hold_id))

    async def balance(self, account_id="acme"):
        return await self.GetBalance(pb.GetBalanceRequest(account_id=account_id))

    async def balance_once_expired(self):
        """The balance of acme, as soon as some credit has expired."""
        deadline = time.monotonic() + 30
        while not (balance := await self.balance()).expired_nanos and time.monotonic() < deadline:  # noqa: ASYNC110 (expiry tells nobody)
            await asyncio.sleep(0.05)
        return balance

    async def limits(self, account_id="acme"):
        answer = await self.ListLimits(pb.ListLimitsRequest(account_id=account_id))
        return {limit.limit_id: limit for limit in answer.limits}

    async def apply(self, *operations):
        """The results of a batch, each operation given as keyword and request, or with `linked` after them."""
        batch = [pb.Operation(**{kind: request}, linked=bool(linked)) for kind, request, *linked in operations]
        return list((await self.Apply(pb.ApplyRequest(operations=batch))).results)

    async def transactions(self, account_id="acme", **words):
        answer = await self.ListTransactions(pb.ListTransactionsRequest(account_id=account_id, **words))
        return list(answer.transactions)

    async def usage(self, account_id="acme", **words):
        return list((await self.ListUsage(pb.ListUsageRequest(account_id=account_id, **words))).records)


async def refused(call):
    """What a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return RemoteError.from_rpc(caught.value)


def violations(refusal):
    """The fields that a refusal names."""
    return {violation.field for violation in refusal.violations}


def reasons(results):
    """Of a batch's results: the reasons of those that failed, nothing for the others."""
    found = []
    for result in results:
        info = error_details_pb2.ErrorInfo()
        for detail in result.error.details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
        found.append(info.reason)
    return found


def fields(result):
    """The fields that the refusal of one operation of a batch names."""
    request = error_details_pb2.BadRequest()
    for detail in result.error.details:
        if detail.Is(request.DESCRIPTOR):
            detail.Unpack(request)
    return {violation.field for violation in request.field_violations}
