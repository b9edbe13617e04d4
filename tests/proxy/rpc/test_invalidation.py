"""Replicas hear of changes at once through Redis; without it a change is seen when memories end.

Where a replica is to have heard, its memories are made to last far longer than the test: nothing else can be why.
"""

import asyncio
import contextlib
from urllib.parse import urlsplit

import grpc.aio
import psycopg
import pytest
import redis
from google.api import httpbody_pb2
from tollkeeper.proxy.v1 import key_service_pb2 as pb
from tollkeeper.proxy.v1 import wire_service_pb2

from deploy.local import ports
from services.kit.db import connection_string
from services.kit.errors import RemoteError
from services.kit.identity import Identity, Role
from services.proxy.invalidation import CHANNEL

HOUR = 3600.0
ANSWER_SECONDS = 10


def listing(proxy, secret):
    return proxy.wire.ListModels(wire_service_pb2.ListModelsRequest(), metadata=(("x-api-key", secret),))


def revoke(proxy, key_id):
    return proxy.keys.RevokeKey(pb.RevokeKeyRequest(key_id=key_id), metadata=proxy.admin, timeout=ANSWER_SECONDS)


async def reason_of(call):
    """The reason that a call is refused with; empty where it is not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return RemoteError.from_rpc(error).reason
    return ""


@pytest.fixture
def until_refused(eventually):
    """`await until_refused(call, reason)`: `call()` again and again, until it is refused for this reason."""

    async def wait(call, reason):
        async def refused():
            return await reason_of(call()) == reason

        await eventually(refused, seconds=30)

    return wait


@pytest.fixture
def until_listening(eventually):
    """`await until_listening(url, count)`: until so many replicas listen at this Redis."""

    def listening(url, count):
        with redis.Redis.from_url(url, socket_timeout=5) as client:
            return client.pubsub_numsub(CHANNEL)[0][1] == count

    async def wait(url, count):
        await eventually(lambda: asyncio.to_thread(listening, url, count), seconds=30)

    return wait


@pytest.fixture
def start_pair(start_proxy, redis_url, until_listening):
    """`await start_pair()`: two replicas whose memories do not end, both listening."""

    async def start(url=redis_url):
        settings = {"cache_seconds": HOUR, "redis_url": url}
        first, second = await start_proxy(**settings), await start_proxy(**settings)
        await until_listening(url, 2)
        first.revision = second.revision  # both have said what acme may call
        return first, second

    return start


class Line:
    """The way to the session's Redis, that can be cut and mended: bytes to and fro over a port of its own."""

    def __init__(self, redis_url):
        parts = urlsplit(redis_url)
        self._server_port, self._server, self._port = parts.port, None, ports.free_port()
        self.url = parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{self._port}").geturl()
        self._writers = set()

    async def mend(self):
        self._server = await asyncio.start_server(self._relay, ports.HOST, self._port)

    async def cut(self):
        self._server.close()
        while self._writers:
            for writer in list(self._writers):
                writer.transport.abort()
            await asyncio.sleep(0)
        await self._server.wait_closed()

    async def _relay(self, reader, writer):
        there, back = await asyncio.open_connection(ports.HOST, self._server_port)
        ends = {writer, back}
        self._writers |= ends
        copying = {asyncio.create_task(_copy(reader, back)), asyncio.create_task(_copy(there, writer))}
        await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.transport.abort()
        await asyncio.wait(copying)
        self._writers -= ends


async def _copy(reader, writer):
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65_536):
            writer.write(part)


@pytest.fixture
async def line(redis_url):
    """A way to Redis that is whole."""
    line = Line(redis_url)
    await line.mend()
    yield line
    await line.cut()


async def test_revocation_reaches_the_other_replica(start_pair, until_refused):
    first, second = await start_pair()
    made = await first.make_key()
    await listing(second, made.key)
    await revoke(first, made.key_id)
    await until_refused(lambda: listing(second, made.key), "API_KEY_REVOKED")


async def test_revocation_reaches_what_is_known_by_its_id(start_pair, until_refused, signer):
    """The provider route has an identity token, which names the key."""
    first, second = await start_pair()
    made = await first.make_key()
    token = signer.sign(Identity(Role.ACCOUNT, subject=made.key_id, account_id="acme", key_id=made.key_id), 60)

    async def chat():
        request = wire_service_pb2.ProviderChatRequest(provider="openai", body=httpbody_pb2.HttpBody(data=b"{}"))
        async for _ in second.wire.ProviderChat(request, metadata=(("x-tollkeeper-identity", token),)):
            pass

    assert await reason_of(chat()) == "INVALID_ARGUMENT"  # the key is known, so the body is looked at
    await revoke(first, made.key_id)
    await until_refused(chat, "API_KEY_REVOKED")


async def test_rotation_reaches_the_other_replica(start_pair, until_refused):
    first, second = await start_pair()
    made = await first.make_key()
    await listing(second, made.key)
    request = pb.RotateKeyRequest(key_id=made.key_id, overlap_seconds=0)
    new = await first.keys.RotateKey(request, metadata=first.admin, timeout=ANSWER_SECONDS)
    await until_refused(lambda: listing(second, made.key), "API_KEY_EXPIRED")
    await listing(second, new.key)


async def test_entitlement_reaches_the_other_replica(start_pair, until_refused):
    first, second = await start_pair()
    key = (await first.make_key()).key
    await second.chat(key, max_tokens=5)
    await first.entitle(active=False)
    await until_refused(lambda: second.chat(key, max_tokens=5), "ACCOUNT_SUSPENDED")


async def test_what_is_no_invalidation_is_ignored(start_pair, redis_url, until_refused):
    first, second = await start_pair()
    made = await first.make_key()
    await listing(second, made.key)
    with redis.Redis.from_url(redis_url) as client:
        for junk in (
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"key":1}',
            b'{"key":"k","sha256":"zz"}',
            b"\xff\x00",
            b"[" * 100_000,
        ):
            assert client.publish(CHANNEL, junk) == 2
    await revoke(first, made.key_id)
    await until_refused(lambda: listing(second, made.key), "API_KEY_REVOKED")


async def test_changes_during_an_outage_are_seen_when_it_is_over(start_pair, line, until_refused, until_listening):
    first, second = await start_pair(line.url)
    made = await first.make_key()
    await listing(second, made.key)
    await line.cut()
    await revoke(first, made.key_id)  # it succeeds, and nobody is told
    assert await reason_of(listing(first, made.key)) == "API_KEY_REVOKED"
    assert await reason_of(listing(second, made.key)) == ""
    await line.mend()
    await until_refused(lambda: listing(second, made.key), "API_KEY_REVOKED")
    await until_listening(line.url, 2)
    another = await first.make_key()
    await listing(second, another.key)
    await revoke(first, another.key_id)
    await until_refused(lambda: listing(second, another.key), "API_KEY_REVOKED")


async def test_broken_connection_costs_no_change(start_pair, redis_url, proxy_database, until_refused):
    """Nobody tells of this revocation: that the replica has to connect again is all it knows."""
    first, second = await start_pair()
    made = await first.make_key()
    await listing(second, made.key)
    with psycopg.connect(connection_string(proxy_database)) as connection:
        connection.execute("UPDATE keys SET revoked_at = now() WHERE key_id = %s", [made.key_id])
    assert await reason_of(listing(second, made.key)) == ""
    with redis.Redis.from_url(redis_url) as client:
        assert client.client_kill_filter(_type="pubsub") == 2
    await until_refused(lambda: listing(second, made.key), "API_KEY_REVOKED")


@pytest.mark.parametrize("url", ["", "redis://127.0.0.1:1"], ids=["none", "away"])
async def test_without_redis_a_change_is_seen_when_memories_end(start_proxy, url):
    first, second = await start_proxy(redis_url=url), await start_proxy(redis_url=url)
    revoked, suspended = await first.make_key(), await first.make_key()
    for made in (revoked, suspended):
        await second.chat(made.key, max_tokens=5)
    await revoke(first, revoked.key_id)
    await first.entitle(active=False)
    await asyncio.sleep(0.9)  # the lifetime as stated
    assert await reason_of(listing(second, revoked.key)) == "API_KEY_REVOKED"
    assert await reason_of(second.chat(suspended.key, max_tokens=5)) == "ACCOUNT_SUSPENDED"


async def test_redis_that_does_not_answer_holds_nothing_up(start_proxy):
    """It takes connections and says nothing; what waits for it for ever would be past its deadline."""

    async def listen(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        proxy = await start_proxy(redis_url=f"redis://127.0.0.1:{port}", cache_seconds=HOUR)
        made = await proxy.make_key()
        await listing(proxy, made.key)
        await revoke(proxy, made.key_id)
        assert await reason_of(listing(proxy, made.key)) == "API_KEY_REVOKED"
        assert (await proxy.entitle(plan_id="pro")).plan_id == "pro"
        await proxy.server.stop()


async def test_stopped_replica_listens_no_more(start_pair, redis_url, until_listening):
    first, _ = await start_pair()
    await first.server.stop()
    await until_listening(redis_url, 1)
