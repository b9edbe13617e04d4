"""Owns sample values: for a JSON schema, one fixed value that follows it.

Tool arguments and structured answers are made of these. A schema comes from the client, so nothing in it is trusted:
what makes no sense is taken as not there, and neither recursion nor a length can make the value large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Schema = Mapping[str, Any]

_DEEPEST: Final = 12
_MOST_VALUES: Final = 500
_LONGEST: Final = 1000
_MOST_ITEMS: Final = 50

_STRINGS: Final = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "email": "sandbox@example.com",
    "uri": "https://example.com/sandbox",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def sample(schema: Any) -> Any:
    """One value that follows `schema`, always the same: required properties only, unless none is required."""
    root = _object(schema)
    return _Sampler(root).value(root, 0)


class _Sampler:
    """Draws the sample of one schema, which its parts may refer back to."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._left = _MOST_VALUES

    def value(self, schema: Schema, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            return None  # it refers to itself without end
        fixed = [schema[name] for name in ("const", "default") if name in schema] or _list(schema.get("enum"))
        if fixed:
            return fixed[0]
        branch = self._branch(schema)
        if branch is not None:
            return self.value(branch, depth + 1)
        match _type(schema):
            case "object":
                return self._object(schema, depth)
            case "array":
                length = min(max(1, _whole(schema.get("minItems"), 1)), _MOST_ITEMS)
                return [self.value(_object(schema.get("items")), depth + 1)] * length
            case kind:
                return _scalar(kind, schema)

    def _branch(self, schema: Schema) -> Schema | None:
        """The schema this one stands for: what it refers to, its first alternative, or all its parts put together."""
        reference = schema.get("$ref")
        if isinstance(reference, str):
            target: Any = self._root
            for part in reference.removeprefix("#/").split("/"):
                target = _object(target).get(part)
            return _object(target)
        for alternatives in ("anyOf", "oneOf"):
            if _list(schema.get(alternatives)):
                return _object(schema[alternatives][0])
        parts = _list(schema.get("allOf"))
        return self._together(parts) if parts else None

    def _together(self, parts: Sequence[Any]) -> Schema:
        properties: dict[str, Any] = {}
        required: list[Any] = []
        for part in parts:
            whole = _object(part)
            if "$ref" in whole:
                whole = self._branch(whole) or {}
            properties |= _object(whole.get("properties"))
            required += _list(whole.get("required"))
        return {"type": "object", "properties": properties, "required": required}

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        properties = _object(schema.get("properties"))
        names = [name for name in _list(schema.get("required")) if isinstance(name, str)] or list(properties)
        return {name: self.value(_object(properties.get(name, {"type": "string"})), depth + 1) for name in names}


def _object(value: Any) -> Schema:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(value: Any, usual: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else usual


def _type(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if kind is None:
        return "object" if "properties" in schema or not schema else "string"
    return str(kind).lower()  # Gemini writes types in capitals


def _scalar(kind: str, schema: Schema) -> Any:
    match kind:
        case "string":
            text = _STRINGS.get(str(schema.get("format")), "sandbox")
            return text.ljust(min(_whole(schema.get("minLength"), 0), _LONGEST), "x")
        case "integer":
            return _whole(schema.get("minimum"), 1)
        case "number":
            least = schema.get("minimum")
            return least if isinstance(least, int | float) else 1.5
        case "boolean":
            return True
        case _:
            return None
