"""Connections to Redis that are reset while they lie idle, as a load balancer or a host that restarts does.

On uvloop, as the proxy runs: what is written to such a connection raises a RuntimeError there, and on no other loop.
"""

import asyncio
import contextlib
import socket
import struct
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
import redis.exceptions
import uvloop
from structlog.testing import capture_logs

from deploy.local.ports import free_port
from deploy.local.redis import EmbeddedRedis
from services.proxy.assembly import redis_client
from services.proxy.invalidation import CHANNEL, Announcer, EntitlementChanged, Listener, packed
from services.proxy.rates import Limit, RateLimits

TOKENS = Limit("acme", "account", "tokens", 100, 5)
SECONDS = 10


class Way:
    """A way to the Redis at `url`, whose connections can be reset. `connected` as long as somebody uses it."""

    def __init__(self, url):
        self._redis = urlsplit(url)
        self._clients = set()

    def lead_to(self, url):
        """New connections go to the Redis at `url`; those that stand stay."""
        self._redis = urlsplit(url)

    @contextlib.asynccontextmanager
    async def connected(self):
        """The proxy's client, with more time: a busy machine is not what is tested here."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        there = f"{self._redis.hostname}:{self._redis.port}"
        url = self._redis.geturl().replace(there, f"127.0.0.1:{port}")
        client = redis_client(url, timeout_seconds=5)
        try:
            yield client
        finally:  # uvloop does not close with a connection left open, also where a test has failed
            await client.aclose()
            server.close()
            await self.reset()

    async def _carry(self, reader, writer):
        from_redis, to_redis = await asyncio.open_connection(self._redis.hostname, self._redis.port)
        self._clients.add(writer)

        async def pass_on(source, sink):
            with contextlib.suppress(OSError, RuntimeError):
                while piece := await source.read(65536):
                    sink.write(piece)
            to_redis.close()
            writer.close()

        await asyncio.gather(pass_on(reader, to_redis), pass_on(from_redis, writer))

    async def reset(self):
        """Reset every connection, and let the client's loop see it."""
        for client in self._clients:
            if not client.is_closing():
                at_once = struct.pack("ii", 1, 0)  # closed so, a socket sends a reset
                client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                client.transport.abort()
        self._clients.clear()
        await asyncio.sleep(0.1)


@pytest.fixture
def way(redis_url):
    with redis.Redis.from_url(redis_url) as shared:
        shared.flushdb()
    return Way(redis_url)


def test_limits_are_counted_over_a_new_connection_and_nobody_is_told(way):
    async def asked():
        async with way.connected() as client:
            limits = RateLimits(client)
            for number in range(1, 5):
                standing = await asyncio.wait_for(limits.take([TOKENS]), SECONDS)
                assert (standing.shared, standing.limits[0].used) == (True, 5 * number)
                await way.reset()

    with capture_logs() as logged:
        uvloop.run(asked())
    assert not logged


def test_limits_are_shared_again_as_soon_as_its_name_leads_to_a_primary(way, redis_url, tmp_path, eventually):
    demoted = EmbeddedRedis(folder=tmp_path / "redis", port=free_port(), password=urlsplit(redis_url).password)

    async def asked(url):
        way.lead_to(url)
        async with way.connected() as client:
            limits = RateLimits(client)
            assert (await limits.take([TOKENS])).shared
            with redis.Redis.from_url(url) as admin:
                admin.replicaof("127.0.0.1", 1)
            assert not (await limits.take([TOKENS])).shared  # its connection stands, and takes no writes
            way.lead_to(redis_url)

            async def shared():
                return (await limits.take([Limit("acme", "account", "tokens", 100, 0)])).shared

            await eventually(shared)

    with demoted.serving(tmp_path / "redis.log") as server:
        uvloop.run(asked(server.url))


def test_corrections_come_to_an_end(way):
    async def asked():
        async with way.connected() as client:
            limits = RateLimits(client)
            standing = await limits.take([TOKENS])
            await way.reset()
            limits.correct(standing, 50)
            await asyncio.wait_for(limits.drained(), SECONDS)
            assert (await limits.take([TOKENS])).limits[0].used == 55

    uvloop.run(asked())


def test_changes_are_announced_over_a_new_connection_and_nobody_is_told(way, redis_url):
    changes = [EntitlementChanged(f"account-{number}") for number in range(4)]

    async def announced():
        async with way.connected() as client:
            announcer = Announcer(client)
            for change in changes:
                await announcer.announce(change)
                await way.reset()

    with redis.Redis.from_url(redis_url, socket_timeout=5) as other, other.pubsub() as heard, capture_logs() as logged:
        heard.subscribe(CHANNEL)
        uvloop.run(announced())
        assert heard.get_message(timeout=5)["type"] == "subscribe"
        assert [heard.get_message(timeout=5)["data"] for _ in changes] == list(map(packed, changes))
    assert not logged


def test_changes_are_heard_over_a_new_connection(way, eventually):
    heard = []

    class Memory:
        def forget(self, *what):
            heard.append(what)

        def forget_all(self):
            heard.append("all")

    async def listened():
        async with way.connected() as client:
            listener = Listener(client, Memory(), Memory())
            await listener.start()
            for number in range(1, 4):
                await eventually(lambda wanted=2 * number: heard.count("all") >= wanted)
                await client.publish(CHANNEL, packed(EntitlementChanged(f"account-{number}")))
                await eventually(lambda wanted=number: (f"account-{wanted}",) in heard)
                # What publishes has lost its connection, too: this makes another.
                await way.reset()
                await client.connection_pool.disconnect(inuse_connections=False)
            await listener.stop()

    uvloop.run(listened())
