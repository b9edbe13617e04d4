"""Owns calls to providers over HTTP: addresses, credentials, timeouts, and what a failure of theirs means here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import ConnectError, ConnectTimeoutError, PyreqwestError, RequestTimeoutError
from pyreqwest.response import Response

from services.kit.errors import ServiceError
from services.kit.logs import get_logger
from services.proxy.errors import (
    ProviderCredentialRefused,
    ProviderNotConfigured,
    ProviderTimeout,
    ProviderUnavailable,
)
from services.proxy.settings import ProxySettings

_log = get_logger(__name__)

_CONNECT_ATTEMPTS = 3
_FIRST_BACKOFF_SECONDS = 0.1
_SERVED = range(200, 300)
_REFUSED = 400
_CREDENTIAL_REFUSED = 401

_UNARY_BUFFER_BYTES = 64 * 1024
MAX_ERROR_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Provider:
    """Where a provider's OpenAI form is, our credential there, and the name it has for the output cap."""

    name: str
    base_url: str
    api_key: str
    cap_field: str


class ProviderRefusalError(Exception):
    """A provider's own error answer, to be passed to the client as it came."""

    def __init__(self, status: int, content_type: str, body: bytes, retry_after: str) -> None:
        super().__init__(f"provider answered {status}")
        self.status = status
        self.content_type = content_type
        self.body = body
        self.retry_after = retry_after


class Answer:
    """A provider's good answer, its body not read yet. Reading raises transport failures (see `failure`)."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.content_type = response.get_header("content-type") or "application/json"

    @property
    def is_events(self) -> bool:
        """Whether it is a stream of server-sent events."""
        return self.content_type.lower().startswith("text/event-stream")

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The body as it comes."""
        reader = self._response.body_reader
        while (piece := await reader.read_chunk()) is not None:
            yield bytes(piece)

    async def whole(self, limit_bytes: int) -> bytes:
        """The whole body. Raises ProviderUnavailable where it is above the limit."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > limit_bytes:
                raise ProviderUnavailable(f"the provider's answer is above {limit_bytes} bytes")
        return bytes(body)


class Upstreams:
    """Calls providers. Nothing is sent twice: only what never reached a provider is tried again."""

    def __init__(self, settings: ProxySettings) -> None:
        self._providers = {
            provider.name: provider
            for provider in (
                Provider("openai", settings.openai_base_url, settings.openai_api_key, "max_completion_tokens"),
                Provider("anthropic", settings.anthropic_base_url, settings.anthropic_api_key, "max_tokens"),
                Provider("google", settings.google_base_url, settings.google_api_key, "max_tokens"),
                Provider("huggingface", settings.huggingface_base_url, settings.huggingface_api_key, "max_tokens"),
            )
            if provider.api_key
        }
        self._client: Client = (
            ClientBuilder()
            .connect_timeout(timedelta(seconds=settings.upstream_connect_seconds))
            .read_timeout(timedelta(seconds=settings.upstream_idle_seconds))
            .timeout(timedelta(seconds=settings.upstream_total_seconds))
            .max_connections(settings.upstream_connections)
            .pool_timeout(timedelta(seconds=settings.upstream_connect_seconds))
            .follow_redirects(False)
            .user_agent("tollkeeper")
            .build()
        )

    @property
    def names(self) -> frozenset[str]:
        """The providers that may be called."""
        return frozenset(self._providers)

    def provider(self, name: str) -> Provider:
        """A provider that may be called. Raises ProviderNotConfigured."""
        provider = self._providers.get(name)
        if provider is None:
            raise ProviderNotConfigured(f"{name} is not configured here", provider=name)
        return provider

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    @asynccontextmanager
    async def chat(self, provider: Provider, body: bytes, *, stream: bool) -> AsyncIterator[Answer]:
        """Post a chat completion; the answer's body is read inside the context.

        Raises ProviderRefusalError for a provider's error answer, ProviderUnavailable and ProviderTimeout where there
        was no answer, ProviderCredentialRefused where the provider does not take our credential.
        """
        request = (
            self._client.post(f"{provider.base_url.rstrip('/')}/chat/completions")
            .header("authorization", f"Bearer {provider.api_key}", is_sensitive=True)
            .header("content-type", "application/json")
            .header("accept", "text/event-stream" if stream else "application/json")
            .body_bytes(body)
            # By default the client holds back the first 64 KiB of a body, and with them a stream's first words.
            .streamed_read_buffer_limit(0 if stream else _UNARY_BUFFER_BYTES)
            .build_streamed()
        )
        # A request is used up by being sent, so one that may be sent again is copied first.
        spare = request.copy()
        backoff = _FIRST_BACKOFF_SECONDS
        for attempt in range(1, _CONNECT_ATTEMPTS + 1):
            try:
                response = await request.__aenter__()
                break
            except (ConnectError, ConnectTimeoutError) as error:
                if attempt == _CONNECT_ATTEMPTS:
                    raise failure(provider.name, error) from error
                await asyncio.sleep(backoff)
                backoff *= 2
                request, spare = spare, spare.copy()
            except PyreqwestError as error:
                raise failure(provider.name, error) from error
        try:
            if response.status not in _SERVED:
                await _refuse(provider, response)
            yield Answer(response)
        finally:
            await request.__aexit__(None, None, None)


async def _refuse(provider: Provider, response: Response) -> None:
    status = response.status
    try:
        body = await Answer(response).whole(MAX_ERROR_BYTES)
    except PyreqwestError as error:
        raise failure(provider.name, error) from error
    if status == _CREDENTIAL_REFUSED:
        # Its words are about the operator's credential, and may quote a part of it.
        _log.error("the provider refuses our credential", provider=provider.name)
        raise ProviderCredentialRefused("the provider cannot be called now", provider=provider.name)
    if status < _REFUSED:
        _log.error("the provider answered something that is no answer", provider=provider.name, status=status)
        raise ProviderUnavailable("the provider's answer was not understood", provider=provider.name)
    raise ProviderRefusalError(
        status,
        response.get_header("content-type") or "application/json",
        body,
        response.get_header("retry-after") or "",
    )


def failure(provider: str, error: PyreqwestError) -> ServiceError:
    """What a transport failure is to the client."""
    _log.warning("provider call failed", provider=provider, error=repr(error))
    if isinstance(error, RequestTimeoutError) and not isinstance(error, ConnectTimeoutError):
        return ProviderTimeout("the provider did not answer in time", provider=provider)
    return ProviderUnavailable("the provider could not be reached", provider=provider, retry_after_seconds=1)
