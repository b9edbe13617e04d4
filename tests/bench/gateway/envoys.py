"""Owns the Envoys before the echo: a bare one that only transcodes, and one configured as the gateway is."""

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.local import envoy
from deploy.local.ports import HOST, free_port
from deploy.local.postgres import SERVICES
from deploy.local.process import Child
from gateway.render import DESCRIPTOR_SET, Address
from tests.bench.gateway import calls
from tests.bench.support.servers import listening

_TYPES = "type.googleapis.com/envoy.extensions."


@contextlib.contextmanager
def bare(folder: Path, echo_port: int) -> Iterator[tuple[int, Child]]:
    """An Envoy of one route to the echo, with no filter but the transcoder: its port and process."""
    with _running("bare-envoy", folder, lambda port: _bare(port, echo_port)) as found:
        yield found


@contextlib.contextmanager
def as_gateway(folder: Path, echo_port: int) -> Iterator[tuple[int, Child]]:
    """The gateway's own configuration, with the echo in each service's place: its port and process."""
    with _running(
        "echoed-envoy",
        folder,
        lambda port: envoy.render(port=port, admin_port=free_port(), services=dict.fromkeys(SERVICES, echo_port)),
    ) as found:
        yield found


@contextlib.contextmanager
def _running(name: str, folder: Path, configured: Any) -> Iterator[tuple[int, Child]]:
    file = folder / f"{name}.json"

    def program(port: int) -> Any:
        file.write_text(configured(port))
        return envoy.program(file)

    with listening(program, folder / f"{name}.log") as found:
        yield found


def _bare(port: int, echo_port: int) -> str:
    service, _, _ = calls.RPC.strip("/").partition("/")
    transcoder = {
        "@type": _TYPES + "filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor_bin": base64.b64encode(DESCRIPTOR_SET.read_bytes()).decode(),
        "services": [service],
        "match_incoming_request_route": True,
    }
    manager = {
        "@type": _TYPES + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "http_filters": [
            {"name": "transcoder", "typed_config": transcoder},
            {"name": "router", "typed_config": {"@type": _TYPES + "filters.http.router.v3.Router"}},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "echo",
                    "domains": ["*"],
                    "routes": [{"match": {"path": calls.PATH}, "route": {"cluster": "echo", "timeout": "0s"}}],
                }
            ]
        },
    }
    cluster = {
        "name": "echo",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "echo",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": Address(HOST, echo_port).as_envoy()}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPES + "upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    listener = {
        "name": "bare",
        "address": Address(HOST, port).as_envoy(),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})
