"""Owns the tests of the channel for unary calls: against our server, and against servers that misbehave."""

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import warnings
from dataclasses import replace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kit_http2_peer import LIMITS, PATIENCE_SECONDS, Handlers, Peer, data, eventually, serving

from services.kit.http2 import frames, hpack
from services.kit.http2.client import Channel
from services.kit.http2.client_connection import ClientConnection
from services.kit.http2.streams import message

Code = grpc.StatusCode
_HEAD = hpack.block_of([(":status", "200"), ("content-type", "application/grpc")])


@pytest.fixture
def handlers():
    return Handlers()


@contextlib.asynccontextmanager
async def channel_to(port, **options):
    channel = Channel(f"127.0.0.1:{port}", LIMITS, **options)
    try:
        yield channel
    finally:
        await channel.close()


@contextlib.asynccontextmanager
async def scripted(script):
    """A server of raw frames: `script(peer)` for each connection, its settings sent. Gives the port."""
    tasks = set()

    async def connected(reader, writer):
        tasks.add(asyncio.current_task())
        peer = Peer(reader, writer)
        try:
            await script(peer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def greet(peer):
    await peer.reader.readexactly(len(frames.PREFACE))
    peer.write(frames.settings({}))


async def asked(peer):
    """The number of the next call, when its request is there."""
    return (await peer.until(lambda frame: frame.ends))[-1].stream


def answering(*make):
    """A script that answers each call, in turn, with what `make(stream)` gives; the last for all that follow."""
    left = list(make)

    async def script(peer):
        await greet(peer)
        while True:
            number = await asked(peer)
            peer.write((left.pop(0) if len(left) > 1 else left[0])(number))

    return script


def answer_of(raw, *pairs):
    def answer(number):
        trailers = hpack.block_of(pairs or [("grpc-status", "0")])
        return frames.headers(number, _HEAD) + data(number, raw) + frames.headers(number, trailers, ends_stream=True)

    return answer


_GOOD = answer_of(message(b"good"))


async def failure(channel, path="/t.T/Echo", timeout_seconds=10, request=b"hi"):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.call(path, request, (), timeout_seconds=timeout_seconds)
    return caught.value


async def ask(channel, request=b"hi", path="/t.T/Echo", timeout_seconds=10):
    return await channel.call(path, request, (), timeout_seconds=timeout_seconds)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (answer_of(b""), Code.INTERNAL),
        (answer_of(message(b"1") + message(b"2")), Code.INTERNAL),
        (answer_of(b"\1" + message(b"hi")[1:]), Code.INTERNAL),
        (answer_of(b"\0" + (2**20 + 1).to_bytes(4)), Code.INTERNAL),
        (answer_of(message(b"hi"), ("x", "y")), Code.UNKNOWN),
        (answer_of(message(b"hi"), ("grpc-status", "9" * 5000)), Code.UNKNOWN),
        (answer_of(message(b"hi"), ("grpc-status", "7"), ("", "")), Code.PERMISSION_DENIED),
        (lambda n: frames.headers(n, _HEAD) + data(n, message(b"hi"), ends=True), Code.INTERNAL),
        (lambda n: frames.headers(n, _HEAD) + frames.reset(n, frames.CANCEL), Code.CANCELLED),
        (lambda n: frames.headers(n, _HEAD) + frames.reset(n, frames.INTERNAL_ERROR), Code.INTERNAL),
        (lambda n: frames.reset(n, frames.ENHANCE_YOUR_CALM), Code.RESOURCE_EXHAUSTED),
        (
            lambda n: frames.headers(n, hpack.block_of([(":status", "404")])) + data(n, b"<html>", ends=True),
            Code.UNIMPLEMENTED,
        ),
        (lambda n: frames.headers(n, hpack.block_of([(":status", "403")]), ends_stream=True), Code.PERMISSION_DENIED),
    ],
)
async def test_answers_that_are_none_fail_their_call_alone(answer, code):
    async with scripted(answering(answer, _GOOD)) as port, channel_to(port) as channel:
        assert (await failure(channel)).code() is code
        assert await ask(channel) == b"good"


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: frames.reset(n, frames.REFUSED_STREAM),
        answer_of(b"", ("grpc-status", "14")),
        lambda n: frames.headers(n, hpack.block_of([(":status", "503")]), ends_stream=True),
    ],
    ids=["refused", "unavailable", "503"],
)
async def test_a_call_without_an_answer_is_made_up_to_four_times(answer):
    async with scripted(answering(answer, answer, answer, _GOOD)) as port, channel_to(port) as channel:
        assert await ask(channel) == b"good"
    async with scripted(answering(answer)) as port, channel_to(port) as channel:
        assert (await failure(channel)).code() is Code.UNAVAILABLE


async def test_a_request_is_sent_before_what_the_loop_has_to_do_next():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with channel_to(listener.getsockname()[1]) as channel:
            calls = [asyncio.ensure_future(ask(channel, b"first"))]
            taken, _ = await loop.sock_accept(listener)
            with taken:
                await loop.sock_sendall(taken, frames.settings({}))
                seen = b""
                while b"first" not in seen:
                    seen += await loop.sock_recv(taken, 4096)
                taken.settimeout(PATIENCE_SECONDS)
                calls.append(asyncio.ensure_future(ask(channel, b"second")))
                came = loop.create_future()
                # It holds the loop up, so that nothing more is sent until it has read.
                loop.call_soon(lambda: came.set_result(taken.recv(4096)))
                assert b"second" in await came
        await asyncio.gather(*calls, return_exceptions=True)


async def test_attempts_stop_where_most_calls_fail():
    made = []

    def answer(number):
        made.append(number)
        return frames.reset(number, frames.REFUSED_STREAM)

    async with scripted(answering(answer)) as port, channel_to(port) as channel:
        channel._tokens = 52
        await failure(channel)
        await failure(channel)
    assert len(made) == 3


async def test_calls_that_a_leaving_server_has_not_begun_are_made_on_the_next_connection():
    connections = []

    async def script(peer):
        connections.append(peer)
        if len(connections) > 1:
            await answering(_GOOD)(peer)
        await greet(peer)
        first, second = await asked(peer), await asked(peer)
        peer.write(frames.goaway(first, 0))
        await eventually(lambda: len(connections) > 1)
        peer.write(answer_of(message(b"first"))(first) + answer_of(message(b"never"))(second))
        await peer.to_the_end()

    async with scripted(script) as port, channel_to(port) as channel:
        assert sorted(await asyncio.gather(ask(channel), ask(channel))) == [b"first", b"good"]
        assert len(connections) == 2


async def test_a_lost_connection_is_made_again_and_its_calls_with_it():
    connections = []

    async def script(peer):
        connections.append(peer)
        if len(connections) == 1:
            await greet(peer)
            await asked(peer)
        else:
            await answering(_GOOD)(peer)

    async with scripted(script) as port, channel_to(port) as channel:
        assert await ask(channel) == b"good"


async def test_a_server_that_takes_nobody_in_is_not_asked_again_and_again():
    connections = []

    async def script(peer):
        connections.append(peer)
        await greet(peer)
        await peer.writer.drain()

    async with scripted(script) as port, channel_to(port) as channel:
        await failure(channel, timeout_seconds=1)
        assert len(connections) < 15


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0\0\0\1\4\0\0\0\1"])
async def test_a_peer_that_is_not_http2_is_no_connection(said):
    async def script(peer):
        peer.write(said)
        if said:
            await peer.to_the_end()

    async with scripted(script) as port, channel_to(port) as channel:
        assert (await failure(channel)).code() is Code.UNAVAILABLE
        assert channel.get_state() is not grpc.ChannelConnectivity.READY


async def test_state_tells_of_a_lost_server_and_of_one_that_is_back(handlers):
    async with serving(handlers.by_path) as server:
        channel = Channel(f"127.0.0.1:{server.port}", LIMITS)
        assert channel.get_state() is grpc.ChannelConnectivity.IDLE
        assert await ask(channel) == b"hi"
        assert channel.get_state() is grpc.ChannelConnectivity.READY
    await eventually(lambda: channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE)
    assert (await failure(channel)).code() is Code.UNAVAILABLE
    async with serving(handlers.by_path, port=server.port):
        await eventually(lambda: channel.get_state() is grpc.ChannelConnectivity.READY)
        assert await ask(channel) == b"hi"
        await channel.close()


@pytest.mark.parametrize("way", ["deadline", "cancelled"])
async def test_a_call_that_is_given_up_is_reset(handlers, way):
    async with serving(handlers.by_path) as server, channel_to(server.port) as channel:
        waiting = asyncio.ensure_future(
            ask(channel, path="/t.T/Wait", timeout_seconds=0.2 if way == "deadline" else None)
        )
        await handlers.started.wait()
        if way == "deadline":
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await waiting
            assert caught.value.code() is Code.DEADLINE_EXCEEDED
        else:
            waiting.cancel()
            await asyncio.wait([waiting])
        await handlers.ended.wait()
        assert handlers.cleaned == [b"hi"]
        assert await ask(channel) == b"hi"


async def test_closing_ends_every_call_and_leaves_nothing(handlers):
    async with serving(handlers.by_path) as server:
        channel = Channel(f"127.0.0.1:{server.port}", LIMITS)
        before = asyncio.all_tasks()
        running = asyncio.ensure_future(failure(channel, "/t.T/Wait", None))
        await handlers.started.wait()
        # That call goes on over a connection that takes no more; another waits for the new one.
        next(iter(server.connections)).drain()
        await eventually(lambda: len(channel._connections) == 2)
        await channel.close()
        assert (await running).code() is Code.CANCELLED
        assert (await failure(channel, timeout_seconds=None)).code() is Code.CANCELLED
        assert not channel._connections
        await eventually(lambda: not server.connections and not server.running)
        assert asyncio.all_tasks() <= before
        assert channel.get_state(True) is grpc.ChannelConnectivity.SHUTDOWN
        await channel.close()


async def test_closing_in_the_moment_in_which_a_connection_is_made_leaves_nothing(handlers, monkeypatch):
    async with serving(handlers.by_path) as server:
        channel = Channel(f"127.0.0.1:{server.port}", LIMITS)
        made = ClientConnection.connection_made

        def made_and_not_wanted(connection, transport):
            made(connection, transport)
            channel._connecting.cancel()

        monkeypatch.setattr(ClientConnection, "connection_made", made_and_not_wanted)
        channel.get_state(True)
        await asyncio.wait([channel._connecting])
        await asyncio.wait_for(channel.close(), 5)
        assert not channel._connections
        await eventually(lambda: not server.connections)


async def test_closing_ends_calls_that_wait_for_a_connection():
    async def script(peer):
        await peer.to_the_end()

    async with scripted(script) as port:
        channel = Channel(f"127.0.0.1:{port}", LIMITS)
        waiting = asyncio.ensure_future(failure(channel, timeout_seconds=None))
        await asyncio.sleep(0.05)
        await channel.close()
        assert (await waiting).code() is Code.CANCELLED


async def test_metadata_that_cannot_be_sent_fail_their_call_alone(handlers):
    async with serving(handlers.by_path) as server, channel_to(server.port) as channel:
        for value in (7, "\ud800", b"\xff"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.call("/t.T/Echo", b"hi", (("x-odd", value),), timeout_seconds=5)
            assert caught.value.code() is Code.INTERNAL
        assert not channel._connection.streams
        assert await ask(channel) == b"hi"


async def test_large_metadata_and_messages_go_both_ways(handlers):
    limits = replace(LIMITS, header_bytes=100_000)
    async with serving(handlers.by_path, limits) as server:
        channel = Channel(f"127.0.0.1:{server.port}", limits)
        large = (("x-large", "v" * 60_000), ("x-raw-bin", bytes(9)))
        assert await channel.call("/t.T/Metadata", bytes(2**20), large, timeout_seconds=5) == bytes(2**20)
        error = await failure(channel, "/t.T/Refuse", request=b"40")
        assert (error.details(), len(tuple(error.trailing_metadata()))) == ("100% näh\n", 40)
        assert (await failure(channel, "/t.T/Big", request=b"1048577")).code() is Code.INTERNAL
        await channel.close()


async def test_a_refused_request_that_is_not_all_sent_is_reset():
    resets = []

    async def script(peer):
        await greet(peer)
        await peer.until(lambda frame: frame.kind == frames.DATA)
        refusal = hpack.block_of([(":status", "200"), ("grpc-status", "8")])
        peer.write(frames.headers(1, refusal, ends_stream=True))
        resets.extend(await peer.until(lambda frame: frame.kind == frames.RESET))

    async with scripted(script) as port, channel_to(port) as channel:
        assert (await failure(channel, request=bytes(200_000))).code() is Code.RESOURCE_EXHAUSTED
        await eventually(lambda: resets)


async def _load(channels, until, made):
    async def calls(one, number):
        while not until.is_set():
            raw = b"%d-%d" % (number, len(made))
            assert await one(raw) == raw
            made.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number, one in enumerate(channels):
            group.create_task(calls(one, number))


@pytest.mark.parametrize("client", ["grpc", "ours"])
async def test_no_call_is_lost_while_connections_age_out(handlers, client):
    """Calls that were begun are not begun again: gRPC's own client does that only where nothing was sent."""
    async with serving(handlers.by_path, age_seconds=0.05) as server:
        seen = set()
        if client == "grpc":
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
            one = channel.unary_unary("/t.T/Echo")
        else:
            channel = Channel(f"127.0.0.1:{server.port}", LIMITS)
            channel._tokens = 50

            async def one(raw):
                seen.update(map(id, server.connections))
                channel._tokens = 50  # no second attempts
                return await ask(channel, raw)

        until, made = asyncio.Event(), []
        asyncio.get_running_loop().call_later(1.5, until.set)
        await _load([one] * 8, until, made)
        await channel.close()
    assert len(made) > 100


@pytest.mark.parametrize("client", ["grpc", "ours"])
async def test_calls_under_way_are_answered_while_a_server_stops(handlers, client):
    async with serving(handlers.by_path) as server:
        if client == "grpc":
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
            call = channel.unary_unary("/t.T/Wait")
        else:
            channel = Channel(f"127.0.0.1:{server.port}", LIMITS)

            async def call(raw):
                return await ask(channel, raw, "/t.T/Wait")

        calls = [asyncio.ensure_future(call(b"%d" % number)) for number in range(20)]
        await eventually(lambda: len(handlers.begun) == 20)
        stopping = asyncio.ensure_future(server.stop(10))
        await asyncio.sleep(0.1)
        handlers.release.set()
        assert await asyncio.gather(*calls) == [b"%d" % number for number in range(20)]
        await stopping
        await channel.close()
        assert not server.connections


async def test_a_large_answer_is_read_to_its_end_though_the_server_stops(handlers):
    """A slow reader's: the server neither cancels it when it is hurried, nor throws away what is on its way."""
    limits = replace(LIMITS, message_bytes=32 * 2**20)
    async with (
        serving(handlers.by_path, limits) as server,
        Peer.connected(server.port, settings={frames.INITIAL_WINDOW: 2**31 - 1}, limit=4096) as peer,
    ):
        peer.write(frames.window(0, 2**30))
        body = message(b"20000000")
        block = hpack.block_of(
            [(":method", "POST"), (":path", "/t.T/Big"), ("content-type", "application/grpc"), (":scheme", "http")]
        )
        peer.write(frames.headers(1, block) + data(1, body, ends=True))
        await peer.until(lambda frame: frame.kind == frames.DATA)
        stopping = asyncio.ensure_future(server.stop(15))
        await eventually(lambda: server.is_stopping)
        await server.stop(0)
        got, ended = 0, False
        while not ended:
            frame = await peer.frame()
            assert frame is not None
            got += len(frame.payload) if frame.kind == frames.DATA else 0
            ended = frame.ends
            peer.write(frames.window(0, 1))
        assert got > 19_000_000
        await stopping


def _certified(tmp_path, name):
    """A certificate of its own for `name`; key and certificate in one file each."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(minutes=5))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    both = tmp_path / f"{name}.pem"
    both.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return both


async def test_tls_proves_the_servers_name_and_closing_leaves_nothing(tmp_path, handlers):
    file = _certified(tmp_path, "ledger.test")
    serves = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serves.load_cert_chain(file)
    serves.set_alpn_protocols(["h2"])
    trusts = ssl.create_default_context(cafile=file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with serving(handlers.by_path, tls=serves) as server:
            async with channel_to(server.port, tls=lambda: trusts, name="ledger.test") as channel:
                assert await ask(channel) == b"hi"
            for trusted, name in ((trusts, "other.test"), (ssl.create_default_context(), "ledger.test")):
                async with channel_to(server.port, tls=lambda trusted=trusted: trusted, name=name) as channel:
                    error = await failure(channel)
                    assert error.code() is Code.UNAVAILABLE
                    assert "certificate" in error.details()
            async with channel_to(server.port) as channel:
                assert (await failure(channel)).code() is Code.UNAVAILABLE
