"""Owns the armed faults: what the next matching requests meet instead of, or after, being carried out."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .refusal import Obj

_MOST_ARMED: Final = 1000
_LONGEST_OUTAGE_SECONDS: Final = 3600.0
_LONGEST_DELAY_MS: Final = 600_000
# What a fault may be: a status without effect; silence, or a connection that breaks, before or after the effect.
KINDS: Final = ("status", "hang", "hang-after", "cut", "cut-before", "slow")


class ArmingError(ValueError):
    """A fault that cannot be armed."""


@dataclass(slots=True)
class Fault:
    """One fault in wait; `remaining` is None where it stays until it is removed."""

    number: int
    kind: str
    method: str
    path: str
    status: int
    delay_ms: int
    every: int
    remaining: int | None
    seen: int = 0
    applied: int = 0

    def public(self) -> Obj:
        """What the administration address shows of it."""
        return {
            "id": self.number,
            "fault": self.kind,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "delay_ms": self.delay_ms,
            "every": self.every,
            "remaining": self.remaining,
            "applied": self.applied,
        }


class Faults:
    """All armed faults, the first armed first, and whether the sandbox plays dead."""

    def __init__(self) -> None:
        self._armed: dict[int, Fault] = {}
        self._next = 1
        self._gone_until = 0.0

    def arm(self, wish: Any) -> Fault:
        """Arm what an administrator's JSON asks for.

        Raises:
            ArmingError: it asks for something that is not there, or too many faults are armed.
        """
        if not isinstance(wish, Mapping):
            raise ArmingError("the body must be a JSON object")
        known = {"fault", "method", "path", "status", "delay_ms", "count", "every"}
        if unknown := set(wish) - known:
            raise ArmingError(f"unknown field {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        kind = wish.get("fault", "status")
        if kind not in KINDS:
            raise ArmingError(f"fault must be one of {', '.join(KINDS)}")
        if len(self._armed) >= _MOST_ARMED:
            raise ArmingError(f"{_MOST_ARMED} faults are armed already")
        count = wish.get("count", 1)
        fault = Fault(
            number=self._next,
            kind=kind,
            method=_text("method", wish.get("method", "*")).upper(),
            path=_text("path", wish.get("path", "*")),
            status=_number("status", wish.get("status", 500), 400, 599),
            delay_ms=_number("delay_ms", wish.get("delay_ms", 1000), 0, _LONGEST_DELAY_MS),
            every=_number("every", wish.get("every", 1), 1, 1_000_000),
            remaining=None if count is None else _number("count", count, 1, 1_000_000),
        )
        self._next += 1
        self._armed[fault.number] = fault
        return fault

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that strikes this request, which is counted; None where none does."""
        for fault in self._armed.values():
            if fault.method not in ("*", method) or not fnmatch.fnmatchcase(path, fault.path):
                continue
            fault.seen += 1
            if fault.seen % fault.every:
                continue
            fault.applied += 1
            if fault.remaining is not None:
                fault.remaining -= 1
                if fault.remaining == 0:
                    del self._armed[fault.number]
            return fault
        return None

    def listing(self) -> list[Obj]:
        """Every fault still in wait."""
        return [fault.public() for fault in self._armed.values()]

    def disarm(self, number: int | None = None) -> bool:
        """Remove one fault, or all; false where there is no such fault."""
        if number is None:
            self._armed.clear()
            return True
        return self._armed.pop(number, None) is not None

    def go_away(self, seconds: Any) -> None:
        """Break every connection of the API for so long; 0 ends it.

        Raises:
            ArmingError: no number of seconds from 0 to an hour.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise ArmingError("seconds must be a number")
        if not 0 <= seconds <= _LONGEST_OUTAGE_SECONDS:
            raise ArmingError(f"seconds must be from 0 to {_LONGEST_OUTAGE_SECONDS:g}")
        self._gone_until = time.monotonic() + seconds

    @property
    def gone(self) -> bool:
        """Whether the sandbox plays dead just now."""
        return time.monotonic() < self._gone_until


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ArmingError(f"{name} must be a text")
    return value


def _number(name: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ArmingError(f"{name} must be a whole number from {least} to {most}")
    return value
