"""Owns the passing of a Bedrock answer for a chat completion: to whoever reads it, it is one of OpenAI's form."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import orjson

from services.proxy import provider_json
from services.proxy.converse.answer import MalformedAnswerError, beside_choices, completion, error_body
from services.proxy.converse.events import EventStreamError
from services.proxy.converse.stream import ConverseStream
from services.proxy.errors import ProviderUnavailable
from services.proxy.sse import event_of
from services.proxy.upstream import Answer, Outgoing, ProviderRefusalError, UnreadAnswerError

CONVERSE = "converse"
_DONE = event_of(b"[DONE]")


class ReadableAnswer(Protocol):
    """A provider's good answer, in the form that the client asked in. Its body is read once, as pieces or whole."""

    @property
    def content_type(self) -> str:
        """What the body is."""

    @property
    def is_events(self) -> bool:
        """Whether it is a stream of server-sent events."""

    def pieces(self) -> AsyncGenerator[bytes]:
        """The body as it comes."""

    async def whole(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UnreadAnswerError where it is above the limit, or not understood."""


def answer_of(answer: Answer, outgoing: Outgoing, model: str) -> ReadableAnswer:
    """The answer to what was sent, in the form that the client asked in."""
    return _ConverseAnswer(answer, model) if outgoing.form == CONVERSE else answer


def refusal_of(refusal: ProviderRefusalError, outgoing: Outgoing) -> ProviderRefusalError:
    """The provider's refusal of what was sent, in the form that the client asked in."""
    if outgoing.form != CONVERSE:
        return refusal
    body = error_body(refusal.status, refusal.aws_exception, refusal.body)
    return ProviderRefusalError(refusal.status, "application/json", body, refusal.retry_after)


class _ConverseAnswer:
    """A Converse answer as a chat completion."""

    def __init__(self, answer: Answer, model: str) -> None:
        self._answer = answer
        self._model = model
        self._identifier = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self.is_events = answer.is_event_stream_aws
        self.content_type = "text/event-stream" if self.is_events else "application/json"

    async def pieces(self) -> AsyncGenerator[bytes]:
        """See ReadableAnswer. A stream that is not understood ends where it is not."""
        stream = ConverseStream(model=self._model, identifier=self._identifier, created=self._created)
        async for piece in self._answer.pieces():
            try:
                for chunk in stream.feed(piece):
                    yield event_of(orjson.dumps(chunk))
            except EventStreamError as error:
                raise ProviderUnavailable("the provider's answer was not understood") from error
            if stream.finished:
                yield _DONE
                return

    async def whole(self, limit_bytes: int) -> bytes:
        """See ReadableAnswer. Raises ProviderUnavailable where it is nothing, or a page: no model has answered."""
        body = await self._answer.whole(limit_bytes)
        answer: Any = provider_json.read(body)
        if not isinstance(answer, dict) and body.strip()[:1] in {b"", b"<"}:
            raise ProviderUnavailable("the provider's answer was not understood")
        try:
            found = completion(answer, model=self._model, identifier=self._identifier, created=self._created)
        except MalformedAnswerError as error:
            counted = beside_choices(answer if isinstance(answer, dict) else provider_json.last_count(body))
            raise UnreadAnswerError(
                "the provider's answer was not understood", orjson.dumps(counted), len(body)
            ) from error
        return orjson.dumps(found)
