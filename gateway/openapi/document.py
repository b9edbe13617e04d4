"""Owns the document as a whole: each HTTP binding of the contracts as an operation, and what operations share."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway.bindings import Binding, Wire
from gateway.openapi import PATH, answers
from gateway.openapi.contracts import Contracts, is_required
from gateway.openapi.schemas import Schemas
from gateway.request_fields import RAW_BODY

Json = dict[str, Any]

_VARIABLE = re.compile(r"\{(?P<field>[^{}=]+)(?P<many>=\*\*)?\}")
_DESCRIPTION = """Tollkeeper's REST surface. `/v1/*` and `/v1beta/*` are the providers' own wire formats, for their
unmodified SDKs; `/api/*` is proto JSON.

Requests take camelCase (as written here) or snake_case, and 64-bit integers as numbers or strings; a field that is not
there is refused by name. Answers have camelCase, 64-bit integers as strings, and every field, also an empty one.
Amounts are integer nano-USD, 1 USD = 1 000 000 000 nanos. A `requestId`, like an account's or a workspace's id, has 1
to 64 of `A-Z a-z 0-9 . _ : -`, the first a letter or digit. A `pageSize` above the most is taken as the most. A
customer's key acts on its own account; an admin key names one by `accountId`. Every path that is not here is a 404,
every other method of one that is a 405."""
_CREDENTIALS = ("bearer", "apiKey", "googApiKey")
_IDEMPOTENCY_KEY = {
    "name": "idempotency-key",
    "in": "header",
    "description": "The same key within 24 hours has the same answer, charged once. Not with a stream: that is a 400.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}

_SESSION = {
    "name": "x-session-id",
    "in": "header",
    "description": "The conversation or job that the call belongs to, as its usage record has it; not if longer.",
    "schema": {"type": "string", "maxLength": 128},
}


def build(contracts: Contracts) -> Json:
    """The OpenAPI 3.1 document of all HTTP bindings."""
    schemas = Schemas(contracts, _in_requests_and_answers(contracts))
    paths: dict[str, Json] = {}
    seen: dict[str, int] = {}
    for binding in sorted(contracts.bindings, key=lambda b: (b.wire is Wire.API, b.template, b.method)):
        name = binding.rpc.rpartition(".")[2]
        seen[name] = seen.get(name, 0) + 1
        operation = {
            "operationId": name if seen[name] == 1 else f"{name}{seen[name]}",
            **_operation(contracts, schemas, binding),
        }
        paths.setdefault(_path(binding), {})[binding.method.lower()] = operation
    paths |= {"/healthz": _own("Liveness", "Liveness of the gateway itself."), PATH: _own("OpenApi", "This document.")}
    services = {binding.grpc_service for binding in contracts.bindings}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tollkeeper", "version": "1", "description": re.sub(r"(?<!\n)\n(?!\n)", " ", _DESCRIPTION)},
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _CREDENTIALS],
        "tags": [
            {"name": name.rpartition(".")[2], "description": contracts.comment(contracts.services[name])}
            for name in sorted(services)
        ],
        "paths": paths,
        "components": {
            "securitySchemes": _security_schemes(),
            "headers": answers.HEADERS,
            "responses": answers.components(),
            "schemas": dict(sorted((schemas.components | answers.ERROR_SCHEMAS).items())),
        },
    }


def _security_schemes() -> Json:
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
        "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "googApiKey": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
    }


def _own(name: str, summary: str) -> Json:
    """A path that Envoy answers itself."""
    response = {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}}
    refusals = ("408", "413", "431", "503")
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "tags": ["Gateway"],
            "security": [],
            "responses": {"200": response} | {s: {"$ref": f"#/components/responses/Api{s}"} for s in refusals},
        }
    }


def _operation(contracts: Contracts, schemas: Schemas, binding: Binding) -> Json:
    method = contracts.method(binding)
    comment = contracts.comment(method)
    body = _body_message(binding, method.input_type)
    raw = method.output_type.full_name == RAW_BODY
    bound = {match["field"] for match in _VARIABLE.finditer(binding.template)}
    parameters = [*_path_parameters(schemas, binding, method.input_type)]
    if binding.body != "*":
        skipped = {path.partition(".")[0] for path in bound} | {binding.body}
        parameters += _query_parameters(schemas, method.input_type, skipped)
    if answers.is_billed(binding, raw=raw):
        parameters += [_SESSION] if method.name == "StreamGenerateContent" else [_IDEMPOTENCY_KEY, _SESSION]
    return {
        "summary": comment.partition(". ")[0].rstrip("."),
        "description": comment,
        "tags": [binding.grpc_service.rpartition(".")[2]],
        **({"security": []} if binding.public else {}),
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": _request_body(schemas, binding, body, bound)} if body is not None else {}),
        "responses": answers.responses(binding, _success(schemas, binding, method.output_type), raw=raw),
    }


def _path(binding: Binding) -> str:
    return _VARIABLE.sub(lambda match: "{" + _parameter_name(match["field"]) + "}", binding.template)


def _parameter_name(field_path: str) -> str:
    """`account_id` → `accountId`, `plan.plan_id` → `planId`."""
    first, *others = field_path.rpartition(".")[2].split("_")
    return first + "".join(word.capitalize() for word in others)


def _path_parameters(schemas: Schemas, binding: Binding, message: Descriptor) -> list[Json]:
    found = []
    for match in _VARIABLE.finditer(binding.template):
        *holders, name = match["field"].split(".")
        holder: Descriptor | None = message
        for each in holders:
            assert holder is not None, binding.template
            holder = holder.fields_by_name[each].message_type
        assert holder is not None, binding.template
        field = holder.fields_by_name[name]
        schema = {**schemas.of_field(field, incoming=True), "minLength": 1}
        # One segment; where the template has `**` an SDK sends a slash as %2F, which counts as one.
        schema["pattern"] = "^[^/]+$" if not match["many"] else "^[^/].*$"
        found.append(_parameter(_parameter_name(match["field"]), "path", schema, required=True))
    return found


def _query_parameters(schemas: Schemas, message: Descriptor, skipped: set[str]) -> list[Json]:
    return [
        _parameter(field.json_name, "query", schemas.of_field(field, incoming=True), required=is_required(field))
        for field in message.fields
        if field.name not in skipped and _fits_a_query(field)
    ]


def _fits_a_query(field: FieldDescriptor) -> bool:
    return field.message_type is None or field.message_type.full_name.startswith("google.protobuf.")


def _parameter(name: str, where: str, schema: Json, *, required: bool) -> Json:
    schema = dict(schema)
    description = schema.pop("description", None)
    return {
        "name": name,
        "in": where,
        **({"required": True} if required else {}),
        **({"description": description} if description else {}),
        "schema": schema,
    }


def _body_message(binding: Binding, message: Descriptor) -> Descriptor | None:
    if not binding.body:
        return None
    if binding.body == "*":
        return message
    return message.fields_by_name[binding.body].message_type


def _request_body(schemas: Schemas, binding: Binding, message: Descriptor, bound: set[str]) -> Json:
    if message.full_name == RAW_BODY:
        schema: Json = {"type": "object", "description": "As the provider's own reference has it."}
        return {"required": True, "content": {"application/json": {"schema": schema}}}
    # `plan.plan_id` of the path is `plan_id` of a body that is the plan.
    without = {path.rpartition(".")[2] for path in bound}
    name = message.name if binding.body == "*" else binding.rpc.rpartition(".")[2] + "Body"
    # A change names what it changes; what a new thing needs, it has already.
    partial = binding.method == "PATCH" and binding.body != "*"
    schema = schemas.request(message, name, without, partial=partial)
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _success(schemas: Schemas, binding: Binding, message: Descriptor) -> Json:
    if message.full_name != RAW_BODY:
        return {"content": {"application/json": {"schema": schemas.answer(message)}}}
    json_body: Json = {"application/json": {"schema": {"description": "As the provider's own reference has it."}}}
    events: Json = {"text/event-stream": {"schema": {"type": "string"}}}
    return {"content": json_body | (events if binding.streaming else {})}


def _in_requests_and_answers(contracts: Contracts) -> set[str]:
    """Messages that need a schema for each way."""
    sent: set[str] = set()
    answered: set[str] = set()

    def add(message: Descriptor, found: set[str]) -> None:
        if message.full_name not in found:
            found.add(message.full_name)
            for field in message.fields:
                if field.message_type is not None:
                    add(field.message_type, found)

    for binding in contracts.bindings:
        method = contracts.method(binding)
        add(method.input_type, sent)
        add(method.output_type, answered)
    return sent & answered
