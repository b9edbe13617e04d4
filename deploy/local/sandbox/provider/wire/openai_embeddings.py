"""Owns OpenAI's embeddings: unit vectors drawn from a hash of the text, the same for the same text and model."""

from __future__ import annotations

import base64
import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson

from deploy.local.sandbox.provider import tokens
from deploy.local.sandbox.provider.answer import Answer
from deploy.local.sandbox.provider.prompt import Prompt
from deploy.local.sandbox.provider.refusal import Dialect, Refusal
from deploy.local.sandbox.provider.refusal import body as error_body
from deploy.local.sandbox.provider.routes import Route
from deploy.local.sandbox.provider.wire import openai_fields as fields
from deploy.local.sandbox.provider.wire.base import JSON, Body, Chunk

_USUAL_DIMENSIONS: Final = 1536
_DIMENSIONS: Final = {"text-embedding-3-large": 3072}
_MOST_INPUTS: Final = 2048


class Embeddings:
    """The wire format of `POST /v1/embeddings`; there are no streams of embeddings and no output tokens."""

    stream_content_type = JSON

    def read(self, body: Body, route: Route) -> Prompt:  # noqa: ARG002  (the format does not depend on the address)
        """Read a request. Raises Refusal where OpenAI would refuse it."""
        model = fields.model(body)
        inputs = _inputs(body)
        fields.integer(body, "dimensions", 1, _DIMENSIONS.get(model, _USUAL_DIMENSIONS))
        if body.get("encoding_format") not in (None, "float", "base64"):
            raise fields.unsupported_value("encoding_format", body["encoding_format"], ("float", "base64"))
        texts = [text for text in inputs if isinstance(text, str)]
        return Prompt(
            model=model,
            input_tokens=sum(tokens.count(item) if isinstance(item, str) else len(item) for item in inputs),
            last_user_text=texts[-1] if texts else "",
            cap=0,
            body=body,
        )

    def unary(self, answer: Answer) -> bytes:
        """A list of embeddings in the order of the inputs."""
        body = answer.prompt.body
        length = body.get("dimensions") or _DIMENSIONS.get(answer.prompt.model, _USUAL_DIMENSIONS)
        as_base64 = body.get("encoding_format") == "base64"
        rows = []
        for index, item in enumerate(_inputs(body)):
            vector = _vector(answer.prompt.model, item, length)
            written: Any = base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()
            rows.append({"object": "embedding", "index": index, "embedding": written})
        result: dict[str, Any] = {"object": "list", "data": rows, "model": answer.prompt.model}
        if answer.usage_shown:
            result["usage"] = {"prompt_tokens": answer.usage.input, "total_tokens": answer.usage.input}
        return orjson.dumps(result)

    def stream(self, answer: Answer) -> Iterator[Chunk]:
        """The same in one piece."""
        yield Chunk(self.unary(answer))

    def stream_error(self, dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
        """The plain error body."""
        return error_body(dialect, refusal, request_id)


def _inputs(body: Body) -> Sequence[str | list[int]]:
    value = body.get("input")
    if value is None:
        raise fields.missing("input")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise Refusal(HTTPStatus.BAD_REQUEST, "'$.input' is invalid. Please check the API reference.", param="input")
    if all(isinstance(item, int) for item in value):
        return [value]
    if len(value) > _MOST_INPUTS:
        message = f"Invalid 'input': maximum context length is {_MOST_INPUTS} items."
        raise fields.bad_request(message, param="input", code="array_above_max_length")
    for item in value:
        if not isinstance(item, str) and not (isinstance(item, list) and all(isinstance(one, int) for one in item)):
            raise Refusal(
                HTTPStatus.BAD_REQUEST, "'$.input' is invalid. Please check the API reference.", param="input"
            )
    return value


def _vector(model: str, item: str | list[int], length: int) -> array[float]:
    """A unit vector of `length` 32-bit floats, little-endian on every machine this runs on."""
    seed = model.encode() + b"\0" + (item.encode() if isinstance(item, str) else repr(item).encode())
    drawn = array("h", hashlib.shake_128(seed).digest(2 * length))
    norm = math.sqrt(sum(value * value for value in drawn)) or 1.0
    return array("f", [value / norm for value in drawn])
