"""Owns the rule when a credential is called: its circuit, closed, open or half-open. Pure: time is passed in.

    closed ── `threshold` failures in a row, or a rest ──▶ open
    open ── the cool-down is over ──▶ half-open ── the one probe is answered ──▶ closed
                                              └── it fails ──▶ open
    open ── a rest that the provider asked for is over ──▶ closed

Times are seconds of one clock that never goes back (`time.monotonic`).
"""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """Where a circuit stands; the number is what the metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """The circuit of one credential."""

    def __init__(self, *, threshold: int, cool_down_seconds: float) -> None:
        self._threshold = threshold
        self._cool_down = cool_down_seconds
        self._failures = 0
        self._open_until: float | None = None  # None: closed
        self._probe_first = True  # whether it closes only by a probe
        self._probe_until: float | None = None

    def state(self, now: float) -> State:
        """Where it stands now."""
        if self._open_until is None or (now >= self._open_until and not self._probe_first):
            return State.CLOSED
        return State.OPEN if now < self._open_until else State.HALF_OPEN

    def ready_in(self, now: float) -> float:
        """Seconds until a call may be let through, 0 where one may now."""
        if self.state(now) is State.CLOSED:
            return 0.0
        assert self._open_until is not None
        return max(0.0, self._open_until - now, 0.0 if self._probe_until is None else self._probe_until - now)

    def admit(self, now: float) -> bool:
        """Let a call through, or not; half-open, it is the probe.

        A probe has a cool-down's time to be answered: then another may be sent, since an answer may take minutes.
        """
        if self.ready_in(now) > 0:
            return False
        if self.state(now) is State.HALF_OPEN:
            self._probe_until = now + self._cool_down
        return True

    def answered(self, now: float) -> None:
        """A call was answered by a provider that is well: the circuit closes, but for a rest that still runs."""
        self._failures = 0
        self._probe_until = None
        if self._open_until is not None and (self._probe_first or now >= self._open_until):
            self._open_until = None

    def failed(self, now: float) -> None:
        """A call failed through no fault of the request."""
        self._failures += 1
        probed, self._probe_until = self.state(now) is State.HALF_OPEN, None
        if probed or self._failures >= self._threshold:
            self._open(now + self._cool_down, probe_first=True)

    def rest(self, now: float, seconds: float, *, probe_first: bool) -> None:
        """Let nothing through for so long; after that a probe first where `probe_first`."""
        self._probe_until = None
        self._open(now + seconds, probe_first=probe_first)

    def abandoned(self) -> None:
        """A call that was let through ended without telling anything: the probe's place is free again."""
        self._probe_until = None

    def _open(self, until: float, *, probe_first: bool) -> None:
        """Open for at least as long as it is open already."""
        self._failures = 0
        if self._open_until is None or until > self._open_until:
            self._open_until, self._probe_first = until, probe_first
