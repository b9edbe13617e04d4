"""Owns Envoy's configuration: one JSON document, derived from the contracts and a few addresses.

Run as `python -m gateway.render --help`; `deploy/local` calls `configuration()`. What each filter is for stands in
`gateway/README.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from gateway import http_filters, refusals, routes
from gateway.bindings import Binding, read_bindings

Json = dict[str, Any]

DESCRIPTOR_SET = Path(__file__).resolve().parent.parent / "protos" / "gen" / "tollkeeper.binpb"

MAX_REQUEST_HEADERS_KIB = 64
MAX_REQUEST_HEADERS = 100
MAX_CONNECTIONS = 20_000
UPLOAD_TIMEOUT_SECONDS = 120
MAX_REQUESTS_PER_SERVICE = 20_000
HEALTH_CHECK_SECONDS = 2

_TYPES = "type.googleapis.com/envoy."


@dataclasses.dataclass(frozen=True)
class Address:
    """A TCP address."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """From `host:port`.

        Raises:
            ValueError: it is not of that form.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"not host:port: {text!r}")
        return cls(host.strip("[]"), int(port))

    def as_envoy(self) -> Json:
        """The address in Envoy's form."""
        return {"socket_address": {"address": self.host, "port_value": self.port}}


def configuration(
    *,
    listen: Address,
    admin: Address,
    services: Mapping[str, Sequence[Address]],
    descriptor_set: bytes | None = None,
) -> Json:
    """Envoy's bootstrap configuration.

    Args:
        listen: where clients connect.
        admin: Envoy's own interface; it can stop Envoy, so a loopback address.
        services: each service's gRPC addresses; every service that the contracts give a route must be there.
        descriptor_set: the contracts, serialised; the committed ones where it is not given.

    Raises:
        ValueError: a service is missing, or the contracts contradict themselves.
    """
    contracts = DESCRIPTOR_SET.read_bytes() if descriptor_set is None else descriptor_set
    bindings = read_bindings(contracts)
    contracts = _with_error_details(contracts)
    missing = sorted(({binding.service for binding in bindings} | {http_filters.AUTHORIZER}) - set(services))
    if missing:
        raise ValueError(f"no address for {', '.join(missing)}")
    return {
        "admin": {"address": admin.as_envoy()},
        "static_resources": {
            "listeners": [_listener(listen, bindings, contracts)],
            "clusters": [_cluster(name, addresses) for name, addresses in services.items()],
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": _TYPES + "extensions.resource_monitors.downstream_connections.v3"
                        ".DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }


def _with_error_details(contracts: bytes) -> bytes:
    """The contracts with `google.rpc.ErrorInfo` and its kin, without which a refusal's details can not become JSON."""
    files = descriptor_pb2.FileDescriptorSet.FromString(contracts)
    known = {file.name for file in files.file}

    def add(file: FileDescriptor) -> None:
        if file.name not in known:
            known.add(file.name)
            for dependency in file.dependencies:
                add(dependency)
            file.CopyToProto(files.file.add())

    add(error_details_pb2.DESCRIPTOR)
    add(status_pb2.DESCRIPTOR)
    return files.SerializeToString(deterministic=True)


def _cluster(name: str, addresses: Sequence[Address]) -> Json:
    return {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": address.as_envoy()}} for address in addresses]},
            ],
        },
        "lb_policy": "LEAST_REQUEST",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPES + "extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {
                    "http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "5s"}},
                },
            }
        },
        "health_checks": [
            {
                "grpc_health_check": {},
                "timeout": "1s",
                "interval": f"{HEALTH_CHECK_SECONDS}s",
                # By default a service nobody has called yet is asked once a minute: too late after a restart.
                "no_traffic_interval": f"{HEALTH_CHECK_SECONDS}s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
            }
        ],
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": MAX_REQUESTS_PER_SERVICE,
                    "max_pending_requests": MAX_REQUESTS_PER_SERVICE,
                    "max_requests": MAX_REQUESTS_PER_SERVICE,
                    "max_retries": 50,
                }
            ]
        },
    }


def _listener(address: Address, bindings: Sequence[Binding], contracts: bytes) -> Json:
    return {
        "name": "edge",
        "address": address.as_envoy(),
        # How much of a stream Envoy holds for a slow peer; whole request bodies have their own limit.
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": _connection_manager(bindings, contracts),
                    }
                ]
            }
        ],
    }


def _connection_manager(bindings: Sequence[Binding], contracts: bytes) -> Json:
    return {
        "@type": _TYPES + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "codec_type": "AUTO",
        "server_name": "tollkeeper",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        # SDKs escape the slash of a model's name. Unescaped before anything looks at the path, all read it alike.
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
        "always_set_request_id_in_response": True,
        "early_header_mutation_extensions": [http_filters.reserved_headers_removed()],
        "common_http_protocol_options": {
            "idle_timeout": "3600s",
            "max_headers_count": MAX_REQUEST_HEADERS,
            "headers_with_underscores_action": "DROP_HEADER",
        },
        "max_request_headers_kb": MAX_REQUEST_HEADERS_KIB,
        "request_headers_timeout": "10s",
        "request_timeout": f"{UPLOAD_TIMEOUT_SECONDS}s",
        "stream_idle_timeout": f"{routes.STREAM_IDLE_SECONDS}s",
        "local_reply_config": refusals.local_reply_config(),
        "access_log": [_access_log()],
        "http_filters": http_filters.chain(bindings, contracts),
        "route_config": {
            "name": "edge",
            "virtual_hosts": [
                {
                    "name": "edge",
                    "domains": ["*"],
                    "routes": routes.table(bindings),
                    "response_headers_to_add": [routes.header("x-request-id", "%REQ(X-REQUEST-ID)%")],
                }
            ],
        },
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
                    "method": "%REQ(:METHOD)%",
                    "path": "%PATH(NQ:ORIG_OR_PATH)%",
                    "status": "%RESPONSE_CODE%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "flags": "%RESPONSE_FLAGS%",
                    "duration_ms": "%DURATION%",
                    "first_byte_ms": "%RESPONSE_DURATION%",
                    "bytes_received": "%BYTES_RECEIVED%",
                    "bytes_sent": "%BYTES_SENT%",
                    "service": "%UPSTREAM_CLUSTER%",
                    "rpc": "%ROUTE_NAME%",
                    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                    "user_agent": "%REQ(USER-AGENT):200%",
                },
            },
        },
    }


def main() -> None:
    """Print the configuration for the addresses given on the command line."""
    parser = argparse.ArgumentParser(description="Print Envoy's configuration for Tollkeeper's gateway as JSON.")
    parser.add_argument("--listen", type=Address.parse, required=True, metavar="HOST:PORT")
    parser.add_argument("--admin", type=Address.parse, default=Address("127.0.0.1", 9901), metavar="HOST:PORT")
    parser.add_argument(
        "--service",
        action="append",
        required=True,
        metavar="NAME=HOST:PORT[,HOST:PORT…]",
        help="where a service serves gRPC; once for each",
    )
    arguments = parser.parse_args()
    services = {}
    for entry in arguments.service:
        name, _, addresses = entry.partition("=")
        services[name] = [Address.parse(address) for address in addresses.split(",")]
    try:
        document = configuration(listen=arguments.listen, admin=arguments.admin, services=services)
    except ValueError as mistake:
        parser.error(str(mistake))
    json.dump(document, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
