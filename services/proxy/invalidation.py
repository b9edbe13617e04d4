"""Owns how replicas tell each other what has changed: keys and entitlements, over Redis publish/subscribe.

It makes a change seen everywhere in milliseconds, and may be lost: what is remembered ends by itself after the cache's
stated lifetime, with Redis and without. So a change is announced once, after it is committed, and a replica that has
not been listening forgets everything when it begins to.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Protocol

import orjson
import redis.asyncio
import redis.exceptions

from services.kit.logs import get_logger

_log = get_logger(__name__)

CHANNEL = "tollkeeper:proxy:changed"

_ANNOUNCE_SECONDS = 0.25
_MAX_MESSAGE_BYTES = 1_000
# Without a sign from Redis for this long it is asked for one; for twice as long, the connection is taken for dead.
_SILENCE_SECONDS = 5.0
_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 5.0

# asyncio's own TimeoutError is among them: it is the built-in one.
_FAILURES = (TimeoutError, redis.exceptions.RedisError, OSError)


@dataclass(frozen=True, slots=True)
class KeyChanged:
    """A key that is not what it was; by its id and by the SHA-256 of its secret."""

    key_id: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class EntitlementChanged:
    """An account whose entitlement is not what it was."""

    account_id: str


Change = KeyChanged | EntitlementChanged


def packed(change: Change) -> bytes:
    """A change as it is published."""
    if isinstance(change, KeyChanged):
        return orjson.dumps({"key": change.key_id, "sha256": change.sha256.hex()})
    return orjson.dumps({"entitlement": change.account_id})


def unpacked(message: bytes) -> Change | None:
    """The change that was published; None for what this release does not understand."""
    if len(message) > _MAX_MESSAGE_BYTES:
        return None
    try:
        match orjson.loads(message):
            case {"key": str(key_id), "sha256": str(digest)}:
                return KeyChanged(key_id, bytes.fromhex(digest))
            case {"entitlement": str(account_id)}:
                return EntitlementChanged(account_id)
    except ValueError:
        pass
    return None


class Announcer:
    """Tells all replicas, this one among them, of a change. `client` None: nobody is told."""

    def __init__(self, client: redis.asyncio.Redis | None) -> None:
        self._client = client
        self._failing = False
        self._sending: set[asyncio.Task[None]] = set()

    async def announce(self, *changes: Change) -> None:
        """Publish committed changes. Never raises, and takes at most a quarter of a second.

        A caller that is cancelled meanwhile does not keep them from being published.
        """
        if self._client is None:
            return
        task = asyncio.create_task(self._publish(self._client, changes))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        await asyncio.shield(task)

    async def _publish(self, client: redis.asyncio.Redis, changes: tuple[Change, ...]) -> None:
        try:
            async with asyncio.timeout(_ANNOUNCE_SECONDS):
                for message in map(packed, changes):
                    try:
                        await client.publish(CHANNEL, message)
                    except (redis.exceptions.ConnectionError, RuntimeError):
                        # A connection that broke while it lay idle is known only now; this makes another. uvloop says
                        # of one that was reset that its handle is closed, by a RuntimeError.
                        await client.publish(CHANNEL, message)
        except Exception as error:  # noqa: BLE001 (the change is made: whatever it is, it is not the caller's)
            if not self._failing:
                _log.error("Redis takes no invalidations; changes are seen when memories end", error=repr(error))
                self._failing = True
            return
        if self._failing:
            _log.info("Redis takes invalidations again")
            self._failing = False


class ForgetsKeys(Protocol):
    """What remembers keys."""

    def forget(self, key_id: str, digest: bytes, /) -> None:
        """Forget one."""

    def forget_all(self) -> None:
        """Forget all."""


class ForgetsEntitlements(Protocol):
    """What remembers entitlements."""

    def forget(self, account_id: str, /) -> None:
        """Forget one."""

    def forget_all(self) -> None:
        """Forget all."""


class Listener:
    """Hears of changes and has them forgotten. `client` None: hears nothing."""

    def __init__(
        self,
        client: redis.asyncio.Redis | None,
        known: ForgetsKeys,
        entitlements: ForgetsEntitlements,
    ) -> None:
        self._client = client
        self._known = known
        self._entitlements = entitlements
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS

    async def start(self) -> None:
        """Begin to listen; does not wait until Redis is there."""
        if self._client is not None:
            self._task = asyncio.create_task(self._listen_for_ever(self._client))

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen_for_ever(self, client: redis.asyncio.Redis) -> None:
        while True:
            try:
                await self._listen(client)
            except _FAILURES as error:
                if not self._failing:
                    _log.error("no invalidations from Redis; changes are seen when memories end", error=repr(error))
                    self._failing = True
            except Exception:  # noqa: BLE001 (whatever it is, it must not end the listening)
                _log.exception("listening for invalidations failed")
            # Jitter, so that replicas do not come back all at once.
            await asyncio.sleep(self._backoff_seconds * random.uniform(0.5, 1))  # noqa: S311
            self._backoff_seconds = min(2 * self._backoff_seconds, _MAX_BACKOFF_SECONDS)

    async def _listen(self, client: redis.asyncio.Redis) -> None:
        """Take in messages until the connection breaks. Raises TimeoutError where Redis gives no sign any more."""
        async with client.pubsub() as subscription:
            await subscription.subscribe(CHANNEL)
            asked = False
            while True:
                message = await subscription.get_message(timeout=_SILENCE_SECONDS)
                if message is not None:
                    asked = False
                    self._take_in(message["type"], message["data"])
                elif asked:
                    raise TimeoutError("Redis gives no sign")
                else:
                    await subscription.ping()
                    asked = True

    def _take_in(self, kind: str, content: object) -> None:
        if kind == "subscribe":
            # The client library subscribes again by itself where a connection breaks, and says so with this.
            self._known.forget_all()
            self._entitlements.forget_all()
            self._backoff_seconds = _FIRST_BACKOFF_SECONDS
            if self._failing:
                _log.info("invalidations come from Redis again")
                self._failing = False
        if kind != "message":
            return
        change = unpacked(content) if isinstance(content, bytes) else None
        match change:
            case KeyChanged(key_id, digest):
                self._known.forget(key_id, digest)
            case EntitlementChanged(account_id):
                self._entitlements.forget(account_id)
            case None:
                _log.warning("an invalidation was not understood")
