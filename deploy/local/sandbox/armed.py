"""Owns faults in wait, of either sandbox: numbered, bounded, counted, and gone when they have struck often enough."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypedDict, TypeVar

_MOST_ARMED: Final = 1000
_MOST_TIMES: Final = 1_000_000


class ArmingError(ValueError):
    """A fault that cannot be armed: an unknown field, a value of the wrong type, or too many faults armed already."""


@dataclass(slots=True, kw_only=True)
class ArmedFault:
    """One fault in wait: it strikes each `every`-th request that it matches. `remaining` None: until it is removed."""

    every: int
    remaining: int | None
    number: int = 0
    seen: int = 0
    applied: int = 0

    def public(self) -> dict[str, Any]:
        """What the administration address shows of it."""
        return {"id": self.number, "every": self.every, "remaining": self.remaining, "applied": self.applied}


_F = TypeVar("_F", bound=ArmedFault)


class Armed(Generic[_F]):
    """All armed faults, in the order in which they were armed; the first that matches is the one that applies."""

    def __init__(self) -> None:
        self._faults: dict[int, _F] = {}
        self._next = 1

    def add(self, fault: _F) -> _F:
        """Arm one, under the next number. Raises ArmingError where too many are armed."""
        if len(self._faults) >= _MOST_ARMED:
            raise ArmingError(f"{_MOST_ARMED} faults are armed already")
        fault.number = self._next
        self._next += 1
        self._faults[fault.number] = fault
        return fault

    def take(self, matches: Callable[[_F], bool]) -> _F | None:
        """The fault that strikes a request, which is counted; None where none does."""
        for fault in self._faults.values():
            if not matches(fault):
                continue
            fault.seen += 1
            if fault.seen % fault.every:
                continue
            fault.applied += 1
            if fault.remaining is not None:
                fault.remaining -= 1
                if fault.remaining == 0:
                    del self._faults[fault.number]
            return fault
        return None

    def listing(self) -> list[dict[str, Any]]:
        """Every fault still in wait, as it is shown."""
        return [fault.public() for fault in self._faults.values()]

    def disarm(self, number: int | None = None) -> bool:
        """Remove one fault, or all; false where there is no such fault."""
        if number is None:
            self._faults.clear()
            return True
        return self._faults.pop(number, None) is not None


def wished(wish: Any, known: Collection[str]) -> Mapping[str, Any]:
    """An administrator's JSON, of known fields. Raises ArmingError."""
    if not isinstance(wish, Mapping):
        raise ArmingError("the body must be a JSON object")
    known = {*known, "count", "every"}
    if unknown := set(wish) - known:
        raise ArmingError(f"unknown field {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
    return wish


class Times(TypedDict):
    """How often a fault strikes: an ArmedFault's own words."""

    every: int
    remaining: int | None


def times(wish: Mapping[str, Any]) -> Times:
    """How often a wish's `every` and `count` say. Raises ArmingError."""
    count = wish.get("count", 1)
    return Times(
        every=whole_number("every", wish.get("every", 1), 1, _MOST_TIMES),
        remaining=None if count is None else whole_number("count", count, 1, _MOST_TIMES),
    )


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """A number of a wish. Raises ArmingError."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ArmingError(f"{name} must be a whole number from {least} to {most}")
    return value
