"""Owns a provider's credentials: which of them is called next, what an attempt says about it, and what is logged."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Generic, NamedTuple, TypeVar

from prometheus_client import Gauge

from services.kit.logs import get_logger
from services.proxy.settings import ProxySettings
from services.proxy.upstream.breaker import Breaker, State

_log = get_logger(__name__)

# A provider that asks for a longer rest than this is asked again all the same.
_LONGEST_REST_SECONDS = 300.0
# Models that rest at one credential: of more, those that end first are forgotten, and asked for again.
_MOST_LIMITS = 1024

_STATE = Gauge(
    "tollkeeper_proxy_upstream_circuit",
    "A credential's circuit: 0 closed, 1 half-open, 2 open; credentials are numbered as configured",
    ["provider", "credential"],
)

_LIMITED = Gauge(
    "tollkeeper_proxy_upstream_limited_models",
    "Models that a credential is not called for now, since the provider has said that they are over its rate limit",
    ["provider", "credential"],
)

_K = TypeVar("_K")


class _Limit(NamedTuple):
    """A model's rest at a credential: until when it is not called, and until when the provider has asked for that."""

    until: float
    said_until: float


class Credential(Generic[_K]):
    """One credential and its circuit. `number` is its place in the configuration, from 1: all that is told of it."""

    def __init__(self, provider: str, number: int, key: _K, settings: ProxySettings) -> None:
        self.key = key
        self.number = number
        self._provider = provider
        self._refused_seconds = settings.upstream_credential_rest_seconds
        self._breaker = Breaker(
            threshold=settings.upstream_breaker_failures, cool_down_seconds=settings.upstream_breaker_seconds
        )
        self._known = State.CLOSED
        self._told = False  # that the provider refuses it
        self.refused = False  # by the provider's last word on it
        self._doubted_until = 0.0
        self._limits: dict[str, _Limit] = {}  # by model
        _STATE.labels(provider, str(number)).set_function(lambda: self._breaker.state(time.monotonic()))
        _LIMITED.labels(provider, str(number)).set_function(lambda: self._limited_models(time.monotonic()))

    def ready_in(self, now: float, model: str) -> float:
        """Seconds until it may be called for this model, 0 where it may be now."""
        ready_in = self._breaker.ready_in(now)
        limit = self._limits.get(model) if self._limits else None
        return ready_in if limit is None else max(ready_in, limit.until - now)

    def limited_for(self, now: float, model: str) -> float:
        """Seconds for which the provider wants no call for this model, as it said itself; 0 where it may be called."""
        limit = self._limits.get(model)
        return limit.said_until - now if limit is not None and now < limit.until else 0.0

    def doubted(self, now: float) -> bool:
        """Whether another one is better tried first: the provider has just denied it something."""
        return now < self._doubted_until

    def admit(self, now: float, model: str) -> bool:
        """Take it for an attempt, where it may be called. Every attempt ends in one of the methods below."""
        if self._limits and self.limited_for(now, model):
            return False
        admitted = self._breaker.admit(now)
        self._tell(now)
        return admitted

    def answered(self, now: float) -> None:
        """The provider is well and takes it."""
        self.refused = self._told = False
        self._breaker.answered(now)
        self._tell(now)

    def failed(self, now: float) -> None:
        """The provider was not reached, was silent, or failed."""
        self._breaker.failed(now)
        self._tell(now)

    def rested(self, now: float, seconds: float) -> None:
        """The provider asks for a rest of so many seconds."""
        self._breaker.rest(now, min(seconds, _LONGEST_REST_SECONDS), probe_first=False)
        self._tell(now)

    def limited(self, now: float, model: str, seconds: float) -> None:
        """The provider has had too many calls for this model, and asks for a rest of so many seconds.

        Its rate limits are mostly of one model each, so others are called on: one that is over its own says so itself.
        """
        if not self.limited_for(now, model):
            _log.info(
                "a model is over the provider's rate limit",
                provider=self._provider,
                credential=self.number,
                model=model,
                seconds=seconds,
            )
        self._limits = {name: limit for name, limit in self._limits.items() if now < limit.until}
        if model not in self._limits and len(self._limits) >= _MOST_LIMITS:
            del self._limits[min(self._limits, key=lambda name: self._limits[name].until)]
        self._limits[model] = _Limit(now + min(seconds, _LONGEST_REST_SECONDS), now + seconds)

    def rejected(self, now: float, status: int) -> None:
        """The provider does not take it: it rests, then is tried with one call."""
        self.refused = True
        self._breaker.rest(now, self._refused_seconds, probe_first=True)
        self._tell(now)
        self._tell_refused(status)

    def denied(self, now: float, status: int) -> None:
        """The provider takes it, but not for what was asked: others are tried first for a while."""
        self._breaker.answered(now)
        self._doubted_until = now + self._refused_seconds
        self._tell(now)
        self._tell_refused(status)

    def abandoned(self) -> None:
        """The attempt was given up before it told anything."""
        self._breaker.abandoned()

    def close(self) -> None:
        """End its metrics."""
        _STATE.remove(self._provider, str(self.number))
        _LIMITED.remove(self._provider, str(self.number))

    def _limited_models(self, now: float) -> int:
        return sum(now < limit.until for limit in tuple(self._limits.values()))

    def _tell(self, now: float) -> None:
        state = self._breaker.state(now)
        if state is self._known:
            return
        self._known = state
        log = _log.warning if state is State.OPEN else _log.info
        log("a credential's circuit", state=state.name.lower(), provider=self._provider, credential=self.number)

    def _tell_refused(self, status: int) -> None:
        if not self._told:
            self._told = True
            _log.error(
                "the provider refuses our credential",
                provider=self._provider,
                credential=self.number,
                status=status,
            )


class Credentials(Generic[_K]):
    """A provider's credentials, the first the one that is preferred."""

    def __init__(self, provider: str, keys: Collection[_K], settings: ProxySettings) -> None:
        self._all = [Credential(provider, number, key, settings) for number, key in enumerate(keys, 1)]

    def take(self, now: float, model: str, without: Collection[Credential[_K]] = ()) -> Credential[_K] | None:
        """The best one that may be called now for this model, taken for an attempt; None where there is none."""
        for credential in sorted(self._all, key=lambda one: one.doubted(now)):  # else in their order
            if credential not in without and credential.admit(now, model):
                return credential
        return None

    def ready_in(self, now: float, model: str, without: Collection[Credential[_K]] = ()) -> float | None:
        """Seconds until one of them may be called for this model; None where there is none."""
        return min((one.ready_in(now, model) for one in self._all if one not in without), default=None)

    def limited_for(self, now: float, model: str) -> float:
        """Seconds for which the provider wants no call for this model from any that it takes; 0 where one may call."""
        return min((one.limited_for(now, model) for one in self._all if not one.refused), default=0.0)

    @property
    def all_refused(self) -> bool:
        """Whether the provider takes none of them."""
        return all(one.refused for one in self._all)

    def close(self) -> None:
        """End their metrics."""
        for credential in self._all:
            credential.close()
