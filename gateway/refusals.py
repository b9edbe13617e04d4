"""Owns the words of Envoy's own refusals: each as `google.rpc.Status` JSON with one ErrorInfo.

A service's refusal comes with its own words. `filters/refusals.lua` gives both the shape that the caller's SDK expects.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from google.rpc import code_pb2  # type: ignore[import-untyped]

from gateway import answer_headers

DOMAIN = "tollkeeper.gateway"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What Envoy's own answer with one HTTP status means here."""

    status: int
    code: int  # of google.rpc.Code
    reason: str
    # Envoy's own words in place of %LOCAL_REPLY_BODY%, where they help and tell nothing of the inside.
    message: str


DEADLINE = Refusal(504, code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "The service did not answer in time.")
HEADERS = Refusal(
    431, code_pb2.INVALID_ARGUMENT, "HEADERS_TOO_LARGE", "The request's headers are too many or too large."
)
REFUSALS = (
    Refusal(400, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", "%LOCAL_REPLY_BODY%"),
    Refusal(
        404,
        code_pb2.NOT_FOUND,
        "ROUTE_NOT_FOUND",
        "There is nothing at this path. Model calls are below /v1, all else below /api; /openapi.json lists them.",
    ),
    Refusal(405, code_pb2.UNIMPLEMENTED, "METHOD_NOT_ALLOWED", "This path does not take this method."),
    Refusal(408, code_pb2.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT", "The request did not arrive in time."),
    Refusal(413, code_pb2.INVALID_ARGUMENT, "REQUEST_TOO_LARGE", "The request body is over 10 MiB."),
    Refusal(426, code_pb2.FAILED_PRECONDITION, "HTTP_VERSION_REFUSED", "Of HTTP, versions 1.1 and 2 are spoken here."),
    HEADERS,
    Refusal(503, code_pb2.UNAVAILABLE, "SERVICE_UNAVAILABLE", "The service is not available now. Try again shortly."),
    DEADLINE,
)
OTHER = Refusal(0, code_pb2.UNKNOWN, "GATEWAY_ERROR", "The gateway refused the request.")

_AS_IT_IS = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}, "content_type": "application/json"}
_DENIED = {"response_flag_filter": {"flags": ["UAEX"]}}  # "unauthorized external service"
_SILENT = {"response_flag_filter": {"flags": ["SI"]}}  # "stream idle timeout"
# Also on an answer that no service was asked for; filters/refusals.lua reads it there.
_REQUEST_ID = answer_headers.put("x-request-id", "%REQ(X-REQUEST-ID)%")


def local_reply_config() -> dict[str, Any]:
    """Envoy's `local_reply_config`."""
    return {
        # The first that fits decides.
        "mappers": [
            _mapper(_status_is(200), _AS_IT_IS),  # /healthz
            _mapper(_grpc_refused(), {"text_format_source": {"inline_string": "gRPC is not served at this address."}}),
            # What the authorizer adds, an identity, is more than the headers may be: Envoy's own word is 500.
            {**_mapper({"and_filter": {"filters": [_status_is(500), _DENIED]}}, _body(HEADERS)), "status_code": 431},
            # A denial has the authorizing service's own words. (503 is ext_authz' own: nobody answered it.)
            _mapper({"and_filter": {"filters": [_status_is(499, "LE"), _DENIED]}}, _AS_IT_IS),
            _mapper(_refused_by_a_script(), _AS_IT_IS),
            # Envoy's own word for a service that says nothing is 408, which blames the client.
            {**_mapper(_SILENT, _body(DEADLINE)), "status_code": DEADLINE.status},
            *(_mapper(_status_is(refusal.status), _body(refusal)) for refusal in REFUSALS),
            _mapper(_status_is(400, "GE"), _body(OTHER)),
        ],
    }


def _mapper(condition: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    return {"filter": condition, "body_format_override": body, "headers_to_add": [_REQUEST_ID]}


def _grpc_refused() -> dict[str, Any]:
    """A native gRPC call, as Envoy knows one: it makes its answer of the bare words. gRPC-Web is none, and gets JSON.

    What is transcoded has a route, so is no 404.
    """
    grpc = {"name": "content-type", "string_match": {"safe_regex": {"regex": r"application/grpc(\+.*)?"}}}
    return {"and_filter": {"filters": [_status_is(404), {"header_filter": {"header": grpc}}]}}


def _refused_by_a_script() -> dict[str, Any]:
    """What `filters/*.lua` refused in words of their own. The header can not come from outside."""
    return {"header_filter": {"header": {"name": "x-tollkeeper-refused", "present_match": True}}}


def _status_is(status: int, comparison: str = "EQ") -> dict[str, Any]:
    # Envoy wants a runtime key; nobody sets this one.
    value = {"default_value": status, "runtime_key": "tollkeeper.unset"}
    return {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}


def _body(refusal: Refusal) -> dict[str, Any]:
    return {
        "json_format": {
            "code": refusal.code,
            "message": refusal.message,
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": refusal.reason,
                    "domain": DOMAIN,
                    "metadata": {"requestId": "%REQ(X-REQUEST-ID)%"},
                }
            ],
        },
        "content_type": "application/json",
        "omit_empty_values": True,
    }
