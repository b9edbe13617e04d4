"""Owns the routes: one for each HTTP binding of the contracts, and the refusals of all else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway import answer_headers, http_filters, openapi, request_fields
from gateway.bindings import WIRES, Binding, Wire
from gateway.options import Options

Json = dict[str, Any]

UNARY_TIMEOUT_SECONDS = 30
STREAM_IDLE_SECONDS = 300
MAX_DIRECT_BODY_BYTES = 4 * 1024 * 1024
_OTHER_HOST = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    },
}
# Headers that carry a caller's credential. Behind the gateway an identity token stands in for them.
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "x-goog-api-key")


def table(bindings: Sequence[Binding], contracts: bytes, options: Options) -> list[Json]:
    """Model calls first, since they are most; then plain paths before patterns; then what is refused."""
    pool = request_fields.pool_of(contracts)
    ordered = sorted(bindings, key=lambda b: (b.wire is Wire.API, b.path_regex is not None, b.template, b.method))
    allowed: dict[str, list[Binding]] = {}
    for binding in ordered:
        allowed.setdefault(binding.path_regex or binding.template, []).append(binding)
    return [
        _grpc_refused(),
        _two_hosts_refused(),
        *([_preflight(options)] if options.cors_origins else []),
        *(
            _route(binding, request_fields.route_context(binding, pool), options, key_in_query=key_in_query)
            for binding in ordered
            for key_in_query in ((False,) if binding.wire is Wire.API else (True, False))
        ),
        *_answered_here("healthz", "/healthz", '{"status":"SERVING"}'),
        *_answered_here("openapi", openapi.PATH, _document()),
        _google_method_refused(),
        *map(_method_refused, allowed.values()),
        *(_path_refused(prefix, wire) for prefix, wire in WIRES),
    ]


def _path_match(binding: Binding) -> Json:
    if binding.path_regex is None:
        return {"path": binding.template}
    return {"safe_regex": {"regex": binding.path_regex}}


def _route(binding: Binding, fields: Mapping[str, object] | None, options: Options, *, key_in_query: bool) -> Json:
    # What the proxy streams, and so keeps open, is model calls, /api/ai among them. A unary one says nothing until its
    # end, and it is the proxy that ends one, whatever ends it. What is asked of models by GET is no call of one.
    is_listing = binding.wire is not Wire.API and binding.method == "GET"
    of_a_model = not is_listing and (binding.wire is not Wire.API or (binding.streaming and binding.service == "proxy"))
    # A stream may last; a model call is as slow as its provider.
    lasting = of_a_model or (binding.streaming and not is_listing)
    idle_seconds = options.model_call_seconds if of_a_model else STREAM_IDLE_SECONDS
    return {
        "name": binding.rpc,
        "match": {
            **_path_match(binding),
            "headers": [{"name": ":method", "string_match": {"exact": binding.method}}],
            **({"query_parameters": [{"name": "key", "present_match": True}]} if key_in_query else {}),
        },
        "route": {
            "cluster": binding.service,
            "timeout": "0s" if lasting else f"{UNARY_TIMEOUT_SECONDS}s",
            "idle_timeout": f"{idle_seconds}s",
            # For a client that does not read its answer, which is whole, that time would be too long.
            "flush_timeout": f"{STREAM_IDLE_SECONDS}s",
            "retry_policy": {
                "retry_on": ",".join(_retried(binding)),
                "num_retries": 2,
                "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"},
                # Rather at another replica, where there is one.
                "retry_host_predicate": [_OTHER_HOST],
                "host_selection_retry_max_attempts": 3,
            },
        },
        # Where Anthropic's SDK looks for it, also beside a provider's own error (refusals.lua adds it to ours).
        **(
            {"response_headers_to_add": [answer_headers.put("request-id", "%REQ(X-REQUEST-ID)%")]}
            if binding.wire is Wire.ANTHROPIC
            else {}
        ),
        # Model calls authenticate at the proxy, which needs the key. On any other route it ends here.
        **({} if binding.wire is not Wire.API else {"request_headers_to_remove": list(CREDENTIAL_HEADERS)}),
        "typed_per_filter_config": http_filters.on_an_rpc(binding, fields, key_in_query=key_in_query),
        # A whole body is read here before the transcoder, whose own limit is not yet in force.
        **({} if fields is None else {"request_body_buffer_limit": http_filters.MAX_REQUEST_BODY_BYTES}),
    }


def _retried(binding: Binding) -> Sequence[str]:
    """What is asked again: of reads any failure of the transport; of all else only what no service began to read."""
    unread = ("connect-failure", "refused-stream", "reset-before-request")
    return (*unread, "reset", "unavailable") if binding.method == "GET" else unread


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


def _two_hosts_refused() -> Json:
    """A request with two host headers, which Envoy joins, where HTTP says to refuse it."""
    return {
        "name": "two_hosts_refused",
        "match": {"prefix": "/", "headers": [{"name": ":authority", "string_match": {"contains": ","}}]},
        "direct_response": {"status": 400},
        "typed_per_filter_config": http_filters.on_a_direct_answer(),
    }


def _preflight(options: Options) -> Json:
    """What the CORS filter answers by itself. It looks at routes to a service only, though it calls none."""
    origins = "|".join(map(re.escape, options.cors_origins))
    return {
        "name": "preflight",
        "match": {
            "prefix": "/",
            "headers": [
                {"name": ":method", "string_match": {"exact": "OPTIONS"}},
                {"name": "origin", "string_match": {"safe_regex": {"regex": origins}}},
                {"name": "access-control-request-method", "present_match": True},
            ],
        },
        "route": {"cluster": http_filters.AUTHORIZER},
        "typed_per_filter_config": http_filters.on_a_direct_answer(),
    }


def _answered_here(name: str, path: str, body: str) -> list[Json]:
    """A path that no service is asked for: JSON for who reads it, a refusal of any other method."""
    reads = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
    shared = {"typed_per_filter_config": http_filters.on_a_direct_answer()}
    return [
        {
            "name": name,
            "match": {"path": path, "headers": [reads]},
            "direct_response": {"status": 200, "body": {"inline_string": body}},
            "response_headers_to_add": [answer_headers.put("content-type", "application/json")],
            **shared,
        },
        {
            "name": "method_refused",
            "match": {"path": path},
            "direct_response": {"status": 405},
            "response_headers_to_add": [answer_headers.put("allow", "GET, HEAD")],
            **shared,
        },
    ]


def _document() -> str:
    """The OpenAPI document without the spaces it is committed with."""
    return json.dumps(json.loads(openapi.DOCUMENT.read_text()), ensure_ascii=False, separators=(",", ":"))


def _method_refused(same_path: Sequence[Binding]) -> Json:
    methods = sorted({binding.method for binding in same_path})
    return {
        "name": "method_refused",
        "match": _path_match(same_path[0]),
        "direct_response": {"status": 405},
        "response_headers_to_add": [answer_headers.put("allow", ", ".join(methods))],
        "typed_per_filter_config": http_filters.on_a_direct_answer(same_path[0].wire),
    }


def _google_method_refused() -> Json:
    """What Google's SDK asks of a model and is not served (`:countTokens`), also below the `/v1` that OpenAI's has."""
    return {
        "name": "google_method_refused",
        "match": {
            "safe_regex": {"regex": r"/v1(?:beta)?/models/.+:[A-Za-z]+"},
            "headers": [{"name": ":method", "string_match": {"exact": "POST"}}],
        },
        "direct_response": {"status": 404},
        "typed_per_filter_config": http_filters.on_a_direct_answer(Wire.GEMINI),
    }


def _path_refused(prefix: str, wire: Wire) -> Json:
    return {
        "name": "path_refused",
        "match": {"prefix": prefix},
        "direct_response": {"status": 404},
        "typed_per_filter_config": http_filters.on_a_direct_answer(wire),
    }
