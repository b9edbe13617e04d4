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
from redis.exceptions import NoScriptError, RedisError

_COMMANDS_AT_ONCE = 1000


class Script:
    """A script and the name that Redis knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Command(NamedTuple):
    script: Script
    keys: Sequence[str]
    arguments: Sequence[int]
    answered: asyncio.Future[Any]


class Scripts:
    """Runs scripts over `client`, whose timeouts and retries hold."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._waiting: list[_Command] = []
        self._sender: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[int], *, within_seconds: float = 0.0
    ) -> asyncio.Future[Any]:
        """What the script answers; a future that fails with a RedisError or an OSError.

        It goes with the next pipeline, and not later than `within_seconds` from now where none is under way.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Command(script, keys, arguments, answered))
        if not within_seconds:
            self._begin()
        elif self._sender is None and self._timer is None:
            self._timer = loop.call_later(within_seconds, self._begin)
        return answered

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                commands, self._waiting = self._waiting[:_COMMANDS_AT_ONCE], self._waiting[_COMMANDS_AT_ONCE:]
                try:
                    replies = await self._replies(commands)
                except (RedisError, OSError) as error:
                    # What waits behind it would only find out the same, later.
                    commands, self._waiting = commands + self._waiting, []
                    replies = [error] * len(commands)
                for command, reply in zip(commands, replies, strict=True):
                    _answer(command.answered, reply)
        finally:
            self._sender = None

    async def _replies(self, commands: Sequence[_Command], *, load: bool = False) -> list[Any]:
        """The reply to each, in order. Redis forgets scripts when it starts: then they are loaded, and asked for again.

        Raises RedisError, OSError.
        """
        pipeline = self._client.pipeline(transaction=False)
        loaded = {command.script for command in commands} if load else set()
        for script in loaded:
            pipeline.script_load(script.text)
        for command in commands:
            pipeline.evalsha(command.script.name, len(command.keys), *command.keys, *map(str, command.arguments))
        replies: list[Any] = (await pipeline.execute(raise_on_error=False))[len(loaded) :]
        missing = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing and not load:
            found = await self._replies([commands[at] for at in missing], load=True)
            for at, reply in zip(missing, found, strict=True):
                replies[at] = reply
        return replies


def _answer(answered: asyncio.Future[Any], reply: Any) -> None:
    if answered.done():  # whoever asked has gone
        return
    if isinstance(reply, Exception):
        answered.set_exception(reply)
    else:
        answered.set_result(reply)
