"""Owns checks of request fields: each collects what is wrong, one refusal then names all of it at once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sized
from datetime import UTC, datetime

from services.kit.errors import MAX_VIOLATIONS, Violation
from services.kit.refusals import InvalidArgument

MAX_IDENTIFIER_CHARS = 64
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")
_as_identifier = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:-]{{0,{MAX_IDENTIFIER_CHARS - 1}}}").fullmatch
_IDENTIFIER_RULE = "must be 1 to 64 of A-Z a-z 0-9 . _ : - and begin with a letter or digit"


def is_identifier(text: str) -> bool:
    """Whether `text` is a well-formed identifier (1 to 64 of `[A-Za-z0-9._:-]`, beginning with a letter or digit)."""
    return _as_identifier(text) is not None


class Violations:
    """Collects what is wrong with a request. Every check returns the value, so that it reads as an assignment.

    >>> v = Violations()
    >>> account_id = v.identifier("account_id", request.account_id)
    >>> v.raise_if_any()
    """

    def __init__(self) -> None:
        self.found: list[Violation] = []

    def add(self, field: str, description: str) -> None:
        """Note one violation. What is beyond the number a refusal can carry is dropped."""
        if len(self.found) < MAX_VIOLATIONS:
            self.found.append(Violation(field, description))

    def raise_if_any(self) -> None:
        """Raise InvalidArgument naming every field found wrong."""
        if self.found:
            raise InvalidArgument.naming(self.found)

    def identifier(self, field: str, value: str, *, required: bool = True) -> str:
        """An identifier; empty only where not required."""
        if not _as_identifier(value) and (value or required):
            self.add(field, _IDENTIFIER_RULE if value else f"is required; {_IDENTIFIER_RULE}")
        return value

    def text(self, field: str, value: str, *, max_length: int, required: bool = False) -> str:
        """Text of at most `max_length` characters without control characters (tab and line breaks are allowed)."""
        if required and not value.strip():
            self.add(field, "is required")
        elif len(value) > max_length:
            self.add(field, f"must be at most {max_length} characters, not {len(value)}")
        elif not value.isprintable() and any(
            unicodedata.category(char) == "Cc" and char not in "\t\n\r" for char in value
        ):
            self.add(field, "must not contain control characters")
        return value

    def positive(self, field: str, value: int) -> int:
        """An integer above zero."""
        if value <= 0:
            self.add(field, "must be greater than zero")
        return value

    def non_negative(self, field: str, value: int) -> int:
        """An integer of zero or more."""
        if value < 0:
            self.add(field, "must not be negative")
        return value

    def between(self, field: str, value: int, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        if not low <= value <= high:
            self.add(field, f"must be from {low} to {high}")
        return value

    def one_of(self, field: str, value: str, allowed: Collection[str]) -> str:
        """One of the texts allowed."""
        if value not in allowed:
            self.add(field, f"must be one of {', '.join(sorted(allowed))}")
        return value

    def chosen(self, field: str, value: int, known: Collection[int]) -> int:
        """An enum's number: not its zero (unspecified), and one this version knows (`known`: `MyEnum.values()`)."""
        if value == 0:
            self.add(field, "is required")
        elif value not in known:
            self.add(field, f"has no value {value}")
        return value

    def present(self, field: str, *, given: bool) -> None:
        """A message or one of a oneof that must be there: `given=request.HasField("hold")`."""
        if not given:
            self.add(field, "is required")

    def count(self, field: str, items: Sized, *, at_most: int, at_least: int = 0) -> None:
        """A repeated field's length."""
        if not at_least <= len(items) <= at_most:
            self.add(field, f"must have from {at_least} to {at_most} entries, not {len(items)}")

    def labels(
        self, field: str, value: Mapping[str, str], *, max_entries: int = 32, max_length: int = 200
    ) -> dict[str, str]:
        """A map of identifiers to short texts."""
        self.count(field, value, at_most=max_entries)
        for key, text in value.items():
            if not is_identifier(key):
                self.add(field, f"keys: {_IDENTIFIER_RULE}")
            self.text(f"{field}[{key[:MAX_IDENTIFIER_CHARS]}]", text, max_length=max_length)
        return dict(value)

    def month(self, field: str, value: str) -> tuple[datetime, datetime]:
        """Start (inclusive) and end (exclusive) of a month such as `2026-11`, UTC; this month where none is given."""
        match = _MONTH.fullmatch(value)
        now = datetime.now(UTC)
        year, number = (int(match[1]), int(match[2])) if match else (now.year, now.month)
        if (value and match is None) or not 1970 <= year < 9998:  # noqa: PLR2004 (its end, too, is to be a time that dates and Postgres hold)
            self.add(field, "must be a month such as 2026-11")
            year, number = now.year, now.month
        start = datetime(year, number, 1, tzinfo=UTC)
        return start, start.replace(year=year + number // 12, month=number % 12 + 1)

    def page_size(self, field: str, value: int, *, default: int = DEFAULT_PAGE_SIZE, most: int = MAX_PAGE_SIZE) -> int:
        """How many to list: `default` where not given, `most` where more is asked for; negative is wrong (AIP-158)."""
        if value < 0:
            self.add(field, "must not be negative")
        return min(value, most) if value > 0 else default
