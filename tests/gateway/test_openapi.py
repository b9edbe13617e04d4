"""The OpenAPI document is what the contracts give, and says what Envoy really takes and answers."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import urllib.parse

import grpc
import jsonschema_rs
import pytest
import tollkeeper
from google.protobuf import symbol_database
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from gateway import openapi
from gateway.bindings import read_bindings
from gateway.openapi.__main__ import text
from gateway.render import DESCRIPTOR_SET
from gateway.request_fields import RAW_BODY
from services.kit.errors import Violation, wire_form
from services.kit.refusals import InvalidArgument

KEY = {"authorization": "Bearer tk_test_good"}
DOCUMENT = json.loads(openapi.DOCUMENT.read_text())
OPERATIONS = [
    (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
BINDINGS = {(b.method, re.sub(r"\{[^}]*\}", "{}", b.template)): b for b in read_bindings(DESCRIPTOR_SET.read_bytes())}
OURS = [case for case in OPERATIONS if case[2]["tags"] != ["Gateway"]]
NAMES = [f"{method} {path}" for method, path, _ in OURS]

for module in pkgutil.walk_packages(tollkeeper.__path__, "tollkeeper."):
    if module.name.endswith("_pb2"):
        importlib.import_module(module.name)


def validator(schema):
    """Of a schema of the document, its references resolved; formats count."""
    whole = {**schema, "components": DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def binding_of(method, path):
    return BINDINGS[method, re.sub(r"\{[^}]*\}", "{}", path)]


def rpc_of(method, path):
    service, _, name = binding_of(method, path).rpc.rpartition(".")
    return symbol_database.Default().pool.FindServiceByName(service).methods_by_name[name]


def resolved(schema):
    while "$ref" in schema:
        found = DOCUMENT
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def sample(schema):
    """A value that a schema allows, with every property."""
    schema = resolved(schema)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        found = {name: sample(each) for name, each in schema.get("properties", {}).items()}
        more = schema.get("additionalProperties")
        return found | ({"any": sample(more)} if isinstance(more, dict) else {})
    if kind == "array":
        return [sample(schema["items"])]
    if schema.get("format") == "date-time":
        return "2026-11-01T00:00:00Z"
    if "contentEncoding" in schema:
        return "AAAA"
    return {"string": "1", "integer": 1, "number": 1.5, "boolean": True}[kind]


def path_with(path, operation):
    given = {p["name"]: "acme" for p in operation.get("parameters", []) if p["in"] == "path"}
    return path.format(**given)


def fill(message, depth=0):
    """Set every field, so that every property is printed."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof and list(field.containing_oneof.fields).index(field) and depth >= 0:
            continue
        if field.message_type is None:
            value = {FieldDescriptor.CPPTYPE_STRING: "x", FieldDescriptor.CPPTYPE_BOOL: True}.get(field.cpp_type, 7)
            value = b"x" if field.type == FieldDescriptor.TYPE_BYTES else value
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
        elif depth < 4 and not field.message_type.full_name.startswith("google.protobuf.Struct"):
            fill_message(message, field, depth)


def fill_message(message, field, depth):
    holder = getattr(message, field.name)
    if field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is None:
            kind = field.message_type.fields_by_name["value"].cpp_type
            holder["x"] = "x" if kind == FieldDescriptor.CPPTYPE_STRING else 7
        else:
            fill(holder["x"], depth + 1)
    elif field.message_type.full_name == "google.protobuf.Timestamp":
        (holder.add() if field.is_repeated else holder).seconds = 1_700_000_000
    else:
        below = holder.add() if field.is_repeated else holder
        below.SetInParent()
        fill(below, depth + 1)


def test_document_is_what_the_contracts_give():
    assert openapi.DOCUMENT.read_text(encoding="utf-8") == text()


def test_every_binding_is_in_the_document_and_nothing_else_is():
    documented = {(method, re.sub(r"\{[^}]*\}", "{}", path)) for method, path, _ in OURS}
    assert documented == set(BINDINGS)
    assert {path for _, path, operation in OPERATIONS if operation["tags"] == ["Gateway"]} == {
        "/healthz",
        "/openapi.json",
    }


def test_operations_have_names_of_their_own_and_something_to_say():
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names))
    assert all(operation["summary"] for _, _, operation in OPERATIONS)


def test_every_reference_leads_somewhere_and_every_schema_is_one():
    for reference in re.findall(r'"\$ref": ?"([^"]+)"', openapi.DOCUMENT.read_text()):
        assert resolved({"$ref": reference}) is not None
    for schema in DOCUMENT["components"]["schemas"].values():
        validator(schema)


def test_document_is_served_without_a_credential(gateway, services):
    answer = gateway("GET", openapi.PATH)
    assert answer.status == 200
    assert answer.json == DOCUMENT
    assert services.checks == []


@pytest.mark.parametrize(("method", "path", "operation"), OURS, ids=NAMES)
def test_answer_is_as_documented(gateway, services, method, path, operation):
    """An empty one, and one with every field set."""
    rpc = rpc_of(method, path)
    ours = rpc.output_type.full_name != RAW_BODY
    message = GetMessageClass(rpc.output_type)
    for filled in (False, True):
        given = message()
        if filled and ours:
            fill(given)

        async def answer(_request, _context, given=given):
            return given

        services.answers[rpc.full_name] = answer
        got = gateway(method, path_with(path, operation), {} if method != "GET" else None, **KEY)
        assert got.status == 200, got.body
        if ours:
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            validator(schema).validate(got.json)
            if filled:
                unknown = set(got.json) - set(resolved(schema)["properties"])
                assert not unknown


@pytest.mark.parametrize(("method", "path", "operation"), OURS, ids=NAMES)
def test_every_documented_field_and_parameter_is_taken(gateway, services, method, path, operation):
    query = {
        parameter["name"]: sample(parameter["schema"])
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query"
    }
    # One of each oneof only; sample() gives them all, and the contracts of REST have none in a request.
    words = urllib.parse.urlencode(
        [
            (name, value)
            for name, values in query.items()
            for value in (values if isinstance(values, list) else [values])
        ]
    ).replace("True", "true")
    body = operation.get("requestBody")
    sent = sample(body["content"]["application/json"]["schema"]) if body else None
    answer = gateway(method, path_with(path, operation) + ("?" + words if words else ""), sent, **KEY)
    assert answer.status == 200, answer.body
    assert [call.rpc for call in services.calls] == [binding_of(method, path).rpc]


@pytest.mark.parametrize(("method", "path", "operation"), OURS, ids=NAMES)
def test_refusal_has_the_documented_shape(gateway, services, method, path, operation):
    async def refuse(_request, context):
        await context.grpc.abort(grpc.StatusCode.NOT_FOUND, "not here")

    services.answers[binding_of(method, path).rpc] = refuse
    answer = gateway(method, path_with(path, operation), {} if method != "GET" else None, **KEY)
    assert answer.status == 404
    documented = resolved(operation["responses"]["404"])["content"]["application/json"]["schema"]
    validator(documented).validate(answer.json)


@pytest.mark.parametrize(
    ("method", "path"),
    [("PATCH", "/api/billing/subscription"), ("POST", "/api/credits/upgrade")],
)
def test_declined_payment_is_documented(gateway, services, method, path):
    async def refuse(_request, context):
        context.grpc.set_trailing_metadata((("x-tollkeeper-http-status", "402"),))
        await context.grpc.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Your card was declined.")

    services.answers[binding_of(method, path).rpc] = refuse
    answer = gateway(method, path, {}, **KEY)
    assert answer.status == 402
    documented = resolved(DOCUMENT["paths"][path][method.lower()]["responses"]["402"])
    validator(documented["content"]["application/json"]["schema"]).validate(answer.json)


def test_every_property_of_a_refusals_details_is_documented(gateway, services):
    async def refuse(_request, context):
        error = InvalidArgument.naming([Violation("amount_usd", "must not be negative")])
        error.retry_after_seconds, error.metadata = 1.5, {"left": "5"}
        code, message, trailing = wire_form(error)
        context.grpc.set_trailing_metadata(trailing)
        await context.grpc.abort(code, message)

    services.answers[binding_of("POST", "/api/billing/topup").rpc] = refuse
    answer = gateway("POST", "/api/billing/topup", {}, **KEY)
    kinds = [detail["@type"].rpartition(".")[2] for detail in answer.json["details"]]
    assert kinds == ["ErrorInfo", "BadRequest", "RetryInfo"]
    documented = set(DOCUMENT["components"]["schemas"]["ErrorDetail"]["properties"])
    assert set().union(*answer.json["details"]) <= documented


def test_change_of_a_plan_requires_nothing_that_making_one_does():
    schemas = DOCUMENT["components"]["schemas"]
    assert "multiplierMillionths" in schemas["PlanInput"]["required"]
    assert "required" not in schemas["UpdatePlanBody"]


@pytest.mark.parametrize(("method", "path", "operation"), OURS, ids=NAMES)
def test_credential_is_documented_where_one_is_asked_for(gateway, services, method, path, operation):
    public = binding_of(method, path).public
    assert (operation.get("security") == []) == public
    assert ("401" in operation["responses"]) == (not public)
