"""Owns the running of scripts in Redis: whatever is asked for in one turn of the event loop goes in one write.

The client of redis-py makes the connection, with all that a Redis URL can say of it; commands and their replies then go
past it, since for each command it works about ten times as long as Redis does. A script here answers nothing, or one
string.

A command may be sent twice where its connection broke before the reply: whoever asks must be able to bear that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from hashlib import sha1
from typing import Any

import redis.asyncio
import redis.exceptions

_END = b"\r\n"
_DEFAULT_SECONDS = 1.0
_NOT_LOADED = b"NOSCRIPT"
_NOTHING = -1  # the length of no string


class Script:
    """A script and the name that Redis knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Command:
    """One command under way; `answered` is None for one whose reply nobody waits for."""

    __slots__ = ("again", "answered", "packed", "script", "sent_at")

    def __init__(self, script: Script, packed: bytes, answered: asyncio.Future[bytes | None] | None) -> None:
        self.script = script
        self.packed = packed
        self.answered = answered
        self.again = False
        self.sent_at = 0.0

    def succeed(self, reply: bytes | None) -> None:
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(reply)

    def fail(self, kind: type[redis.exceptions.RedisError], words: str) -> None:
        if self.answered is not None and not self.answered.done():
            self.answered.set_exception(kind(words))


class Scripts(asyncio.Protocol):
    """Runs scripts over one connection of `client`'s, made when it is needed, and made again when it is lost.

    A reply is waited for as long as the client's `socket_timeout`.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._pool = client.connection_pool
        self._seconds: float = self._pool.connection_kwargs.get("socket_timeout") or _DEFAULT_SECONDS
        self._connection: Any = None
        self._connecting: asyncio.Task[None] | None = None
        self._transport: Any = None
        self._stream: Any = None  # redis-py's own protocol, which has to hear of the connection's end
        self._unsent: list[_Command] = []
        self._sent: deque[_Command] = deque()
        self._received = b""
        self._sending = False
        self._watching = False

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[int]) -> asyncio.Future[bytes | None]:
        """What the script answers; a future that fails with a RedisError where there is no telling what it did."""
        packed = _packed("EVALSHA", script.name, str(len(keys)), *keys, *map(str, arguments))
        answered: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._send_soon(_Command(script, packed, answered))
        return answered

    def _send_soon(self, *commands: _Command) -> None:
        self._unsent += commands
        if not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._sending = False
        if self._transport is None:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect())
            return
        loop = asyncio.get_running_loop()
        now, commands, self._unsent = loop.time(), self._unsent, []
        for command in commands:
            command.sent_at = now
        self._sent += commands
        self._transport.write(b"".join([command.packed for command in commands]))
        if not self._watching:
            self._watching = True
            loop.call_later(self._seconds, self._watch)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                if self._connection is None:
                    self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
                else:
                    await self._connection.disconnect(nowait=True)
                    await self._connection.connect()
        except (redis.exceptions.RedisError, OSError) as error:
            unsent, self._unsent = self._unsent, []
            for command in unsent:
                command.fail(redis.exceptions.ConnectionError, repr(error))
        else:
            self._transport = self._connection._writer.transport  # noqa: SLF001 (it offers no way of its own)
            self._stream = self._transport.get_protocol()
            self._transport.set_protocol(self)
            self._send()
        finally:
            self._connecting = None

    def _watch(self) -> None:
        """End the connection where a reply has not come in time: none of what was sent is sent again."""
        self._watching = False
        if not self._sent:
            return
        loop = asyncio.get_running_loop()
        left = self._sent[0].sent_at + self._seconds - loop.time()
        if left > 0:
            self._watching = True
            loop.call_later(left, self._watch)
            return
        for command in self._sent:
            command.fail(redis.exceptions.TimeoutError, "Redis did not answer in time")
        self._sent.clear()
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------------- the connection's side

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        received, at = self._received + data, 0
        while self._sent and (reply := _reply(received, at)) is not None:
            kind, words, at = reply
            command = self._sent.popleft()
            if kind != b"-":
                command.succeed(words)
            elif words is not None and words.startswith(_NOT_LOADED) and not command.again:
                command.again = True
                loading = _packed("SCRIPT", "LOAD", command.script.text)
                self._send_soon(_Command(command.script, loading, None), command)
            else:
                command.fail(redis.exceptions.ResponseError, repr(words))
        self._received = received[at:]

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol. What had no reply is sent once more."""
        self._stream.connection_lost(error)
        self._transport, self._received = None, b""
        sent, self._sent = self._sent, deque()
        for command in sent:
            if command.again:
                command.fail(redis.exceptions.ConnectionError, "the connection to Redis broke")
            else:
                command.again = True
                self._send_soon(command)


def _packed(*words: str) -> bytes:
    """A command as Redis reads it (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    encoded = [word.encode() for word in words]
    return b"".join([b"*%d\r\n" % len(words), *[b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]])


def _reply(received: bytes, at: int) -> tuple[bytes, bytes | None, int] | None:
    """The reply that begins there: its type, its words, and where it ends; None while it is not whole."""
    end = received.find(_END, at)
    if end < 0:
        return None
    kind, words = received[at : at + 1], received[at + 1 : end]
    if kind != b"$":
        return kind, words, end + 2
    length = int(words)
    if length == _NOTHING:
        return kind, None, end + 2
    begin = end + 2
    whole = begin + length + 2
    return (kind, received[begin : begin + length], whole) if len(received) >= whole else None
