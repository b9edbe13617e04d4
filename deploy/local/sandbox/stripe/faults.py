"""Owns what faults of the sandbox Stripe are: what matching requests meet instead of, or after, being carried out."""

from __future__ import annotations

import fnmatch
import time
from dataclasses import dataclass
from typing import Any, Final

from deploy.local.sandbox.armed import Armed, ArmedFault, ArmingError, times, whole_number, wished
from deploy.local.sandbox.stripe.refusal import Obj

_LONGEST_OUTAGE_SECONDS: Final = 3600.0
_LONGEST_DELAY_MS: Final = 600_000
# What a fault may be: a status without effect, which the idempotency key forgets, or a 500, which it remembers;
# silence, or a connection that breaks, before or after the effect.
KINDS: Final = ("status", "broken", "hang", "hang-after", "cut", "cut-before", "slow")


@dataclass(slots=True, kw_only=True)
class Fault(ArmedFault):
    """One fault in wait, for requests of a method and a path, both of which may be patterns."""

    kind: str
    method: str
    path: str
    status: int
    delay_ms: int

    def public(self) -> Obj:
        """What the administration address shows of it."""
        return {
            "fault": self.kind,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "delay_ms": self.delay_ms,
        } | ArmedFault.public(self)


class Faults(Armed[Fault]):
    """Stripe's armed faults, and whether the sandbox plays dead."""

    def __init__(self) -> None:
        super().__init__()
        self._gone_until = 0.0

    def arm(self, wish: Any) -> Fault:
        """Arm what an administrator's JSON asks for. Raises ArmingError."""
        wish = wished(wish, {"fault", "method", "path", "status", "delay_ms"})
        kind = wish.get("fault", "status")
        if kind not in KINDS:
            raise ArmingError(f"fault must be one of {', '.join(KINDS)}")
        return self.add(
            Fault(
                kind=kind,
                method=_text("method", wish.get("method", "*")).upper(),
                path=_text("path", wish.get("path", "*")),
                status=whole_number("status", wish.get("status", 500), 400, 599),
                delay_ms=whole_number("delay_ms", wish.get("delay_ms", 1000), 0, _LONGEST_DELAY_MS),
                **times(wish),
            )
        )

    def for_request(self, method: str, path: str) -> Fault | None:
        """The fault that strikes this request, which is counted; None where none does."""
        return self.take(lambda fault: fault.method in ("*", method) and fnmatch.fnmatchcase(path, fault.path))

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
