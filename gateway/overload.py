"""Owns what the gateway gives up, and in which order, when memory or connections run out."""

from __future__ import annotations

from typing import Any

from gateway.options import Options

Json = dict[str, Any]

_MONITORS = "envoy.resource_monitors."
_MONITOR_TYPES = "type.googleapis.com/envoy.extensions.resource_monitors."
_HEAP = _MONITORS + "fixed_heap"
# What tells how much a call holds begins to count there; smaller ones are never cut off for it.
_COUNTED_FROM_POWER_OF_TWO = 20
_TIMERS = "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig"


def overload_manager(options: Options) -> Json:
    """Envoy's `overload_manager`: shares of `max_heap_bytes` at which it acts, and the bound on connections."""
    return {
        # What comes between two looks at the heap is let in.
        "refresh_interval": "0.1s",
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
            # A body is whole before anybody asks whose it is, so a few connections could fill the heap: those that hold
            # most go. (Envoy knows that of HTTP/2 only.)
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [{"name": _HEAP, "scaled": {"scaling_threshold": 0.85, "saturation_threshold": 0.95}}],
            },
            _at(0.90, "shrink_heap"),
            _at(0.92, "disable_http_keepalive"),
            _at(0.95, "stop_accepting_connections"),
            _at(0.98, "stop_accepting_requests"),
        ],
        # At last nothing is read any more, of what began before either: who sends then is cut off.
        "loadshed_points": [
            _shed(0.99, "http1_server_abort_dispatch"),
            _shed(0.99, "http2_server_go_away_and_close_on_dispatch"),
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _COUNTED_FROM_POWER_OF_TWO},
    }


def _at(share: float, action: str) -> Json:
    return {"name": f"envoy.overload_actions.{action}", "triggers": [_heap_over(share)]}


def _shed(share: float, point: str) -> Json:
    return {"name": f"envoy.load_shed_points.{point}", "triggers": [_heap_over(share)]}


def _heap_over(share: float) -> Json:
    return {"name": _HEAP, "threshold": {"value": share}}
