"""Owns what is behind the gateway: a cluster for each service, with its health, its limits and its TLS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway import tls
from gateway.options import Address, Options

Json = dict[str, Any]

ADMIN = "envoy_admin"
HEALTH_CHECK_SECONDS = 2
MAX_RETRIES = 50
STREAM_WINDOW_BYTES = 64 * 1024
# What may wait for a connection to a service: HTTP/2 needs few, so a queue means that it is down.
MAX_PENDING_REQUESTS = 1_000
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def service(name: str, addresses: Sequence[Address], options: Options) -> Json:
    """The cluster of one service, at one address or several replicas' addresses.

    Raises:
        ValueError: there is no address.
    """
    if not addresses:
        raise ValueError(f"no address for {name}")
    socket = tls.to_service(addresses[0], options)
    return {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": _endpoints(name, addresses),
        "lb_policy": "LEAST_REQUEST",
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {
                "@type": "type.googleapis.com/" + _HTTP_OPTIONS,
                "explicit_http_config": {
                    "http2_protocol_options": {
                        # As long as services give each other (services/kit/channels.py): who is busy is not dead.
                        "connection_keepalive": {"interval": "30s", "timeout": "10s"},
                        # What a client does not read fills its stream's window, and counts in the connection's, which
                        # is everybody's: so that one holds all of theirs. By default (16 and 24 MiB) two fill it.
                        "initial_stream_window_size": STREAM_WINDOW_BYTES,
                        "initial_connection_window_size": 2**31 - 1,
                    },
                },
            }
        },
        **({"transport_socket": socket} if socket else {}),
        "health_checks": [_health_check()],
        "outlier_detection": _outlier_detection(),
        "circuit_breakers": {"thresholds": [_limits(options)]},
    }


def admin(address: Address) -> Json:
    """Envoy's own interface as a cluster, for the metrics listener."""
    return {
        "name": ADMIN,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": _endpoints(ADMIN, [address]),
    }


def _endpoints(name: str, addresses: Sequence[Address]) -> Json:
    endpoints = [{"endpoint": {"address": address.as_envoy()}} for address in addresses]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


def _health_check() -> Json:
    return {
        "grpc_health_check": {},
        "timeout": "1s",
        "interval": f"{HEALTH_CHECK_SECONDS}s",
        # By default a service nobody has called yet is asked once a minute: too late after a restart.
        "no_traffic_interval": f"{HEALTH_CHECK_SECONDS}s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
    }


def _outlier_detection() -> Json:
    """Leaves out a replica that can not be reached, or that drops what it took, sooner than the health check would.

    A replica that answers is alive, whatever it answers: an error may be its peer's, and all replicas' alike. So only
    what Envoy sees itself counts. A connection that was made counts as a success each time, so one that drops every
    call fails half of the time; a sound one never does.
    """
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 5,
        "enforcing_consecutive_local_origin_failure": 100,
        "failure_percentage_threshold": 30,
        "enforcing_failure_percentage_local_origin": 100,
        "failure_percentage_minimum_hosts": 2,
        "failure_percentage_request_volume": 10,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "interval": "2s",
        "base_ejection_time": "10s",
        # Never the half of them that is left, and never the only one.
        "max_ejection_percent": 50,
    }


def _limits(options: Options) -> Json:
    return {
        "max_connections": options.max_requests_per_service,
        "max_pending_requests": min(MAX_PENDING_REQUESTS, options.max_requests_per_service),
        "max_requests": options.max_requests_per_service,
        "max_retries": MAX_RETRIES,
        "track_remaining": True,
    }
