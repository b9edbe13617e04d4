"""Owns channels to other services: retries, load balancing, keepalive, and what every call carries along.

Each call gets the service token, and the request id and trace of the call being served. A unary call that names no
timeout gets the channel's, or what is left of the deadline of the call being served where that is less.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc
import grpc.aio
from prometheus_client import Gauge

from services.kit.call import REQUEST_ID_KEY, current_request_id, remaining_seconds
from services.kit.http2.client import Channel
from services.kit.http2.connection import Limits
from services.kit.identity import AUTHORIZATION_KEY, expiry_of
from services.kit.logs import get_logger
from services.kit.settings import ServiceSettings
from services.kit.tls import channel_context, channel_credentials
from services.kit.tracing import TRACEPARENT_KEY, traceparent

_log = get_logger(__name__)

_EXPIRES = Gauge(
    "tollkeeper_service_token_expires_timestamp_seconds",
    "When the token that this process shows to other services expires, since 1970; 0: it has shown none",
)

DEFAULT_TIMEOUT_SECONDS = 10.0
_RECHECK_SECONDS = 1.0
_PING_SECONDS = 30
_PONG_SECONDS = 10
_MAX_METADATA_BYTES = 64 * 1024

# Retried only where the call surely had no answer; our writes carry a request id, so a repeat has no second effect.
# The throttle stops retrying when more than about half of the calls fail, so that retries never make an outage worse.
_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    }
)


def _options(settings: ServiceSettings, name: str = "") -> list[tuple[str, Any]]:
    named = [("grpc.default_authority", name), ("grpc.ssl_target_name_override", name)] if name else []
    return [
        *named,
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.enable_retries", 1),
        # A service's config must not be overruled by one found in DNS.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", _PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _PONG_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A peer that is back is called again within half a second: a little longer than our retries last.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # What its name does not say: how long a connection may take to be made, at least.
        ("grpc.min_reconnect_backoff_ms", 2_000),
    ]


class _TokenSource:
    """The service token: fixed, or read from a file again when that changes (checked at most once a second)."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._token = ""
        self._file: Path | None = None if settings.service_token.strip() else settings.service_token_file
        self._stamp = 0
        self._checked = -_RECHECK_SECONDS
        self._take(settings.service_token)

    def token(self) -> str:
        if self._file is not None and time.monotonic() - self._checked >= _RECHECK_SECONDS:
            try:
                stamp = self._file.stat().st_mtime_ns
                if stamp != self._stamp:
                    self._take(self._file.read_text())
                    self._stamp = stamp
            except OSError as error:
                _log.error("service token not read, keeping the one in use", file=str(self._file), error=str(error))
            # Not before: a thread that comes meanwhile would take the token for read, and at first there is none.
            self._checked = time.monotonic()
        return self._token

    def _take(self, token: str) -> None:
        self._token = token.strip()
        if expires := expiry_of(self._token):
            _EXPIRES.set(expires)


class _Caller:
    """A multi-callable of a channel that adds what every call carries. Serves all arities, sync and aio."""

    def __init__(self, inner: Callable[[], Any], tokens: _TokenSource, timeout_seconds: float | None) -> None:
        self._inner = inner
        self._tokens = tokens
        self._timeout_seconds = timeout_seconds

    def _carrying(self, arguments: dict[str, Any]) -> dict[str, Any]:
        metadata = list(arguments.get("metadata") or ())
        named = {key for key, _ in metadata}
        if AUTHORIZATION_KEY not in named and (token := self._tokens.token()):
            metadata.append((AUTHORIZATION_KEY, f"Bearer {token}"))
        if REQUEST_ID_KEY not in named and (request_id := current_request_id()):
            metadata.append((REQUEST_ID_KEY, request_id))
        if TRACEPARENT_KEY not in named and (trace := traceparent()):
            metadata.append((TRACEPARENT_KEY, trace))
        arguments["metadata"] = tuple(metadata)
        if arguments.get("timeout") is None and self._timeout_seconds is not None:
            left = remaining_seconds()
            arguments["timeout"] = self._timeout_seconds if left is None else min(left, self._timeout_seconds)
        return arguments

    def __call__(self, request: Any = None, timeout: float | None = None, **arguments: Any) -> Any:
        return self._inner()(request, **self._carrying({"timeout": timeout, **arguments}))

    def with_call(self, request: Any, timeout: float | None = None, **arguments: Any) -> Any:
        return self._inner().with_call(request, **self._carrying({"timeout": timeout, **arguments}))

    def future(self, request: Any, timeout: float | None = None, **arguments: Any) -> Any:
        return self._inner().future(request, **self._carrying({"timeout": timeout, **arguments}))


class _InUse(NamedTuple):
    """A channel of gRPC's, what it shows to its peers, and the multi-callables that were made of it, by who asks."""

    channel: Any
    credentials: grpc.ChannelCredentials | None
    callables: dict[object, Any]


class _CarryingChannel:
    """A channel whose multi-callables are `_Caller`s; in all else the channel of gRPC's that it wraps.

    That cannot take up new certificates, so with those another is made. Calls under way on the one before go on.
    """

    def __init__(
        self,
        make: Callable[[grpc.ChannelCredentials | None], Any],
        credentials: Callable[[], grpc.ChannelCredentials] | None,
        settings: ServiceSettings,
        timeout_seconds: float,
    ) -> None:
        self._make = make
        self._credentials = credentials
        self._lock = threading.Lock()
        shown = None if credentials is None else credentials()
        self._in_use = _InUse(make(shown), shown, {})
        self._tokens = _TokenSource(settings)
        self._timeout_seconds = timeout_seconds

    @property
    def _inner(self) -> Any:
        return self._in_use.channel

    def _current(self) -> _InUse:
        if self._credentials is None:
            return self._in_use
        with self._lock:
            shown = self._credentials()
            if shown is not self._in_use.credentials:
                # With its multi-callables the old one is forgotten: it would go on connecting with what has expired.
                self._in_use = _InUse(self._make(shown), shown, {})
            return self._in_use

    def _caller(self, kind: str, arguments: Any, options: Any, timeout_seconds: float | None) -> _Caller:
        key = object()

        def inner() -> Any:
            in_use = self._current()
            found = in_use.callables.get(key)
            if found is None:
                found = in_use.callables[key] = getattr(in_use.channel, kind)(*arguments, **options)
            return found

        return _Caller(inner, self._tokens, timeout_seconds)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._caller("unary_unary", arguments, options, self._timeout_seconds)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._caller("unary_stream", arguments, options, None)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._caller("stream_unary", arguments, options, None)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._caller("stream_stream", arguments, options, None)


class _SyncChannel(_CarryingChannel, grpc.Channel):
    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:  # noqa: FBT001, FBT002 (grpc's)
        self._inner.subscribe(callback, try_to_connect=try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _AioChannel(_CarryingChannel, grpc.aio.Channel):
    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 (grpc's)
        state: grpc.ChannelConnectivity = self._inner.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _maker(library: Any, address: str, options: Any) -> Callable[[grpc.ChannelCredentials | None], Any]:
    """How a channel of `grpc` or `grpc.aio` is made with what it shows to its peers; None: in plain text."""

    def make(credentials: grpc.ChannelCredentials | None) -> Any:
        if credentials is None:
            return library.insecure_channel(address, options=options)
        return library.secure_channel(address, credentials, options=options)

    return make


def aio_channel(address: str, settings: ServiceSettings, *, name: str = "") -> grpc.aio.Channel:
    """A channel for an aio service to `address` (host:port, or any gRPC target). Make it inside the event loop.

    `name`: what the peer is called, and its certificate is for, where the address is that of one replica. A unary call
    that has to outlast the one being served names a timeout of its own.
    """
    make = _maker(grpc.aio, address, _options(settings, name))
    return _AioChannel(make, channel_credentials(settings), settings, DEFAULT_TIMEOUT_SECONDS)


def unary_channel(address: str, settings: ServiceSettings, *, name: str = "") -> grpc.aio.Channel:
    """A channel for an aio service's unary calls to one replica, at a fraction of the cost; see `aio_channel`.

    `address` is host:port. Each call may be repeated where no answer came, as on the other channels.
    """
    limits = Limits(
        message_bytes=settings.max_message_bytes,
        header_bytes=_MAX_METADATA_BYTES,
        streams=0,
        ping_seconds=_PING_SECONDS,
        pong_seconds=_PONG_SECONDS,
    )
    inner = Channel(address, limits, tls=channel_context(settings), name=name)
    return _AioChannel(lambda _: inner, None, settings, DEFAULT_TIMEOUT_SECONDS)


def sync_channel(
    address: str, settings: ServiceSettings, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
) -> grpc.Channel:
    """A channel for a sync service; see `aio_channel`. `timeout_seconds` is for unary calls that name none."""
    make = _maker(grpc, address, _options(settings))
    return _SyncChannel(make, channel_credentials(settings), settings, timeout_seconds)
