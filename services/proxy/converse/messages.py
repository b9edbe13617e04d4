"""Owns the conversation: OpenAI's messages and parts as Converse's system prompt, turns and content blocks."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from services.kit.validation import Violations

Block = dict[str, Any]

_SYSTEM_ROLES = frozenset({"system", "developer"})
_ROLES = (*sorted(_SYSTEM_ROLES), "user", "assistant", "tool")
# Read, or of no meaning to a model on Bedrock: names, and what an answer of ours says beside its content.
_MESSAGE_FIELDS = frozenset(
    {
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "refusal",
        "annotations",
        "reasoning_content",
        "reasoning_blocks",
    }
)
_REASONING_MEMBERS = ("reasoningText", "redactedContent")

_IMAGE_FORMATS = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "gif": "gif", "webp": "webp"}
_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_PDF = "application/pdf"

TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
TOOL_NAME_RULE = "must be 1 to 64 of A-Z a-z 0-9 _ -"
_TOOL_USE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_TOOL_USE_ID_RULE = "must be 1 to 64 of A-Z a-z 0-9 _ . : -"
# Converse puts them some levels deeper, and a body can be written 254 deep.
_MAX_ARGUMENT_DEPTH = 200

_NOT_OF_DOCUMENT_NAME = re.compile(r"[^A-Za-z0-9()\[\] -]+")
_MAX_DOCUMENT_NAME_CHARS = 150

# OpenAI keeps what a breakpoint names at least so long; of Bedrock's ages the least that is as long.
_TTL_OF_BREAKPOINT = {None: None, "30m": "1h"}
_TTL_OF_CACHE_CONTROL = {None: None, "5m": "5m", "1h": "1h"}


class Conversation:
    """The system prompt and the turns of a request; what is wrong with its messages is added to `violations`.

    Roles must alternate in Converse, so neighbours of one role are one turn; the results of tools are the user's. The
    system prompt stands before the turns, so that a system message in their midst moves there. Converse refuses blank
    texts: they are left out, and with them what else says nothing, but for a user's message, which is refused.
    """

    def __init__(self, violations: Violations) -> None:
        self.system: list[Block] = []
        self.turns: list[Block] = []
        self.has_tool_blocks = False
        self._violations = violations
        self._document_names: set[str] = set()

    def read(self, messages: object) -> None:
        """Read `messages` of a request."""
        if not isinstance(messages, list) or not messages:
            self._violations.add("messages", "is required: a list of at least one message")
            return
        for number, message in enumerate(messages):
            field = f"messages[{number}]"
            if not isinstance(message, dict):
                self._violations.add(field, "must be an object")
                continue
            for name in message.keys() - _MESSAGE_FIELDS:
                if message[name]:
                    self._violations.add(f"{field}.{name}", "has no place in Bedrock's Converse")
            self._read(field, message)
        if not self.turns and not any(wrong.field.startswith("messages[") for wrong in self._violations.found):
            self._violations.add("messages", "must have a message that is not the system's")

    def _read(self, field: str, message: Mapping[str, Any]) -> None:
        match message.get("role"):
            case "system" | "developer":
                self.system += self._blocks(field, message, images=False)
            case "user":
                blocks = self._blocks(field, message)
                if all("cachePoint" in block for block in blocks):
                    self._violations.add(f"{field}.content", "must not be empty")
                self._turn("user", blocks)
            case "assistant":
                self._turn("assistant", self._assistant(field, message))
            case "tool":
                self._turn("user", [self._tool_result(field, message)])
            case _:
                self._violations.add(f"{field}.role", f"must be one of {', '.join(_ROLES)}")

    def _turn(self, role: str, blocks: list[Block]) -> None:
        if self.turns and self.turns[-1]["role"] == role:
            self.turns[-1]["content"] += blocks
        elif blocks:
            self.turns.append({"role": role, "content": blocks})

    def _assistant(self, field: str, message: Mapping[str, Any]) -> list[Block]:
        blocks = list(self._reasoning(f"{field}.reasoning_blocks", message.get("reasoning_blocks")))
        blocks += self._blocks(field, message, images=False)
        refusal = message.get("refusal")
        if isinstance(refusal, str) and refusal.strip():
            blocks.append({"text": refusal})
        calls = message.get("tool_calls") or ()
        if not isinstance(calls, list | tuple):
            self._violations.add(f"{field}.tool_calls", "must be a list")
            calls = ()
        for number, call in enumerate(calls):
            self.has_tool_blocks = True
            blocks.append(self._tool_use(f"{field}.tool_calls[{number}]", call))
        return blocks

    def _reasoning(self, field: str, given: object) -> Iterator[Block]:
        """What the model thought, as an answer of ours gave it: Claude wants it back with the results of its tools."""
        if given is None:
            return
        for number, block in enumerate(given if isinstance(given, list) else [given]):
            inner = {key: block[key] for key in _REASONING_MEMBERS if key in block} if isinstance(block, dict) else {}
            if len(inner) != 1:
                self._violations.add(f"{field}[{number}]", f"must have one of {', '.join(_REASONING_MEMBERS)}")
            yield {"reasoningContent": inner}

    def _tool_use(self, field: str, call: object) -> Block:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict):
            self._violations.add(field, "must be the call of a function")
            return {}
        name = function.get("name")
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            self._violations.add(f"{field}.function.name", TOOL_NAME_RULE)
        arguments = self._arguments(f"{field}.function.arguments", function.get("arguments"))
        return {
            "toolUse": {"toolUseId": self._tool_use_id(f"{field}.id", call.get("id")), "name": name, "input": arguments}
        }

    def _tool_use_id(self, field: str, identifier: object) -> object:
        if not isinstance(identifier, str) or not _TOOL_USE_ID.fullmatch(identifier):
            self._violations.add(field, _TOOL_USE_ID_RULE)
        return identifier

    def _arguments(self, field: str, text: object) -> object:
        if text is None or text == "":
            return {}
        try:
            arguments = orjson.loads(text) if isinstance(text, str) else None
        except orjson.JSONDecodeError:
            arguments = None
        if not isinstance(arguments, dict):
            self._violations.add(field, "must be a JSON object, as a string")
        elif not nests_within(arguments, _MAX_ARGUMENT_DEPTH):
            self._violations.add(field, f"must not be nested more than {_MAX_ARGUMENT_DEPTH} levels deep")
        return arguments

    def _tool_result(self, field: str, message: Mapping[str, Any]) -> Block:
        self.has_tool_blocks = True
        identifier = self._tool_use_id(f"{field}.tool_call_id", message.get("tool_call_id"))
        # A tool may have nothing to say: Converse takes a result without content.
        return {"toolResult": {"toolUseId": identifier, "content": self._blocks(field, message, cache=False)}}

    def _blocks(
        self, field: str, message: Mapping[str, Any], *, images: bool = True, cache: bool = True
    ) -> list[Block]:
        content, field = message.get("content"), f"{field}.content"
        if content is None:
            return []
        if isinstance(content, str):
            return [{"text": content}] if content.strip() else []
        if not isinstance(content, list):
            self._violations.add(field, "must be a string or a list of parts")
            return []
        blocks: list[Block] = []
        for number, part in enumerate(content):
            at = f"{field}[{number}]"
            if not isinstance(part, dict):
                self._violations.add(at, "must be an object")
                continue
            blocks += self._part(at, part, images=images)
            point = cache_point(self._violations, at, part)
            if point is not None:
                blocks.append(point)
                if not cache:
                    self._violations.add(at, "cannot have a cache point inside a tool's result")
        return blocks

    def _part(self, field: str, part: Mapping[str, Any], *, images: bool) -> list[Block]:
        kind = part.get("type")
        if isinstance(kind, str) and kind in {"text", "refusal"}:
            text = part.get(kind)
            if not isinstance(text, str):
                self._violations.add(f"{field}.{kind}", "must be a string")
                return []
            return [{"text": text}] if text.strip() else []
        if kind == "image_url" and images:
            return [self._image(f"{field}.image_url", part.get("image_url"))]
        if kind == "file" and images:
            return [self._document(f"{field}.file", part.get("file"))]
        if kind is None and "cachePoint" in part:
            return []
        self._violations.add(f"{field}.type", f"{kind!r} cannot be said in Bedrock's Converse here"[:200])
        return []

    def _image(self, field: str, image: object) -> Block:
        url = image.get("url") if isinstance(image, dict) else image
        found = _data(url)
        if found is None:
            self._violations.add(f"{field}.url", "must be a data URL in base64: Bedrock fetches no addresses")
            return {}
        media_type, data = found
        kind, _, subtype = media_type.partition("/")
        if kind != "image" or subtype not in _IMAGE_FORMATS:
            self._violations.add(f"{field}.url", "must be an image in png, jpeg, gif or webp")
            return {}
        self._base64(f"{field}.url", data)
        return {"image": {"format": _IMAGE_FORMATS[subtype], "source": {"bytes": data}}}

    def _document(self, field: str, file: object) -> Block:
        if not isinstance(file, dict):
            self._violations.add(field, "must be an object")
            return {}
        if file.get("file_id"):
            self._violations.add(f"{field}.file_id", "is OpenAI's own; send `file_data`")
        found = _data(file.get("file_data"))
        if found is None or found[0] != _PDF:
            self._violations.add(f"{field}.file_data", f"must be a data URL of {_PDF} in base64")
            return {}
        self._base64(f"{field}.file_data", found[1])
        name = self._document_name(file.get("filename"))
        return {"document": {"format": "pdf", "name": name, "source": {"bytes": found[1]}}}

    def _document_name(self, filename: object) -> str:
        """A name of the characters that Bedrock allows, no other document's: the file's own as far as it goes."""
        stem = filename.removesuffix(".pdf") if isinstance(filename, str) else ""
        plain = " ".join(_NOT_OF_DOCUMENT_NAME.sub(" ", stem).split())[:_MAX_DOCUMENT_NAME_CHARS].strip() or "document"
        name, number = plain, 1
        while name in self._document_names:
            number += 1
            name = f"{plain} {number}"
        self._document_names.add(name)
        return name

    def _base64(self, field: str, data: str) -> None:
        try:
            whole = bool(base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError):
            whole = False
        if not whole:
            self._violations.add(field, "is not base64, or of nothing")


def cache_point(violations: Violations, field: str, holder: Mapping[str, Any]) -> Block | None:
    """The cache point after a part or tool, in any of three forms; None where there is none.

    Bedrock's own `cachePoint`, passed as it is; OpenAI's `prompt_cache_breakpoint`; Anthropic's `cache_control`.
    """
    point = holder.get("cachePoint")
    if point is not None:
        if not isinstance(point, dict):
            violations.add(f"{field}.cachePoint", "must be an object")
        return {"cachePoint": point}
    for name, ages in (("prompt_cache_breakpoint", _TTL_OF_BREAKPOINT), ("cache_control", _TTL_OF_CACHE_CONTROL)):
        asked = holder.get(name)
        if asked is None:
            continue
        ttl = asked.get("ttl") if isinstance(asked, dict) else None
        if not isinstance(asked, dict) or not (ttl is None or (isinstance(ttl, str) and ttl in ages)):
            allowed = ", ".join(age for age in ages if age)
            violations.add(f"{field}.{name}", f"must be an object, its ttl none or one of {allowed}")
            return None
        age = ages[ttl]
        return {"cachePoint": {"type": "default"} | ({"ttl": age} if age else {})}
    return None


def nests_within(value: object, levels: int) -> bool:
    """Whether objects and lists are nested at most so deep. Looks level by level, so that no depth is too much."""
    level = [value]
    for _ in range(levels + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return True
        level = inner
    return False


def _data(url: object) -> tuple[str, str] | None:
    """The media type of a data URL and its base64; None for any other text."""
    match = _DATA_URL.match(url) if isinstance(url, str) else None
    return (match[1].lower(), url[match.end() :]) if match and isinstance(url, str) else None
