"""Owns the error model: kinds, the base of every refusal, its wire form, and the view of another service's refusal.

    ServiceError                a refusal: kind, REASON, domain, metadata, advice
    ├── <Service>Error          one base per service, sets `domain`; below it one class per refusal
    │   └── …
    ├── KitError                the refusals every service shares (services.kit.refusals)
    │   └── …
    └── RemoteError             what another service answered, read back from the wire

A refusal leaves as `google.rpc.Status` with one ErrorInfo (and BadRequest, RetryInfo where they apply) in
`grpc-status-details-bin`, and as plain trailing metadata for readers that do not parse protobuf (the gateway):
`x-tollkeeper-reason`, `x-tollkeeper-http-status`, `retry-after`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self, TypeVar

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

DETAILS_KEY = "grpc-status-details-bin"
REASON_KEY = "x-tollkeeper-reason"
HTTP_STATUS_KEY = "x-tollkeeper-http-status"
RETRY_AFTER_KEY = "retry-after"

# A refusal travels in response trailers, which gRPC peers refuse above 8 KiB: the message percent-encoded, the details
# in base64, so at worst 3 * 500 + 4/3 * (500 + 1500 + 2000) bytes. What does not fit is cut, never the reason.
MAX_MESSAGE_BYTES = 500
MAX_VALUE_BYTES = 200
MAX_METADATA_BYTES = 1500
MAX_VIOLATIONS_BYTES = 2000
MAX_VIOLATIONS = 20

_REASON = re.compile(r"[A-Z][A-Z0-9_]*[A-Z0-9]")

_Metadata = tuple[tuple[str, str | bytes], ...]


class Kind(Enum):
    """What sort of refusal it is: fixes the gRPC code and the HTTP status."""

    INVALID = (grpc.StatusCode.INVALID_ARGUMENT, 400)
    UNAUTHENTICATED = (grpc.StatusCode.UNAUTHENTICATED, 401)
    PAYMENT_REQUIRED = (grpc.StatusCode.RESOURCE_EXHAUSTED, 402)
    DENIED = (grpc.StatusCode.PERMISSION_DENIED, 403)
    NOT_FOUND = (grpc.StatusCode.NOT_FOUND, 404)
    CONFLICT = (grpc.StatusCode.ALREADY_EXISTS, 409)
    ABORTED = (grpc.StatusCode.ABORTED, 409)
    PRECONDITION = (grpc.StatusCode.FAILED_PRECONDITION, 400)
    TOO_LARGE = (grpc.StatusCode.INVALID_ARGUMENT, 413)
    EXHAUSTED = (grpc.StatusCode.RESOURCE_EXHAUSTED, 429)
    INTERNAL = (grpc.StatusCode.INTERNAL, 500)
    UNIMPLEMENTED = (grpc.StatusCode.UNIMPLEMENTED, 501)
    UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, 503)
    DEADLINE = (grpc.StatusCode.DEADLINE_EXCEEDED, 504)

    @property
    def grpc_code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return self.value[0]

    @property
    def http_status(self) -> int:
        """The HTTP status the gateway answers with."""
        return self.value[1]

    @classmethod
    def of(cls, code: grpc.StatusCode, http_status: int | None = None) -> Kind:
        """The kind with this gRPC code, and HTTP status where several share the code; INTERNAL where none has it."""
        candidates = [kind for kind in cls if kind.grpc_code is code]
        for kind in candidates:
            if kind.http_status == http_status:
                return kind
        return _KIND_OF_CODE.get(code, cls.INTERNAL)


# The kind meant by a bare code, where the peer said nothing more.
_KIND_OF_CODE = {
    grpc.StatusCode.OUT_OF_RANGE: Kind.INVALID,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Kind.EXHAUSTED,
    **{kind.grpc_code: kind for kind in Kind if kind not in {Kind.TOO_LARGE, Kind.PAYMENT_REQUIRED, Kind.EXHAUSTED}},
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that is wrong: its path (`operations[3].amount_nanos`) and what it must be."""

    field: str
    description: str


class ServiceError(Exception):
    """A refusal with a place in the catalogue. Raise subclasses; the serving layer puts them on the wire.

    Class attributes: `kind`; `reason` (UPPER_SNAKE, unique within `domain`); `domain` ("tollkeeper.ledger");
    `advice`, what the caller should do, for the reference page. A class that sets no `reason` is a base, never raised.

    Arguments: `message` is for people and is sent to the caller, so it holds no secret; `violations` name the fields at
    fault; `retry_after_seconds` says when a retry may succeed; `metadata` (keywords) is sent as strings in ErrorInfo.
    """

    kind: Kind = Kind.INTERNAL
    reason: str = ""
    domain: str = ""
    advice: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        /,
        *,
        violations: Iterable[Violation] = (),
        retry_after_seconds: float | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}
        self.headers: tuple[tuple[str, str], ...] = ()  # sent with it as plain trailing metadata; small ones, a few

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "reason" not in cls.__dict__:
            return
        if not _REASON.fullmatch(cls.reason):
            raise TypeError(f"{cls.__qualname__}.reason must be UPPER_SNAKE, not {cls.reason!r}")
        missing = [name for name in ("domain", "advice") if not getattr(cls, name)]
        if missing:
            raise TypeError(f"{cls.__qualname__} has a reason but no {' and no '.join(missing)}")

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code it is answered with."""
        return self.kind.grpc_code

    def __str__(self) -> str:
        fields = "; ".join(f"{v.field}: {v.description}" for v in self.violations)
        return f"{self.reason}: {self.message}" + (f" ({fields})" if fields else "")


_E = TypeVar("_E", bound=ServiceError)


def catalogue(base: type[_E]) -> list[type[_E]]:
    """Every refusal below `base` (and `base` itself where it is one), sorted by reason."""
    found: set[type[_E]] = set()
    waiting = [base]
    while waiting:
        cls = waiting.pop()
        if "reason" in cls.__dict__ and cls.reason:
            found.add(cls)
        waiting.extend(cls.__subclasses__())
    return sorted(found, key=lambda cls: (cls.domain, cls.reason))


class RemoteError(ServiceError):
    """What another service (or the transport to it) answered, with the same attributes a local refusal has.

    `reason` and `domain` are empty where the peer sent no ErrorInfo, which is what a connection failure looks like.
    Raising it again passes the refusal on unchanged.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        kind: Kind,
        reason: str = "",
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[Violation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, violations=violations, retry_after_seconds=retry_after_seconds)
        self.kind = kind
        self.reason = reason
        self.domain = domain
        self.metadata = dict(metadata or {})
        self._code = code

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code the peer answered with."""
        return self._code

    @classmethod
    def from_rpc(cls, error: grpc.RpcError) -> Self:
        """Read a failed call (sync or aio). Never raises: what cannot be read is left empty."""
        code = _called(error, "code")
        if not isinstance(code, grpc.StatusCode):
            code = grpc.StatusCode.UNKNOWN
        trailing: dict[str, str | bytes] = dict(_called(error, "trailing_metadata") or ())
        http_status = str(trailing.get(HTTP_STATUS_KEY, ""))
        kind = Kind.of(code, int(http_status) if http_status.isdecimal() else None)
        message = str(_called(error, "details") or "")
        raw = trailing.get(DETAILS_KEY, b"")
        return cls(message, code=code, kind=kind, **_details_of(raw if isinstance(raw, bytes) else b""))

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> Self:
        """Read a refusal that came inside an answer, as the result of one operation of a batch. Never raises.

        Its kind is what the code alone says: a status has no place for the HTTP status.
        """
        code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.UNKNOWN)
        return cls(status.message, code=code, kind=Kind.of(code), **_read_details(status))


def _called(error: grpc.RpcError, name: str) -> Any:
    """The answer of one of the call accessors, which an RpcError has only where it came from a call."""
    accessor = getattr(error, name, None)
    return accessor() if callable(accessor) else None


def _details_of(raw: bytes) -> dict[str, Any]:
    """The constructor arguments of RemoteError found in a serialized google.rpc.Status."""
    try:
        return _read_details(status_pb2.Status.FromString(raw))
    except DecodeError:
        return {}  # a peer that is not one of ours may put anything there


def _read_details(status: status_pb2.Status) -> dict[str, Any]:
    """The same, of a google.rpc.Status."""
    found: dict[str, Any] = {}
    try:
        for detail in status.details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                found |= {"reason": info.reason, "domain": info.domain, "metadata": dict(info.metadata)}
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest.FromString(detail.value)
                found["violations"] = [Violation(v.field, v.description) for v in bad.field_violations]
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo.FromString(detail.value)
                found["retry_after_seconds"] = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    except DecodeError:
        pass  # a peer that is not one of ours may put anything there
    return found


def shortened(text: str, limit_bytes: int) -> str:
    """`text` within `limit_bytes` of UTF-8, with an ellipsis where it was cut."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode(errors="ignore") + "…"


def _error_info(error: ServiceError) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=error.domain)
    for key, value in error.metadata.items():
        if info.ByteSize() > MAX_METADATA_BYTES - MAX_VALUE_BYTES:
            break
        info.metadata[key] = shortened(value, MAX_VALUE_BYTES)
    return info


def _bad_request(violations: Iterable[Violation]) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in violations:
        if bad.ByteSize() > MAX_VIOLATIONS_BYTES - 2 * MAX_VALUE_BYTES:
            break
        field, description = violation.field, violation.description
        bad.field_violations.add(
            field=shortened(field, MAX_VALUE_BYTES), description=shortened(description, MAX_VALUE_BYTES)
        )
    return bad


def wire_form(error: ServiceError) -> tuple[grpc.StatusCode, str, _Metadata]:
    """What goes on the wire for a refusal: status code, message, trailing metadata."""
    message = shortened(error.message, MAX_MESSAGE_BYTES)
    details = [_error_info(error)]
    trailing: list[tuple[str, str | bytes]] = [
        (REASON_KEY, error.reason),
        (HTTP_STATUS_KEY, str(error.kind.http_status)),
    ]
    if error.violations:
        details.append(_bad_request(error.violations))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(math.ceil(error.retry_after_seconds * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        # HTTP's Retry-After is whole seconds; rounding down would invite a retry that is refused again.
        trailing.append((RETRY_AFTER_KEY, str(max(1, math.ceil(error.retry_after_seconds)))))
    trailing += error.headers
    status = status_pb2.Status(code=error.code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail, deterministic=True)
    trailing.append((DETAILS_KEY, status.SerializeToString(deterministic=True)))
    return error.code, message, tuple(trailing)
