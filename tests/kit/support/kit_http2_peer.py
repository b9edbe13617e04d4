"""Owns peers of HTTP/2 for tests: a client of raw frames, a server of raw frames, and handlers by path."""

import asyncio
import contextlib
from dataclasses import dataclass

import grpc

from services.kit.http2 import frames, hpack
from services.kit.http2.connection import Limits
from services.kit.http2.server import Server
from services.kit.http2.streams import message

PATIENCE_SECONDS = 20

LIMITS = Limits(message_bytes=1024 * 1024, header_bytes=16 * 1024, streams=100, ping_seconds=60, pong_seconds=20)


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends(self):
        return self.kind in {frames.DATA, frames.HEADERS} and bool(self.flags & frames.END_STREAM)


class Peer:
    """Frames, written and read, on one socket. It reads only when asked to, and answers nothing by itself."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.headers = hpack.HeaderReader(1024 * 1024)

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, port, *, settings=None, greeted=True, limit=2**16):
        peer = cls(*await asyncio.open_connection("127.0.0.1", port, limit=limit))
        try:
            if greeted:
                peer.write(frames.PREFACE + frames.settings(settings or {}))
            yield peer
        finally:
            peer.writer.close()
            with contextlib.suppress(OSError):
                await peer.writer.wait_closed()

    def write(self, raw):
        self.writer.write(raw)

    async def frame(self):
        """The next frame; None at the end of the connection."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                head = await self.reader.readexactly(frames.HEAD_BYTES)
                word, flags, stream = frames.unpack_head(head)
                return Frame(word & 0xFF, flags, stream, await self.reader.readexactly(word >> 8))
            except (asyncio.IncompleteReadError, ConnectionError):
                return None

    async def until(self, wanted):
        """Frames up to the first for which `wanted` is true; it is the last of them. Fails at the connection's end."""
        found = []
        while True:
            frame = await self.frame()
            assert frame is not None, f"the connection ended after {found}"
            found.append(frame)
            if wanted(frame):
                return found

    async def to_the_end(self):
        """All frames until the connection ends."""
        found = []
        while (frame := await self.frame()) is not None:
            found.append(frame)
        return found

    async def answer(self, stream):
        """What one call was answered: headers and trailers in one dict, and its data; reset: {"reset": code}."""
        named, data = {}, b""
        while True:
            frame = await self.frame()
            assert frame is not None, "the connection ended"
            if frame.kind == frames.HEADERS:
                block = frame.payload
                last = frame
                while not last.flags & frames.END_HEADERS:
                    last = await self.frame()
                    assert (last.kind, last.stream) == (frames.CONTINUATION, frame.stream)
                    block += last.payload
                pairs = self.headers.read(block)
                if frame.stream == stream:
                    named |= dict(pairs)
            elif frame.stream != stream:
                continue
            elif frame.kind == frames.DATA:
                data += frame.payload
            elif frame.kind == frames.RESET:
                return {"reset": int.from_bytes(frame.payload)}, data
            if frame.stream == stream and frame.ends:
                return named, data

    async def ping(self, payload=b"are you?"):
        """Wait until all that was written has been taken in."""
        self.write(frames.frame(frames.PING, 0, 0, payload))
        return await self.until(lambda frame: frame.kind == frames.PING and frame.payload == payload)


def head(stream, path="/t.T/Echo", metadata=(), *, ends=False, **changed):
    """HEADERS of a call."""
    start = {":method": "POST", ":scheme": "http", ":path": path, "te": "trailers", "content-type": "application/grpc"}
    block = hpack.block_of([*(start | changed).items(), *metadata])
    return frames.headers(stream, block, ends_stream=ends)


def data(stream, raw, *, ends=False):
    """One DATA frame."""
    return frames.frame(frames.DATA, frames.END_STREAM if ends else 0, stream, raw)


def call(stream, request=b"hi", path="/t.T/Echo", metadata=()):
    """All frames of a call whose request fits one frame."""
    return head(stream, path, metadata) + data(stream, message(request), ends=True)


class Handlers:
    """Handlers by path, that tell what became of them."""

    def __init__(self):
        self.begun, self.cancelled, self.cleaned = [], [], []
        self.started, self.release, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.written = 0
        self.by_path = {
            "/t.T/Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "/t.T/Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "/t.T/Big": grpc.unary_unary_rpc_method_handler(self.big),
            "/t.T/Metadata": grpc.unary_unary_rpc_method_handler(self.metadata),
            "/t.T/Refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
            "/t.T/Down": grpc.unary_stream_rpc_method_handler(self.down),
            "/t.T/Up": grpc.stream_unary_rpc_method_handler(self.up),
            "/t.T/Both": grpc.stream_stream_rpc_method_handler(self.both),
        }

    async def echo(self, request, _context):
        self.begun.append(request)
        await asyncio.sleep(0)
        return request

    async def wait(self, request, _context):
        self.begun.append(request)
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request)
            await asyncio.sleep(0.05)
            self.cleaned.append(request)
            self.ended.set()
            raise
        return request

    async def big(self, request, _context):
        return bytes(int(request))

    async def metadata(self, request, context):
        found = tuple(pair for pair in context.invocation_metadata() if pair[0].startswith("x-"))
        context.set_trailing_metadata(found)
        return request

    async def refuse(self, request, context):
        context.set_trailing_metadata(tuple((f"x-{n}", "v" * 1000) for n in range(int(request))))
        await context.abort(grpc.StatusCode.NOT_FOUND, "100% näh\n")

    async def down(self, request, context):
        self.started.set()
        for _ in range(10_000):
            await context.write(bytes(int(request)))
            self.written += 1

    async def up(self, requests, _context):
        self.started.set()
        await self.release.wait()
        return str(sum([len(request) async for request in requests])).encode()

    async def both(self, requests, context):
        async for request in requests:
            await context.write(request)


@contextlib.asynccontextmanager
async def serving(handlers, limits=LIMITS, *, age_seconds=300, port=0, tls=None):
    """A server of `handlers`; its `port` is set."""
    server = Server(handlers, limits, age_seconds=age_seconds)
    server.port = await server.bind("127.0.0.1", port, tls=tls, reuse_port=False)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


async def eventually(true):
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():  # noqa: ASYNC110 (what is waited for tells nobody)
            await asyncio.sleep(0.005)
