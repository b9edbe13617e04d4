"""Owns which fields a request's JSON body may have: read from the contracts, checked by `filters/fields.lua`."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway.bindings import Binding, Wire

RAW_BODY = "google.api.HttpBody"
MAP_VALUE = "*"

SCALAR = "="
LIST = "[]"
# Of Google's own types those that JSON has as a text.
_TEXTS = frozenset(f"google.protobuf.{name}" for name in ("Duration", "FieldMask", "Timestamp"))

# By name, what a field holds: a message's name, SCALAR, or "" where any JSON may stand; with LIST before it where there
# may be many.
Fields = dict[str, str]


def pool_of(descriptor_set: bytes) -> descriptor_pool.DescriptorPool:
    """The contracts' types, by name."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file:
        pool.Add(file)
    return pool


def body_message(binding: Binding, pool: descriptor_pool.DescriptorPool) -> Descriptor | None:
    """The message that a binding's body is; None where it passes as it came, or is a model call's that asks for none.

    Where a call of our own API asks for none, the transcoder reads one as the whole request all the same.
    """
    if not binding.body and binding.wire is not Wire.API:
        return None
    service, _, method = binding.rpc.rpartition(".")
    message: Descriptor | None = pool.FindServiceByName(service).methods_by_name[method].input_type
    if message is not None and binding.body not in {"", "*"}:
        message = message.fields_by_name[binding.body].message_type
    return None if message is None or message.full_name == RAW_BODY else message


def fields_below(root: Descriptor) -> dict[str, Fields]:
    """The fields of a message and of all messages below it, by message; each field by both names that JSON may use."""
    found: dict[str, Fields] = {}
    waiting = [root]
    while waiting:
        message = waiting.pop()
        if message.full_name in found:
            continue
        fields = found[message.full_name] = {}
        for field in message.fields:
            fields[field.name] = fields[field.json_name] = _held(field)
            below = field.message_type
            if below is not None and not _is_googles(below):
                waiting.append(below)
    return found


def _held(field: FieldDescriptor) -> str:
    """What a field holds. A map is an object, and its entries a message with a field for each key."""
    message = field.message_type
    if message is None or message.full_name in _TEXTS:
        one = SCALAR
    else:
        one = "" if _is_googles(message) else message.full_name
    is_map = message is not None and message.GetOptions().map_entry
    return LIST + one if field.is_repeated and not is_map else one


def _is_googles(message: Descriptor) -> bool:
    """Whether it is one of Google's own types, which have a JSON form of their own."""
    return message.full_name.startswith("google.")


def route_context(binding: Binding, pool: descriptor_pool.DescriptorPool) -> dict[str, object] | None:
    """What `filters/fields.lua` reads of a route; None where there is nothing to check."""
    message = body_message(binding, pool)
    if message is None:
        return None
    below = fields_below(message)
    for name, fields in below.items():
        if pool.FindMessageTypeByName(name).GetOptions().map_entry:
            below[name] = {MAP_VALUE: fields["value"]}
    return {"root": message.full_name, "messages": below, "in_path": _in_path(binding, message)}


def _in_path(binding: Binding, root: Descriptor) -> dict[str, int]:
    """The fields of a body that the path says, by both their names: which of the path's segments, counted from 1."""
    inside = f"{binding.body}." if binding.body not in {"", "*"} else ""
    found = {}
    for number, segment in enumerate(binding.template.removeprefix("/").split("/"), 1):
        field = root.fields_by_name.get(segment.strip("{}").removeprefix(inside)) if segment.startswith("{") else None
        if field is not None:
            found[field.name] = found[field.json_name] = number
    return found
