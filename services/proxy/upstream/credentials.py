"""Owns a provider's credentials: which of them is called next, what an attempt says about it, and what is logged.

What one account's call meets may be due to what it asks: a header or a body that a provider answers with 401, a request
that makes it fail, one that is larger by itself than a rate limit. So it counts for that account alone, until calls of
three accounts have met the like with no answer to anybody between them, nor in the five seconds before: then it counts
for all. Three of many calls fail one after the other by chance, too, and are one customer's where that has three
accounts. A provider that cannot be reached is so for everyone, at once.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Generic, TypeVar

from prometheus_client import Gauge

from services.kit.logs import get_logger
from services.proxy.settings import ProxySettings
from services.proxy.upstream.breaker import Breaker, State
from services.proxy.upstream.standing import Standing

_log = get_logger(__name__)

_WITNESSES = 3
_LATELY_SECONDS = 5.0
# Accounts with something of their own: of more, the one that was noted first is forgotten.
_MOST_ACCOUNTS = 1024

_STATE = Gauge(
    "tollkeeper_proxy_upstream_circuit",
    "A credential's circuit for all accounts: 0 closed, 1 half-open, 2 open; credentials are numbered as configured",
    ["provider", "credential"],
)

_LIMITED = Gauge(
    "tollkeeper_proxy_upstream_limited_models",
    "Models that a credential is not called for now, since the provider has said that they are over its rate limit",
    ["provider", "credential"],
)

_K = TypeVar("_K")


class Credential(Generic[_K]):
    """One credential and its circuit. `number` is its place in the configuration, from 1: all that is told of it.

    `account` is whose call it is; empty: nobody's in particular, so that what it meets counts for all.
    """

    def __init__(self, provider: str, number: int, key: _K, settings: ProxySettings) -> None:
        self.key = key
        self.number = number
        self._provider = provider
        self._settings = settings
        self._refused_seconds = settings.upstream_credential_rest_seconds
        self._for_all = self._new()
        self._own: dict[str, Standing] = {}  # by account
        self._witnesses: dict[tuple[str, str], set[str]] = {}  # accounts, by what their calls have met, of which model
        self._answered: dict[str, float] = {}  # when anybody was last, by model; empty: for any
        self._known = State.CLOSED
        self._told = False  # that the provider refuses it
        _STATE.labels(provider, str(number)).set_function(lambda: self._for_all.breaker.state(time.monotonic()))
        _LIMITED.labels(provider, str(number)).set_function(lambda: self._limited_models(time.monotonic()))

    def _new(self) -> Standing:
        settings = self._settings
        return Standing(
            Breaker(threshold=settings.upstream_breaker_failures, cool_down_seconds=settings.upstream_breaker_seconds)
        )

    def _of(self, account: str) -> tuple[Standing, ...]:
        """What a call of this account goes by."""
        own = self._own.get(account) if self._own else None
        return (self._for_all,) if own is None else (own, self._for_all)

    def _met(self, now: float, what: str, account: str, model: str = "") -> tuple[Standing, ...]:
        """Note what a call of this account has met; for whom it counts."""
        if not account:
            return (self._for_all,)
        witnesses = self._witnesses.setdefault((what, model), set())
        if len(witnesses) < _WITNESSES:
            witnesses.add(account)
        if account not in self._own:
            if len(self._own) >= _MOST_ACCOUNTS:
                del self._own[next(iter(self._own))]
            self._own[account] = self._new()
        own, answered = self._own[account], self._answered.get(model)
        if len(witnesses) < _WITNESSES or (answered is not None and now - answered < _LATELY_SECONDS):
            return (own,)
        return (own, self._for_all)

    def ready_in(self, now: float, model: str, account: str = "") -> float:
        """Seconds until it may be called for this model, 0 where it may be now."""
        return max(one.ready_in(now, model) for one in self._of(account))

    def limited_for(self, now: float, model: str, account: str = "") -> float:
        """Seconds for which the provider wants no call for this model, as it said itself; 0 where it may be called."""
        return max(one.limited_for(now, model) for one in self._of(account))

    def doubted(self, now: float, account: str = "") -> bool:
        """Whether another one is better tried first: the provider has just denied it something."""
        return any(one.doubted(now) for one in self._of(account))

    def refused(self, account: str = "") -> bool:
        """Whether the provider does not take it, by its last word on it."""
        return any(one.refused for one in self._of(account))

    def admit(self, now: float, model: str, account: str = "") -> bool:
        """Take it for an attempt, where it may be called. Every attempt ends in one of the methods below."""
        admitted = self.ready_in(now, model, account) <= 0 and all(one.breaker.admit(now) for one in self._of(account))
        self._tell(now)
        return admitted

    def answered(self, now: float, model: str, account: str = "") -> None:
        """The provider is well and takes it."""
        self._answered[model] = self._answered[""] = now
        if self._witnesses:
            self._witnesses = {met: who for met, who in self._witnesses.items() if met[1] not in {"", model}}
        for one in self._of(account):
            one.answered(model)
        self._well(now, account)
        if self._own and (own := self._own.get(account)) and not own.limits and not own.ready_in(now, model):
            del self._own[account]

    def busy(self, now: float, account: str = "") -> None:
        """The provider is well and takes it, but has had too many calls."""
        self._answered[""] = now
        for what in ("failure", "rejection"):
            self._witnesses.pop((what, ""), None)
        self._well(now, account)

    def _well(self, now: float, account: str) -> None:
        self._told = False
        for one in self._of(account):
            one.refused = False
            one.breaker.answered(now)
        self._tell(now)

    def failed(self, now: float, account: str = "") -> None:
        """The provider was not reached, was silent, or failed."""
        for one in self._met(now, "failure", account):
            one.breaker.failed(now)
        self._tell(now)

    def rested(self, now: float, seconds: float, account: str = "") -> None:
        """The provider asks for a rest of so many seconds."""
        for one in self._met(now, "failure", account):
            one.rested(now, seconds)
        self._tell(now)

    def limited(self, now: float, model: str, seconds: float | None, account: str = "") -> None:
        """The provider has had too many calls for this model, and asks for a rest of so many seconds, or just for one.

        Its rate limits are mostly of one model each, so others are called on: one that is over its own says so itself.
        It may have been this one call's size, or all who call it by this credential: see above.
        """
        if not self.limited_for(now, model, account):
            _log.info(
                "a model is over the provider's rate limit",
                provider=self._provider,
                credential=self.number,
                model=model,
                seconds=seconds,
                account_id=account,
            )
        for one in self._met(now, "limit", account, model):
            one.limited(now, model, seconds)

    def rejected(self, now: float, status: int, account: str = "") -> None:
        """The provider does not take it: it rests, then is tried with one call."""
        for one in self._met(now, "rejection", account):
            one.rejected(now, self._refused_seconds)
        self._tell(now)
        self._tell_refused(status, account)

    def denied(self, now: float, status: int, account: str = "") -> None:
        """The provider takes it, but not for what was asked: others are tried first for a while."""
        for one in self._of(account):
            one.breaker.answered(now)
        for one in self._met(now, "denial", account):
            one.denied(now, self._refused_seconds)
        self._tell(now)
        self._tell_refused(status, account)

    def abandoned(self, account: str = "") -> None:
        """The attempt was given up before it told anything."""
        for one in self._of(account):
            one.breaker.abandoned()

    def close(self) -> None:
        """End its metrics."""
        _STATE.remove(self._provider, str(self.number))
        _LIMITED.remove(self._provider, str(self.number))

    def _limited_models(self, now: float) -> int:
        standings = (self._for_all, *tuple(self._own.values()))
        return len({model for one in standings for model, limit in tuple(one.limits.items()) if now < limit.until})

    def _tell(self, now: float) -> None:
        state = self._for_all.breaker.state(now)
        if state is self._known:
            return
        self._known = state
        log = _log.warning if state is State.OPEN else _log.info
        log("a credential's circuit", state=state.name.lower(), provider=self._provider, credential=self.number)

    def _tell_refused(self, status: int, account: str) -> None:
        if not self._told:
            self._told = True
            _log.error(
                "the provider refuses our credential",
                provider=self._provider,
                credential=self.number,
                status=status,
                account_id=account,
            )


class Credentials(Generic[_K]):
    """A provider's credentials, the first the one that is preferred."""

    def __init__(self, provider: str, keys: Collection[_K], settings: ProxySettings) -> None:
        self._all = [Credential(provider, number, key, settings) for number, key in enumerate(keys, 1)]

    def take(
        self, now: float, model: str, without: Collection[Credential[_K]] = (), account: str = ""
    ) -> Credential[_K] | None:
        """The best one that may be called now for this model, taken for an attempt; None where there is none."""
        for credential in sorted(self._all, key=lambda one: one.doubted(now, account)):  # else in their order
            if credential not in without and credential.admit(now, model, account):
                return credential
        return None

    def ready_in(
        self, now: float, model: str, without: Collection[Credential[_K]] = (), account: str = ""
    ) -> float | None:
        """Seconds until one of them may be called for this model; None where there is none."""
        return min((one.ready_in(now, model, account) for one in self._all if one not in without), default=None)

    def limited_for(self, now: float, model: str, account: str = "") -> float:
        """Seconds for which the provider wants no call for this model from any that it takes; 0 where one may call."""
        taken = (one for one in self._all if not one.refused(account))
        return min((one.limited_for(now, model, account) for one in taken), default=0.0)

    def all_refused(self, account: str = "") -> bool:
        """Whether the provider takes none of them."""
        return all(one.refused(account) for one in self._all)

    def close(self) -> None:
        """End their metrics."""
        for credential in self._all:
            credential.close()
