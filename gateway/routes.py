"""Owns the routes: one for each HTTP binding of the contracts, and the refusals of all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway import http_filters
from gateway.bindings import WIRES, Binding, Wire

Json = dict[str, Any]

UNARY_TIMEOUT_SECONDS = 30
STREAM_IDLE_SECONDS = 300
# Headers that carry a caller's credential. Behind the gateway an identity token stands in for them.
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "x-goog-api-key")


def table(bindings: Sequence[Binding]) -> list[Json]:
    """Model calls first, since they are most; then plain paths before patterns; then what is refused."""
    ordered = sorted(bindings, key=lambda b: (b.wire is Wire.API, b.path_regex is not None, b.template, b.method))
    allowed: dict[str, list[Binding]] = {}
    for binding in ordered:
        allowed.setdefault(binding.path_regex or binding.template, []).append(binding)
    return [
        _grpc_refused(),
        *map(_route, ordered),
        {
            "name": "healthz",
            "match": {"path": "/healthz"},
            "direct_response": {"status": 200, "body": {"inline_string": '{"status":"SERVING"}'}},
            "response_headers_to_add": [header("content-type", "application/json")],
            "typed_per_filter_config": http_filters.on_a_direct_answer(),
        },
        *map(_method_refused, allowed.values()),
        *(_path_refused(prefix, wire) for prefix, wire in WIRES),
    ]


def _path_match(binding: Binding) -> Json:
    if binding.path_regex is None:
        return {"path": binding.template}
    return {"safe_regex": {"regex": binding.path_regex}}


def _route(binding: Binding) -> Json:
    # A stream may last; a model call is as slow as its provider.
    lasting = binding.streaming or binding.wire is not Wire.API
    return {
        "name": binding.rpc,
        "match": {
            **_path_match(binding),
            "headers": [{"name": ":method", "string_match": {"exact": binding.method}}],
        },
        "route": {
            "cluster": binding.service,
            "timeout": "0s" if lasting else f"{UNARY_TIMEOUT_SECONDS}s",
            "idle_timeout": f"{STREAM_IDLE_SECONDS}s",
            # Only what no service has begun to read.
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,reset-before-request",
                "num_retries": 2,
                "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"},
            },
        },
        # Model calls authenticate at the proxy, which needs the key. On any other route it ends here.
        **({} if binding.wire is not Wire.API else {"request_headers_to_remove": list(CREDENTIAL_HEADERS)}),
        "typed_per_filter_config": http_filters.on_an_rpc(binding),
    }


def header(name: str, value: str) -> Json:
    """A header to set, whatever it was."""
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _grpc_refused() -> Json:
    """Native gRPC does not enter here, whatever its path: Envoy turns the 404 into UNIMPLEMENTED."""
    return {
        "name": "grpc_refused",
        "match": {
            "prefix": "/",
            "headers": [{"name": "content-type", "string_match": {"prefix": "application/grpc", "ignore_case": True}}],
        },
        "direct_response": {"status": 404},
        "typed_per_filter_config": http_filters.on_refused_grpc(),
    }


def _method_refused(same_path: Sequence[Binding]) -> Json:
    methods = sorted({binding.method for binding in same_path})
    return {
        "name": "method_refused",
        "match": _path_match(same_path[0]),
        "direct_response": {"status": 405},
        "response_headers_to_add": [header("allow", ", ".join(methods))],
        "typed_per_filter_config": http_filters.on_a_direct_answer(same_path[0].wire),
    }


def _path_refused(prefix: str, wire: Wire) -> Json:
    return {
        "name": "path_refused",
        "match": {"prefix": prefix},
        "direct_response": {"status": 404},
        "typed_per_filter_config": http_filters.on_a_direct_answer(wire),
    }
