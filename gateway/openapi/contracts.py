"""Owns the view of the contracts that the document is written from: types by name, each with its comment."""

from __future__ import annotations

import dataclasses
import re

from google.api import field_behavior_pb2  # type: ignore[import-untyped]
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

from gateway.bindings import Binding, read_bindings
from gateway.request_fields import pool_of

# Where each kind of declaration stands in its parent, by field number in descriptor.proto.
_FILE_MESSAGE, _FILE_SERVICE, _MESSAGE_FIELD, _MESSAGE_MESSAGE, _SERVICE_METHOD = 4, 6, 2, 3, 2


@dataclasses.dataclass(frozen=True)
class Contracts:
    """The contracts with their comments."""

    bindings: list[Binding]
    services: dict[str, ServiceDescriptor]
    comments: dict[str, str]  # by full name, on one line

    def method(self, binding: Binding) -> MethodDescriptor:
        """The RPC that a binding reaches."""
        method: MethodDescriptor = self.services[binding.grpc_service].methods_by_name[binding.rpc.rpartition(".")[2]]
        return method

    def comment(self, of: Descriptor | FieldDescriptor | MethodDescriptor | ServiceDescriptor) -> str:
        """What the contract says of it; empty where it says nothing."""
        return self.comments.get(of.full_name, "")


def read(descriptor_set: bytes) -> Contracts:
    """The contracts of a serialised FileDescriptorSet that was built with source info."""
    bindings = read_bindings(descriptor_set)
    pool = pool_of(descriptor_set)
    return Contracts(
        bindings=bindings,
        services={b.grpc_service: pool.FindServiceByName(b.grpc_service) for b in bindings},
        comments=_comments(descriptor_pb2.FileDescriptorSet.FromString(descriptor_set)),
    )


def is_required(field: FieldDescriptor) -> bool:
    """Whether the contract marks it REQUIRED."""
    behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return field_behavior_pb2.REQUIRED in behaviors


def _comments(files: descriptor_pb2.FileDescriptorSet) -> dict[str, str]:
    found = {}
    for file in files.file:
        if not file.name.startswith("tollkeeper/"):
            continue
        names = _names_by_path(file)
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            if name and location.leading_comments:
                found[name] = re.sub(r"\s+", " ", location.leading_comments).strip()
    return found


def _names_by_path(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    names: dict[tuple[int, ...], str] = {}

    def message(declared: descriptor_pb2.DescriptorProto, name: str, path: tuple[int, ...]) -> None:
        names[path] = name
        for number, field in enumerate(declared.field):
            names[*path, _MESSAGE_FIELD, number] = f"{name}.{field.name}"
        for number, nested in enumerate(declared.nested_type):
            message(nested, f"{name}.{nested.name}", (*path, _MESSAGE_MESSAGE, number))

    for number, declared in enumerate(file.message_type):
        message(declared, f"{file.package}.{declared.name}", (_FILE_MESSAGE, number))
    for number, service in enumerate(file.service):
        names[_FILE_SERVICE, number] = f"{file.package}.{service.name}"
        for position, method in enumerate(service.method):
            names[_FILE_SERVICE, number, _SERVICE_METHOD, position] = f"{file.package}.{service.name}.{method.name}"
    return names
