"""Owns what the gateway gives up, and in which order, when memory or connections run out."""

from __future__ import annotations

from typing import Any

from gateway.options import Options

Json = dict[str, Any]

_MONITORS = "envoy.resource_monitors."
_MONITOR_TYPES = "type.googleapis.com/envoy.extensions.resource_monitors."
_HEAP = _MONITORS + "fixed_heap"
_TIMERS = "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig"


def overload_manager(options: Options) -> Json:
    """Envoy's `overload_manager`: shares of `max_heap_bytes` at which it acts, and the bound on connections."""
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": _HEAP,
                "typed_config": {
                    "@type": _MONITOR_TYPES + "fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": options.max_heap_bytes,
                },
            },
            {
                "name": _MONITORS + "global_downstream_max_connections",
                "typed_config": {
                    "@type": _MONITOR_TYPES + "downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": options.max_connections,
                },
            },
        ],
        "actions": [
            # Idle connections go first, sooner the fuller it is; then new connections are refused; at last requests.
            {
                "name": "envoy.overload_actions.reduce_timeouts",
                "triggers": [{"name": _HEAP, "scaled": {"scaling_threshold": 0.85, "saturation_threshold": 0.95}}],
                "typed_config": {
                    "@type": _TIMERS,
                    "timer_scale_factors": [
                        {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "2s"},
                    ],
                },
            },
            _at(0.90, "shrink_heap"),
            _at(0.92, "disable_http_keepalive"),
            _at(0.95, "stop_accepting_connections"),
            _at(0.98, "stop_accepting_requests"),
        ],
    }


def _at(share: float, action: str) -> Json:
    return {
        "name": f"envoy.overload_actions.{action}",
        "triggers": [{"name": _HEAP, "threshold": {"value": share}}],
    }
