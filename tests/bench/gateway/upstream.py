"""Owns the provider behind the gateway: answers at once, the same each time, and counts. Runs as a program.

    python -m tests.bench.gateway.upstream PORT

As little HTTP/1.1 as the proxy's client and ours need, so that it is not what is measured. A stream's events go out one
by one, each in a chunk and in a turn of the loop of its own, as a provider's do.
"""

import asyncio
import sys

import orjson
import uvloop

from deploy.local.ports import HOST
from tests.bench.gateway import calls

_MOST_BYTES = 1024 * 1024


def _chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def _whole(content: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


_COMPLETION = _whole(calls.completion())
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_FIRST, *_MIDDLE, _LAST = (_chunk(event) for event in calls.events())
_PIECES = (_STREAM_HEAD + _FIRST, *_MIDDLE, _LAST + b"0\r\n\r\n")
_PATHS = {calls.PATH.encode(): "called", calls.DIRECT_PATH.encode(): "direct"}


class _Connection(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop, counts: dict[str, int]) -> None:
        self._loop = loop
        self._counts = counts
        self._buffer = b""

    def connection_made(self, transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data
        ends = buffer.find(b"\r\n\r\n")
        if ends < 0:
            return
        head = buffer[:ends].lower()
        _, _, rest = head.partition(b"content-length:")
        whole = ends + 4 + (int(rest.partition(b"\r\n")[0]) if rest else 0)
        if whole > _MOST_BYTES:
            self._transport.abort()
        elif len(buffer) >= whole:
            self._buffer = buffer[whole:]
            self._answer(buffer.split(b" ", 2)[1], buffer[ends + 4 : whole])

    def _answer(self, path: bytes, body: bytes) -> None:
        counted = _PATHS.get(path)
        if counted is None:
            self._transport.write(_whole(orjson.dumps(self._counts)))
            return
        self._counts[counted] += 1
        if calls.asks_for_stream(body):
            self._send(0)
        else:
            self._transport.write(_COMPLETION)

    def _send(self, number: int) -> None:
        if not self._transport.is_closing():
            self._transport.write(_PIECES[number])
            if number + 1 < len(_PIECES):
                self._loop.call_soon(self._send, number + 1)


async def _serve(port: int) -> None:
    loop, counts = asyncio.get_running_loop(), dict.fromkeys(_PATHS.values(), 0)
    server = await loop.create_server(lambda: _Connection(loop, counts), HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
