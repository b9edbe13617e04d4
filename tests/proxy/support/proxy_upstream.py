"""Owns what tests of the way to providers share: calls over it, and a provider that answers by a script."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from services.proxy.settings import ProxySettings
from services.proxy.upstream import Outgoing, Upstreams

HANG = None  # a step: nothing more is sent until the client leaves
RESET = "reset"  # a step: the connection is reset


def answer(body=b"{}", *, status=200, content_type="application/json", length=None, **headers):
    """A whole answer; `length` may promise another one."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", f"content-length: {length or len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


WHOLE = answer(b'{"ok": true}')
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def chunk(text):
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


def stream(*events):
    return b"".join((STREAM_HEAD, *map(chunk, events), STREAM_END))


@dataclass
class Seen:
    """A request: its first line, its headers as they came, its body, and when it was whole (time.monotonic)."""

    line: str
    headers: list
    body: bytes
    at: float

    def values(self, name):
        return [value for key, value in self.headers if key.lower() == name]


@dataclass
class ScriptedProvider:
    """Answers request after request with the steps of `script`; the last ones are for all that follow.

    Steps are bytes, RESET, HANG, or a number of seconds to wait; after other steps but an incomplete answer the
    connection stays. `closed` is set when a client leaves while it is waited on.
    """

    script: list
    port: int = 0
    requests: list = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = [tuple(line.split(": ", 1)) for line in head[1:] if line]
                length = next(int(value) for name, value in headers if name.lower() == "content-length")
                body = await reader.readexactly(length)
                number = len(self.requests)
                self.requests.append(Seen(head[0], headers, body, time.monotonic()))
                if not await self._follow(self.script[min(number, len(self.script) - 1)], reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _follow(self, steps, reader, writer):
        for step in steps if isinstance(steps, list) else [steps]:
            if step is HANG:
                await reader.read(1)
                self.closed.set()
                return False
            if step == RESET:
                writer.transport.abort()
                return False
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            else:
                await asyncio.sleep(step)
        return not (isinstance(steps, list) and steps[-1] == b"")  # an empty last step closes the connection


@asynccontextmanager
async def scripted(*script):
    """A served ScriptedProvider."""
    provider = ScriptedProvider(list(script))
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.port = server.sockets[0].getsockname()[1]
    try:
        yield provider
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def ways():
    """`make(url, **settings)`: the way to a provider at this address, with one key and little patience."""
    made = []

    def make(url, **changes):
        settings = {
            "openai_base_url": f"{url}/openai/v1",
            "openai_api_key": "one",
            "upstream_first_byte_seconds": 5,
            "upstream_idle_seconds": 5,
        }
        made.append(Upstreams(ProxySettings(**(settings | changes))))
        return made[-1]

    yield make
    for one in made:
        await one.close()


def chat(text="Hello", *, stream=False, headers=(), model="gpt-4o"):
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    return Outgoing("chat", "chat/completions", json.dumps(body).encode(), stream, headers, model=model)


async def read(upstreams, outgoing, provider="openai", seconds=20.0):
    """The whole body that a provider answers with."""
    async with upstreams.post(upstreams.provider(provider), outgoing, deadline=time.monotonic() + seconds) as got:
        return await got.whole(1_000_000)


async def refused(kind, awaitable):
    with pytest.raises(kind) as caught:
        await awaitable
    return caught.value


def attempts(outcome, provider="openai"):
    labels = {"provider": provider, "outcome": outcome}
    return REGISTRY.get_sample_value("tollkeeper_proxy_upstream_attempts_total", labels) or 0
