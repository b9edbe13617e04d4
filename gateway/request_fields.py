"""Owns which fields a request's JSON body may have: read from the contracts, checked by `filters/fields.lua`."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway.bindings import Binding

RAW_BODY = "google.api.HttpBody"
MAP_VALUE = "*"

Fields = dict[str, str]  # by name: the message it holds, "" where any JSON may stand


def pool_of(descriptor_set: bytes) -> descriptor_pool.DescriptorPool:
    """The contracts' types, by name."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file:
        pool.Add(file)
    return pool


def body_message(binding: Binding, pool: descriptor_pool.DescriptorPool) -> Descriptor | None:
    """The message that a binding's body is; None where it has no body, or one that passes as it came."""
    if not binding.body:
        return None
    service, _, method = binding.rpc.rpartition(".")
    message: Descriptor | None = pool.FindServiceByName(service).methods_by_name[method].input_type
    if message is not None and binding.body != "*":
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
            below = _message_of(field)
            fields[field.name] = fields[field.json_name] = below.full_name if below else ""
            if below:
                waiting.append(below)
    return found


def _message_of(field: FieldDescriptor) -> Descriptor | None:
    """What a field holds where that has fields of its own; Google's own types have a JSON form of their own."""
    message = field.message_type
    if message is None or message.full_name.startswith("google."):
        return None
    if message.GetOptions().map_entry and message.fields_by_name["value"].message_type is None:
        return None  # any key, and values without fields
    return message


def route_context(binding: Binding, pool: descriptor_pool.DescriptorPool) -> dict[str, object] | None:
    """What `filters/fields.lua` reads of a route; None where there is nothing to check."""
    message = body_message(binding, pool)
    if message is None:
        return None
    below = fields_below(message)
    for name, fields in below.items():
        if pool.FindMessageTypeByName(name).GetOptions().map_entry:
            below[name] = {MAP_VALUE: fields["value"]}
    return {"root": message.full_name, "messages": below}
