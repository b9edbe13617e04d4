"""How calls find replicas that came after their client: connections end by and by, and what runs over them does not."""

import asyncio

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.channels import aio_channel
from services.kit.serving import AioServer, SyncServer, limits
from services.kit.settings import ServiceSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
QUESTION = health_pb2.HealthCheckRequest()


@pytest.mark.parametrize("aio", [True, False], ids=["aio", "sync"])
async def test_a_connection_ends_and_neither_streams_nor_calls_notice(aio, monkeypatch):
    monkeypatch.setattr(limits, "CONNECTION_SECONDS", 0.3)
    settings = ServiceSettings(listen="127.0.0.1:0")
    server = AioServer(settings) if aio else SyncServer(settings)
    await (server.start() if aio else asyncio.to_thread(server.start))
    try:
        async with (
            grpc.aio.insecure_channel(server.address) as watching,
            aio_channel(server.address, settings) as calling,
        ):
            # A stream that lasts, over a connection whose end shows.
            stream = health_pb2_grpc.HealthStub(watching).Watch(QUESTION)
            assert (await stream.read()).status == SERVING
            state = watching.get_state()
            assert state is grpc.ChannelConnectivity.READY
            async with asyncio.timeout(20):
                while state is grpc.ChannelConnectivity.READY:
                    # All the while there are calls over another connection, which ends as well.
                    answer = await health_pb2_grpc.HealthStub(calling).Check(QUESTION)
                    assert answer.status == SERVING
                    state = watching.get_state()
            assert not stream.done()
            stream.cancel()
    finally:
        await (server.stop(grace=0) if aio else asyncio.to_thread(server.stop, 0))
