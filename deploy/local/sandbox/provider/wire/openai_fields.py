"""Owns the reading of single fields of OpenAI's requests, refusing what is wrong in OpenAI's words and codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from deploy.local.sandbox.provider import tokens
from deploy.local.sandbox.provider.prompt import Tool
from deploy.local.sandbox.provider.refusal import Refusal
from deploy.local.sandbox.provider.wire.base import Body


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> Refusal:
    """A 400 about one field."""
    return Refusal(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def missing(param: str) -> Refusal:
    """The refusal for a required field that is not there."""
    return bad_request(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def wrong_type(param: str, expected: str, value: Any) -> Refusal:
    """The refusal for a field of the wrong JSON type; `expected` with its article."""
    message = f"Invalid type for '{param}': expected {expected}, but got {_kind(value)} instead."
    return bad_request(message, param=param, code="invalid_type")


def unsupported_value(param: str, value: Any, supported: Sequence[str]) -> Refusal:
    """The refusal for a word that is none of those the field may hold."""
    words = ", ".join(f"'{word}'" for word in supported)
    message = f"Invalid value: '{value}'. Supported values are: {words}."
    return bad_request(message, param=param, code="invalid_value")


def _kind(value: Any) -> str:  # noqa: PLR0911  (one return a case)
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def model(body: Body) -> str:
    """The required model name."""
    name = body.get("model")
    if name is None or name == "":
        raise bad_request("you must provide a model parameter")
    if not isinstance(name, str):
        raise wrong_type("model", "a string", name)
    return name


def integer(body: Body, param: str, low: int, high: int | None = None) -> int | None:
    """An optional whole number from `low` to `high`."""
    value = body.get(param)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(param, "an integer", value)
    if value < low:
        message = f"Invalid '{param}': integer below minimum value. Expected a value >= {low}, but got {value} instead."
        raise bad_request(message, param=param, code="integer_below_min_value")
    if high is not None and value > high:
        message = (
            f"Invalid '{param}': integer above maximum value. Expected a value <= {high}, but got {value} instead."
        )
        raise bad_request(message, param=param, code="integer_above_max_value")
    return value


def number(body: Body, param: str, low: float, high: float) -> None:
    """Check an optional number such as a temperature, which the sandbox does nothing with."""
    value = body.get(param)
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong_type(param, "a decimal number", value)
    if not low <= value <= high:
        message = f"Invalid '{param}': decimal out of range. Expected a value from {low} to {high}, but got {value}."
        raise bad_request(message, param=param, code="decimal_out_of_range")


def boolean(body: Body, param: str) -> bool:
    """An optional truth value, false where it is not there."""
    value = body.get(param)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong_type(param, "a boolean", value)
    return value


def table(body: Body, param: str) -> Body:
    """An optional object, empty where it is not there."""
    value = body.get(param)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong_type(param, "an object", value)
    return value


def rows(body: Body, param: str) -> list[Body]:
    """An optional array of objects, empty where it is not there."""
    value = body.get(param)
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_type(param, "an array of objects", value)
    for index, row in enumerate(value):
        if not isinstance(row, Mapping):
            raise wrong_type(f"{param}[{index}]", "an object", row)
    return value


def image_tokens(detail: Any) -> int:
    """Tokens of one image part."""
    return tokens.IMAGE_LOW_DETAIL if detail == "low" else tokens.IMAGE


def required_tool(choice: Any, tools: tuple[Tool, ...]) -> str | None:
    """The tool that `tool_choice` asks to be called: named, or the first where any will do; None where text will do."""
    if choice is None or choice in ("none", "auto"):
        return None
    if not tools:
        message = "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
        raise bad_request(message, param="tool_choice")
    if choice == "required":
        return tools[0].name
    if isinstance(choice, Mapping):
        if choice.get("type") == "allowed_tools":
            mode = choice.get("mode") or table(choice, "allowed_tools").get("mode")
            return tools[0].name if mode == "required" else None
        name = choice.get("name") or table(choice, "function").get("name")
        if any(tool.name == name for tool in tools):
            return str(name)
        raise bad_request(f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
    raise unsupported_value("tool_choice", choice, ("none", "auto", "required"))
