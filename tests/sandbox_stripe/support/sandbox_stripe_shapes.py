"""Owns the comparison of an answer with the library's own types: what must be there is, with the type it has."""

from __future__ import annotations

import decimal
import functools
import sys
import types
import typing
from importlib import import_module
from typing import Any, Literal, Union

from stripe import StripeObject
from stripe._list_object import ListObject
from stripe._object_classes import OBJECT_CLASSES

# Fields that the library types as always there and Stripe leaves out of objects of kinds that do not have them.
_SELDOM = {("subscription_item", "billed_until"), ("subscription", "managed_payments")}


def problems(answer: Any, path: str = "") -> list[str]:
    """Everything about a JSON answer that the library's types do not allow."""
    module, name = OBJECT_CLASSES[answer["object"]]
    kind = getattr(import_module(module), name)
    return _object(answer, kind, path or answer["object"])


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, StripeObject) and base is not StripeObject:
            for name, hint in vars(base).get("__annotations__", {}).items():
                if not name.startswith("_") and name.islower():
                    found[name] = (hint, base)
    return found


def _object(value: Any, kind: Any, path: str) -> list[str]:
    found = []
    for name, (hint, base) in _fields(kind).items():
        options = _options(_resolve(hint, base))
        if name not in value:
            if type(None) not in options and (value.get("object"), name) not in _SELDOM:
                found.append(f"{path}.{name} is missing")
            continue
        found += _value(value[name], options, base, f"{path}.{name}")
    return found


def _resolve(hint: Any, base: Any) -> Any:
    """A hint with its names looked up where its class is defined; what only type checkers import counts as anything."""
    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if not isinstance(hint, str):
        return hint
    scope = {**vars(sys.modules[base.__module__]), **vars(base)}
    try:
        return eval(hint, scope)
    except (NameError, TypeError):
        return Any


def _options(hint: Any) -> list[Any]:
    if isinstance(hint, typing.ForwardRef | str):
        return [Any]
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [option for part in typing.get_args(hint) for option in _options(part)]
    return [hint]


def _value(value: Any, options: list[Any], base: Any, path: str) -> list[str]:
    options = [part for option in options for part in _options(_resolve(option, base))]
    if Any in options or (value is None and type(None) in options):
        return []
    if value is None:
        return [f"{path} is null"]
    tried: list[list[str]] = [_as(value, option, base, path) for option in options if option is not type(None)]
    return min(tried, key=len)


def _as(value: Any, option: Any, base: Any, path: str) -> list[str]:
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return [] if value in arguments else [f"{path} is {value!r}, not one of {arguments}"]
    if origin in (list, typing.List):  # noqa: UP006
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [p for i, member in enumerate(value) for p in _value(member, [arguments[0]], base, f"{path}[{i}]")]
    if option is ListObject or origin is ListObject:
        return [p for i, member in enumerate(value["data"]) for p in problems(member, f"{path}.data[{i}]")]
    if isinstance(option, type) and issubclass(option, StripeObject):
        return _object(value, option, path) if isinstance(value, dict) else [f"{path} is no object: {value!r}"]
    return _scalar(value, option, path)


def _scalar(value: Any, option: Any, path: str) -> list[str]:
    taken = {str: (str,), int: (int,), bool: (bool,), float: (int, float), decimal.Decimal: (str, int, float)}.get(
        option
    )
    if taken is None:
        return []
    fits = isinstance(value, taken) and (option is bool or not isinstance(value, bool))
    return [] if fits else [f"{path} is {value!r}, not {option.__name__}"]
