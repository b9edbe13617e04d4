# ruff: noqa: N818 (a refusal is named for what is wrong; that it is an error is said by its base)
"""Owns the refusals that every service shares, and the rule that turns any exception into one.

KitError (domain "tollkeeper")
├── InvalidArgument      INVALID_ARGUMENT        fields of the request are wrong, all named at once
├── MalformedRequest     MALFORMED_REQUEST       the bytes are no such message
├── CredentialMissing    CREDENTIAL_MISSING      no credential where one is needed
├── TokenInvalid         TOKEN_INVALID           a credential that does not hold
├── RoleTooLow           ROLE_TOO_LOW            a caller who may not call this
├── AccountMismatch      ACCOUNT_MISMATCH        a customer naming someone else's account
├── Overloaded           OVERLOADED              more calls at once than the server takes
├── DeadlineExceeded     DEADLINE_EXCEEDED       no answer within the time allowed
├── StorageUnavailable   STORAGE_UNAVAILABLE     the database did not answer
├── PeerUnavailable      PEER_UNAVAILABLE        another service did not answer
├── NotImplementedYet    NOT_IMPLEMENTED         an RPC of the contract that is not built
└── Internal             INTERNAL                a fault of ours; the request id finds it in the logs
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

import grpc
import psycopg
import sqlalchemy.exc

from services.kit.errors import Kind, RemoteError, ServiceError, Violation


class KitError(ServiceError):
    """A refusal that any service may give."""

    domain = "tollkeeper"


class InvalidArgument(KitError):
    """Fields of the request are wrong."""

    kind = Kind.INVALID
    reason = "INVALID_ARGUMENT"
    advice = "Correct the fields named in the violations and send the request again."

    @classmethod
    def naming(cls, violations: Collection[Violation]) -> Self:
        """The refusal whose message says of every field what is wrong with it; of those that lack the same, once."""
        fields: dict[str, list[str]] = {}
        for violation in violations:
            fields.setdefault(violation.description, []).append(violation.field)
        faults = (f"{', '.join(dict.fromkeys(names))}: {description}" for description, names in fields.items())
        return cls(f"invalid {'; '.join(faults)}", violations=violations)


class MalformedRequest(KitError):
    """The request's bytes do not decode."""

    kind = Kind.INVALID
    reason = "MALFORMED_REQUEST"
    advice = "Send the message the contract names; check that client and server use the same version of it."


class CredentialMissing(KitError):
    """The call carries no credential and the RPC needs one."""

    kind = Kind.UNAUTHENTICATED
    reason = "CREDENTIAL_MISSING"
    advice = "Send an API key (REST) or a token (gRPC)."


class TokenInvalid(KitError):
    """The credential is expired, forged, or not for this system."""

    kind = Kind.UNAUTHENTICATED
    reason = "TOKEN_INVALID"
    advice = "Get a new token; check the clock and that the signing key is among the public keys the services read."


class RoleTooLow(KitError):
    """The caller is known and may not call this RPC."""

    kind = Kind.DENIED
    reason = "ROLE_TOO_LOW"
    advice = "Use a credential of the role named in the metadata."


class AccountMismatch(KitError):
    """A customer named an account that is not its own."""

    kind = Kind.DENIED
    reason = "ACCOUNT_MISMATCH"
    advice = "Leave the account out, or name the one the key belongs to."


class Overloaded(KitError):
    """The server runs as many calls as it may."""

    kind = Kind.EXHAUSTED
    reason = "OVERLOADED"
    advice = "Retry with backoff; if it lasts, add replicas or raise MAX_CONCURRENT."


class DeadlineExceeded(KitError):
    """The call took longer than it was given."""

    kind = Kind.DEADLINE
    reason = "DEADLINE_EXCEEDED"
    advice = "Retry with the same request id: the effect may have happened."


class StorageUnavailable(KitError):
    """The database could not be reached or did not answer in time."""

    kind = Kind.UNAVAILABLE
    reason = "STORAGE_UNAVAILABLE"
    advice = "Retry with the same request id."


class PeerUnavailable(KitError):
    """Another service could not be reached or did not answer in time."""

    kind = Kind.UNAVAILABLE
    reason = "PEER_UNAVAILABLE"
    advice = "Retry with the same request id."


class NotImplementedYet(KitError):
    """The RPC is in the contract and not built."""

    kind = Kind.UNIMPLEMENTED
    reason = "NOT_IMPLEMENTED"
    advice = "See the status page for what is implemented."


class Internal(KitError):
    """A fault of ours. Its message says nothing; the request id leads to the log entry."""

    kind = Kind.INTERNAL
    reason = "INTERNAL"
    advice = "Report the request id; retry with the same request id."


_LOGGED_CHARS = 300
_PEER_DOWN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_STORAGE_DOWN = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)


def as_refusal(error: BaseException, request_id: str) -> ServiceError:
    """The refusal a caller gets for `error`. Whatever is not a refusal itself leaks nothing but the request id."""
    error = _alone(error)
    if isinstance(error, grpc.RpcError):
        error = RemoteError.from_rpc(error)
        if error.code not in _PEER_DOWN:
            # Not for the caller, who asked nothing of that service: its methods read it where they expect it.
            return _internal(request_id)
    if isinstance(error, ServiceError) and error.reason:
        return error
    if isinstance(error, RemoteError) and error.code in _PEER_DOWN:
        return PeerUnavailable("a service this call depends on did not answer", retry_after_seconds=1)
    given_up = isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
    if given_up or isinstance(error, _STORAGE_DOWN):
        return StorageUnavailable("the database did not answer", retry_after_seconds=1)
    return _internal(request_id)


def logged(error: BaseException) -> dict[str, Any]:
    """How a failure stands in the log: with its traceback where it is a fault of ours, else in a line.

    While storage or a peer is away everything fails: where it was tells nothing then, and would fill the log.
    """
    if isinstance(as_refusal(error, ""), Internal):
        return {"exc_info": error}
    error = _alone(error)
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:_LOGGED_CHARS]}"}


def _alone(error: BaseException) -> BaseException:
    """The one failure that a TaskGroup made a group of."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _internal(request_id: str) -> Internal:
    return Internal(f"internal error, request id {request_id}", request_id=request_id)
