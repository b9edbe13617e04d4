"""Owns how a request that changes something at Stripe is made once.

What Stripe is asked is settled first (which price, as of which second) and committed with the request; then Stripe is
asked under an idempotency key made from the request's id; then the answer is kept. So a repeat, at whatever point the
first attempt ended, asks for the same thing under the same key, and one after the answer asks for nothing.

Stripe forgets keys after a day. A request that has no answer by then is not asked for again: it may have taken effect.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Engine

from services.kit.call import new_request_id
from services.subscriptions.errors import IdempotencyConflict
from services.subscriptions.stripe import request_store
from services.subscriptions.stripe.names import idempotency_key
from services.subscriptions.stripe.request_store import KeptRequest, RequestKey

# Source: docs.stripe.com/api/idempotent_requests: keys may be forgotten after 24 hours.
REPEATABLE_FOR = timedelta(hours=20)

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Answered(Generic[_Answer]):
    """An answer; `replayed` where the same request had been answered before."""

    answer: _Answer
    replayed: bool


class Once(Generic[_Asked, _Answer]):
    """One use case, whose requests are each made once. `asked` and `answer` are types that pydantic reads."""

    def __init__(self, engine: Engine, use_case: str, asked: type[_Asked], answer: type[_Answer]) -> None:
        self._engine = engine
        self._use_case = use_case
        self._asked: TypeAdapter[_Asked] = TypeAdapter(asked)
        self._answer: TypeAdapter[_Answer] = TypeAdapter(answer)

    def make(
        self,
        account_id: str,
        request_id: str,
        words: tuple[object, ...],
        *,
        settle: Callable[[], _Asked],
        ask: Callable[[_Asked, str], _Answer],
    ) -> Answered[_Answer]:
        """The answer to a request that says `words`; an empty id is that of a request which is never repeated.

        `settle()` says what Stripe is to be asked, `ask(settled, idempotency_key)` asks it. No transaction is open
        meanwhile. Raises IdempotencyConflict for an id that was used with other words, or too long ago without an
        answer, and what the two raise.
        """
        key = RequestKey(account_id, self._use_case, request_id or new_request_id())
        fingerprint = hashlib.sha256(json.dumps(words).encode()).hexdigest()
        kept = self._find(key)
        if kept is None:
            settled = self._asked.dump_python(settle(), mode="json")
            with self._engine.begin() as connection:
                request_store.insert_request(connection, key, fingerprint, settled)
            kept = self._find(key)
            assert kept is not None
        if kept.fingerprint != fingerprint:
            raise IdempotencyConflict(f"request id {key.request_id} was used before with other words")
        if kept.answer is not None:
            return Answered(self._answer.validate_python(kept.answer), replayed=True)
        if kept.age > REPEATABLE_FOR:
            raise IdempotencyConflict(
                f"request id {key.request_id} was used too long ago and what became of it is not known: look first"
            )
        name = idempotency_key(account_id, self._use_case, key.request_id)
        answer = ask(self._asked.validate_python(kept.asked), name)
        with self._engine.begin() as connection:
            request_store.answer_request(connection, key, self._answer.dump_python(answer, mode="json"))
        return Answered(answer, replayed=False)

    def _find(self, key: RequestKey) -> KeptRequest | None:
        with self._engine.connect() as connection:
            return request_store.find_request(connection, key)
