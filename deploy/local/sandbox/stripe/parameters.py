"""Owns reading a request's parameters: nested form keys, and the check against the library's own typed parameters."""

from __future__ import annotations

import functools
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, Union

import typing_extensions
from stripe._request_options import RequestOptions

from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid, not_built

_MOST_PAIRS: Final = 5000
_DEEPEST: Final = 8
_KEY: Final = re.compile(r"^([^\[\]]+)((?:\[[^\[\]]*\])*)$")
_OPTIONS: Final = frozenset(RequestOptions.__annotations__)
_LARGEST_INTEGER: Final = 2**63 - 1
_MOST_WORDS: Final = 20


def decode(pairs: Iterable[tuple[str, str]]) -> Obj:
    """The nested parameters that form keys such as `items[0][price]` spell.

    Raises:
        Refusal: a key is malformed or contradicts another, or there are too many.
    """
    root: Obj = {}
    for count, (key, value) in enumerate(pairs):
        match = _KEY.match(key)
        if match is None or count >= _MOST_PAIRS:
            raise invalid(f"Invalid request: {'too many parameters' if match else f'malformed key {key!r}'}")
        names = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
        if len(names) > _DEEPEST:
            raise invalid(f"Invalid request: {key!r} is nested too deeply")
        _place(root, names, value)
    return root


def _place(root: Obj, names: Sequence[str], value: str) -> None:
    node = root
    for name in names[:-1]:
        below = node.setdefault(name or str(len(node)), {})
        if not isinstance(below, dict):
            raise invalid(f"Invalid request: {name!r} is given both as a value and as an object")
        node = below
    node[names[-1] or str(len(node))] = value


def check(given: Obj, kind: Any) -> Obj:
    """`given` with its values as the typed dictionary `kind` says: int, bool, Decimal, lists.

    Raises:
        Refusal: a parameter is unknown, missing, empty or of another type.
    """
    return _object(given, kind, "")


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    """The fields of a typed dictionary with their types, without the library's request options."""
    own = {name: hint for name, hint in kind.__annotations__.items() if name not in _OPTIONS}
    module = vars(sys.modules[kind.__module__])
    return typing_extensions.get_type_hints(types.SimpleNamespace(__annotations__=own), globalns=module)


def _object(given: Mapping[str, Any], kind: Any, path: str) -> Obj:
    fields = _fields(kind)
    unknown = [_join(path, name) for name in given if name not in fields]
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        raise invalid(f"Received unknown parameter{plural}: {', '.join(unknown)}", unknown[0], "parameter_unknown")
    for name in fields:
        if name in kind.__required_keys__ and name not in given:
            where = _join(path, name)
            raise invalid(f"Missing required param: {where}.", where, "parameter_missing")
    return {name: _value(value, fields[name], _join(path, name)) for name, value in given.items()}


def _join(path: str, name: str) -> str:
    return f"{path}[{name}]" if path else name


class _Choice(typing.NamedTuple):
    """What one parameter may be."""

    words: tuple[str, ...]  # the values of an enumeration
    scalars: frozenset[Any]
    listed: Any  # the type of a list's members, or None
    mapped: Any  # the type of a free mapping's values, or None
    typed: Any  # a typed dictionary, or None


@functools.cache
def _choice(kind: Any) -> _Choice:
    words: list[str] = []
    scalars: set[Any] = set()
    listed = mapped = typed = None
    for option in _options(kind):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is Literal:
            words.extend(str(word) for word in arguments if isinstance(word, str))
        elif origin is list:
            listed = arguments[0]
        elif origin is dict:
            mapped = arguments[1]
        elif typing_extensions.is_typeddict(option):
            typed = option
        elif option in (str, int, bool, float, Decimal):
            scalars.add(option)
    return _Choice(tuple(words), frozenset(scalars), listed, mapped, typed)


def _options(kind: Any) -> Iterable[Any]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        for option in typing.get_args(kind):
            yield from _options(option)
    else:
        yield kind


def _value(value: Any, kind: Any, path: str) -> Any:
    choice = _choice(kind)
    if isinstance(value, str):
        return _scalar(value, choice, path)
    if choice.listed is not None and isinstance(value, (dict, list)):
        members = value if isinstance(value, list) else _members(value, path)
        return [_value(member, choice.listed, f"{path}[{index}]") for index, member in enumerate(members)]
    if isinstance(value, dict) and choice.typed is not None:
        return _object(value, choice.typed, path)
    if isinstance(value, dict) and choice.mapped is not None:
        return {name: _mapped(below, choice.mapped, f"{path}[{name}]") for name, below in value.items()}
    raise invalid(f"Invalid {_expected(choice)}: {_shown(value)}", path)


def _members(value: Mapping[str, Any], path: str) -> list[Any]:
    if not all(name.isascii() and name.isdigit() for name in value):
        raise invalid("Invalid array", path)
    return [value[name] for name in sorted(value, key=int)]


def _mapped(value: Any, kind: Any, path: str) -> Any:
    if kind is str and value == "":
        return ""  # an empty value takes a key away
    return _value(value, kind, path)


def _expected(choice: _Choice) -> str:
    if choice.typed is not None or choice.mapped is not None:
        return "object"
    return "array" if choice.listed is not None else "string"


def _shown(value: Any) -> str:
    return str(value)[:80]


def _scalar(value: str, choice: _Choice, path: str) -> Any:
    if value in choice.words:
        return value
    if value == "":
        raise invalid(
            f"You passed an empty string for '{path}'. We assume empty values are an attempt to unset a value; "
            f"however '{path}' cannot be unset. You should remove '{path}' from your request or supply a "
            "non-empty value.",
            path,
            "parameter_invalid_empty",
        )
    for kind in (bool, int, Decimal, float):
        if kind in choice.scalars:
            return _number(value, kind, path)
    words = [word for word in choice.words if word]
    if words:
        raise invalid(f"Invalid {path}: must be one of {_spoken(words)}", path)
    if str not in choice.scalars:
        raise invalid(f"Invalid {_expected(choice)}", path)
    return value


def _number(value: str, kind: type, path: str) -> Any:
    if kind is bool:
        if value not in ("true", "false"):
            raise invalid(f"Invalid boolean: {_shown(value)}", path)
        return value == "true"
    if kind is int:
        if not re.fullmatch(r"-?[0-9]{1,19}", value) or abs(int(value)) > _LARGEST_INTEGER:
            raise invalid(f"Invalid integer: {_shown(value)}", path, "parameter_invalid_integer")
        return int(value)
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise invalid(f"Invalid decimal: {_shown(value)}", path)
    return number


def _spoken(words: Sequence[str]) -> str:
    if len(words) > _MOST_WORDS:
        words = [*words[:_MOST_WORDS], "…"]
    if len(words) == 1:
        return words[0]
    *first, last = words
    return f"{', '.join(first)}{',' if first[1:] else ''} or {last}"


def require_built(params: Obj, built: frozenset[str]) -> None:
    """Refuse what Stripe knows and the sandbox would otherwise silently ignore.

    `built` holds dotted names without list positions; a name covers all below it.

    Raises:
        Refusal: a parameter is not covered.
    """
    for path in _leaves(params, ()) if params else ():
        names = [name for name in path if not name.isdigit()]
        if not any(".".join(names[: length + 1]) in built for length in range(len(names))):
            spoken = path[0] + "".join(f"[{name}]" for name in path[1:])
            raise not_built(f"the parameter '{spoken}'", spoken)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _leaves(below, (*path, name))
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from _leaves(below, (*path, str(index)))
    else:
        yield path


_MOST_KEYS: Final = 50
_LONGEST_KEY: Final = 40
_LONGEST_VALUE: Final = 500


def merged_metadata(old: Mapping[str, str], given: Any) -> dict[str, str]:
    """`old` with `given` laid over it: an empty value takes its key away, an empty `given` all keys.

    Raises:
        Refusal: too many keys, or a key or a value is too long.
    """
    if given == "":
        return {}
    merged = {name: value for name, value in ({**old, **(given or {})}).items() if value != ""}
    if len(merged) > _MOST_KEYS:
        raise invalid(f"Metadata can have at most {_MOST_KEYS} keys.", "metadata")
    for name, value in merged.items():
        if len(name) > _LONGEST_KEY:
            raise Refusal(
                400,
                f"Metadata keys must be under {_LONGEST_KEY} characters. The key {name!r} has {len(name)} characters.",
                param="metadata",
                code="parameter_invalid_string_too_long",
            )
        if len(value) > _LONGEST_VALUE:
            raise invalid(
                f"Metadata values must be under {_LONGEST_VALUE} characters. "
                f"The value of the key {name!r} has {len(value)} characters.",
                f"metadata[{name}]",
                "parameter_invalid_string_too_long",
            )
    return merged
