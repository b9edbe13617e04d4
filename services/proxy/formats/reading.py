"""Owns what all formats read of a request's JSON in the same way: the object itself, and fields that must be right."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from services import rating
from services.kit.validation import Violations
from services.proxy.errors import ToolNotPriced
from services.proxy.formats import tokens

MAX_MODEL_CHARS = 200
MAX_CAP = 2**31 - 1
MAX_CHOICES = 128
# What one request may have of each: a body of ten megabytes could otherwise hold millions, and keep everyone waiting.
MAX_MESSAGES = 5_000
MAX_PARTS = 5_000
MAX_TOOLS = 1_000
# What JSON is written with nests this deep; what it is read with, deeper.
_MAX_DEPTH = 250

# Google's tools that are billed by the model's own tokens alone. Any other, a search above all, is billed besides, or
# may be: those that Google adds are refused until it is known of them. Source: Gemini API, "Pricing for tools".
GOOGLES_READING_TOOLS = frozenset({"urlContext", "codeExecution", "fileSearch"})
_GOOGLES_PLAIN_TOOLS = GOOGLES_READING_TOOLS | {"functionDeclarations", "computerUse"}
# The versions of a tool: computer_20251124, web_search_preview_2025_03_11.
_VERSION = re.compile("_20[0-9]{2}_?[0-9]{2}_?[0-9]{2}$")
_SNAKE = re.compile("_([a-z])")
_MAX_TOOL_NAME_CHARS = 100

# Names of price tiers, as asked for and answered. `auto` and `default` leave the choice to the provider, which says in
# its answer what it chose.
_TIERS = {
    "auto": rating.STANDARD,
    "default": rating.STANDARD,
    "standard": rating.STANDARD,
    "standard_only": rating.STANDARD,
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",  # OpenAI's other name for it
    "batch": "batch",
}


def json_object(violations: Violations, raw: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises InvalidArgument where it is none, or nests too deep."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        violations.add("body", f"is not JSON: {error.msg} at character {error.pos}")
        body = {}
    if not isinstance(body, dict):
        violations.add("body", "must be a JSON object")
    elif raw.count(b"[") + raw.count(b"{") > _MAX_DEPTH:  # else it cannot be that deep
        try:
            orjson.dumps(body)
        except orjson.JSONEncodeError:
            violations.add("body", f"must not be nested more than {_MAX_DEPTH} levels deep")
    violations.raise_if_any()
    found: dict[str, Any] = body
    return found


def model_name(violations: Violations, value: Any) -> str:
    """The name of a model; a violation of `model` where it is none."""
    if value is None or value == "":
        violations.add("model", "is required")
    elif not isinstance(value, str):
        violations.add("model", "must be a string")
    else:
        return violations.text("model", value, max_length=MAX_MODEL_CHARS)
    return ""


def body_and_model(violations: Violations, raw: bytes, instead: str) -> tuple[dict[str, Any], str]:
    """A body and the model that it names; `instead`, where it is not empty, takes that one's place in it.

    Raises InvalidArgument where the body is no JSON object; a violation of `model` where it names none.
    """
    body = json_object(violations, raw)
    if instead:
        body["model"] = instead
    return body, model_name(violations, body.get("model"))


def boolean(violations: Violations, body: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false, or missing."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        violations.add(name, "must be true or false")
    return value is True


def integer(
    violations: Violations, body: Mapping[str, Any], name: str, most: int, *, at: str = "", least: int = 1
) -> int | None:
    """A field that is an integer from `least` to `most`, or missing; `at` is the path to it."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        violations.add(at + name, "must be an integer")
        return None
    return violations.between(at + name, value, least, most)


def mapping(violations: Violations, body: Mapping[str, Any], name: str, *, at: str = "") -> Mapping[str, Any]:
    """A field that is an object, or missing; `at` is the path to it."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        violations.add(at + name, "must be an object")
        return {}
    return value


def count_image(count: tokens.InputCount, url: object) -> None:
    """Count an image by its address. A `data:` URL may bring along something else: Google takes films and documents."""
    start = url.lstrip()[: len("data:image/")].lower() if isinstance(url, str) else ""
    if not start.startswith("data:") or start == "data:image/":
        count.image(url)
    else:
        count.file(url)
        count.has_audio |= start == "data:audio/"


def refuse_billed_tools(tools: object, plain: Collection[str]) -> None:
    """Raise ToolNotPriced for a tool that the provider runs and bills by itself, or may.

    `plain` are the types, without their versions, of those that the model's tokens pay for; a tool without a type is
    one that the client runs. Those that a provider adds are refused until it is known of them. A tool may be a group of
    others.
    """
    for tool in tools if isinstance(tools, list) else (tools,):
        if not isinstance(tool, dict):
            continue
        kind = tool.get("type")
        if kind is not None and _VERSION.sub("", str(kind)) not in plain:
            raise not_priced(str(kind))
        if isinstance(tool.get("tools"), list):
            refuse_billed_tools(tool["tools"], plain)


def refuse_googles_billed_tools(tools: object) -> None:
    """Raise ToolNotPriced for a tool of Google's that it bills by itself, or may."""
    for tool in tools if isinstance(tools, list) else (tools,):
        for name in googles_tools(tool):
            if name not in _GOOGLES_PLAIN_TOOLS:
                raise not_priced(name)


def googles_tools(tool: object) -> list[str]:
    """The names of Google's tools in one entry of the tools, as proto JSON spells them by itself: its fields."""
    return [_SNAKE.sub(lambda found: found[1].upper(), name) for name in tool] if isinstance(tool, dict) else []


def not_priced(name: str) -> ToolNotPriced:
    """The refusal of something that is billed by more than the request shows."""
    name = name[:_MAX_TOOL_NAME_CHARS]
    return ToolNotPriced(f"{name} is billed by more than the request shows, so it has no price here", tool=name)


def service_tier(violations: Violations, body: Mapping[str, Any]) -> str:
    """The price tier that `service_tier` asks for. One that is not known has no price, so it is refused."""
    value = body.get("service_tier")
    if value is None:
        return rating.STANDARD
    tier = _TIERS.get(value) if isinstance(value, str) else None
    if tier is None:
        violations.add("service_tier", f"must be one of {', '.join(_TIERS)}")
    return tier or rating.STANDARD


def answered_tier(value: object) -> str | None:
    """The price tier that an answer names; None where it names none that is known."""
    return _TIERS.get(value) if isinstance(value, str) else None
