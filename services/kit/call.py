"""Owns what is known about the call being served: request id, method, caller, deadline, in one context variable."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING

from services.kit.identity import ANONYMOUS, Identity

if TYPE_CHECKING:
    from opentelemetry.trace import Span

REQUEST_ID_KEY = "x-request-id"

_NONE: Mapping[str, str | bytes] = MappingProxyType({})

# Seeded by the operating system, which is not asked again for each call: that took a third of what opening one takes.
# An id only has to be unlike every other; callers may bring their own, so whoever guesses one gains nothing.
_ids = random.Random()  # noqa: S311
os.register_at_fork(after_in_child=_ids.seed)


class Call:
    """One call being served. Tasks it starts see it too; after it ends its deadline no longer binds them.

    `deadline` is in seconds of `time.monotonic()`, None where there is none. `metadata` are the caller's, by lower-case
    name; a credential is among them.
    """

    __slots__ = ("deadline", "finished", "identity", "metadata", "method", "request_id", "span", "started")

    def __init__(
        self, method: str, request_id: str, identity: Identity, metadata: Mapping[str, str | bytes] = _NONE
    ) -> None:
        self.method = method
        self.metadata = metadata
        self.request_id = request_id
        self.identity = identity
        self.started = time.monotonic()
        self.deadline: float | None = None
        self.finished = False
        self.span: Span | None = None


CURRENT: ContextVar[Call | None] = ContextVar("tollkeeper_call", default=None)


def current_identity() -> Identity:
    """The caller of the call being served; ANONYMOUS for one without a credential, and outside of a call."""
    call = CURRENT.get()
    return call.identity if call is not None else ANONYMOUS


def current_metadata() -> Mapping[str, str | bytes]:
    """What the caller of the call being served sent along, by lower-case name; empty outside of one."""
    call = CURRENT.get()
    return call.metadata if call is not None else _NONE


def new_request_id() -> str:
    """A fresh request id: 32 hexadecimal digits."""
    return _ids.getrandbits(128).to_bytes(16).hex()


def current_request_id() -> str:
    """The request id of the call being served, empty outside of one."""
    call = CURRENT.get()
    return call.request_id if call is not None else ""


def remaining_seconds() -> float | None:
    """What is left of the deadline of the call being served, at least 0; None where nothing limits it."""
    call = CURRENT.get()
    if call is None or call.deadline is None or call.finished:
        return None
    return max(0.0, call.deadline - time.monotonic())
