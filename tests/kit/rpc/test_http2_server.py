"""Owns the tests of the server of HTTP/2 against raw frames: what any peer may send, and what none may do to others."""

import asyncio
import gc
import socket
import weakref
from dataclasses import replace

import grpc
import pytest
from kit_http2_peer import LIMITS, PATIENCE_SECONDS, Handlers, Peer, call, data, eventually, head, serving

from services.kit.http2 import frames, hpack
from services.kit.http2.streams import message

_OK = {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}
_WIDE = {frames.INITIAL_WINDOW: 2**31 - 1}


@pytest.fixture
def handlers():
    return Handlers()


@pytest.fixture
async def server(handlers):
    async with serving(handlers.by_path) as served:
        yield served


@pytest.fixture
async def peer(server):
    async with Peer.connected(server.port) as connected:
        yield connected


async def refused(peer, stream):
    """The code and message of a call's answer."""
    named, answered = await peer.answer(stream)
    assert not answered
    return named.get("reset", named.get("grpc-status")), named.get("grpc-message", "")


async def goaway(peer):
    """The error with which the connection ends."""
    found = await peer.to_the_end()
    assert found[-1].kind == frames.GOAWAY, found
    return int.from_bytes(found[-1].payload[4:8])


async def test_a_call_is_answered_wherever_its_bytes_are_split(server):
    raw = frames.PREFACE + frames.settings({}) + call(1)
    async with asyncio.TaskGroup() as group:

        async def split(at):
            async with Peer.connected(server.port, greeted=False) as peer:
                peer.write(raw[:at])
                await peer.writer.drain()
                await asyncio.sleep(0.002)
                peer.write(raw[at:])
                assert await peer.answer(1) == (_OK, message(b"hi"))

        for at in range(0, len(raw), 3):
            group.create_task(split(at))
    async with Peer.connected(server.port, greeted=False) as peer:
        for at in range(len(raw)):
            peer.write(raw[at : at + 1])
            await asyncio.sleep(0)
        assert await peer.answer(1) == (_OK, message(b"hi"))


async def test_padding_priority_continuation_and_unknown_frames_change_nothing(peer):
    block = head(1)[frames.HEAD_BYTES :]
    flags = frames.PADDED | frames.PRIORITISED
    peer.write(frames.frame(99, 255, 7, b"new") + frames.frame(frames.PRIORITY, 0, 9, bytes(5)))
    peer.write(frames.frame(frames.HEADERS, flags, 1, b"\x03" + bytes(5) + block[:10] + bytes(3)))
    peer.write(b"".join(frames.frame(frames.CONTINUATION, 0, 1, block[at : at + 1]) for at in range(10, len(block))))
    peer.write(frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, b""))
    body = message(b"hi")
    peer.write(frames.frame(frames.DATA, frames.PADDED, 1, b"\x05" + body[:3] + bytes(5)) + data(1, b""))
    peer.write(data(1, body[3:]) + frames.frame(frames.DATA, frames.PADDED | frames.END_STREAM, 1, b"\x02" + bytes(2)))
    assert await peer.answer(1) == (_OK, body)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (frames.frame(frames.DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS, 0, b""), frames.PROTOCOL_ERROR),
        (head(2), frames.PROTOCOL_ERROR),
        (head(9) + head(2), frames.PROTOCOL_ERROR),
        (frames.frame(frames.CONTINUATION, 0, 1, b""), frames.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, 0, 1, b"") + frames.frame(frames.PING, 0, 0, bytes(8)), frames.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS | frames.PRIORITISED, 1, b"x"), frames.FRAME_SIZE_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS | frames.PADDED, 1, b"\x09x"), frames.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff"), frames.COMPRESSION_ERROR),
        (frames.frame(frames.PUSH, 0, 1, bytes(9)), frames.PROTOCOL_ERROR),
        (frames.frame(frames.PING, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
        (frames.settings({frames.INITIAL_WINDOW: 2**31}), frames.FLOW_CONTROL_ERROR),
        (frames.settings({frames.MAX_FRAME: 2**24}), frames.PROTOCOL_ERROR),
        (frames.window(0, 0), frames.FLOW_CONTROL_ERROR),
        (frames.window(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
        (frames.frame(frames.WINDOW, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
        (frames.frame(frames.DATA, 0, 1, bytes(16_385)), frames.FRAME_SIZE_ERROR),
        (frames.frame(frames.HEADERS, 0, 1, b"") + frames.frame(9, 0, 1, bytes(16_000)) * 3, frames.ENHANCE_YOUR_CALM),
        (frames.reset(1, 8) * 2_001, frames.ENHANCE_YOUR_CALM),
        (frames.settings({}) * 2_001, frames.ENHANCE_YOUR_CALM),
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_told_why_and_let_go(peer, raw, code):
    await peer.ping()
    peer.write(raw)
    assert await goaway(peer) == code


async def test_a_client_begins_with_its_settings(server):
    async with Peer.connected(server.port, greeted=False) as peer:
        peer.write(frames.PREFACE + call(1))
        assert await goaway(peer) == frames.PROTOCOL_ERROR


async def test_what_is_not_http2_is_let_go(server):
    async with Peer.connected(server.port, greeted=False) as peer:
        peer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert all(frame.kind in {frames.SETTINGS, frames.WINDOW} for frame in await peer.to_the_end())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (call(1, path="/none"), "12"),
        (head(1, ends=True), "13"),
        (head(1) + data(1, message(b"hi")[:-1], ends=True), "13"),
        (head(1) + data(1, message(b"1") + message(b"2"), ends=True), "8"),
        (head(1) + data(1, b"\1" + message(b"hi")[1:]), "12"),
        (head(1) + data(1, b"\0" + (2**20 + 1).to_bytes(4)), "8"),
        (head(1, metadata=[("x-large", "x" * 16_300)]), "8"),
        (call(1, metadata=[("grpc-timeout", "soon")]), "13"),
        (call(1, metadata=[("", "x")]), "13"),
        (head(1, metadata=[("grpc-timeout", "10m")]), "4"),
        (head(1) + head(1, ends=True), "13"),
        (call(1, path="/t.T/Wait", metadata=[("grpc-timeout", "10m")]), "4"),
        (call(1, path="/t.T/Wait", metadata=[("grpc-timeout", "0n")]), "4"),
    ],
)
async def test_one_bad_call_is_refused_and_the_next_is_answered(peer, raw, code):
    peer.write(raw)
    assert (await refused(peer, 1))[0] == code
    peer.write(call(3))
    assert await peer.answer(3) == (_OK, message(b"hi"))


@pytest.mark.parametrize(("changed", "status"), [({":method": "GET"}, "405"), ({"content-type": "text/html"}, "415")])
async def test_what_is_no_call_is_answered_as_http(peer, changed, status):
    peer.write(head(1, ends=True, **changed))
    assert await peer.answer(1) == ({":status": status}, b"")


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 2**20])
async def test_messages_up_to_the_limit_are_taken_and_answered(server, size):
    async with Peer.connected(server.port, settings=_WIDE) as peer:
        peer.write(frames.window(0, 2**30))
        raw = message(bytes(size))
        pieces = [raw[at : at + 16_384] for at in range(0, len(raw), 16_384)]
        peer.write(head(1) + b"".join(data(1, piece) for piece in pieces) + data(1, b"", ends=True))
        assert await peer.answer(1) == (_OK, raw)


async def test_the_only_answer_is_sent_before_what_the_loop_has_to_do_next():
    loop = asyncio.get_running_loop()
    came = loop.create_future()

    def read():
        """Hold the loop up until the answer has come, so that nothing is sent meanwhile."""
        seen = b""
        while b"the only one" not in seen:
            seen += client.recv(4096)
        came.set_result(None)

    async def echo(request, _context):
        loop.call_soon(read)
        return request

    async with serving({"/t.T/Echo": grpc.unary_unary_rpc_method_handler(echo)}) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS / 2) as client:
            client.sendall(frames.PREFACE + frames.settings({}) + call(1, b"the only one"))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await came


async def test_a_request_may_end_with_trailers(peer):
    peer.write(head(1) + data(1, message(b"hi")) + frames.headers(1, hpack.block_of([("x", "y")]), ends_stream=True))
    assert await peer.answer(1) == (_OK, message(b"hi"))


@pytest.mark.parametrize("more", [data(1, message(b"more"), ends=True), head(1, ends=True)], ids=["data", "headers"])
async def test_what_comes_after_a_request_ended_runs_no_handler_again(peer, handlers, more):
    peer.write(call(1, path="/t.T/Wait"))
    await handlers.started.wait()
    peer.write(more)
    assert await refused(peer, 1) == (frames.STREAM_CLOSED, "")
    await handlers.ended.wait()
    assert (handlers.begun, handlers.cancelled) == ([b"hi"], [b"hi"])


async def test_data_of_calls_that_are_over_are_passed_over_and_counted(peer):
    peer.write(call(1))
    await peer.answer(1)
    peer.write(data(1, bytes(16_000)) * 600 + call(3))
    found = await peer.until(lambda frame: frame.stream == 3 and frame.ends)
    assert any(frame.kind == frames.WINDOW and frame.stream == 0 for frame in found)


async def test_windows_of_a_byte_get_all_of_an_answer(server):
    async with Peer.connected(server.port, settings={frames.INITIAL_WINDOW: 1}) as peer:
        peer.write(call(1, b"a longer one"))
        got = (await peer.until(lambda frame: frame.kind == frames.DATA))[-1].payload
        while True:
            peer.write(frames.window(1, 1))
            frame = (await peer.until(lambda frame: frame.stream == 1))[-1]
            got += frame.payload if frame.kind == frames.DATA else b""
            if frame.ends:
                break
        assert got == message(b"a longer one")


async def test_a_window_that_settings_make_negative_holds_back_until_it_is_made_up_for(server):
    async with Peer.connected(server.port, settings={frames.INITIAL_WINDOW: 100}) as peer:
        peer.write(call(1, b"x" * 195))
        await peer.until(lambda frame: frame.kind == frames.DATA and len(frame.payload) == 100)
        peer.write(frames.settings({frames.INITIAL_WINDOW: 10}) + frames.window(1, 90))  # now 0
        found = await peer.ping()
        assert not any(frame.kind == frames.DATA for frame in found)
        peer.write(call(3, b""))  # another call has its own window
        await peer.until(lambda frame: frame.stream == 3 and frame.ends)
        peer.write(frames.settings({frames.INITIAL_WINDOW: 110}))
        assert len((await peer.until(lambda frame: frame.stream == 1))[-1].payload) == 100
        await peer.until(lambda frame: frame.stream == 1 and frame.ends)


async def test_no_answer_takes_all_of_a_connections_window(server):
    """Large answers that all wait for the connection's window have their turns in it."""
    async with Peer.connected(server.port, settings=_WIDE) as peer:
        peer.write(b"".join(call(stream, b"200000", "/t.T/Big") for stream in (1, 3, 5)))
        used = 0
        while used < frames.FIRST_WINDOW:
            used += len((await peer.until(lambda frame: frame.kind == frames.DATA))[-1].payload)
        moved = set()
        for _ in range(3):
            peer.write(frames.window(0, 1000))
            moved.add((await peer.until(lambda frame: frame.kind == frames.DATA))[-1].stream)
        assert moved == {1, 3, 5}


async def test_a_refusal_needs_no_window(server):
    async with Peer.connected(server.port, settings=_WIDE) as peer:
        peer.write(call(1, b"200000", "/t.T/Big"))
        await peer.ping()  # the connection's window is used up
        peer.write(call(3, path="/none") + call(5, b"0", "/t.T/Refuse"))
        assert (await refused(peer, 3))[0] == "12"
        assert (await refused(peer, 5))[0] == "5"


async def test_trailers_larger_than_a_frame_are_sent_in_several(peer):
    peer.write(call(1, b"40", "/t.T/Refuse"))
    named, _ = await peer.answer(1)
    assert (named["grpc-status"], named["grpc-message"], len(named)) == ("5", "100%25 n%C3%A4h%0A", 44)


async def test_a_slow_reader_of_a_stream_makes_its_handler_wait(server, handlers):
    async with Peer.connected(server.port, settings=_WIDE, limit=1024) as peer:
        peer.write(frames.window(0, 2**30) + call(1, b"100000", "/t.T/Down"))
        await handlers.started.wait()
        written = -1
        while written != handlers.written:
            written = handlers.written
            await asyncio.sleep(0.2)
        assert 0 < handlers.written < 500  # of 10,000: what the sockets hold


@pytest.mark.parametrize("path", ["/t.T/Down", "/t.T/Big"])
async def test_a_call_whose_client_takes_nothing_is_given_up_and_its_place_free(handlers, path):
    limits = replace(LIMITS, stall_seconds=0.2)
    async with serving(handlers.by_path, limits) as server, Peer.connected(server.port) as peer:
        peer.write(frames.window(0, 2**30) + call(1, b"100000", path))
        ended = await peer.until(lambda frame: frame.kind == frames.RESET and frame.stream == 1)
        assert int.from_bytes(ended[-1].payload) == frames.CANCEL
        await eventually(lambda: not server.running)
        peer.write(call(3))
        named, _ = await peer.answer(3)
        assert named["grpc-status"] == "0"


@pytest.mark.parametrize("path", ["/t.T/Down", "/t.T/Big"])
async def test_a_call_whose_client_takes_a_little_now_and_then_goes_on(handlers, path):
    limits = replace(LIMITS, stall_seconds=1)
    async with serving(handlers.by_path, limits) as server, Peer.connected(server.port) as peer:
        peer.write(frames.window(0, 2**30) + call(1, b"1000000", path))
        for _ in range(10):
            peer.write(frames.window(1, 1))
            await asyncio.sleep(0.3)
        assert server.running


async def test_a_handler_that_waits_for_nothing_lets_others_be_served(server, handlers):
    async with Peer.connected(server.port, settings=_WIDE) as peer:
        peer.write(frames.window(0, 2**30) + call(1, b"0", "/t.T/Down"))
        await handlers.started.wait()
        peer.write(call(3))
        await eventually(lambda: handlers.begun)
        assert handlers.written < 10_000
        await peer.until(lambda frame: frame.stream == 1 and frame.ends)


async def test_a_peer_that_reads_slowly_may_ping(server):
    """A large answer that waits in the transport is no sign of a peer that does not read its pongs."""
    limits = replace(LIMITS, message_bytes=32 * 2**20)
    server.limits = limits
    async with Peer.connected(server.port, settings=_WIDE, limit=1024) as peer:
        peer.write(frames.window(0, 2**30) + call(1, b"20000000", "/t.T/Big"))
        await peer.until(lambda frame: frame.kind == frames.DATA)
        for _ in range(20):
            peer.write(frames.frame(frames.PING, 0, 0, bytes(8)))
            await asyncio.sleep(0.005)
        _, answered = await peer.answer(1)
        assert len(answered) > 19_000_000


@pytest.mark.parametrize(
    "asking",
    [frames.frame(frames.PING, 0, 0, bytes(8)) * 1000, None, "refused"],
    ids=["pings", "compressed", "no method"],
)
async def test_a_peer_that_asks_and_reads_no_answers_is_let_go(server, asking):
    async with Peer.connected(server.port, limit=1024) as peer:
        peer.writer.transport.pause_reading()
        await eventually(lambda: server.connections)
        stream = 1
        while server.connections:
            raw = asking
            if not isinstance(asking, bytes):
                numbers = range(stream, stream + 400, 2)
                stream += 400
                raw = b"".join(
                    (head(number) + data(number, b"\1aaaa")) if asking is None else call(number, path="/none")
                    for number in numbers
                )
            peer.write(raw)
            await asyncio.sleep(0)
            assert sum(c.transport.get_write_buffer_size() for c in server.connections) < 4 * 2**20


async def test_cancellation_reaches_a_handler_once_and_its_cleaning_up_is_not_cut_short(peer, server, handlers):
    peer.write(call(1, path="/t.T/Wait", metadata=[("grpc-timeout", "200m")]))
    await handlers.started.wait()
    peer.write(frames.reset(1, frames.CANCEL))
    await eventually(lambda: handlers.cancelled)
    peer.writer.close()
    await server.stop(0)
    assert (handlers.cancelled, handlers.cleaned) == ([b"hi"], [b"hi"])


async def test_calls_given_up_in_numbers_end_no_other_call_of_their_connection(peer, handlers):
    """The gateway's connections have the calls of all its clients; and who gives up a call may need no key."""
    peer.write(call(1, path="/t.T/Wait"))
    await handlers.started.wait()
    for stream in range(3, 10_003, 2):
        peer.write(call(stream) + frames.reset(stream, frames.CANCEL))
    await peer.ping()
    handlers.release.set()
    assert await peer.answer(1) == (_OK, message(b"hi"))


async def test_a_call_given_up_before_it_began_is_answered_and_forgotten(peer, server, handlers, monkeypatch):
    await peer.ping()
    connection = next(iter(server.connections))
    start = connection._start

    def start_too_late(one):
        start(one)
        one.give_up(grpc.StatusCode.DEADLINE_EXCEEDED)

    monkeypatch.setattr(connection, "_start", start_too_late)
    peer.write(call(1))
    assert (await refused(peer, 1))[0] == "4"
    assert (connection.streams, handlers.begun) == ({}, [])


@pytest.mark.parametrize(
    "begun", [call(3), call(3, path="/t.T/Wait"), call(3, b"9999999", "/t.T/Big"), head(3, "/t.T/Up")]
)
async def test_nothing_of_its_calls_is_kept_when_a_client_has_left(server, begun):
    async with Peer.connected(server.port) as peer:
        # A call that never begins, and one that does; both with a deadline in the far future.
        long = [("grpc-timeout", "99999999H")]
        peer.write(head(1, metadata=long) + begun)
        await peer.ping()
        connection = weakref.ref(next(iter(server.connections)))
    await eventually(lambda: not server.connections and not server.running)
    gc.collect()
    await eventually(lambda: gc.collect() is not None and connection() is None)


async def test_metadata_go_both_ways(server):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        sent = (("x-plain", "a b"), ("x-raw-bin", bytes(range(256))), ("x-empty-bin", b""))
        answering = channel.unary_unary("/t.T/Metadata")(b"hi", metadata=sent)
        assert await answering == b"hi"
        assert tuple(await answering.trailing_metadata()) == sent
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Refuse")(b"0")
        assert caught.value.details() == "100% näh\n"


async def test_values_that_are_not_text_end_no_other_call(peer):
    peer.write(call(1, path="/t.T/Wait"))
    raw = b"\x40\x05x-odd\x02\xff\xfe\x00\x06x-bin-\x01\xc3"
    block = head(3)[frames.HEAD_BYTES :] + raw + b"\x00\x07x-a-bin\x02\xff!"
    peer.write(frames.headers(3, block) + data(3, message(b"3"), ends=True))
    assert (await peer.answer(3))[1] == message(b"3")
    peer.write(call(5))
    assert (await peer.answer(5))[1] == message(b"hi")


@pytest.mark.parametrize("value", ["\ud800", 7, b"\xff"])
async def test_metadata_that_cannot_be_sent_end_their_call_with_internal(handlers, value):
    async def handler(_request, context):
        context.set_trailing_metadata((("x-odd", value),))
        return b""

    handlers.by_path["/t.T/Odd"] = grpc.unary_unary_rpc_method_handler(handler)
    async with serving(handlers.by_path) as server, Peer.connected(server.port) as peer:
        peer.write(call(1, path="/t.T/Odd"))
        assert (await peer.answer(1))[0]["grpc-status"] == "13"


async def test_a_message_with_half_a_character_is_sent(handlers):
    async def handler(_request, context):
        await context.abort(grpc.StatusCode.INTERNAL, "no \ud800")

    handlers.by_path["/t.T/Odd"] = grpc.unary_unary_rpc_method_handler(handler)
    async with serving(handlers.by_path) as server, Peer.connected(server.port) as peer:
        peer.write(call(1, path="/t.T/Odd"))
        assert await refused(peer, 1) == ("13", "no ?")


async def test_a_fault_of_ours_ends_its_connection_and_says_so(peer, server, monkeypatch):
    await peer.ping()

    def fails(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr(next(iter(server.connections)), "headers_came", fails, raising=False)
    peer.write(call(1))
    assert await goaway(peer) == frames.INTERNAL_ERROR


async def test_what_a_streamed_request_makes_wait_is_bounded(peer, server, handlers):
    peer.write(head(1, "/t.T/Up"))
    await handlers.started.wait()
    piece = data(1, message(bytes(16_000)))
    peer.write(piece * 100)
    found = await peer.ping()
    assert not any(frame.kind == frames.WINDOW and frame.stream == 1 for frame in found)
    handlers.release.set()
    await peer.until(lambda frame: frame.kind == frames.WINDOW and frame.stream == 1)
    peer.write(data(1, b"", ends=True))
    assert await peer.answer(1) == (_OK, message(b"1600000"))


async def test_more_calls_than_are_taken_at_once_are_refused_unbegun(peer, handlers):
    peer.write(b"".join(call(stream, path="/t.T/Wait") for stream in range(1, 203, 2)))
    assert await refused(peer, 201) == (frames.REFUSED_STREAM, "")
    assert len(handlers.begun) == 100


async def test_a_silent_peer_is_asked_and_then_let_go(handlers):
    async with (
        serving(handlers.by_path, replace(LIMITS, ping_seconds=0.05, pong_seconds=0.05)) as server,
        Peer.connected(server.port) as peer,
    ):
        found = await peer.to_the_end()
        assert [frame.kind for frame in found if frame.kind == frames.PING] == [frames.PING]
        assert not server.connections
