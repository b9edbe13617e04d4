"""Owns the running of scripts in Redis: whatever waits goes together in one pipeline, one pipeline at a time.

A pipeline costs much and a command in it little, so what need not be known at once waits for one that is.
A command may be sent twice where its connection broke before the reply: whoever asks must be able to bear that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import sha1
from typing import Any, NamedTuple

import redis.asyncio
from redis.exceptions import ConnectionError as NotConnectedError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from services.kit.logs import get_logger

_log = get_logger(__name__)

_COMMANDS_AT_ONCE = 256
_DEFAULT_SECONDS = 1.0


class Script:
    """A script and the name that Redis knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Command(NamedTuple):
    script: Script
    packed: bytes
    answered: asyncio.Future[Any]


class Scripts:
    """Runs scripts over one connection of `client`'s, made when it is needed, and made again when it is lost.

    The client's pipelines work about ten times as long for a command as Redis does; so its connection is used without
    them. One write and its replies are waited for as long as the client's `socket_timeout`.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._pool = client.connection_pool
        self._socket_timeout: float | None = self._pool.connection_kwargs.get("socket_timeout")
        self._seconds = self._socket_timeout or _DEFAULT_SECONDS
        self._connection: Any = None
        self._waiting: list[_Command] = []
        self._sender: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def run(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[int],
        *,
        within_seconds: float = 0.0,
        behind: bool = False,
    ) -> asyncio.Future[Any]:
        """What the script answers; a future that fails with a RedisError or an OSError.

        It goes with the next pipeline, and not later than `within_seconds` from now where none is under way; `behind`:
        at once, but behind what the loop has to do already.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()
        packed = _packed("EVALSHA", script.name, str(len(keys)), *keys, *map(str, arguments))
        self._waiting.append(_Command(script, packed, answered))
        if behind:
            loop.call_soon(self._begin)
        elif not within_seconds:
            self._begin()
        elif self._sender is None and self._timer is None:
            self._timer = loop.call_later(within_seconds, self._begin)
        return answered

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sender is None and self._waiting:
            self._sender = asyncio.create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                commands, self._waiting = self._waiting[:_COMMANDS_AT_ONCE], self._waiting[_COMMANDS_AT_ONCE:]
                try:
                    replies = await self._replies(commands)
                except Exception as error:  # noqa: BLE001 (whatever it is, nobody may be left waiting)
                    # What waits behind it would only find out the same, later.
                    commands, self._waiting = commands + self._waiting, []
                    replies = [_told(error)] * len(commands)
                for command, reply in zip(commands, replies, strict=True):
                    _answer(command.answered, reply)
        finally:
            self._sender = None

    async def _replies(self, commands: Sequence[_Command], *, load: bool = False) -> list[Any]:
        """The reply to each, in order. Redis forgets scripts when it starts: then they are loaded, and asked for again.

        Raises RedisError, OSError.
        """
        loaded = {command.script for command in commands} if load else set()
        packed = [_packed("SCRIPT", "LOAD", script.text) for script in loaded]
        packed += [command.packed for command in commands]
        replies = (await self._exchanged(packed))[len(loaded) :]
        missing = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing and not load:
            found = await self._replies([commands[at] for at in missing], load=True)
            for at, reply in zip(missing, found, strict=True):
                replies[at] = reply
        return replies

    async def _exchanged(self, packed: Sequence[bytes]) -> list[Any]:
        """Send commands and read a reply to each; once more where a connection in use turns out to be lost.

        A Redis that is silent is not asked a second time. Raises RedisError, OSError.
        """
        kept = self._connection is not None
        try:
            return await self._over_connection(packed)
        except NotConnectedError:
            if not kept:
                raise
            return await self._over_connection(packed)

    async def _over_connection(self, packed: Sequence[bytes]) -> list[Any]:
        """As `_exchanged`, once. All are sent in one write, and answered within one limit of time.

        That is why the connection's own limit is off, which begins anew with each reply and costs as much as reading.
        """
        connection = self._connection
        if connection is None:
            connection = self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            connection.socket_timeout = None
        try:
            async with asyncio.timeout(self._seconds):
                await connection.send_packed_command(b"".join(packed), check_health=False)
                replies = [await _reply(connection) for _ in packed]
        except BaseException as error:
            # A reply that comes late must not be taken for that to another command.
            await self._leave(connection)
            if isinstance(error, RuntimeError):
                # What uvloop says of a write to a connection that was reset while it lay idle.
                raise NotConnectedError(str(error)) from error
            raise
        if any(isinstance(reply, ResponseError) and not isinstance(reply, NoScriptError) for reply in replies):
            # It was demoted, or is full: its name may lead to another by now, this connection never will. (A replica's
            # READONLY is told by some versions as an error of the script.)
            await self._leave(connection)
        return replies

    async def _leave(self, connection: Any) -> None:
        """Close the connection; the next commands go over a new one."""
        self._connection = None
        await connection.disconnect(nowait=True)
        connection.socket_timeout = self._socket_timeout
        await self._pool.release(connection)


def _told(error: Exception) -> Exception:
    """An error as those are told it who wait: a RedisError or an OSError."""
    if isinstance(error, RedisError | OSError):
        return error
    _log.error("commands were not run in Redis", exc_info=error)
    return RedisError(repr(error))


async def _reply(connection: Any) -> Any:
    """The next reply; one that says what is wrong with its command is a ResponseError, not raised."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _packed(*words: str) -> bytes:
    """A command as Redis reads it (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    encoded = [word.encode() for word in words]
    return b"".join([b"*%d\r\n" % len(words), *[b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]])


def _answer(answered: asyncio.Future[Any], reply: Any) -> None:
    if answered.done():  # whoever asked has gone
        return
    if isinstance(reply, Exception):
        answered.set_exception(reply)
    else:
        answered.set_result(reply)
