"""Owns what Bedrock refuses of a conversation: turns out of order, blank texts, tools without their results.

The constraints are those of the Bedrock API reference (Converse), the messages those that Bedrock gives.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from deploy.local.sandbox.provider.refusal import Refusal
from deploy.local.sandbox.provider.wire.base import Body

_IMAGE_FORMATS: Final = ("gif", "jpeg", "png", "webp")
_FIRST: Final = (
    "A conversation must start with a user message. Try again with a conversation that starts with a user message."
)
_TURNS: Final = (
    "A conversation must alternate between user and assistant roles. Make sure the conversation alternates between user"
    " and assistant roles and try again."
)
_MEMBERS: Final = frozenset(
    {
        "text",
        "json",
        "image",
        "document",
        "video",
        "audio",
        "toolUse",
        "toolResult",
        "guardContent",
        "cachePoint",
        "reasoningContent",
        "citationsContent",
        "searchResult",
    }
)


def invalid(message: str) -> Refusal:
    """Bedrock's refusal of a request that is not valid."""
    return Refusal(HTTPStatus.BAD_REQUEST, message)


def check(body: Body) -> None:
    """Check a request whose messages have roles and content. Raises Refusal."""
    messages = body["messages"]
    if messages[0]["role"] != "user":
        raise invalid(_FIRST)
    asked: set[str] = set()
    uses_tools = False
    for index, message in enumerate(messages):
        if index and message["role"] == messages[index - 1]["role"]:
            raise invalid(_TURNS)
        results, uses = set(), set()
        for number, block in enumerate(message["content"]):
            place = f"messages.{index}.content.{number}"
            _check_block(place, block)
            if "toolUse" in block:
                uses.add(str(_object(block, "toolUse").get("toolUseId")))
            if "toolResult" in block:
                result = _object(block, "toolResult")
                results.add(str(result.get("toolUseId")))
                for inner, part in enumerate(result.get("content") or ()):
                    _check_block(f"{place}.toolResult.content.{inner}", part)
        _check_results(index, asked, results)
        asked = uses
        uses_tools |= bool(results or uses)
    tool_config = body.get("toolConfig")
    if uses_tools and not tool_config:
        raise invalid("The toolConfig field must be defined when using toolUse and toolResult content blocks.")
    if tool_config is not None and not tool_config.get("tools"):
        raise invalid("Value at 'toolConfig.tools' failed to satisfy constraint: Member must have length of at least 1")
    _check_config(body.get("inferenceConfig") or {})


def _object(holder: Body, name: str) -> Mapping[str, Any]:
    value = holder.get(name)
    if isinstance(value, Mapping):
        return value
    raise Refusal(HTTPStatus.BAD_REQUEST, f"Unexpected type for field {name}.", code="SerializationException")


def _check_block(place: str, block: Body) -> None:
    if len(block.keys() & _MEMBERS) != 1:
        raise invalid(f"The value at {place} must have exactly one of the members of a content block.")
    if "text" in block and not str(block["text"] or "").strip():
        message = f"The text field in the ContentBlock object at {place} is blank."
        raise invalid(f"{message} Add text to the text field, and try again.")
    if "image" in block and _object(block, "image").get("format") not in _IMAGE_FORMATS:
        raise invalid(f"Value at '{place}.image.format' failed to satisfy enum value set: [gif, jpeg, png, webp]")
    for name in ("image", "document"):
        source = _object(block, name).get("source") if name in block else None
        if isinstance(source, Mapping) and "bytes" in source:
            _check_bytes(f"{place}.{name}.source.bytes", source["bytes"])


def _check_bytes(place: str, data: object) -> None:
    try:
        whole = b64decode(str(data), validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"The value at {place} is not base64."
        raise Refusal(HTTPStatus.BAD_REQUEST, message, code="SerializationException") from error
    if not whole:
        raise invalid(f"Value at '{place}' failed to satisfy constraint: Member must have length of at least 1")


def _check_results(index: int, asked: set[str], given: set[str]) -> None:
    """Tools that were asked for in one turn have their results in the next, and no others have."""
    place = f"messages.{index}.content"
    if asked - given:
        missing = ", ".join(sorted(asked - given))
        raise invalid(f"Expected toolResult blocks at {place} for the following Ids: {missing}")
    if given - asked:
        raise invalid(
            f"The number of toolResult blocks at {place} exceeds the number of toolUse blocks of previous turn."
        )


def _check_config(config: Body) -> None:
    for name in ("temperature", "topP"):
        value = config.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise invalid(
                f"1 validation error detected: Value '{value}' at 'inferenceConfig.{name}' failed to satisfy"
                " constraint: Member must have value between 0 and 1"
            )
