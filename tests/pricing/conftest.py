"""Owns what the tests of pricing share: a migrated database, a real server on it, clients of every role, commands."""

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from pricing_commands import map_file_in, run_here
from tollkeeper.pricing.v1 import plan_service_pb2_grpc, pricing_service_pb2_grpc

from services.kit.errors import RemoteError
from services.kit.identity import Identity, Role, TokenSigner, make_keypair
from services.kit.migrations import upgrade
from services.pricing.__main__ import MIGRATIONS
from services.pricing.assembly import make_server
from services.pricing.settings import PricingSettings


@dataclass
class Pricing:
    """A served pricing service, and calls to it as one role."""

    server: Any
    channel: Any
    prices: Any
    plans: Any

    def close(self):
        self.channel.close()


@pytest.fixture(scope="session")
def keypair():
    return make_keypair()


@pytest.fixture(scope="session")
def migrated(make_database):
    """A database at this release's schema, empty; tests copy it."""
    url = make_database("pricing")
    upgrade(url, MIGRATIONS)
    return url


@pytest.fixture
def settings(tmp_path, keypair, database_url, migrated):
    jwks = tmp_path / "identity.jwks"
    jwks.write_text(json.dumps(keypair[1]))
    return PricingSettings(
        listen="127.0.0.1:0",
        identity_jwks_file=jwks,
        database_url=database_url("pricing", template=migrated),
        database_pool_size=4,
        grace_seconds=2,
    )


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds a token to each call."""

    def __init__(self, token):
        self._token = token

    def _call(self, continuation, details, request):
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {self._token}")]
        return continuation(details._replace(metadata=metadata), request)

    intercept_unary_unary = intercept_unary_stream = _call


@pytest.fixture
def client(keypair):
    """`client(server, "ADMIN")`: a Pricing that calls `server` in that role."""
    signer, made = TokenSigner(keypair[0]), []

    def make(server, role="SERVICE", account_id=""):
        token = signer.sign(Identity(Role[role], subject=f"the-{role.lower()}", account_id=account_id), 600)
        plain = grpc.insecure_channel(server.address)
        channel = grpc.intercept_channel(plain, _Bearer(token))
        made.append(plain)
        return Pricing(
            server,
            plain,
            pricing_service_pb2_grpc.PricingServiceStub(channel),
            plan_service_pb2_grpc.PlanServiceStub(channel),
        )

    yield make
    for channel in made:
        channel.close()


@pytest.fixture
def serve():
    """`with serve(settings) as server`: a real server, stopped at the end."""

    @contextmanager
    def serving(settings):
        server = make_server(settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()

    return serving


@pytest.fixture
def pricing(serve, settings, client):
    """Pricing on a fresh database with the shipped catalogue, called as a service."""
    with serve(settings) as server:
        yield client(server)


@pytest.fixture
def refused():
    """`refused(call, request)`: the refusal that a call ends with; fails the test where there is none."""

    def refusal(call, request, **arguments):
        with pytest.raises(grpc.RpcError) as caught:
            call(request, **arguments)
        return RemoteError.from_rpc(caught.value)

    return refusal


@pytest.fixture
def command(capsys):
    """`command("price", …)`: a command in this process; exit status, output and errors."""
    return partial(run_here, capsys)


@pytest.fixture
def map_file(tmp_path):
    return map_file_in(tmp_path)
