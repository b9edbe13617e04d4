"""Owns messages as JSON Schema, in proto JSON: one form for what requests may bring, one for what answers have.

Requests may say a 64-bit integer as a number or a string and leave any field out; a field that is not there is refused.
Answers say 64-bit integers as strings and print every field that has no presence, also an empty one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway.openapi.contracts import Contracts, is_required

Json = dict[str, Any]

_INT32 = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32 = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_INT64_PATTERN = {FieldDescriptor.CPPTYPE_INT64: "^-?[0-9]{1,19}$", FieldDescriptor.CPPTYPE_UINT64: "^[0-9]{1,20}$"}
_INT64_RANGE = {FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1), FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1)}
_PLAIN: dict[int, Json] = {
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_UINT32: _UINT32,
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
}
# Google's own types have a JSON form of their own.
_WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string", "description": "Names of fields, separated by commas."},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.api.HttpBody": {},
}


class Schemas:
    """The document's component schemas; each is made when it is first referred to."""

    def __init__(self, contracts: Contracts, in_requests_and_answers: Collection[str]) -> None:
        self._contracts = contracts
        self._in_both = frozenset(in_requests_and_answers)
        self.components: dict[str, Json] = {}

    def request(self, message: Descriptor, name: str, without: Collection[str] = (), *, partial: bool = False) -> Json:
        """A reference to what a request's body may bring, by that name: all but the fields that its path brings.

        `partial`: none of them is required.
        """
        return self._component(message, name, incoming=True, without=without, partial=partial)

    def answer(self, message: Descriptor) -> Json:
        """A reference to what an answer has."""
        return self._reference(message, incoming=False)

    def of_field(self, field: FieldDescriptor, *, incoming: bool) -> Json:
        """The schema of one field, with its comment."""
        schema = self._value(field, incoming=incoming)
        comment = self._contracts.comment(field)
        return {**schema, "description": comment} if comment else schema

    def _reference(self, message: Descriptor, *, incoming: bool) -> Json:
        if message.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[message.full_name])
        name = message.name + ("Input" if incoming and message.full_name in self._in_both else "")
        return self._component(message, name, incoming=incoming)

    def _component(
        self,
        message: Descriptor,
        name: str,
        *,
        incoming: bool,
        without: Collection[str] = (),
        partial: bool = False,
    ) -> Json:
        if name not in self.components:
            self.components[name] = {}  # so that a message that holds itself ends here
            self.components[name] = self._object(message, incoming=incoming, without=without, partial=partial)
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(self, message: Descriptor, *, incoming: bool, without: Collection[str], partial: bool) -> Json:
        fields = [field for field in message.fields if field.name not in without]
        if incoming:
            required = [field.json_name for field in fields if is_required(field) and not partial]
        else:
            required = [field.json_name for field in fields if field.is_repeated or not field.has_presence]
        comment = self._contracts.comment(message)
        return {
            "type": "object",
            **({"description": comment} if comment else {}),
            "properties": {field.json_name: self.of_field(field, incoming=incoming) for field in fields},
            **({"required": required} if required else {}),
            **({"additionalProperties": False} if incoming else {}),
        }

    def _value(self, field: FieldDescriptor, *, incoming: bool) -> Json:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = self._one(field.message_type.fields_by_name["value"], incoming=incoming)
            return {"type": "object", "additionalProperties": value}
        one = self._one(field, incoming=incoming)
        return {"type": "array", "items": one} if field.is_repeated else one

    def _one(self, field: FieldDescriptor, *, incoming: bool) -> Json:
        if field.message_type is not None:
            return self._reference(field.message_type, incoming=incoming)
        if field.cpp_type in _INT64_PATTERN:
            return _int64(field.cpp_type, incoming=incoming)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        if field.enum_type is not None:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        return dict(_PLAIN.get(field.cpp_type, {"type": "string"}))


def _int64(cpp_type: int, *, incoming: bool) -> Json:
    schema = {"type": "string", "format": "int64", "pattern": _INT64_PATTERN[cpp_type]}
    if not incoming:
        return schema
    least, most = _INT64_RANGE[cpp_type]
    return {**schema, "type": ["string", "integer"], "minimum": least, "maximum": most}
