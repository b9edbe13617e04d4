"""Owns what the contracts say about HTTP: which method and path reaches which RPC, and who may call it.

Read from the descriptor set (`google.api.http`, `tollkeeper.type.v1.access`), so that no route is written by hand.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterator

from google.api import annotations_pb2, http_pb2  # type: ignore[import-untyped]
from google.protobuf import descriptor_pb2
from tollkeeper.type.v1 import access_pb2

_PACKAGE = re.compile(r"tollkeeper\.(?P<service>[a-z]+)\.v\d+")
_VARIABLE = re.compile(r"\{(?P<field>[^{}=]+)(?:=(?P<segments>[^{}]+))?\}")
_VERBS = ("get", "put", "post", "delete", "patch")


class Wire(enum.Enum):
    """Whose HTTP dialect a path speaks; it decides the shape of an error's body."""

    API = "api"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"


# By path prefix, the first that fits: what a path under it speaks, also one that does not exist.
WIRES = (
    ("/v1/messages", Wire.ANTHROPIC),
    ("/v1/", Wire.OPENAI),
    ("/v1beta/", Wire.GEMINI),
    ("/v1alpha/", Wire.GEMINI),
    ("/", Wire.API),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binding:
    """One HTTP method and path of one RPC."""

    method: str  # GET, POST, …
    template: str  # as annotated: /api/admin/accounts/{account_id}/credits
    service: str  # ledger, pricing, …: the process that serves it
    rpc: str  # tollkeeper.ledger.v1.LedgerService.CreditAccount
    public: bool
    streaming: bool
    wire: Wire
    body: str = ""  # the field that the body is; `*` for the whole request

    @property
    def grpc_service(self) -> str:
        """The gRPC service's full name."""
        return self.rpc.rpartition(".")[0]

    @property
    def path_regex(self) -> str | None:
        """What a path has to match as a whole, or None where the template has no variable and is itself the path."""
        return path_regex(self.template)

    @property
    def fields_taken(self) -> frozenset[str]:
        """The request's fields that the path names, or the body is where it is one field: a query may not name them."""
        named = {match["field"].partition(".")[0] for match in _VARIABLE.finditer(self.template)}
        return frozenset(named | {self.body} - {"", "*"})

    @property
    def refuses_query(self) -> bool:
        """Whether a query could only stand for a field that path or body name: the transcoder would let it win.

        Where the body is one field, the query gives the others. On model calls it is the SDK's own business.
        """
        reads = self.method == "GET" or (self.method == "DELETE" and self.path_regex is None)
        return self.wire is Wire.API and not reads and self.body in {"", "*"}


def wire_of(path: str) -> Wire:
    """The dialect of what lies at or below `path`."""
    return next(wire for prefix, wire in WIRES if path.startswith(prefix))


def path_regex(template: str) -> str | None:
    """The regular expression (RE2) of an HTTP rule's path template; None where it is a plain path.

    `*` and a bare variable stand for one segment, `**` for any number of them, as google/api/http.proto defines.
    """
    expanded = _VARIABLE.sub(lambda match: match["segments"] or "*", template)
    if "*" not in expanded:
        return None
    pieces = re.split(r"(\*\*|\*)", expanded)
    return "".join({"**": ".*", "*": "[^/]+"}.get(piece) or re.escape(piece) for piece in pieces)


def read_bindings(descriptor_set: bytes) -> list[Binding]:
    """Every HTTP binding of every service in a serialised FileDescriptorSet, in the order of the contracts.

    Raises:
        ValueError: an annotated RPC's package is not `tollkeeper.<service>.v<n>`, or two RPCs claim the same path.
    """
    bindings: dict[tuple[str, str], Binding] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file:
        for service in file.service:
            for rpc in service.method:
                for binding in _bindings_of(file.package, service.name, rpc):
                    # Variables' names make no difference to what a path matches.
                    claim = (binding.method, binding.path_regex or binding.template)
                    if claim in bindings:
                        taken = bindings[claim].rpc
                        raise ValueError(f"{binding.method} {binding.template} is claimed by {taken} and {binding.rpc}")
                    bindings[claim] = binding
    return list(bindings.values())


def _bindings_of(package: str, service: str, rpc: descriptor_pb2.MethodDescriptorProto) -> Iterator[Binding]:
    if not rpc.options.HasExtension(annotations_pb2.http):
        return
    name = f"{package}.{service}.{rpc.name}"
    owner = _PACKAGE.fullmatch(package)
    if owner is None:
        raise ValueError(f"{name} has an HTTP annotation, but no service of ours owns the package {package}")
    rule = rpc.options.Extensions[annotations_pb2.http]
    # An RPC speaks one dialect, whichever path it is called by: that of its first.
    wire = wire_of(_method_and_path(rule)[1])
    for each in (rule, *rule.additional_bindings):
        method, template = _method_and_path(each)
        yield Binding(
            method=method,
            template=template,
            service=owner["service"],
            rpc=name,
            public=rpc.options.Extensions[access_pb2.access] == access_pb2.ACCESS_PUBLIC,
            streaming=rpc.server_streaming,
            wire=wire,
            body=each.body,
        )


def _method_and_path(rule: http_pb2.HttpRule) -> tuple[str, str]:
    for verb in _VERBS:
        if path := getattr(rule, verb):
            return verb.upper(), path
    return rule.custom.kind, rule.custom.path
