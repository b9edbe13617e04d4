"""Owns which statuses a call may have, and the body of each refusal: a shape for each dialect.

What is said here of Envoy's own refusals stands in `gateway/refusals.py`; a service's come from its kinds of error
(`docs/reference/errors.md`). Model calls may also end with any status that the provider itself answered.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gateway.bindings import Binding, Wire

Json = dict[str, Any]

_BAD_REQUEST = "A field is wrong, and is named; or what the request asks for does not go with how things stand."
STATUSES = {
    "400": _BAD_REQUEST,
    "401": "There is no credential, or it is not valid.",
    "402": "Out of credit, or a payment was declined.",
    "403": "The credential does not allow this, the account is suspended, or its plan does not cover it.",
    "404": "There is no such thing.",
    "408": "The request did not arrive in time.",
    "409": "The request id was used with another body, or the thing is there already.",
    "413": "The body is over 10 MiB.",
    "429": "A limit is reached, or there are too many calls at once; `retry-after` says when to come again.",
    "431": "The headers are over 64 KiB, or more than 100.",
    "500": "A fault of ours. The request id leads to it.",
    "503": "The service is not available now; try again shortly, with the same request id.",
    "504": "The service did not answer in time. What was asked may have been done: ask again with the same request id.",
}
_EVERYWHERE = ("400", "404", "408", "413", "429", "431", "500", "503", "504")
_WITH_CREDENTIAL = ("401", "403")
# What is refused before its path is read, because it is not quite HTTP, has the shape of our own API everywhere.
_BEFORE_THE_PATH = ("400", "408", "431")
_OF_MODEL_CALLS = ("402", "409")
# By RPC what the contracts' types do not say.
_CHARGES_A_CARD = frozenset({"UpdateSubscription", "UpgradeTier"})
_TELLS_QUOTA = frozenset({"EmitEvents"})
_COSTS_NOTHING = frozenset({"CountTokens", "CountInputTokens", "CountGoogleTokens"})

_REQUEST_ID = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
_RETRY_AFTER = {"retry-after": {"$ref": "#/components/headers/RetryAfter"}}
_LIMIT_HEADERS = {
    f"x-ratelimit-{what}-{unit}": {"$ref": f"#/components/headers/RateLimit{what.capitalize()}"}
    for unit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
}
_QUOTA_HEADERS = {
    f"x-quota-{what}": {"$ref": f"#/components/headers/Quota{what.capitalize()}"}
    for what in ("metric", "limit", "remaining", "reset")
}
_COST_HEADERS = {
    name: {"$ref": f"#/components/headers/{component}"}
    for name, component in (
        ("x-tollkeeper-cost-credits", "CostCredits"),
        ("x-tollkeeper-credits-remaining", "CreditsRemaining"),
        ("x-tollkeeper-request-id", "CallId"),
        ("x-tollkeeper-fallback", "Fallback"),
        ("idempotency-replayed", "Replayed"),
    )
}
HEADERS: dict[str, Json] = {
    "RequestId": {"description": "Names the request in every log.", "schema": {"type": "string"}},
    "RetryAfter": {"description": "Seconds until a retry may succeed.", "schema": {"type": "string"}},
    "CostCredits": {"description": "What the call cost, in credits; not on streams.", "schema": {"type": "string"}},
    "CreditsRemaining": {"description": "What is left, in credits; not on streams.", "schema": {"type": "string"}},
    "CallId": {"description": "Names the call in usage records.", "schema": {"type": "string"}},
    "Fallback": {
        "description": "Where a fallback answered: its provider and model.",
        "schema": {"type": "string"},
    },
    "Replayed": {
        "description": "`true` on the answer that an earlier call with this idempotency key was given.",
        "schema": {"type": "string"},
    },
    "RateLimitLimit": {"description": "What may be used in a minute, if limited.", "schema": {"type": "string"}},
    "RateLimitRemaining": {"description": "What is left of it.", "schema": {"type": "string"}},
    "RateLimitReset": {"description": "Until all of it is there again, as `1m0.5s`.", "schema": {"type": "string"}},
    "QuotaMetric": {
        "description": "Of the plan's quotas that the call counts against, the one nearest to its end, if any.",
        "schema": {"type": "string"},
    },
    "QuotaLimit": {"description": "What of it may be used in a cycle.", "schema": {"type": "string"}},
    "QuotaRemaining": {"description": "What is left of it; on streams as of their hold.", "schema": {"type": "string"}},
    "QuotaReset": {"description": "When the next cycle begins, in seconds since 1970.", "schema": {"type": "string"}},
}

_TEXT = {"type": "string"}
_DETAIL = {"$ref": "#/components/schemas/ErrorDetail"}


def _object(*, optional: Collection[str] = (), **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": [x for x in properties if x not in optional]}


ERROR_SCHEMAS: dict[str, Json] = {
    "ErrorDetail": {
        "description": "A google.rpc.ErrorInfo, BadRequest or RetryInfo, as `@type` says.",
        "type": "object",
        "properties": {
            "@type": {"type": "string", "description": "`type.googleapis.com/google.rpc.ErrorInfo` and its like."},
            "reason": {"type": "string", "description": "Of ErrorInfo: which refusal it is."},
            "domain": {"type": "string", "description": "Of ErrorInfo: whose, such as `tollkeeper.ledger`."},
            "metadata": {
                "type": "object",
                "additionalProperties": _TEXT,
                "description": "Of ErrorInfo: the refusal's figures.",
            },
            "fieldViolations": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"field": _TEXT, "description": _TEXT},
                    "required": ["field", "description"],
                },
                "description": "Of BadRequest: every field that is wrong, and in what.",
            },
            "retryDelay": {"type": "string", "description": "Of RetryInfo: seconds, as `1.500s`."},
        },
        "required": ["@type"],
    },
    "Status": {
        **_object(
            code={"type": "integer", "description": "Of google.rpc.Code."},
            message=_TEXT,
            details={
                "type": "array",
                "items": _DETAIL,
                "description": "One google.rpc.ErrorInfo, whose `reason` docs/reference/errors.md lists; "
                "google.rpc.BadRequest where fields are wrong; google.rpc.RetryInfo where a retry may succeed.",
            },
        ),
        "description": "A google.rpc.Status.",
    },
    "OpenaiError": _object(
        error=_object(
            message=_TEXT,
            type=_TEXT,
            param={"type": ["string", "null"], "description": "The field that is wrong."},
            code={
                "type": ["string", "null"],
                "description": "Our reason, in lower case; of a provider's refusal its own code, if any.",
            },
        )
    ),
    "AnthropicError": _object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT), request_id=_TEXT),
    "GeminiError": _object(
        error=_object(
            code={"type": "integer", "description": "The HTTP status."},
            message=_TEXT,
            status={"type": "string", "description": "The name of a google.rpc.Code."},
            details={
                "type": "array",
                "items": _DETAIL,
                "description": "Of our refusals; a provider's own may have none.",
            },
            optional=("details",),
        )
    ),
}
_SHAPES = {Wire.API: "Status", Wire.OPENAI: "OpenaiError", Wire.ANTHROPIC: "AnthropicError", Wire.GEMINI: "GeminiError"}


def calls_a_model(binding: Binding, *, raw: bool) -> bool:
    """Whether a provider is called: the body passes as it came, and somebody is asked for a credential."""
    return raw and not binding.public and binding.method == "POST"


def is_billed(binding: Binding, *, raw: bool) -> bool:
    """Whether that call costs something."""
    return calls_a_model(binding, raw=raw) and _name(binding) not in _COSTS_NOTHING


def _name(binding: Binding) -> str:
    return binding.rpc.rpartition(".")[2]


def responses(binding: Binding, success: Json, *, raw: bool) -> dict[str, Json]:
    """Every status of a call, by number. `raw`: its body is not ours to describe."""
    model_call = calls_a_model(binding, raw=raw)
    writes = binding.method != "GET"
    statuses = {
        *_EVERYWHERE,
        *(() if binding.public else _WITH_CREDENTIAL),
        *(_OF_MODEL_CALLS if is_billed(binding, raw=raw) else ()),
        *(("402",) if _name(binding) in _CHARGES_A_CARD else ()),
        *(("409",) if writes and not model_call else ()),
    }
    headers = {
        **_REQUEST_ID,
        **(_COST_HEADERS if is_billed(binding, raw=raw) else {}),
        **(_LIMIT_HEADERS if model_call else {}),
        **(_QUOTA_HEADERS if is_billed(binding, raw=raw) or _name(binding) in _TELLS_QUOTA else {}),
    }
    found = {"200": {"description": "Done.", "headers": headers, **success}}
    for status in sorted(statuses):
        found[status] = {"$ref": f"#/components/responses/{_response_name(binding.wire, status)}"}
    if model_call:
        for status in ("4XX", "5XX"):
            found[status] = {
                "description": "The provider's own refusal, with its status and its body.",
                "headers": _REQUEST_ID,
                "content": {"application/json": {"schema": {}}},
            }
    return found


def _response_name(wire: Wire, status: str) -> str:
    return f"{wire.value.capitalize()}{status}"


def components() -> dict[str, Json]:
    """The refusals that operations refer to, by name."""
    found = {}
    for wire, shape in _SHAPES.items():
        for status, meaning in STATUSES.items():
            shapes = [shape, "Status"] if wire is not Wire.API and status in _BEFORE_THE_PATH else [shape]
            schemas = [{"$ref": f"#/components/schemas/{name}"} for name in shapes]
            found[_response_name(wire, status)] = {
                "description": meaning,
                "headers": _REQUEST_ID | (_RETRY_AFTER if status in {"429", "503"} else {}),
                "content": {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}},
            }
    return found
