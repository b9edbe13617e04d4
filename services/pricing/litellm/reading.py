"""Owns the reading of a price map's JSON: strict, exact decimals, whole or not at all."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NoReturn

from services.rating import half_even

MAX_MAP_BYTES = 10 * 1024 * 1024
MAX_ENTRIES = 10_000  # as many as one publication takes
MAX_ENTRY_FIELDS = 500

# A nano for a million units is 10^-15 dollars for one unit.
_DOLLAR_DECIMALS = 15
_MAX_RATE = 2**63 - 1
_MAX_DIGITS = 50
_MAX_EXPONENT = 100


class PriceMapError(ValueError):
    """A price map that is refused whole; the message names the line, or the entry's key and the field."""


def read_entries(content: bytes) -> dict[str, dict[str, Any]]:
    """A map's entries by key, their numbers as integers or exact decimals. Raises PriceMapError."""
    if len(content) > MAX_MAP_BYTES:
        raise PriceMapError(f"is larger than {MAX_MAP_BYTES} bytes")
    found = _parsed(content)
    if not isinstance(found, dict) or not found:
        raise PriceMapError("is not a price map: it must be a JSON object of models by name")
    if len(found) > MAX_ENTRIES:
        raise PriceMapError(f"has {len(found)} entries, more than {MAX_ENTRIES}")
    for key, entry in found.items():
        if not isinstance(entry, dict):
            raise PriceMapError(f"{shown(key)}: must be an object, not {_json_type(entry)}")
        if len(entry) > MAX_ENTRY_FIELDS:
            raise PriceMapError(f"{shown(key)}: has more than {MAX_ENTRY_FIELDS} fields")
    return found


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(
            content.decode("utf-8-sig"),
            parse_float=Decimal,
            parse_constant=_no_number,
            object_pairs_hook=_distinct,
        )
    except PriceMapError:
        raise
    except UnicodeDecodeError as error:
        raise PriceMapError(f"is not UTF-8: byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise PriceMapError(f"is not JSON: {error.msg}, line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise PriceMapError("is not a price map: it is nested too deeply") from error
    except (ValueError, ArithmeticError) as error:
        raise PriceMapError("is not a price map: it has a number that is too long") from error


def is_number(value: object) -> bool:
    """Whether a value of a map is a number."""
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def nanos_per_million(dollars: int | Decimal, at: str) -> tuple[int, bool]:
    """The rate that so many dollars for one unit are, and whether it is exact.

    A rate is a whole number of nanos for a million units, which is 15 decimals of a dollar. The map has prices with
    more, such as 4.5000000000000003e-07, left over from somebody's float arithmetic: those are rounded to the nearest,
    half-even. A price that would be rounded to nothing is refused: it would be free by mistake.
    Raises PriceMapError, naming `at`, for a negative price, and one that no rate can hold.
    """
    value = Decimal(dollars)
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int), "infinity and NaN are not read"
    if value < 0:
        raise PriceMapError(f"{at}: must not be negative")
    if not value:
        return 0, True
    if len(digits) > _MAX_DIGITS or abs(exponent) > _MAX_EXPONENT:
        raise PriceMapError(f"{at}: is out of range")
    coefficient = int("".join(map(str, digits)))
    shift = exponent + _DOLLAR_DECIMALS
    if shift >= 0:
        rate, exact = coefficient * 10**shift, True
    else:
        rate, exact = half_even(coefficient, 10**-shift), coefficient % 10**-shift == 0
    if not 0 < rate <= _MAX_RATE:
        raise PriceMapError(f"{at}: is out of range")
    return rate, exact


def shown(text: str) -> str:
    """Text of a map as it may stand in a message: short, and without control characters."""
    printable = "".join(char if char.isprintable() else "?" for char in text[:200])
    return printable + ("…" if len(text) > len(printable) else "")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise PriceMapError(f"{shown(name)}: stands twice in the same object")
            seen.add(name)
    return found


def _no_number(name: str) -> NoReturn:
    raise PriceMapError(f"is not JSON: {name} is no number")


def _json_type(value: object) -> str:
    names = {str: "a text", bool: "a boolean", list: "a list", type(None): "null"}
    return names.get(type(value), "a number")
