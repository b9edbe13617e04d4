"""Owns what is known of an answer while it comes: the provider's own count, or ours where it gives none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from services import rating
from services.proxy.calls import chat
from services.proxy.sse import data_of, event_of

DONE = b"[DONE]"
_MAX_IDENTIFIER_CHARS = 200  # what the ledger keeps


@dataclass(slots=True)
class Meter:
    """Counts one answer.

    `finished`: it has come to its end. `failed`: the provider said in the midst of it that it failed.
    """

    input_guess: int
    usage: rating.Usage | None = None
    service_tier: str | None = None
    provider_request_id: str = ""
    finished: bool = False
    failed: bool = False
    _begun: bool = False
    _text: chat.TextCount = field(default_factory=chat.TextCount)
    _pieces: int = 0
    _head: dict[str, Any] = field(default_factory=dict)

    @property
    def owed(self) -> bool:
        """Whether there is anything to pay for: the provider has begun to answer, or has counted."""
        return self._begun and (not self.failed or self.usage is not None or self._pieces > 0)

    @property
    def estimated(self) -> bool:
        """Whether the counts are ours."""
        return self.usage is None

    def counted(self) -> rating.Usage:
        """What was used: the provider's count, else a guess, never of nothing.

        A provider sends at least a token in each piece of a stream, so there are at least as many as pieces.
        """
        if self.usage is not None:
            return self.usage
        return rating.Usage(input_tokens=self.input_guess, output_tokens=max(self._text.tokens, self._pieces, 1))

    def take_whole(self, body: bytes) -> None:
        """Count a unary answer."""
        self._begun = self.finished = True
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            self._text.ascii_chars += len(body)
            return
        self._note(answer)
        chat.count_output(answer.get("choices"), "message", self._text)

    def take_event(self, event: bytes) -> Event:
        """Count one event of a stream."""
        data = data_of(event)
        if data == DONE:
            self.finished = True
            return Event(event, done=True)
        if not data.startswith(b"{"):
            return Event(event)
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            self._begun = True
            self._text.ascii_chars += len(data)
            return Event(event)
        if chunk.get("error") is not None:
            self.failed = True
            return Event(event)
        self._begun = True
        self._note(chunk)
        choices = chunk.get("choices")
        self._pieces += chat.count_output(choices, "delta", self._text)
        if isinstance(choices, list) and any(isinstance(c, dict) and c.get("finish_reason") for c in choices):
            self.finished = True
        return Event(event, chunk=chunk if isinstance(chunk.get("usage"), dict) else None)

    def last_chunk(self) -> dict[str, Any]:
        """The chunk that ends a stream without one of usage: the head that the provider gave its others, our count."""
        counted = self.counted()
        return {
            "id": self._head.get("id", ""),
            "object": "chat.completion.chunk",
            "created": self._head.get("created", 0),
            "model": self._head.get("model", ""),
            "choices": [],
            "usage": {
                "prompt_tokens": counted.input_tokens,
                "completion_tokens": counted.output_tokens,
                "total_tokens": counted.input_tokens + counted.output_tokens,
            },
        }

    def _note(self, answer: dict[str, Any]) -> None:
        usage = chat.read_usage(answer.get("usage"))
        if usage is not None:
            self.usage = usage
        tier = answer.get("service_tier")
        if isinstance(tier, str):
            self.service_tier = chat.tier_of(tier)
        if not self._head:
            self._head = {name: answer.get(name) for name in ("id", "created", "model")}
            identifier = answer.get("id")
            self.provider_request_id = _kept(identifier) if isinstance(identifier, str) else ""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it came; `chunk` is its data where that has usage in it, `done` where it ends the stream."""

    raw: bytes
    chunk: dict[str, Any] | None = None
    done: bool = False


def with_credits(chunk: dict[str, Any], credits_object: dict[str, Any]) -> bytes:
    """An event of this chunk and its call's credits."""
    return event_of(orjson.dumps({**chunk, "credits": credits_object}))


def _kept(identifier: str) -> str:
    """A provider's own text as the ledger keeps it: what it would refuse would leave the call unbilled."""
    return "".join(char for char in identifier if char.isprintable())[:_MAX_IDENTIFIER_CHARS]
