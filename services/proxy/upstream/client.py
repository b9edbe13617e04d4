"""Owns the calls to providers: attempts with one credential after another, the waits between them, and their end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, NoReturn

from services.proxy.errors import (
    ProviderCredentialRefused,
    ProviderNotConfigured,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from services.proxy.settings import ProxySettings
from services.proxy.upstream.answer import Answer, Meaning
from services.proxy.upstream.attempt import Failed, Key, Opened, Sender
from services.proxy.upstream.configuration import Provider, providers_of
from services.proxy.upstream.credentials import Credential, Credentials
from services.proxy.upstream.outgoing import Outgoing

_FIRST_BACKOFF_SECONDS = 0.25
_LONGEST_BACKOFF_SECONDS = 8.0


@dataclass(slots=True)
class _Course:
    """What has been tried of one request. `passed_over` are the credentials not to be used for it again."""

    deadline: float
    model: str
    account: str
    attempts: int = 0
    tried: set[Credential[Key]] = field(default_factory=set)
    passed_over: set[Credential[Key]] = field(default_factory=set)
    last: Failed | None = None


class Posted:
    """The context of one request and its answer; see `Upstreams.post`."""

    def __init__(self, opening: Coroutine[Any, Any, Opened]) -> None:
        self._opening = opening

    async def __aenter__(self) -> Answer:
        """Send it and wait until the answer begins."""
        self._opened = await self._opening
        return self._opened.answer

    async def __aexit__(self, *_: object) -> None:
        """Give the connection back, or close it."""
        await self._opened.close()


class Upstreams:
    """Calls providers. Nothing is sent again once the first byte of an answer's body has come."""

    def __init__(self, settings: ProxySettings) -> None:
        """Raises ConfigurationError where the providers' settings or their file are wrong."""
        self._settings = settings
        self._providers = providers_of(settings)
        self._credentials: dict[str, Credentials[Key]] = {
            name: Credentials(name, provider.keys, settings) for name, provider in self._providers.items()
        }
        self._speaking: dict[frozenset[str], frozenset[str]] = {}  # by the forms asked for, which are few
        self._sender = Sender(settings)

    @property
    def names(self) -> frozenset[str]:
        """The providers that may be called."""
        return frozenset(self._providers)

    def speaking(self, forms: frozenset[str]) -> frozenset[str]:
        """The providers that may be called in one of these forms."""
        found = self._speaking.get(forms)
        if found is None:
            found = frozenset(name for name, provider in self._providers.items() if provider.forms & forms)
            self._speaking[forms] = found
        return found

    def provider(self, name: str) -> Provider:
        """A provider that may be called. Raises ProviderNotConfigured."""
        provider = self._providers.get(name)
        if provider is None:
            raise ProviderNotConfigured(f"{name} is not configured here", provider=name)
        return provider

    async def close(self) -> None:
        """Close all connections."""
        await self._sender.close()
        for credentials in self._credentials.values():
            credentials.close()

    def post(self, provider: Provider, outgoing: Outgoing, *, deadline: float, account: str = "") -> Posted:
        """Send a request, again where that may help; the answer's body is read inside the context that this gives.

        The context begins when the first piece of the body has come. `deadline` (in `time.monotonic` seconds) is for
        all attempts together and for the reading of the answer. `account` is whose call it is: what it meets counts for
        others where theirs have met the like (`credentials.py`).

        Entering it raises ProviderRefusalError for a provider's error answer about the request or, where that was its
        last word, about its own state; ProviderCredentialRefused where it takes none of our credentials;
        ProviderTimeout and ProviderUnavailable where there was no answer, the latter without a call while all circuits
        are open; ProviderRateLimited, without a call, while all credentials are over the provider's limit on the model.
        """
        return Posted(self._open(provider, outgoing, _Course(deadline, outgoing.model, account)))

    async def _open(self, provider: Provider, outgoing: Outgoing, course: _Course) -> Opened:
        """Try until an answer begins or nothing is left to try. Raises what `post` does."""
        while (credential := await self._next(provider, course)) is not None:
            outcome = await self._sender.send(provider, outgoing, credential, course.deadline, course.account)
            if isinstance(outcome, Opened):
                return outcome
            if outcome.meaning in {Meaning.REJECTED, Meaning.DENIED}:
                course.passed_over.add(credential)
                # A word about the request, had from another credential, says more to the client.
                course.last = course.last or outcome
                continue
            course.last = outcome
            course.attempts += 1
            course.tried.add(credential)
            if outcome.meaning is Meaning.FINAL:
                break
        if course.last is None:
            self._refuse_without_call(provider, course)
        raise course.last.error

    async def _next(self, provider: Provider, course: _Course) -> Credential[Key] | None:
        """The credential for the next attempt, waited for where that is worth it; None: give up.

        Another one that is healthy is used at once, the same one after a while.
        """
        now = time.monotonic()
        if course.attempts >= self._settings.upstream_attempts or now >= course.deadline:
            return None
        credentials = self._credentials[provider.name]
        fresh = credentials.take(now, course.model, course.tried | course.passed_over, course.account)
        if fresh is not None or not course.tried:
            return fresh
        ready_in = credentials.ready_in(now, course.model, course.passed_over, course.account)
        if ready_in is None or ready_in > self._settings.upstream_retry_after_seconds:
            return None
        # Where a rest was asked for, others wait for the same moment too: hence the backoff on top of it.
        wait = ready_in + _backoff_seconds(course.attempts)
        if now + wait >= course.deadline:
            return None
        await asyncio.sleep(wait)
        return credentials.take(time.monotonic(), course.model, course.passed_over, course.account)

    def _refuse_without_call(self, provider: Provider, course: _Course) -> NoReturn:
        now = time.monotonic()
        if now >= course.deadline:
            raise ProviderTimeout("no time was left to call the provider", provider=provider.name)
        credentials = self._credentials[provider.name]
        wait = credentials.ready_in(now, course.model, account=course.account)
        if credentials.all_refused(course.account):
            raise ProviderCredentialRefused(
                "the provider cannot be called now", provider=provider.name, retry_after_seconds=wait
            )
        if limited_for := credentials.limited_for(now, course.model, course.account):
            raise ProviderRateLimited(
                "the provider takes no more calls for this model now",
                provider=provider.name,
                retry_after_seconds=limited_for,
            )
        raise ProviderUnavailable("the provider is not well", provider=provider.name, retry_after_seconds=wait)


def _backoff_seconds(attempts: int) -> float:
    """Exponential backoff with full jitter, after so many attempts.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    most = min(_FIRST_BACKOFF_SECONDS * 2 ** (attempts - 1), _LONGEST_BACKOFF_SECONDS)
    return random.uniform(0, most)  # noqa: S311 (it spreads load, and keeps no secret)
