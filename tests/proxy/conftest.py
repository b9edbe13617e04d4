"""Owns a served proxy for tests: real Postgres, Redis and sandbox provider; a ledger and prices in memory."""

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import redis
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from google.api import httpbody_pb2

sys.path.insert(0, str(Path(__file__).parent / "support"))

from proxy_fakes import USD, Account, FakeLedger, FakePricing, price, served
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc
from tollkeeper.pricing.v1 import pricing_service_pb2_grpc
from tollkeeper.proxy.v1 import (
    entitlement_service_pb2,
    entitlement_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    resources_pb2,
    wire_service_pb2,
    wire_service_pb2_grpc,
)

from services.kit import migrations
from services.kit.errors import RemoteError
from services.kit.identity import Identity, Role, TokenSigner, TokenVerifier, make_keypair
from services.proxy.__main__ import MIGRATIONS
from services.proxy.assembly import make_server
from services.proxy.settings import ProxySettings

ROOT = Path(__file__).parents[2]


class Sandbox:
    """The sandbox provider, in its own process."""

    def __init__(self, process, url):
        self.process, self.url = process, url

    def _send(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=10) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    async def usage(self):
        return await asyncio.to_thread(self._send, "GET", "/sandbox/usage")

    async def calls(self):
        return (await self.usage())["requests"]

    async def arm(self, fault, **fields):
        await asyncio.to_thread(self._send, "POST", "/sandbox/faults", {"fault": fault, **fields})

    def reset(self):
        self._send("DELETE", "/sandbox/usage")
        self._send("DELETE", "/sandbox/faults")


@pytest.fixture(scope="session")
def running_provider():
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.local.sandbox.provider", "--listen", "127.0.0.1:0", "--grace-seconds", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    yield Sandbox(process, re.search(r"http://\S+", line)[0])
    process.terminate()
    process.wait(10)
    process.stdout.close()


@pytest.fixture
def provider(running_provider):
    running_provider.reset()
    return running_provider


@pytest.fixture(scope="session")
def migrated_proxy(make_database):
    url = make_database("proxy")
    migrations.upgrade(url, MIGRATIONS)
    return url


@pytest.fixture
def proxy_database(database_url, migrated_proxy):
    return database_url("proxy", migrated_proxy)


@pytest.fixture(scope="session")
def keypair():
    return make_keypair()


@pytest.fixture(scope="session")
def signer(keypair):
    return TokenSigner(keypair[0])


@pytest.fixture
def ledger():
    return FakeLedger(accounts={"acme": Account(available=10 * USD)})


@pytest.fixture
def pricing():
    return FakePricing(
        [
            price("gpt-4o", max_output=4096),
            price("gpt-3.5-turbo", input_usd=1, output_usd=2, max_output=4096),
            price("claude-3-haiku", "anthropic", max_output=4096),
        ]
    )


@pytest.fixture
async def addresses(ledger, pricing):
    """host:port of ledger and pricing."""
    async with (
        served((ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server, ledger)) as ledger_addr,
        served((pricing_service_pb2_grpc.add_PricingServiceServicer_to_server, pricing)) as pricing_addr,
    ):
        yield ledger_addr, pricing_addr


@dataclass
class Answer:
    """What a wire call gave: HTTP-like status, headers, content type, the pieces of the body."""

    headers: dict
    content_type: str
    pieces: list

    @property
    def body(self):
        return b"".join(self.pieces)

    def json(self):
        return json.loads(self.body)

    def events(self):
        found = [event.removeprefix("data: ").strip() for event in re.split(r"\r?\n\r?\n", self.body.decode()) if event]
        return [text if text == "[DONE]" else json.loads(text) for text in found if not text.startswith(":")]


@dataclass
class Proxy:
    """A served proxy and what tests say to it."""

    server: Any
    channel: Any
    admin: Any
    service: Any

    def __post_init__(self):
        self.wire = wire_service_pb2_grpc.WireServiceStub(self.channel)
        self.keys = key_service_pb2_grpc.KeyServiceStub(self.channel)
        self.entitlements = entitlement_service_pb2_grpc.EntitlementServiceStub(self.channel)
        self.revision = 0

    async def entitle(self, account_id="acme", **fields):
        self.revision += 1
        wanted = {
            "account_id": account_id,
            "plan_id": "payg",
            "revision": self.revision,
            "active": True,
            "providers": ["*"],
            "models": ["*"],
            "multiplier_millionths": 1_500_000,
        } | fields
        request = entitlement_service_pb2.SetEntitlementRequest(entitlement=resources_pb2.Entitlement(**wanted))
        return await self.entitlements.SetEntitlement(request, metadata=self.service)

    async def make_key(self, account_id="acme", **fields):
        request = key_service_pb2.CreateKeyRequest(account_id=account_id, **fields)
        return await self.keys.CreateKey(request, metadata=self.admin)

    def start_chat(self, key, *, text="Hello, world", raw=None, metadata=None, **body):
        if raw is None:
            message = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
            raw = json.dumps(message | body).encode()
        metadata = metadata if metadata is not None else (("authorization", f"Bearer {key}"),)
        return self.wire.ChatCompletions(httpbody_pb2.HttpBody(data=raw), metadata=metadata)

    async def chat(self, key, **fields):
        call = self.start_chat(key, **fields)
        pieces, content_type = [], ""
        async for message in call:
            content_type = content_type or message.content_type
            pieces.append(message.data)
        return Answer(dict(await call.initial_metadata()), content_type, pieces)


@pytest.fixture
async def proxy_settings(  # noqa: PLR0917 (a fixture's needs)
    proxy_database, redis_url, provider, addresses, keypair, tmp_path
):
    with redis.Redis.from_url(redis_url) as shared:  # the session's; limits of another test must not count here
        shared.flushdb()
    jwks, private = tmp_path / "identity.jwks", tmp_path / "identity.pem"
    jwks.write_text(json.dumps(keypair[1]))
    private.write_text(keypair[0])
    return ProxySettings(
        listen="127.0.0.1:0",
        database_url=proxy_database,
        redis_url=redis_url,
        identity_jwks_file=jwks,
        identity_signing_key_file=private,
        ledger_addr=addresses[0],
        pricing_addr=addresses[1],
        openai_base_url=f"{provider.url}/openai/v1",
        openai_api_key="sandbox",
        grace_seconds=5,
        ledger_timeout_seconds=1,
        outbox_interval_seconds=0.1,
    )


@pytest.fixture
async def start_proxy(signer, proxy_settings):
    """`await start_proxy(**settings)`: a served proxy; it stops with the test."""

    def metadata(role):
        token = signer.sign(Identity(role, subject=role.name.lower()), 300)
        return (("authorization", f"Bearer {token}"),)

    async with AsyncExitStack() as stack:

        async def start(*, priced=True, **changes):
            server = await make_server(proxy_settings.model_copy(update=changes))
            await server.start()
            stack.push_async_callback(server.stop)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            proxy = Proxy(server, channel, metadata(Role.ADMIN), metadata(Role.SERVICE))
            await proxy.entitle()
            if priced:
                key = (await proxy.make_key()).key
                await eventually(lambda: _priced(proxy, key))
            return proxy

        yield start


async def _priced(proxy, key):
    try:
        await proxy.wire.ListModels(wire_service_pb2.ListModelsRequest(), metadata=(("x-api-key", key),))
    except grpc.aio.AioRpcError as error:
        if RemoteError.from_rpc(error).reason == "CATALOGUE_UNAVAILABLE":
            return False
        raise
    return True


@pytest.fixture
async def proxy(start_proxy):
    return await start_proxy()


@pytest.fixture
async def key(proxy):
    return (await proxy.make_key(name="test")).key


async def eventually(condition, seconds=10):
    """Wait until `condition()` (may be async) is true; fails where it never is."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert asyncio.get_running_loop().time() < deadline, "it never came to be"
        await asyncio.sleep(0.02)


@pytest.fixture(name="eventually")
def eventually_fixture():
    return eventually


async def refusal_of(awaitable):
    """The refusal that a call ends with, with its trailing metadata."""
    # Not `pytest.raises`, which keeps the error: with its frames it kept the call, which the server waited for.
    try:
        await awaitable
    except grpc.aio.AioRpcError as caught:
        error = RemoteError.from_rpc(caught)
        error.trailing = dict(caught.trailing_metadata())
        return error
    return pytest.fail("it was not refused")


@pytest.fixture
def refused():
    return refusal_of


@pytest.fixture
def authorize(keypair):
    """`await authorize(proxy, headers)`: the identity in the token that the gateway is given for these headers."""
    verifier = TokenVerifier(keypair[1])

    async def ask(proxy, headers):
        request = external_auth_pb2.CheckRequest()
        for name, value in headers.items():
            request.attributes.request.http.headers[name] = value
        answer = await external_auth_pb2_grpc.AuthorizationStub(proxy.channel).Check(request)
        token = {option.header.key: option.header.value for option in answer.ok_response.headers}
        return verifier.verify(token["x-tollkeeper-identity"])

    return ask
