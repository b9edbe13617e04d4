"""Owns what the ledger's servicers share: checking a request, doing an operation, saying that it was a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from services.kit.replays import tell_replayed
from services.kit.validation import Violations
from services.ledger.model.operations import Operation
from services.ledger.service import Ledger

MAX_FILTER_CHARS = 200

Context = grpc.aio.ServicerContext[Any, Any]
_M = TypeVar("_M", bound=Message)
_A = TypeVar("_A", bound=Message)


def checked(build: Callable[[Violations, _M], Operation], request: _M) -> Operation:
    """The operation of a request. Raises InvalidArgument naming every field that is wrong."""
    v = Violations()
    operation = build(v, request)
    v.raise_if_any()
    return operation


def named_account(account_id: str) -> str:
    """A request's account id. Raises InvalidArgument where it is none."""
    v = Violations()
    v.identifier("account_id", account_id)
    v.raise_if_any()
    return account_id


def place(position: tuple[str | int, ...] | None) -> int | None:
    """The number that a page begins before, if it is not the first page."""
    return int(position[0]) if position else None


class Servicer:
    """A servicer of the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def _do(self, operation: Operation, context: Context, message: Callable[[Any], _A]) -> _A:
        """Do one operation; the message of its outcome. A replay says so in trailing metadata. Raises its refusal."""
        answer, replayed = await self._ledger.do(operation, lambda result: (message(result.outcome), result.replayed))
        if replayed:
            tell_replayed(context)
        return answer
