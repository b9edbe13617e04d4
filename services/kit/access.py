"""Owns who may call what: reads each RPC's access option, and checks a caller and its request against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from tollkeeper.type.v1 import access_pb2

from services.kit.errors import Violation
from services.kit.identity import Identity, Role
from services.kit.refusals import AccountMismatch, CredentialMissing, InvalidArgument, RoleTooLow

ACCOUNT_FIELD = "account_id"


class RegistrationError(Exception):
    """A servicer that must not be served; the message says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one RPC asks of its caller: at least `role`; `names_account` where its request has the account's field."""

    path: str
    role: Role
    names_account: bool

    def check_caller(self, caller: Identity) -> None:
        """Raise CredentialMissing or RoleTooLow where the caller may not call this RPC at all."""
        if caller.role >= self.role:
            return
        if caller.role is Role.PUBLIC:
            raise CredentialMissing("this call needs a credential")
        raise RoleTooLow(f"this call needs role {self.role.name}", required_role=self.role.name, role=caller.role.name)

    def check_request(self, caller: Identity, request: Any) -> None:
        """Bind a request to the caller's account, on RPCs that customers call.

        A customer's empty `account_id` is filled in; another's raises AccountMismatch. Operators and services have to
        name one: InvalidArgument otherwise.
        """
        if not self.names_account or self.role is not Role.ACCOUNT:
            return
        if caller.role is Role.ACCOUNT:
            if not request.account_id:
                request.account_id = caller.account_id
            elif request.account_id != caller.account_id:
                raise AccountMismatch("the account named is not the caller's own")
        elif not request.account_id:
            required = Violation(ACCOUNT_FIELD, "is required from callers that may name any account")
            raise InvalidArgument.naming([required])


def service_descriptor(name: str) -> ServiceDescriptor:
    """The descriptor of a service by its full name. Raises RegistrationError where none is loaded."""
    try:
        return descriptor_pool.Default().FindServiceByName(name)
    except KeyError:
        raise RegistrationError(f"{name}: no descriptor of this service is loaded") from None


def declared_role(method: MethodDescriptor) -> Role | None:
    """The role the contract's access option asks for; None where the RPC declares none."""
    access = method.GetOptions().Extensions[access_pb2.access]
    return Role(access) if access else None


def rules(service: ServiceDescriptor, overrides: Mapping[str, int] | None = None) -> dict[str, Rule]:
    """The rule of every RPC of a service, by RPC name.

    `overrides` (full path "/package.Service/Method" → Role or Access) are for contracts of third parties, which cannot
    carry our option. Raises RegistrationError for an RPC without a rule, and for an override that names no RPC or one
    that declares its own.
    """
    left = dict(overrides or {})
    found: dict[str, Rule] = {}
    for method in service.methods:
        path = f"/{service.full_name}/{method.name}"
        role = declared_role(method)
        override = left.pop(path, None)
        if override is not None:
            if role is not None:
                raise RegistrationError(f"{path} declares its access in its contract; it cannot be overridden")
            if override not in set(Role):
                raise RegistrationError(f"{path}: {override} is no role")
            role = Role(override)
        if role is None:
            raise RegistrationError(f"{path} declares no access: add option (tollkeeper.type.v1.access) to it")
        field = method.input_type.fields_by_name.get(ACCOUNT_FIELD)
        names_account = field is not None and field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
        found[method.name] = Rule(path, role, names_account)
    if left:
        raise RegistrationError(f"access overrides name no RPC of {service.full_name}: {', '.join(sorted(left))}")
    return found


def unimplemented_methods(servicer: object, service: ServiceDescriptor) -> list[str]:
    """Names of the RPCs that `servicer` (an object or its class) does not implement, in the contract's order."""
    cls = servicer if isinstance(servicer, type) else type(servicer)
    # The generated base knows nothing of its contract, so it is recognised by the generator's naming.
    base = next(
        (c for c in cls.__mro__ if c.__name__ == f"{service.name}Servicer" and c.__module__.endswith("_pb2_grpc")), None
    )
    if base is None:
        return [method.name for method in service.methods if not hasattr(cls, method.name)]
    return [m.name for m in service.methods if getattr(cls, m.name, None) is getattr(base, m.name, None)]
