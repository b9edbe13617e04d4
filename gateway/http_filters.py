"""Owns the filters that every request passes, in their order, and how a route switches them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway import answer_headers, cors
from gateway.bindings import Binding, Wire

Json = dict[str, Any]

AUTHORIZER = "proxy"  # the service that answers ext_authz
AUTHORIZATION_TIMEOUT_SECONDS = 2
MAX_REQUEST_BODY_BYTES = 10 * 1024 * 1024
MAX_RESPONSE_BODY_BYTES = 64 * 1024 * 1024
# Ours, Envoy's and gRPC's: what these say is believed behind the gateway, so nobody outside may say it.
RESERVED_PREFIXES = ("x-tollkeeper-", "x-envoy-", "grpc-")

_NOT_METADATA = "[^:0-9a-z._-].*|[^:].*[^0-9a-z._-].*"
_LUA = Path(__file__).resolve().parent / "filters"
_TYPES = "type.googleapis.com/envoy."
_FILTERS = _TYPES + "extensions.filters.http."
_INTERNAL_HEADERS = "envoy.filters.http.header_mutation"
_AUTHORIZATION = "envoy.filters.http.ext_authz"
_REFUSALS = "tollkeeper.refusals"
_FIELDS = "tollkeeper.fields"
_QUERY_KEY = "tollkeeper.query_key"
_QUERY_FIELDS = "tollkeeper.query_fields"
_API_TRANSCODER = "tollkeeper.transcoder.api"
_WIRE_TRANSCODER = "tollkeeper.transcoder.wire"


def reserved_headers_removed() -> Json:
    """Before any filter or route sees them: reserved headers, and a request id that Envoy has not made itself."""
    return {
        "name": "tollkeeper.reserved_headers",
        "typed_config": {
            "@type": _TYPES + "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [
                *_without(*RESERVED_PREFIXES),
                # gRPC takes these for base64, and fails on what is not.
                {"remove_on_match": {"key_matcher": {"suffix": "-bin", "ignore_case": True}}},
                # Names that HTTP allows and gRPC does not, on which a service would fail. (`:` begins HTTP/2's own.)
                {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": _NOT_METADATA}}}},
                {"remove": "x-request-id"},
            ],
        },
    }


def chain(bindings: Sequence[Binding], contracts: bytes) -> list[Json]:
    """In the order a request passes them; an answer passes them the other way round."""
    return [
        cors.http_filter(),
        _internal_headers_removed(),
        # Scripts are the dearest of the filters by far, so a route switches on the one that it needs, and none runs for
        # an answer that it would leave as it is.
        {"name": _QUERY_KEY, "typed_config": _script("query_key.lua"), "disabled": True},
        {"name": _REFUSALS, "typed_config": _unless_plainly_ok(_script("refusals.lua"))},
        {"name": _QUERY_FIELDS, "typed_config": _script("query_fields.lua"), "disabled": True},
        {
            "name": "envoy.filters.http.body_size_limit",
            "typed_config": {
                "@type": _FILTERS + "body_size_limit.v3.BodySizeLimit",
                "max_request_bytes": MAX_REQUEST_BODY_BYTES,
            },
        },
        {
            "name": _AUTHORIZATION,
            "typed_config": {
                "@type": _FILTERS + "ext_authz.v3.ExtAuthz",
                "transport_api_version": "V3",
                "grpc_service": {
                    "envoy_grpc": {"cluster_name": AUTHORIZER},
                    "timeout": f"{AUTHORIZATION_TIMEOUT_SECONDS}s",
                },
                "failure_mode_allow": False,
                "status_on_error": {"code": "ServiceUnavailable"},
            },
        },
        # After the authorizer: only a known caller's body is read. A route switches it on.
        {"name": _FIELDS, "typed_config": _script("fields.lua"), "disabled": True},
        # An unknown query parameter of our own API is a mistake worth telling; providers' SDKs send what they like.
        _transcoder(_API_TRANSCODER, [b for b in bindings if b.wire is Wire.API], contracts, strict=True),
        _transcoder(_WIRE_TRANSCODER, [b for b in bindings if b.wire is not Wire.API], contracts, strict=False),
        router(),
    ]


def _script(name: str) -> Json:
    return {
        "@type": _FILTERS + "lua.v3.Lua",
        "default_source_code": {"inline_string": (_LUA / "text.lua").read_text() + (_LUA / name).read_text()},
    }


def _unless_plainly_ok(script: Json) -> Json:
    """A script that passes by an answer of status 200 which asks for no other; there is nothing to say about it."""
    plainly_ok = [
        _answer_has(":status", {"exact": "200"}),
        {"not_matcher": _answer_has("x-tollkeeper-http-status", {"safe_regex": {"google_re2": {}, "regex": ".*"}})},
    ]
    skip = {"@type": _TYPES + "extensions.filters.common.matcher.action.v3.SkipFilter"}
    matcher = {
        "predicate": {"and_matcher": {"predicate": plainly_ok}},
        "on_match": {"action": {"name": "skip", "typed_config": skip}},
    }
    return {
        "@type": _TYPES + "extensions.common.matching.v3.ExtensionWithMatcher",
        "extension_config": {"name": _REFUSALS, "typed_config": script},
        "xds_matcher": {"matcher_list": {"matchers": [matcher]}},
    }


def _answer_has(header: str, value: Json) -> Json:
    source = {"@type": _TYPES + "type.matcher.v3.HttpResponseHeaderMatchInput", "header_name": header}
    return {"single_predicate": {"input": {"name": header, "typed_config": source}, "value_match": value}}


def router() -> Json:
    """The last one, which calls the service."""
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": _FILTERS + "router.v3.Router", "suppress_envoy_headers": True},
    }


def _internal_headers_removed() -> Json:
    """What gRPC, Envoy and the services say among themselves ends here, after refusals.lua has read it."""
    return {
        "name": _INTERNAL_HEADERS,
        "typed_config": {
            "@type": _FILTERS + "header_mutation.v3.HeaderMutation",
            "mutations": {
                "response_mutations": answer_headers.removals(),
                "response_trailers_mutations": _without(*RESERVED_PREFIXES),
            },
        },
    }


def _transcoder(name: str, bindings: Sequence[Binding], contracts: bytes, *, strict: bool) -> Json:
    return {
        "name": name,
        "disabled": True,  # a route switches on the one it needs
        "typed_config": {
            "@type": _FILTERS + "grpc_json_transcoder.v3.GrpcJsonTranscoder",
            "proto_descriptor_bin": base64.b64encode(contracts).decode(),
            "services": sorted({binding.grpc_service for binding in bindings}),
            # The route stays the one of the HTTP path, so that there is none for a gRPC path.
            "match_incoming_request_route": True,
            "convert_grpc_status": True,
            "query_param_unescape_plus": True,
            "ignore_unknown_query_parameters": not strict,
            "request_validation_options": {
                "reject_unknown_method": True,
                "reject_unknown_query_parameters": strict,
                "reject_binding_body_field_collisions": True,
            },
            "print_options": {"always_print_primitive_fields": True},
            # The limit is set above; without this a raw body would end at the connection's buffer.
            "max_request_body_size": MAX_REQUEST_BODY_BYTES,
            "max_response_body_size": MAX_RESPONSE_BODY_BYTES,
        },
    }


def _without(*prefixes: str) -> list[Json]:
    return [{"remove_on_match": {"key_matcher": {"prefix": prefix, "ignore_case": True}}} for prefix in prefixes]


def on_an_rpc(binding: Binding, fields: Mapping[str, object] | None, *, key_in_query: bool = False) -> Json:
    """What the filters are to do on the route of one RPC (`typed_per_filter_config`).

    `fields`: what `filters/fields.lua` checks its body against; None where it is not checked. `key_in_query`: whether
    the route is the one of a model call whose query has a `key`.
    """
    api = binding.wire is Wire.API
    # Model calls authenticate at the proxy itself, which saves a hop.
    authorized_here = api and not binding.public
    return {
        _REFUSALS: _speaking(binding.wire),
        **({_QUERY_KEY: _switched(on=True)} if key_in_query else {}),
        **_query_checked(binding),
        (_API_TRANSCODER if api else _WIRE_TRANSCODER): _switched(on=True),
        **({} if fields is None else {_FIELDS: _switched(on=True, config=_with_context(fields))}),
        **({} if authorized_here else {_AUTHORIZATION: _unauthorized()}),
    }


def on_a_direct_answer(wire: Wire = Wire.API) -> Json:
    """What the filters are to do on a route that Envoy answers itself (`typed_per_filter_config`)."""
    return {_REFUSALS: _speaking(wire), **_without_key_in_query(wire), _AUTHORIZATION: _unauthorized()}


def on_refused_grpc() -> Json:
    """What the filters are to do with native gRPC: leave it its status, for it is answered in gRPC's own form."""
    return {
        _INTERNAL_HEADERS: _switched(on=False),
        _REFUSALS: _switched(on=False),
        _AUTHORIZATION: _unauthorized(),
    }


def _query_checked(binding: Binding) -> Json:
    """Switches on `filters/query_fields.lua` where a query could say again, and otherwise, what path or body say."""
    if binding.refuses_query:
        return {_QUERY_FIELDS: _switched(on=True)}
    if not binding.fields_taken:
        return {}
    taken = {name.replace("_", "").lower(): True for name in sorted(binding.fields_taken)}
    return {_QUERY_FIELDS: _switched(on=True, config=_with_context({"taken": taken}))}


def _without_key_in_query(wire: Wire) -> Json:
    # On our own API `key` is a filter: a key's id, which is no secret.
    return {} if wire is Wire.API else {_QUERY_KEY: _switched(on=True)}


def _switched(*, on: bool, config: Json | None = None) -> Json:
    return {"@type": _TYPES + "config.route.v3.FilterConfig", "config": config or {}, "disabled": not on}


def _speaking(wire: Wire) -> Json:
    return _with_context({"wire": wire.value})


def _with_context(context: Mapping[str, object]) -> Json:
    return {"@type": _FILTERS + "lua.v3.LuaPerRoute", "filter_context": dict(context)}


def _unauthorized() -> Json:
    return {"@type": _FILTERS + "ext_authz.v3.ExtAuthzPerRoute", "disabled": True}
