"""Owns how a credential stands with whoever calls: its circuit, its models' rate limits, what was refused. Pure.

It is kept once for all accounts, and once for each account whose own calls have met something (`credentials.py`).
Times are seconds of one clock that never goes back (`time.monotonic`).
"""

from __future__ import annotations

from typing import NamedTuple

from services.proxy.upstream.breaker import Breaker

# A provider that asks for a longer rest than this is asked again all the same.
_LONGEST_REST_SECONDS = 300.0
# Models that rest at once: of more, those that end first are forgotten, and asked for again.
_MOST_LIMITS = 1024
# Of a provider that says it has had too many calls and not for how long: doubled while it says so again.
_FIRST_UNSAID_SECONDS = 0.5
_LONGEST_UNSAID_SECONDS = 30.0


class _Limit(NamedTuple):
    """A model's rest: until when it is not called, until when the provider has asked for that, and for how long."""

    until: float
    said_until: float
    seconds: float


class Standing:
    """How a credential stands with all accounts, or with one."""

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.refused = False  # by the provider's last word on it
        self._doubted_until = 0.0
        self.limits: dict[str, _Limit] = {}  # by model
        self._unsaid: dict[str, _Limit] = {}  # by model: the last rest whose length was ours

    def ready_in(self, now: float, model: str) -> float:
        """Seconds until it may be called for this model, 0 where it may be now."""
        ready_in = self.breaker.ready_in(now)
        limit = self.limits.get(model) if self.limits else None
        return ready_in if limit is None else max(ready_in, limit.until - now)

    def limited_for(self, now: float, model: str) -> float:
        """Seconds for which the provider wants no call for this model, as it said itself; 0 where it may be called."""
        limit = self.limits.get(model)
        return limit.said_until - now if limit is not None and now < limit.until else 0.0

    def doubted(self, now: float) -> bool:
        """Whether another one is better tried first: the provider has just denied it something."""
        return now < self._doubted_until

    def answered(self, model: str) -> None:
        """The provider has taken a call for this model: its next limit is a new one."""
        self._unsaid.pop(model, None)

    def limited(self, now: float, model: str, seconds: float | None) -> None:
        """The provider has had too many calls for this model, and asks for so many seconds; None: it does not say."""
        if seconds is None:
            if self.limited_for(now, model):
                return  # this call was under way when the rest began
            seconds = self._grown(now, model)
        limit = _Limit(now + min(seconds, _LONGEST_REST_SECONDS), now + seconds, seconds)
        self.limits = _with(self.limits, now, model, limit)

    def _grown(self, now: float, model: str) -> float:
        last = self._unsaid.get(model)
        again = last is not None and now < last.until
        seconds = min(2 * last.seconds, _LONGEST_UNSAID_SECONDS) if last and again else _FIRST_UNSAID_SECONDS
        # Remembered for as long again after it: whoever calls much later begins anew.
        self._unsaid = _with(self._unsaid, now, model, _Limit(now + 2 * seconds + _LONGEST_UNSAID_SECONDS, 0, seconds))
        return seconds

    def rested(self, now: float, seconds: float) -> None:
        """The provider asks for a rest of so many seconds."""
        self.breaker.rest(now, min(seconds, _LONGEST_REST_SECONDS), probe_first=False)

    def rejected(self, now: float, seconds: float) -> None:
        """The provider does not take it: it rests, then is tried with one call."""
        self.refused = True
        self.breaker.rest(now, seconds, probe_first=True)

    def denied(self, now: float, seconds: float) -> None:
        """The provider takes it, but not for what was asked: others are tried first for a while."""
        self._doubted_until = now + seconds


def _with(limits: dict[str, _Limit], now: float, model: str, limit: _Limit) -> dict[str, _Limit]:
    """The limits that still run, with this one."""
    running = {name: one for name, one in limits.items() if now < one.until}
    if model not in running and len(running) >= _MOST_LIMITS:
        del running[min(running, key=lambda name: running[name].until)]
    running[model] = limit
    return running
