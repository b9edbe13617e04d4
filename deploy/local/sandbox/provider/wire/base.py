"""Owns what every wire format has in common: the shape of a format, the chunks of a stream, and server-sent events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import orjson

from deploy.local.sandbox.provider.answer import Answer
from deploy.local.sandbox.provider.prompt import Prompt
from deploy.local.sandbox.provider.refusal import Dialect, Refusal
from deploy.local.sandbox.provider.routes import Route

Body = Mapping[str, Any]

SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"


class Chunk(NamedTuple):
    """One piece of a stream: its bytes, the output tokens that come with it, and whether it carries what was said."""

    data: bytes
    tokens: int = 0
    content: bool = False


class Wire(Protocol):
    """One wire format."""

    @property
    def stream_content_type(self) -> str:
        """The content type of a streamed answer."""

    def read(self, body: Body, route: Route) -> Prompt:
        """Read a request.

        Raises:
            Refusal: a field is missing, of the wrong type or out of its range.
        """

    def unary(self, answer: Answer) -> bytes:
        """The whole answer as one JSON body."""

    def stream(self, answer: Answer) -> Iterator[Chunk]:
        """The answer as a stream, chunk by chunk, its end included."""

    def stream_error(self, dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
        """The error as it is said in the middle of a stream."""


class Counting(Protocol):
    """A wire format in which the tokens of a call's input are counted before it."""

    def count(self, body: Body, route: Route) -> Prompt:
        """Read what is to be counted. Raises Refusal as `Wire.read` does."""

    def counted(self, input_tokens: int) -> dict[str, Any]:
        """The answer."""


def sse(value: Any, event: str | None = None) -> bytes:
    """One server-sent event with `value` as its JSON data, named where `event` is given."""
    data = b"data: " + orjson.dumps(value) + b"\n\n"
    return data if event is None else b"event: " + event.encode() + b"\n" + data
