"""Owns the served test contract: the same servicer on an aio and on a sync server, called by the same client."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import kit_echo_pb2_grpc
import pytest
from kit_echo import AioEcho, SyncEcho

from services.kit.errors import RemoteError
from services.kit.serving import AioServer, SyncServer


async def _read(call, answered):
    if hasattr(call, "__aiter__"):
        async for message in call:
            answered.append(message)  # kept when it fails later
    else:
        answered.append(await call)


async def refusal_of(call):
    """The refusal a call ends with, `answered` what came before; fails the test where there is none."""
    answered = []
    # Not `pytest.raises`, which keeps the error: with its frames it kept the call, which the server waited for.
    try:
        await _read(call, answered)
    except grpc.aio.AioRpcError as caught:
        error = RemoteError.from_rpc(caught)
        error.answered = answered
        error.trailing = dict(caught.trailing_metadata())
        return error
    return pytest.fail("it was not refused")


@pytest.fixture(scope="session")
def refused():
    return refusal_of


@dataclass
class Echo:
    """A served EchoService. `started` is set when a call with text "wait" runs; `release()` lets those go on."""

    server: Any
    servicer: Any
    stub: Any
    channel: Any
    started: Any
    release: Any

    async def running(self, count, timeout_seconds=10):
        """Wait until so many calls are being served."""
        deadline = time.monotonic() + timeout_seconds
        while self.server._gate.running != count:
            assert time.monotonic() < deadline, f"{self.server._gate.running} calls running, not {count}"
            await asyncio.sleep(0.01)


@pytest.fixture(params=["aio", "sync"])
async def serve(request):
    """`async with serve(settings, **server_arguments) as echo`, on each kind of server in turn."""

    @asynccontextmanager
    async def serving(settings, **arguments):
        if request.param == "aio":
            server, servicer = AioServer(settings, **arguments), AioEcho()
            started, release = servicer.started.wait, servicer.release.set
            start, stop = server.start, server.stop
        else:
            begun, released = threading.Event(), threading.Event()
            server, servicer = SyncServer(settings, **arguments), SyncEcho(begun, released)

            async def started():
                assert await asyncio.to_thread(begun.wait, 10)

            async def start():
                server.start()

            async def stop():
                await asyncio.to_thread(server.stop)

            release = released.set
        server.register(kit_echo_pb2_grpc.add_EchoServiceServicer_to_server, servicer)
        await start()
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
                yield Echo(server, servicer, stub, channel, started, release)
        finally:
            release()
            await stop()

    return serving


@pytest.fixture
async def echo(serve, settings):
    async with serve(settings) as served:
        yield served
        await served.running(0)
