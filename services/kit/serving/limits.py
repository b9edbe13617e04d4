"""Owns how much one client may ask of a server: calls at once, sizes, how long a connection lasts and may be silent."""

from __future__ import annotations

from typing import Any

from services.kit.http2.connection import Limits
from services.kit.settings import ServiceSettings

# Beyond this many, gRPC refuses by itself, without our error model, so that its queue of calls has an end.
QUEUED_CALLS = 256
# More than the gateway lets in, so that it is the gateway that refuses, with the right status: 64 KiB in 100 headers,
# each of which counts for 32 bytes besides (RFC 9113, section 6.5.2), and what it adds, an identity token above all.
_MAX_METADATA_BYTES = 80 * 1024
# How long a connection takes new calls. Its client then connects anew and so finds replicas that came since; calls and
# streams under way go on over the old connection to their end.
CONNECTION_SECONDS = 300
# How long a connection may be silent before the peer is asked whether it is there, and how long it may take to answer.
_PING_SECONDS = 60
_PONG_SECONDS = 20


def of_grpc(settings: ServiceSettings) -> list[tuple[str, Any]]:
    """Those of a sync server, as gRPC's library takes them."""
    return [
        # Two processes on one port is a mistake to be told of, not load balancing.
        ("grpc.so_reuseport", int(settings.reuse_port)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA_BYTES),
        ("grpc.max_connection_age_ms", round(CONNECTION_SECONDS * 1000)),
        ("grpc.keepalive_time_ms", _PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _PONG_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_concurrent_streams", _streams(settings)),
    ]


def _streams(settings: ServiceSettings) -> int:
    """Calls at once on a connection: more than are served, so that it is we who refuse what is above that."""
    return 2 * settings.max_concurrent + QUEUED_CALLS


def of_http2(settings: ServiceSettings) -> Limits:
    """The same of an aio server. How long a connection lasts it is told beside them."""
    return Limits(
        message_bytes=settings.max_message_bytes,
        header_bytes=_MAX_METADATA_BYTES,
        streams=_streams(settings),
        ping_seconds=_PING_SECONDS,
        pong_seconds=_PONG_SECONDS,
    )
