"""Owns the armed faults: what `POST /sandbox/faults` has laid in wait for the next matching requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .behaviour import DirectiveError, Settings, parse
from .refusal import Provider

_MOST_ARMED: Final = 1000
_MATCHED: Final = ("provider", "model", "api_key", "stream")


class ArmingError(ValueError):
    """A fault that cannot be armed: an unknown field, a value of the wrong type, or too many faults armed already."""


@dataclass(slots=True)
class ArmedFault:
    """One fault in wait. `remaining` is None where it stays until it is removed."""

    number: int
    match: dict[str, Any]
    settings: Settings
    every: int
    remaining: int | None
    seen: int = 0
    applied: int = 0

    def public(self) -> dict[str, Any]:
        """What the administration address shows of it; of a key only the end."""
        match = dict(self.match)
        if "api_key" in match:
            match["api_key"] = f"…{match['api_key'][-4:]}"
        return {
            "id": self.number,
            "match": match,
            "fault": " ".join(f"{name}={value}" for name, value in self.settings.items()),
            "every": self.every,
            "remaining": self.remaining,
            "applied": self.applied,
        }


class Faults:
    """All armed faults, in the order in which they were armed; the first that matches is the one that applies."""

    def __init__(self) -> None:
        self._armed: dict[int, ArmedFault] = {}
        self._next = 1

    def arm(self, wish: Any) -> ArmedFault:
        """Arm what an administrator's JSON asks for.

        Raises:
            ArmingError: it asks for something that is not there, or too many faults are armed.
        """
        if not isinstance(wish, Mapping):
            raise ArmingError("the body must be a JSON object")
        unknown = set(wish) - {"match", "fault", "count", "every"}
        if unknown:
            raise ArmingError(f"unknown field {', '.join(sorted(unknown))}; known are match, fault, count, every")
        if len(self._armed) >= _MOST_ARMED:
            raise ArmingError(f"{_MOST_ARMED} faults are armed already")
        count = wish.get("count", 1)
        fault = ArmedFault(
            number=self._next,
            match=_match(wish.get("match") or {}),
            settings=_settings(wish.get("fault")),
            every=_from_one("every", wish.get("every", 1)),
            remaining=None if count is None else _from_one("count", count),
        )
        self._next += 1
        self._armed[fault.number] = fault
        return fault

    def take(self, *, provider: Provider, model: str, api_key: str, stream: bool) -> Settings:
        """The settings of the fault that applies to this request, which is counted; empty where none does."""
        if not self._armed:
            return {}
        request = {"provider": provider.value, "model": model, "api_key": api_key, "stream": stream}
        for fault in self._armed.values():
            if any(request[name] != value for name, value in fault.match.items()):
                continue
            fault.seen += 1
            if fault.seen % fault.every:
                continue
            fault.applied += 1
            if fault.remaining is not None:
                fault.remaining -= 1
                if fault.remaining == 0:
                    del self._armed[fault.number]
            return fault.settings
        return {}

    def listing(self) -> list[dict[str, Any]]:
        """Every fault still in wait."""
        return [fault.public() for fault in self._armed.values()]

    def disarm(self, number: int | None = None) -> bool:
        """Remove one fault, or all; false where there is no such fault."""
        if number is None:
            self._armed.clear()
            return True
        return self._armed.pop(number, None) is not None


def _match(wish: Any) -> dict[str, Any]:
    if not isinstance(wish, Mapping) or set(wish) - set(_MATCHED):
        raise ArmingError(f"match may hold only {', '.join(_MATCHED)}")
    for name, value in wish.items():
        expected = bool if name == "stream" else str
        if not isinstance(value, expected):
            raise ArmingError(f"match.{name} must be a {'boolean' if expected is bool else 'string'}")
    if wish.get("provider") not in (None, *(provider.value for provider in Provider)):
        raise ArmingError(f"match.provider must be one of {', '.join(Provider)}")
    return dict(wish)


def _settings(wish: Any) -> Settings:
    if isinstance(wish, Mapping):
        wish = " ".join(f"{name}={value}" for name, value in wish.items())
    if not isinstance(wish, str) or not wish.strip():
        raise ArmingError("fault is required: words as in a directive, or an object of them")
    try:
        return parse(wish)
    except DirectiveError as error:
        raise ArmingError(str(error)) from error


def _from_one(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArmingError(f"{name} must be a whole number from 1")
    return value
