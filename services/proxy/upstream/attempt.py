"""Owns one request sent to a provider once: how it is built, and what comes of it until its answer begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, lru_cache

from prometheus_client import Counter, Histogram
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import ClientClosedError, PoolTimeoutError, PyreqwestError, ReadError
from pyreqwest.http import Url
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

from services.kit.logs import get_logger
from services.kit.tracing import end_outgoing_span, outgoing_span
from services.proxy.errors import ProviderCredentialRefused, ProviderUnavailable
from services.proxy.settings import ProxySettings
from services.proxy.upstream.answer import (
    MAX_ERROR_BYTES,
    TOO_MANY,
    Answer,
    Meaning,
    ProviderRefusalError,
    UnreadAnswerError,
    failure,
    googles_retry_after,
    header_of,
    meaning_of,
    retry_after_seconds,
    timed_out,
    unreached,
)
from services.proxy.upstream.configuration import Authentication, Base, Provider
from services.proxy.upstream.credentials import Credential
from services.proxy.upstream.discreet import discreet
from services.proxy.upstream.outgoing import Headers, Outgoing, passed_on
from services.proxy.upstream.signing import AwsKey, signed

_log = get_logger(__name__)

_ERROR_WORDS_SECONDS = 10.0  # after that the status alone has to do

_SERVED = range(200, 300)
_REFUSED = 400

_JSON = "application/json"
_STREAMS = {"converse": "application/vnd.amazon.eventstream", "gemini": "*/*"}  # else server-sent events
_EVENTS = "text/event-stream"

_ATTEMPTS = Counter(
    "tollkeeper_proxy_upstream_attempts_total", "Requests sent to providers, by how they went", ["provider", "outcome"]
)
_FIRST_BYTE = Histogram(
    "tollkeeper_proxy_upstream_first_byte_seconds",
    "From the sending of a request to the first byte of its answer's body",
    ["provider"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
)

# What is looked up for each call, of few providers and paths: kept, since each look-up costs more than what it is for.
_PATHS_KEPT = 1024
_attempts = cache(_ATTEMPTS.labels)
_first_byte = cache(_FIRST_BYTE.labels)

Key = str | AwsKey


@dataclass(slots=True)
class Opened:
    """An attempt that is being answered; `close` it when the answer is read."""

    request: StreamRequest
    answer: Answer

    async def close(self) -> None:
        """Give the connection back, or close it where the answer was not read to its end."""
        await self.request.__aexit__(None, None, None)


@dataclass(slots=True)
class Failed:
    """An attempt that came to nothing: what the client is told where it was the last one, and what it means."""

    error: Exception
    meaning: Meaning


class Sender:
    """Sends requests over connections that are kept and used again."""

    def __init__(self, settings: ProxySettings) -> None:
        # The connection's own limit of silence is the one before the first byte: only its own limits end a request
        # that is not answered yet. A shorter one between two pieces is the answer's to keep.
        shorter = settings.upstream_idle_seconds < settings.upstream_first_byte_seconds
        self._idle_seconds = settings.upstream_idle_seconds if shorter else None
        self._client: Client = (
            ClientBuilder()
            .connect_timeout(timedelta(seconds=settings.upstream_connect_seconds))
            .read_timeout(timedelta(seconds=settings.upstream_first_byte_seconds))
            .timeout(timedelta(seconds=settings.upstream_total_seconds))
            .max_connections(settings.upstream_connections)
            .pool_timeout(timedelta(seconds=settings.upstream_connect_seconds))
            .follow_redirects(False)
            .user_agent("tollkeeper")
            .build()
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def send(
        self, provider: Provider, outgoing: Outgoing, credential: Credential[Key], deadline: float, account: str
    ) -> Opened | Failed:
        """Send a request once and wait for the first piece of its answer; the credential is told how `account` fared.

        A caller that is cancelled while no byte of the answer has come lets go at once; the connection closes with the
        second piece that comes, or when the time for that is over.
        """
        begun = time.monotonic()
        outcome = "abandoned"
        span = outgoing_span(f"provider {provider.name}", **{"gen_ai.provider.name": provider.name})
        try:
            request = self._built(provider, outgoing, credential.key, deadline - begun)
            response = await request.__aenter__()
            opened = Opened(request, Answer(response, self._idle_seconds))
            try:
                result = await self._begun(provider, outgoing, credential, account, opened=opened, response=response)
            except BaseException:
                await opened.close()
                raise
            if isinstance(result, Failed):
                await opened.close()
                outcome = result.meaning.name.lower()
            else:
                outcome = "answered"
                _first_byte(provider.name).observe(time.monotonic() - begun)
        except PyreqwestError as error:
            outcome = "timeout" if timed_out(error) else "unreachable"
            return _broken(provider, credential, account, error, deadline)
        else:
            return result
        finally:
            if outcome == "abandoned":
                credential.abandoned(account)
            _attempts(provider.name, outcome).inc()
            if span is not None:
                end_outgoing_span(span, outcome, failed=outcome != "answered")

    async def _begun(
        self,
        provider: Provider,
        outgoing: Outgoing,
        credential: Credential[Key],
        account: str,
        *,
        opened: Opened,
        response: Response,
    ) -> Opened | Failed:
        """What the answer is, its first piece read. Raises PyreqwestError where that does not come."""
        if response.status not in _SERVED:
            return _judged(provider, outgoing.model, credential, account, response, await _words(opened.answer))
        if not await opened.answer.read_ahead() and outgoing.stream:
            raise ReadError("the stream ended before it began", {"causes": None})
        credential.answered(time.monotonic(), outgoing.model, account)
        return opened

    def _built(self, provider: Provider, outgoing: Outgoing, key: Key, seconds: float) -> StreamRequest:
        base = provider.bases[outgoing.form]
        url = _url(base.url, outgoing.path)
        accepted = _STREAMS.get(outgoing.form, _EVENTS) if outgoing.stream else _JSON
        builder = (
            self._client.post(url)
            .body_bytes(outgoing.body)
            .timeout(timedelta(seconds=max(seconds, 0.001)))
            # With the head comes the body's first piece: to ask for it would be another way to the client's thread and
            # back. By default it is the first 64 KiB, and a stream's first words would be held back.
            .streamed_read_buffer_limit(1)
            .header("content-type", _JSON)
            .header("accept", accepted)
        )
        for name, value in _shown(base.authentication, key, url, outgoing.body):
            builder = builder.header(name, value, is_sensitive=True)
        for name, value in _others(provider, base, outgoing.headers):
            builder = builder.header(name, value)
        return builder.build_streamed()


@lru_cache(_PATHS_KEPT)
def _url(base: str, path: str) -> str:
    """The address as it is sent. Raises ValueError where the HTTP client would send another one.

    It mends what is not encoded and folds `..`; then a signature would be of another path, or the route another one.
    """
    url = f"{base}/{path}"
    sent = str(Url(url))
    if "#" in path or sent.partition("://")[2].partition("/")[2] != url.partition("://")[2].partition("/")[2]:
        raise ValueError(f"not a path as it is sent: {path!r}")
    return url


def _shown(authentication: Authentication, key: Key, url: str, body: bytes) -> Headers:
    """The headers that show our credential."""
    if isinstance(key, AwsKey):
        assert authentication is Authentication.SIGNATURE_V4
        return signed(key, url, _JSON, body)
    if authentication is Authentication.BEARER:
        return ((authentication.value, f"Bearer {key}"),)
    return ((authentication.value, key),)


def _others(provider: Provider, base: Base, clients: Headers) -> Iterator[tuple[str, str]]:
    """The operator's headers, then the client's that are not among them, then the defaults nobody gave."""
    yield from provider.headers
    taken = frozenset(name.lower() for name, _ in provider.headers)
    passed = passed_on(clients, taken)
    yield from passed
    given = taken | {name.lower() for name, _ in passed}
    for name, value in base.defaults:
        if name not in given:
            yield name, value


# ---------------------------------------------------------------------------------------------------------- outcomes


async def _words(answer: Answer) -> bytes:
    """What an error answer says; nothing where it does not come, or is too much: its status has said what it is."""
    try:
        async with asyncio.timeout(_ERROR_WORDS_SECONDS):
            return await answer.whole(MAX_ERROR_BYTES)
    except (TimeoutError, PyreqwestError, UnreadAnswerError) as error:
        _log.warning("an error answer was not read", error=repr(error))
        return b""


def _judged(  # noqa: PLR0917 (what was asked of whom, for whom, and what came)
    provider: Provider, model: str, credential: Credential[Key], account: str, response: Response, body: bytes
) -> Failed:
    """What an error answer comes to. A provider's words about our credential go no further than this."""
    status, now = response.status, time.monotonic()
    if status < _REFUSED:
        _log.error("the provider answered something that is no answer", provider=provider.name, status=status)
        credential.answered(now, model, account)
        return Failed(
            ProviderUnavailable("the provider's answer was not understood", provider=provider.name), Meaning.FINAL
        )
    aws_exception = header_of(response, "x-amzn-errortype")
    meaning = meaning_of(status, body, aws_exception)
    if meaning in {Meaning.REJECTED, Meaning.DENIED}:
        (credential.rejected if meaning is Meaning.REJECTED else credential.denied)(now, status, account)
        return Failed(ProviderCredentialRefused("the provider cannot be called now", provider=provider.name), meaning)
    retry_after = header_of(response, "retry-after") or googles_retry_after(body)
    rest = retry_after_seconds(retry_after)
    if status == TOO_MANY:
        credential.busy(now, account)
        if rest != 0:
            credential.limited(now, model, rest, account)
    elif meaning is Meaning.FAILED:
        credential.failed(now, account)
    else:
        credential.answered(now, model, account)
    if rest and status != TOO_MANY and meaning is not Meaning.FINAL:
        credential.rested(now, rest, account)
    content_type = header_of(response, "content-type") or _JSON
    words = discreet(provider)(body)
    return Failed(ProviderRefusalError(status, content_type, words, retry_after, aws_exception), meaning)


def _broken(
    provider: Provider, credential: Credential[Key], account: str, error: PyreqwestError, deadline: float
) -> Failed:
    """What a transport failure comes to. One to connect is no request's fault; a silence or a break may be."""
    told = failure(provider.name, error)
    if isinstance(error, PoolTimeoutError | ClientClosedError):
        credential.abandoned(account)  # too many calls here, or none any more: nothing that the provider has done
        return Failed(told, Meaning.FINAL)
    if timed_out(error) and time.monotonic() >= deadline:
        credential.abandoned(account)  # the call had no more time, which may have been little
    elif unreached(error):
        credential.abandoned(account)
        credential.failed(time.monotonic())
    else:
        credential.failed(time.monotonic(), account)
    return Failed(told, Meaning.FAILED)
