"""Owns limits per minute, of keys and accounts, in requests and in tokens.

A limit counts in a sliding minute: what was counted in this minute of the clock, and of the minute before the share
that the sliding minute still covers. All limits of a call are checked and counted in one Redis script, by Redis' clock,
so that replicas share them. While Redis does not answer each replica counts for itself (logged once), and calls go on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import redis.asyncio
import redis.exceptions

from services.kit.logs import get_logger
from services.proxy.errors import RateLimited

_log = get_logger(__name__)

_WINDOW_MS = 60_000
_LOCAL_ENTRIES = 100_000
# After Redis has failed it is left alone for this long: calls do not each wait for it.
_RETRY_SECONDS = 1.0

# KEYS: one hash per limit, {n: minute, c: count in it, p: count in the one before}. ARGV: limit and cost of each.
# Answers {0} where all are counted, else {number of the limit, milliseconds until there may be room}.
_SCRIPT = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local minute = math.floor(now / 60000)
local gone = now % 60000
local counts = {}
for i, key in ipairs(KEYS) do
  local found = redis.call('HMGET', key, 'n', 'c', 'p')
  local n, c, p = tonumber(found[1]), tonumber(found[2]) or 0, tonumber(found[3]) or 0
  if n == nil or n < minute - 1 then c, p = 0, 0
  elseif n == minute - 1 then c, p = 0, c end
  local limit, cost = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local room = limit - cost
  if c + p * (60000 - gone) / 60000 > room then
    local wait = 60000 - gone
    if c <= room and p > 0 then wait = math.ceil(60000 * (1 - (room - c) / p)) - gone
    elseif c > 0 and room >= 0 then wait = wait + math.ceil(60000 * (1 - room / c)) end
    return {i, math.max(wait, 1)}
  end
  counts[i] = {c + cost, p}
end
for i, key in ipairs(KEYS) do
  redis.call('HSET', key, 'n', minute, 'c', counts[i][1], 'p', counts[i][2])
  redis.call('PEXPIRE', key, 120000)
end
return {0}
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a call: `subject` says whose, `unit` is `requests` or `tokens`, `cost` is what the call counts."""

    account_id: str
    subject: str
    unit: str
    amount: int
    cost: int

    @property
    def key(self) -> str:
        """Its Redis key; the braces keep an account's limits in one slot of a cluster."""
        return f"tollkeeper:rate:{{{self.account_id}}}:{self.subject}:{self.unit}"


class RateLimits:
    """Checks and counts limits per minute. `client` None: each replica for itself."""

    def __init__(self, client: redis.asyncio.Redis | None) -> None:
        self._client = client
        self._script: Any = client.register_script(_SCRIPT) if client is not None else None
        self._retry_at = 0.0
        self._failing = False
        self._local: dict[str, tuple[int, int, int]] = {}

    async def take(self, limits: list[Limit]) -> None:
        """Count a call against all its limits, or against none. Raises RateLimited, saying which and when to retry."""
        limits = [limit for limit in limits if limit.amount > 0]
        if not limits:
            return
        answer = await self._ask(limits)
        if answer is None:
            answer = self._take_local(limits)
        if answer[0]:
            limit = limits[answer[0] - 1]
            raise RateLimited(
                f"more than {limit.amount} {limit.unit} in a minute",
                retry_after_seconds=answer[1] / 1000,
                scope="account" if limit.subject == "account" else "key",
                unit=limit.unit,
                limit=limit.amount,
            )

    async def _ask(self, limits: list[Limit]) -> list[int] | None:
        """Redis' answer; None while it does not answer."""
        if self._client is None or time.monotonic() < self._retry_at:
            return None
        arguments = [number for limit in limits for number in (limit.amount, limit.cost)]
        try:
            answer: list[int] = await self._script(keys=[limit.key for limit in limits], args=arguments)
        except (TimeoutError, redis.exceptions.RedisError, OSError) as error:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            if not self._failing:
                _log.error("Redis does not answer; limits per minute are counted by each replica", error=repr(error))
                self._failing = True
            return None
        if self._failing:
            _log.info("Redis answers again; limits per minute are shared")
            self._failing = False
        return answer

    def _take_local(self, limits: list[Limit]) -> list[int]:
        """The script's rule, on this process' own counts."""
        now = int(time.time() * 1000)
        minute, gone = divmod(now, _WINDOW_MS)
        counts = {}
        for number, limit in enumerate(limits, 1):
            known, current, before = self._local.get(limit.key, (minute, 0, 0))
            if known < minute - 1:
                current, before = 0, 0
            elif known == minute - 1:
                current, before = 0, current
            room = limit.amount - limit.cost
            if current + before * (_WINDOW_MS - gone) / _WINDOW_MS > room:
                return [number, _WINDOW_MS - gone]
            counts[limit.key] = (minute, current + limit.cost, before)
        for key in counts:
            self._local.pop(key, None)
        self._local.update(counts)
        while len(self._local) > _LOCAL_ENTRIES:
            del self._local[next(iter(self._local))]
        return [0]
