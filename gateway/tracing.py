"""Owns the gateway's traces: spans of requests, sent to a collector by OTLP over HTTP. Off unless one is named."""

from __future__ import annotations

from typing import Any

from gateway.options import Options

Json = dict[str, Any]

COLLECTOR = "traces"
_TYPES = "type.googleapis.com/envoy."
# Of a path; its query has no key in it by then.
_MAX_PATH_CHARS = 256


def settings(options: Options) -> Json:
    """What the edge's connection manager is told. Whether a trace is kept is the caller's word, else the share set."""
    if options.traces is None:
        return {}
    return {
        "tracing": {
            "random_sampling": {"value": float(options.trace_percent)},
            "max_path_tag_length": _MAX_PATH_CHARS,
            "spawn_upstream_span": False,
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": _TYPES + "config.trace.v3.OpenTelemetryConfig",
                    "service_name": "tollkeeper-gateway",
                    "http_service": {
                        "http_uri": {
                            "uri": f"http://{options.traces.host}:{options.traces.port}/v1/traces",
                            "cluster": COLLECTOR,
                            "timeout": "1s",
                        }
                    },
                },
            },
        }
    }


def clusters(options: Options) -> list[Json]:
    """The collector, where there is one."""
    if options.traces is None:
        return []
    endpoint = {"endpoint": {"address": options.traces.as_envoy()}}
    return [
        {
            "name": COLLECTOR,
            "type": "STRICT_DNS",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": COLLECTOR, "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
    ]
