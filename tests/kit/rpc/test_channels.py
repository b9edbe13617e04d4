# ruff: noqa: N802, N818 (gRPC names methods; refusals are named for what is wrong)
"""Owns the tests of channels: retries, and what every call to another service carries along."""

import asyncio
import concurrent.futures
import threading
import time

import grpc
import kit_echo_pb2 as pb
import kit_echo_pb2_grpc
import pytest
from prometheus_client import REGISTRY

from services.kit import channels
from services.kit.call import CURRENT, Call
from services.kit.channels import aio_channel, sync_channel
from services.kit.errors import Kind, ServiceError
from services.kit.identity import ANONYMOUS, Identity, Role, TokenSigner, make_keypair
from services.kit.serving import AioServer

ADD = kit_echo_pb2_grpc.add_EchoServiceServicer_to_server


class NotReady(ServiceError):
    domain = "tollkeeper.echo"
    kind = Kind.UNAVAILABLE
    reason = "NOT_READY"
    advice = "Retry."


class Precondition(NotReady):
    kind = Kind.PRECONDITION
    reason = "PRECONDITION"


class Recorder(kit_echo_pb2_grpc.EchoServiceServicer):
    """Keeps what came along with each call; refuses as often as `failures` says."""

    def __init__(self):
        self.seen, self.deadlines, self.failures, self.failure = [], [], 0, NotReady

    def _record(self, context):
        self.seen.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())
        if self.failures:
            self.failures -= 1
            raise self.failure("not yet")

    async def Public(self, request, context):
        self._record(context)
        return pb.EchoResponse(text=request.text)

    async def Down(self, request, context):
        self._record(context)
        yield pb.EchoResponse(text=request.text)

    async def Up(self, request_iterator, context):
        self._record(context)
        return pb.EchoResponse(text=" ".join([request.text async for request in request_iterator]))

    async def Both(self, request_iterator, context):
        self._record(context)
        async for request in request_iterator:
            yield pb.EchoResponse(text=request.text)


@pytest.fixture
async def recorder(settings):
    servicer = Recorder()
    server = AioServer(settings)
    server.register(ADD, servicer)
    async with server:
        servicer.address = server.address
        yield servicer


@pytest.fixture
def calling(settings, signer):
    """Settings of the service that calls."""
    token = signer.sign(Identity(Role.SERVICE, subject="proxy"), 60)
    return settings.model_copy(update={"service_token": token})


async def ask(recorder, calling, **options):
    async with aio_channel(recorder.address, calling) as channel:
        return await kit_echo_pb2_grpc.EchoServiceStub(channel).Public(pb.PlainRequest(text="hi"), **options)


async def test_the_service_token_goes_along_on_every_arity(recorder, calling):
    async def one():
        yield pb.EchoRequest(account_id="acme", text="hi")

    request = pb.EchoRequest(account_id="acme", text="hi")
    async with aio_channel(recorder.address, calling) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        await stub.Public(pb.PlainRequest(text="hi"))
        assert [m.text async for m in stub.Down(request)] == ["hi"]
        assert (await stub.Up(one())).text == "hi"
        assert [m.text async for m in stub.Both(one())] == ["hi"]
        writing = stub.Up()
        await writing.write(request)
        await writing.done_writing()
        assert (await writing).text == "hi"
    assert [seen["authorization"] for seen in recorder.seen] == [f"Bearer {calling.service_token}"] * 5


async def test_a_sync_channel_carries_the_same(recorder, calling):
    def calls():
        CURRENT.set(Call("/a.B/C", "req-1", ANONYMOUS))
        request = pb.EchoRequest(account_id="acme", text="hi")
        with sync_channel(recorder.address, calling) as channel:
            stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
            assert stub.Public(pb.PlainRequest(text="hi")).text == "hi"
            answer, call = stub.Public.with_call(pb.PlainRequest(text="hi"))
            assert (answer.text, call.code()) == ("hi", grpc.StatusCode.OK)
            assert stub.Public.future(pb.PlainRequest(text="hi")).result().text == "hi"
            assert [m.text for m in stub.Down(request)] == ["hi"]
            assert stub.Up(iter([request])).text == "hi"
            assert [m.text for m in stub.Both(iter([request]))] == ["hi"]

    await asyncio.to_thread(calls)
    assert [seen["authorization"] for seen in recorder.seen] == [f"Bearer {calling.service_token}"] * 6
    assert [seen["x-request-id"] for seen in recorder.seen] == ["req-1"] * 6


async def test_the_request_id_of_the_call_being_served_goes_along(recorder, calling):
    CURRENT.set(Call("/a.B/C", "req-7", ANONYMOUS))
    await ask(recorder, calling)
    await ask(recorder, calling, metadata=(("x-request-id", "own"), ("x-more", "1")))
    assert [seen["x-request-id"] for seen in recorder.seen] == ["req-7", "own"]
    assert recorder.seen[1]["x-more"] == "1"


async def test_a_credential_given_is_not_overridden(recorder, calling, bearer):
    own = bearer("ACCOUNT")
    await ask(recorder, calling, metadata=own)
    assert recorder.seen[0]["authorization"] == own[0][1]


async def test_without_a_token_none_is_shown(recorder, settings):
    await ask(recorder, settings)
    assert "authorization" not in recorder.seen[0]


async def test_a_token_file_is_read_again_when_it_changes(recorder, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(channels, "_RECHECK_SECONDS", 0)
    file = tmp_path / "token"
    calling = settings.model_copy(update={"service_token_file": file})
    async with aio_channel(recorder.address, calling) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        for content in (None, "one\n", "two"):
            if content is not None:
                file.write_text(content)
            await stub.Public(pb.PlainRequest())
            await asyncio.sleep(0.02)  # a file system's clock is coarse
        file.unlink()
        await stub.Public(pb.PlainRequest())
    shown = [seen.get("authorization") for seen in recorder.seen]
    assert shown == [None, "Bearer one", "Bearer two", "Bearer two"]


async def test_an_unavailable_service_is_asked_again(recorder, calling):
    recorder.failures = 3
    assert (await ask(recorder, calling)).text == "hi"
    assert len(recorder.seen) == 4
    # Each attempt says that it is one, which only a status without a body (Trailers-Only) lets the client make.
    assert [seen.get("grpc-previous-rpc-attempts") for seen in recorder.seen] == [None, "1", "2", "3"]


async def test_asking_again_ends(recorder, calling, refused):
    recorder.failures = 100
    refusal = await refused(ask_once(recorder, calling))
    assert (refusal.reason, refusal.kind) == ("NOT_READY", Kind.UNAVAILABLE)
    assert len(recorder.seen) == 4


async def ask_once(recorder, calling):
    return await ask(recorder, calling)


async def test_other_refusals_are_not_asked_again(recorder, calling, refused):
    recorder.failures, recorder.failure = 1, Precondition
    assert (await refused(ask_once(recorder, calling))).reason == "PRECONDITION"
    assert len(recorder.seen) == 1


async def test_a_service_that_comes_back_is_reached_again(recorder, settings, calling):
    server = AioServer(settings)
    server.register(ADD, Recorder())
    await server.start()
    address = server.address
    async with aio_channel(address, calling) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        await stub.Public(pb.PlainRequest())
        await server.stop()
        again = AioServer(settings.model_copy(update={"listen": address}))
        again.register(ADD, Recorder())

        async def come_back():
            await asyncio.sleep(0.2)
            await again.start()

        coming = asyncio.ensure_future(come_back())
        await stub.Public(pb.PlainRequest(), wait_for_ready=True)
        await coming
        await again.stop()


async def test_unary_calls_have_a_timeout_bound_by_the_call_being_served(recorder, calling):
    await ask(recorder, calling)
    call = Call("/a.B/C", "r", ANONYMOUS)
    call.deadline = time.monotonic() + 2
    CURRENT.set(call)
    await ask(recorder, calling)
    await ask(recorder, calling, timeout=60)
    call.finished = True  # what outlives its call is not bound by it
    await ask(recorder, calling)
    default, bound, own, after = recorder.deadlines
    assert 8 < default < 11
    assert 0 < bound < 2.5
    assert 50 < own < 66
    assert 8 < after < 11


async def test_streams_have_no_timeout_of_their_own(recorder, calling):
    async with aio_channel(recorder.address, calling) as channel:
        async for _ in kit_echo_pb2_grpc.EchoServiceStub(channel).Down(pb.EchoRequest(account_id="acme")):
            pass
    assert recorder.deadlines == [None]


async def test_calls_are_spread_over_all_addresses(settings, calling):
    servicers, servers = [], []
    for _ in range(2):
        servicers.append(Recorder())
        servers.append(AioServer(settings))
        servers[-1].register(ADD, servicers[-1])
        await servers[-1].start()
    async with aio_channel("ipv4:" + ",".join(server.address for server in servers), calling) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        for _ in range(40):
            await stub.Public(pb.PlainRequest())
            await asyncio.sleep(0.005)
    assert all(len(servicer.seen) >= 10 for servicer in servicers)
    for server in servers:
        await server.stop()


def test_thread_that_comes_while_the_token_file_is_first_read_has_the_token_too(tmp_path, settings):
    file = tmp_path / "token"
    file.write_text("first")
    source = channels._TokenSource(settings.model_copy(update={"service_token_file": file}))
    reading, go_on = threading.Event(), threading.Event()

    class SlowFile:
        def stat(self):
            reading.set()
            go_on.wait(10)
            return file.stat()

        def read_text(self):
            return file.read_text()

    source._file = SlowFile()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one = pool.submit(source.token)
        assert reading.wait(10)
        reading.clear()
        other = pool.submit(source.token)
        try:
            assert reading.wait(10), "the second took the token for read"
        finally:
            go_on.set()
        assert (one.result(), other.result()) == ("first", "first")


def test_metric_says_when_the_token_that_is_shown_expires(settings, tmp_path, monkeypatch):
    def shown():
        return REGISTRY.get_sample_value("tollkeeper_service_token_expires_timestamp_seconds")

    monkeypatch.setattr(channels, "_RECHECK_SECONDS", 0.0)
    signer, file = TokenSigner(make_keypair()[0]), tmp_path / "token"
    file.write_text(signer.sign(Identity(Role.SERVICE), 1000))
    source = channels._TokenSource(settings.model_copy(update={"service_token": "", "service_token_file": file}))
    source.token()
    first = shown()
    assert 990 < first - time.time() <= 1000
    file.write_text("no token of ours")  # nothing is known of it
    source.token()
    assert shown() == first
    file.write_text(signer.sign(Identity(Role.SERVICE), 5000) + "\n")
    source.token()
    assert 4900 < shown() - time.time() <= 5000
