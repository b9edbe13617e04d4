"""Owns what the ledger's tests share: a migrated database and a real server on a free port."""

import json
from types import SimpleNamespace

import grpc.aio
import pytest

from services.kit.identity import Identity, TokenSigner, make_keypair
from services.kit.migrations import upgrade
from services.ledger.__main__ import MIGRATIONS
from services.ledger.assembly import make_server
from services.ledger.group_commit import GroupCommit
from services.ledger.settings import LedgerSettings
from tests.ledger.support.ledger_client import Client
from tests.ledger.support.ledger_past import connected, make_past


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


@pytest.fixture
async def commits(ledger_settings):
    """A running group commit on an empty ledger."""
    commits = GroupCommit(ledger_settings)
    commits.start()
    yield commits
    await commits.stop()


@pytest.fixture
async def connection(ledger_settings):
    """A connection to an empty ledger that has the partitions of four past months."""
    async with connected(ledger_settings) as connection:
        await make_past(connection, 4)
        yield connection


@pytest.fixture
async def ledger(ledger_settings, identity):
    """A client of a real server on an empty ledger."""
    server = await make_server(ledger_settings)
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        yield Client(channel, identity.token)
