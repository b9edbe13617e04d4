"""Owns what the ledger's tests share: a migrated database and a real server on a free port."""

import itertools
import json
from types import SimpleNamespace

import grpc.aio
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract

from services.kit.identity import Identity, Role, TokenSigner, make_keypair
from services.kit.migrations import upgrade
from services.ledger.__main__ import MIGRATIONS, make_server
from services.ledger.settings import LedgerSettings

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def ledger_template(make_database):
    """A migrated, empty ledger database to copy."""
    url = make_database("ledger")
    upgrade(url, MIGRATIONS)
    return url


@pytest.fixture(scope="session")
def identity(tmp_path_factory):
    """Where the public keys are, and a way to sign tokens."""
    private, jwks = make_keypair()
    file = tmp_path_factory.mktemp("identity") / "jwks.json"
    file.write_text(json.dumps(jwks))
    signer = TokenSigner(private)
    return SimpleNamespace(
        file=file, token=lambda role, **words: signer.sign(Identity(role, subject="test", **words), 3600)
    )


@pytest.fixture
def ledger_settings(database_url, ledger_template, identity):
    url = database_url("ledger", template=ledger_template)
    return LedgerSettings(database_url=url, identity_jwks_file=identity.file, log_level="warning")


class Client:
    """The ledger's stubs, as a service calls them, and short forms of what tests do most."""

    def __init__(self, channel, identity):
        self.accounts = contract.AccountServiceStub(channel)
        self.ledger = contract.LedgerServiceStub(channel)
        self.journal = contract.JournalServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {identity.token(Role.SERVICE)}"),)

    def __getattr__(self, name):
        for stub in (self.ledger, self.accounts, self.journal):
            if hasattr(stub, name):
                return lambda request: getattr(stub, name)(request, metadata=self.metadata, timeout=30)
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

    async def limits(self, account_id="acme"):
        answer = await self.ListLimits(pb.ListLimitsRequest(account_id=account_id))
        return {limit.limit_id: limit for limit in answer.limits}


@pytest.fixture
async def ledger(ledger_settings, identity):
    """A client of a real server on an empty ledger."""
    server = await make_server(ledger_settings)
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        yield Client(channel, identity)
