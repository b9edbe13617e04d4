"""Owns where the gateway listens and how it reads HTTP: the edge, for clients, and metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway import answer_headers, clusters, cors, http_filters, refusals, routes, tls, tracing
from gateway.bindings import Binding
from gateway.options import Address, Options

Json = dict[str, Any]

MAX_REQUEST_HEADERS_KIB = 64
MAX_REQUEST_HEADERS = 100
MAX_STREAMS_PER_CONNECTION = 100
UPLOAD_TIMEOUT_SECONDS = 120
# How much of a stream Envoy holds for a slow peer, at each of some four steps; whole bodies have their own limits.
CONNECTION_BUFFER_BYTES = 64 * 1024

_TYPES = "type.googleapis.com/envoy."
_MANAGER = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def edge(address: Address, bindings: Sequence[Binding], contracts: bytes, options: Options) -> Json:
    """Where clients connect."""
    socket = tls.to_clients(options)
    return {
        "name": "edge",
        "address": address.as_envoy(),
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER_BYTES,
        "filter_chains": [
            {
                "filters": [_manager(_edge_manager(bindings, contracts, options))],
                **({"transport_socket": socket, "transport_socket_connect_timeout": "10s"} if socket else {}),
            }
        ],
    }


def metrics(address: Address) -> Json:
    """Where Prometheus scrapes: two paths of Envoy's own interface, which itself stays on loopback."""
    paths = {"/metrics": "/stats/prometheus", "/ready": "/ready"}
    return {
        "name": "metrics",
        "address": address.as_envoy(),
        # A gateway full of clients is the one to look at.
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": [
            {
                "filters": [
                    _manager(
                        {
                            "stat_prefix": "metrics",
                            "http_filters": [http_filters.router()],
                            "route_config": {
                                "name": "metrics",
                                "virtual_hosts": [
                                    {
                                        "name": "metrics",
                                        "domains": ["*"],
                                        "routes": [_scraped(path, target) for path, target in paths.items()],
                                    }
                                ],
                            },
                        }
                    )
                ]
            }
        ],
    }


def _scraped(path: str, target: str) -> Json:
    return {
        "match": {"path": path, "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]},
        "route": {
            "cluster": clusters.ADMIN,
            # The query too: Envoy's interface changes what it prints by it.
            "regex_rewrite": {"pattern": {"regex": ".*"}, "substitution": target},
            "timeout": "10s",
        },
    }


def _manager(settings: Json) -> Json:
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {"@type": _TYPES + _MANAGER, **settings},
    }


def _edge_manager(bindings: Sequence[Binding], contracts: bytes, options: Options) -> Json:
    return {
        "stat_prefix": "edge",
        "codec_type": "AUTO",
        "server_name": "tollkeeper",
        "use_remote_address": True,
        "xff_num_trusted_hops": options.trusted_hops,
        **_strictness(),
        **_limits(),
        "always_set_request_id_in_response": True,
        "early_header_mutation_extensions": [http_filters.reserved_headers_removed()],
        **tracing.settings(options),
        "local_reply_config": refusals.local_reply_config(),
        "access_log": [_access_log()],
        "http_filters": http_filters.chain(bindings, contracts),
        "route_config": {
            "name": "edge",
            "max_direct_response_body_size_bytes": routes.MAX_DIRECT_BODY_BYTES,
            "virtual_hosts": [
                {
                    "name": "edge",
                    "domains": ["*"],
                    "routes": routes.table(bindings, contracts, options),
                    "response_headers_to_add": [answer_headers.put("x-request-id", "%REQ(X-REQUEST-ID)%")],
                    "typed_per_filter_config": cors.policy(options),
                }
            ],
        },
    }


def _strictness() -> Json:
    """One reading of a request, whoever reads it: what could be read in two ways is made plain or refused.

    Envoy by itself refuses a request with both a length and chunks, or with two lengths.
    """
    return {
        "normalize_path": True,
        "merge_slashes": True,
        # SDKs escape the slash of a model's name. Unescaped before anything looks at the path, all read it alike.
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
        "http_protocol_options": {"allow_chunked_length": False},
    }


def _limits() -> Json:
    return {
        "common_http_protocol_options": {
            "idle_timeout": "3600s",
            "max_headers_count": MAX_REQUEST_HEADERS,
            # gRPC metadata and Python's WSGI take `_` and `-` for the same.
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        "http2_protocol_options": {
            "max_concurrent_streams": MAX_STREAMS_PER_CONNECTION,
            "initial_stream_window_size": 64 * 1024,
            "initial_connection_window_size": 1024 * 1024,
            # One malformed stream is refused; the others of its connection go on.
            "override_stream_error_on_invalid_http_message": True,
        },
        "max_request_headers_kb": MAX_REQUEST_HEADERS_KIB,
        "request_headers_timeout": "10s",
        "request_timeout": f"{UPLOAD_TIMEOUT_SECONDS}s",
        "stream_idle_timeout": f"{routes.STREAM_IDLE_SECONDS}s",
    }


def _access_log() -> Json:
    """One JSON object a request on standard output. No header that may hold a credential, and no query string."""
    return {
        "name": "envoy.access_loggers.stdout",
        "filter": {
            "header_filter": {
                "header": {"name": ":path", "string_match": {"exact": "/healthz"}, "invert_match": True},
            }
        },
        "typed_config": {
            "@type": _TYPES + "extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {
                "json_format": {
                    "timestamp": "%START_TIME%",
                    "request_id": "%REQ(X-REQUEST-ID)%",
                    # As called: the transcoder makes each call a POST.
                    "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
                    "path": "%PATH(NQ:ORIG_OR_PATH)%",
                    "protocol": "%PROTOCOL%",
                    "tls": "%DOWNSTREAM_TLS_VERSION%",
                    "status": "%RESPONSE_CODE%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "flags": "%RESPONSE_FLAGS%",
                    "duration_ms": "%DURATION%",
                    "first_byte_ms": "%RESPONSE_DURATION%",
                    "bytes_received": "%BYTES_RECEIVED%",
                    "bytes_sent": "%BYTES_SENT%",
                    "service": "%UPSTREAM_CLUSTER%",
                    "replica": "%UPSTREAM_HOST%",
                    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                    "rpc": "%ROUTE_NAME%",
                    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                    "user_agent": "%REQ(USER-AGENT):200%",
                },
            },
        },
    }
