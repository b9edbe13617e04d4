"""Owns limits per minute, of keys and accounts, in requests and in tokens.

A limit of N: in no 60 seconds, wherever they begin, are calls admitted that count for more than N together. What is
counted is kept by the second, and each second counts until all of it is a minute old; so a call counts for 60 to 61
seconds, and the error, of at most a second, is always on the side of the limit. All limits of a call are checked and
counted in one Redis script, by Redis' clock, so that replicas share them. A clock that goes back moves what it had
counted to now: it counts once more a minute, and nothing is forgotten.

Tokens are counted by a guess and corrected when the call has ended (`correct`): what was guessed too much is given back
where it was counted, what was used above the guess counts when it is known, and may stand above the limit then.

While Redis does not answer each replica counts for itself, an equal share of every limit (at least 1), so that all of
them together keep it; logged once. It begins with nothing counted, and so does a Redis that comes back empty: in the
minute of such a change up to twice the limit may pass. Calls go on.
"""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import redis.asyncio
import redis.exceptions
from prometheus_client import Counter

from services.kit.logs import get_logger
from services.proxy.counting import CORRECT, NOW, TAKE
from services.proxy.errors import RateLimited
from services.proxy.scripts import Script, Scripts

_log = get_logger(__name__)

REQUESTS, TOKENS = "requests", "tokens"

# A second counts for as long as a part of it may be in the last 60 seconds: for 60 seconds after its own.
_SECONDS = 61
# Limits and counts are cut to this, so that all sums are whole numbers in Lua's floats too.
_MOST = 10**12
_LOCAL_ENTRIES = 100_000
# After Redis has failed it is left alone for this long: calls do not each wait for it.
_RETRY_SECONDS = 1.0
_MOST_CORRECTIONS = 10_000
# A correction goes before the next call that this replica counts; others may see the guess for so long.
_CORRECTED_WITHIN_SECONDS = 0.05
# For so long what was counted last tells whether the next call is likely to be within its limits.
_SEEN_SECONDS = 1.0
_NO_ROOM: tuple[float, list[int]] = 0.0, []

_DROPPED = Counter("tollkeeper_rate_corrections_dropped_total", "Token counts left as guessed")
_UNSHARED = Counter("tollkeeper_rate_unshared_total", "Calls counted by this replica alone, as Redis did not answer")
_FAILURES = (TimeoutError, redis.exceptions.RedisError, OSError)


class Limit(NamedTuple):
    """One limit of a call: `subject` says whose, `unit` is `requests` or `tokens`, `cost` is what the call counts.

    An `amount` of 0 or less is no limit.
    """

    account_id: str
    subject: str
    unit: str
    amount: int
    cost: int

    @property
    def key(self) -> str:
        """Its Redis key; the braces keep an account's limits in one slot of a cluster."""
        return f"tollkeeper:rates:{{{self.account_id}}}:{self.subject}:{self.unit}"


class Standing(NamedTuple):
    """How one limit stands: what counts of it now, and in how many milliseconds nothing will."""

    limit: Limit
    used: int
    reset_ms: int

    @property
    def remaining(self) -> int:
        """What is left of it."""
        return max(self.limit.amount - self.used, 0)


class RateStanding(NamedTuple):
    """How the limits of a call stand after it was counted, or refused.

    `second` and `shared` say where it was counted: in Redis or in this process, by whose clock.
    """

    limits: tuple[Standing, ...] = ()
    second: int = 0
    shared: bool = False

    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers in OpenAI's form: limit, remaining and reset, of each unit the limit with the least left."""
        found: list[tuple[str, str]] = []
        for unit in (REQUESTS, TOKENS):
            having = [standing for standing in self.limits if standing.limit.unit == unit]
            if having:
                least = min(having, key=lambda standing: (standing.remaining, standing.limit.amount))
                found += (
                    (f"x-ratelimit-limit-{unit}", str(least.limit.amount)),
                    (f"x-ratelimit-remaining-{unit}", str(least.remaining)),
                    (f"x-ratelimit-reset-{unit}", duration(least.reset_ms)),
                )
        return tuple(found)


def duration(milliseconds: int) -> str:
    """A time in the form of OpenAI's headers: `20ms`, `1s`, `1.5s`, `6m0s`, `1h0m0s`."""
    if 0 < milliseconds < 1000:  # noqa: PLR2004 (less than a second)
        return f"{milliseconds}ms"
    seconds, rest = divmod(max(milliseconds, 0), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds}{f'.{rest:03}'.rstrip('0') if rest else ''}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


class Counting(NamedTuple):
    """A call that is being counted against these limits; `answered` is None where Redis is left alone.

    `likely`: it is all but certain that it is within them.
    """

    asked: list[Limit]
    answered: asyncio.Future[bytes | None] | None
    likely: bool


class RateLimits:
    """Checks and counts limits per minute. `client` None: each replica for itself, as while Redis is away.

    `replicas` is how many share a limit then. `clock` gives this process' seconds and never goes back.
    """

    def __init__(
        self, client: redis.asyncio.Redis | None, *, replicas: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._scripts = Scripts(client) if client is not None else None
        self._take, self._correct = Script(NOW + TAKE), Script(NOW + CORRECT)
        self._replicas = replicas
        self._clock = clock
        self._retry_at = 0.0
        self._failing = False
        self._local = LocalCounts(clock)
        self._corrections: set[asyncio.Future[bytes | None]] = set()
        # By the key of a caller's first limit: until when this tells something, and what each has left of its half.
        self._room: dict[str, tuple[float, list[int]]] = {}

    async def take(self, limits: Iterable[Limit]) -> RateStanding:
        """Count a call against all its limits, or against none; how they stand with it.

        Raises RateLimited, saying which refused and when to retry, with the standing's headers.
        """
        return await self.counted(self.begin(limits))

    def begin(self, limits: Iterable[Limit]) -> Counting:
        """Begin to count a call; `counted` has to follow.

        Where it is `likely` within its limits, what is begun next goes first: a hold, which takes longer.
        """
        asked = [limit for limit in limits if limit.amount > 0]
        if not asked:
            return Counting(asked, None, likely=True)
        arguments = [number for limit in asked for number in (min(limit.amount, _MOST), _cost(limit))]
        likely, scripts = self._takes_room(asked), self._reachable
        keys = [limit.key for limit in asked]
        answered = scripts.run(self._take, keys, arguments, behind=likely) if scripts else None
        return Counting(asked, answered, likely)

    def _takes_room(self, asked: list[Limit]) -> bool:
        """Whether a call is likely within its limits; then it takes its part of the room that there is.

        As counted a moment ago, it is within half of each, with the calls that have taken room since: it is refused
        only where other replicas have used the other half meanwhile.
        """
        until, room = self._room.get(asked[0].key, _NO_ROOM)
        costs = [_cost(limit) for limit in asked]
        if self._clock() >= until or len(room) != len(costs) or any(map(operator.lt, room, costs)):
            return False
        room[:] = map(operator.sub, room, costs)
        return True

    async def counted(self, counting: Counting) -> RateStanding:
        """How the limits of a call stand with it. Raises RateLimited, as `take`."""
        asked = counting.asked
        if not asked:
            return RateStanding()
        answer = await self._taken(counting.answered)
        shared = answer is not None
        if answer is None:
            _UNSHARED.inc(self._scripts is not None)
            asked = [self._own_share(limit) for limit in asked]
            answer = self._local.take(asked)
        refused, wait_ms, second = answer[:3]
        counted = zip(asked, answer[3::2], answer[4::2], strict=True)
        standing = RateStanding(tuple(Standing(*one) for one in counted), second, shared)
        self._note(standing)
        if refused:
            raise _refusal(asked[refused - 1], wait_ms, standing)
        return standing

    def _note(self, standing: RateStanding) -> None:
        """Remember how much room a call's limits have; of the 100 000 callers that called last."""
        key = standing.limits[0].limit.key
        self._room.pop(key, None)
        if standing.shared:
            room = [one.limit.amount // 2 - one.used for one in standing.limits]
            self._room[key] = self._clock() + _SEEN_SECONDS, room
            if len(self._room) > _LOCAL_ENTRIES:
                del self._room[next(iter(self._room))]

    def correct(self, standing: RateStanding, tokens: int) -> None:
        """Say what a call used that was counted by a guess, as `take` gave its standing. Never waits, never raises.

        Best effort: while Redis is away, or more than 10 000 of these are under way, the guess stands.
        """
        changed = [
            (one.limit, min(tokens, _MOST) - _cost(one.limit))
            for one in standing.limits
            if one.limit.unit == TOKENS and tokens != _cost(one.limit)
        ]
        if not changed:
            return
        if not standing.shared:
            self._local.correct(standing.second, changed)
        elif (
            len(self._corrections) >= _MOST_CORRECTIONS
            or (corrected := self._corrected(standing.second, changed)) is None
        ):
            _DROPPED.inc()
        else:
            self._corrections.add(corrected)
            corrected.add_done_callback(self._correction_ended)

    async def drained(self) -> None:
        """Wait until no correction is under way; each ends within the time that Redis has to answer."""
        while self._corrections:
            await asyncio.wait(self._corrections)

    def _corrected(self, second: int, changed: list[tuple[Limit, int]]) -> asyncio.Future[bytes | None] | None:
        """A correction on its way to Redis; None while that is left alone."""
        arguments = [number for _, more in changed for number in (second, more)]
        keys = [limit.key for limit, _ in changed]
        scripts = self._reachable
        if scripts is None:
            return None
        return scripts.run(self._correct, keys, arguments, within_seconds=_CORRECTED_WITHIN_SECONDS)

    def _correction_ended(self, corrected: asyncio.Future[bytes | None]) -> None:
        self._corrections.discard(corrected)
        if corrected.cancelled() or corrected.exception() is not None:
            _DROPPED.inc()

    async def _taken(self, answered: asyncio.Future[bytes | None] | None) -> list[int] | None:
        """What TAKE answers; None while Redis does not."""
        if answered is None:
            return None
        try:
            answer = await answered
        except _FAILURES as error:
            self._failed(error)
            return None
        if self._failing:
            _log.info("Redis answers again; limits per minute are shared")
            self._failing = False
        assert answer is not None
        return [int(number) for number in answer.split()]

    @property
    def _reachable(self) -> Scripts | None:
        """What runs scripts in Redis; None while that is left alone."""
        return self._scripts if time.monotonic() >= self._retry_at else None

    def _failed(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        if not self._failing:
            self._failing = True
            _log.error("Redis does not answer; each replica counts its share of limits per minute", error=repr(error))

    def _own_share(self, limit: Limit) -> Limit:
        amount = max(min(limit.amount, _MOST) // self._replicas, 1)
        return Limit(limit.account_id, limit.subject, limit.unit, amount, limit.cost)


def _cost(limit: Limit) -> int:
    return min(max(limit.cost, 0), _MOST)


def _refusal(limit: Limit, wait_ms: int, standing: RateStanding) -> RateLimited:
    of_account = limit.subject == "account"
    whose = "the account's limit, of its plan and all its keys together" if of_account else "this key's own limit"
    message = f"more than {limit.amount} {limit.unit} in a minute: {whose}"
    if wait_ms < 0:
        message = f"this call alone counts {_cost(limit)} {limit.unit}; {limit.amount} may be used in a minute: {whose}"
    refusal = RateLimited(
        message,
        retry_after_seconds=wait_ms / 1000 if wait_ms >= 0 else None,
        scope="account" if of_account else "key",
        unit=limit.unit,
        limit=limit.amount,
    )
    refusal.headers = standing.headers()
    return refusal


class LocalCounts:
    """The scripts' rule on this process' own counts, of at most 100 000 limits: the one longest not counted goes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: dict[str, dict[int, int]] = {}

    def take(self, limits: list[Limit]) -> list[int]:
        """As the script TAKE."""
        now = int(self._clock() * 1000)
        second = now // 1000
        answer = [0, 0, second]
        for number, limit in enumerate(limits, 1):
            counts = self._counts.get(limit.key, {})
            for at in [at for at in counts if at <= second - _SECONDS]:
                del counts[at]
            used = sum(counts.values())
            if used + _cost(limit) > limit.amount and not answer[0]:
                answer[:2] = number, _wait_ms(counts, used + _cost(limit) - limit.amount, now)
            answer += used, (max(counts) + _SECONDS) * 1000 - now if counts else 0
        if not answer[0]:
            for number, limit in enumerate(limits):
                if cost := _cost(limit):
                    self._add(limit.key, second, cost)
                    answer[3 + 2 * number] += cost
                    answer[4 + 2 * number] = (second + _SECONDS) * 1000 - now
        return answer

    def correct(self, second: int, changed: Iterable[tuple[Limit, int]]) -> None:
        """As the script CORRECT."""
        for limit, more in changed:
            counts = self._counts.get(limit.key, {})
            if more > 0:
                self._add(limit.key, int(self._clock()), more)
            elif second in counts:
                counts[second] += more
                if counts[second] <= 0:
                    del counts[second]

    def _add(self, key: str, second: int, cost: int) -> None:
        counts = self._counts.pop(key, {})
        counts[second] = counts.get(second, 0) + cost
        self._counts[key] = counts
        while len(self._counts) > _LOCAL_ENTRIES:
            del self._counts[next(iter(self._counts))]


def _wait_ms(counts: dict[int, int], excess: int, now: int) -> int:
    """Milliseconds until so much no longer counts; -1 where all of it is not enough."""
    for at in sorted(counts):
        excess -= counts[at]
        if excess <= 0:
            return (at + _SECONDS) * 1000 - now
    return -1
