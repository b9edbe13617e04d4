"""Owns the cache of use counters in Redis, which holds nothing that may not be lost.

Each account has a version, a random word that changes whenever its use does. A counter is kept with the version that
was read before Postgres was asked, and believed only while that is still the account's: what was worked out before a
change is never taken for what holds after it, in whatever order the two are written. A version that is gone makes all
counters of its account unbelieved. A process that dies between a commit and its new version leaves counters that are
believed until they expire, `seconds` after they were worked out.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable

import redis
import redis.exceptions

from services.kit.logs import get_logger
from services.subscriptions.metering.model import Use
from services.subscriptions.model.cycle import Cycle

_log = get_logger(__name__)

_VERSION_SECONDS = 3600
# A Redis that is slower than this saves nothing.
_REDIS_SECONDS = 0.25
# After Redis has failed it is left alone for this long: calls do not each wait for it.
_PAUSE_SECONDS = 1.0

_FAILURES = (redis.exceptions.RedisError, OSError)


def redis_client(url: str) -> redis.Redis | None:
    """A client for the cache; None where no Redis is configured."""
    if not url:
        return None
    return redis.Redis.from_url(
        url,
        socket_timeout=_REDIS_SECONDS,
        socket_connect_timeout=_REDIS_SECONDS,
        max_connections=64,
        decode_responses=True,
    )


class UseCounters:
    """Use by account and cycle. Without Redis, or while it fails, there is nothing in it; calls go on."""

    def __init__(self, client: redis.Redis | None, *, seconds: float) -> None:
        self._client = client if seconds > 0 else None
        self._seconds = seconds
        self._resume_at = 0.0

    def read(self, account_id: str, cycle: Cycle) -> tuple[str, dict[str, Use] | None]:
        """The account's version, to be given to `keep`, and its counters where they hold; "" without Redis."""
        if self._client is None or time.monotonic() < self._resume_at:
            return "", None
        version_key, counters_key = _keys(account_id)
        try:
            known, kept = self._client.mget(version_key, counters_key)
            if known is None:
                # Whoever is first: two that read at once have to agree.
                self._client.set(version_key, secrets.token_hex(8), ex=_VERSION_SECONDS, nx=True)
                known, kept = self._client.get(version_key) or "", None
        except _FAILURES as error:
            self._failed(error)
            return "", None
        version = str(known)
        return version, _counters(str(kept), version, cycle) if kept is not None else None

    def keep(self, account_id: str, version: str, cycle: Cycle, use: dict[str, Use]) -> None:
        """Keep what Postgres answered after `read` gave this version."""
        if self._client is None or not version:
            return
        words = {
            "version": version,
            "start": cycle.start.isoformat(),
            "use": {metric: [found.used, found.level] for metric, found in use.items()},
        }
        try:
            self._client.set(_keys(account_id)[1], json.dumps(words), px=int(self._seconds * 1000))
        except _FAILURES as error:
            self._failed(error)

    def changed(self, account_ids: Iterable[str]) -> None:
        """Let counters of these accounts hold no more. To be called after the commit that changed their use."""
        if self._client is None or time.monotonic() < self._resume_at:
            return
        try:
            pipeline = self._client.pipeline(transaction=False)
            for account_id in sorted(set(account_ids)):
                pipeline.set(_keys(account_id)[0], secrets.token_hex(8), ex=_VERSION_SECONDS)
            pipeline.execute()
        except _FAILURES as error:
            self._failed(error)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _failed(self, error: Exception) -> None:
        self._resume_at = time.monotonic() + _PAUSE_SECONDS
        _log.warning("Redis does not answer; quotas are read from the database", error=repr(error))


def _keys(account_id: str) -> tuple[str, str]:
    # The braces keep an account's two keys in one slot of a cluster.
    return f"tollkeeper:metering:{{{account_id}}}:version", f"tollkeeper:metering:{{{account_id}}}:use"


def _counters(kept: str, version: str, cycle: Cycle) -> dict[str, Use] | None:
    words = json.loads(kept)
    if words["version"] != version or words["start"] != cycle.start.isoformat():
        return None
    return {metric: Use(used, level) for metric, (used, level) in words["use"].items()}
