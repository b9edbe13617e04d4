"""Owns the request log: which calls reached the sandbox, what was really sent and answered, and the exact totals.

What a call counts for: its input once the first byte of a good answer goes out; the output of a stream token by token
as its chunks go out; the output of a unary answer when all of it has gone out, else nothing.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

KEPT_RECORDS: Final = 100_000

_FIELDS: Final = (
    "id",
    "provider",
    "endpoint",
    "model",
    "stream",
    "status",
    "input_tokens",
    "output_tokens",
    "cached",
    "cache_write",
    "reasoning",
    "completed",
    "aborted_by_client",
    "fault",
    "started_at",
    "duration_ms",
)
_SUMS: Final = ("input_tokens", "output_tokens", "cached", "cache_write", "reasoning")
_MODEL_LENGTH: Final = 200


@dataclass(slots=True)
class Call:
    """One call under way, filled in as it goes. `status` is 0 while nothing has been answered."""

    number: int
    epoch: int
    started_at: float
    provider: str = ""
    endpoint: str = ""
    model: str = ""
    stream: bool = False
    status: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    completed: bool = False
    aborted_by_client: bool = False
    fault: str | None = None


class RequestLog:
    """The calls since the start or the last reset: the latest as records, all of them in the totals."""

    def __init__(self, kept: int = KEPT_RECORDS) -> None:
        self._kept = kept
        self._number = 0
        self._epoch = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything. Calls under way belong to the time before and will not be recorded; numbers go on."""
        self._epoch += 1
        self._since = time.time()
        self._records: deque[tuple[Any, ...]] = deque(maxlen=self._kept)
        self._reached = 0
        self._in_flight = 0
        self._all = _Totals()
        self._completed = _Totals()
        self._by_provider: dict[str, _Totals] = {}
        self._by_status: dict[int, int] = {}
        self._aborted = 0

    def open(self) -> Call:
        """A call has reached the sandbox."""
        self._number += 1
        self._reached += 1
        self._in_flight += 1
        return Call(number=self._number, epoch=self._epoch, started_at=time.time())

    def close(self, call: Call) -> None:
        """A call is over, in whatever way."""
        if call.epoch != self._epoch:
            return
        self._in_flight -= 1
        self._aborted += call.aborted_by_client
        self._by_status[call.status] = self._by_status.get(call.status, 0) + 1
        self._all.add(call)
        self._by_provider.setdefault(call.provider, _Totals()).add(call)
        if call.completed:
            self._completed.add(call)
        self._records.append(
            (
                call.number,
                call.provider,
                call.endpoint,
                sys.intern(call.model[:_MODEL_LENGTH]),  # few models, many records
                call.stream,
                call.status,
                call.input_tokens,
                call.output_tokens,
                call.cached,
                call.cache_write,
                call.reasoning,
                call.completed,
                call.aborted_by_client,
                call.fault,
                call.started_at,
                round((time.time() - call.started_at) * 1000, 3),
            )
        )

    def report(self, *, limit: int | None = None, after: int = 0) -> dict[str, Any]:
        """Totals and records, oldest first.

        Args:
            limit: how many of the latest records to show, None for all that are kept.
            after: show only records of calls that arrived after the one with this id.
        """
        records = [dict(zip(_FIELDS, row, strict=True)) for row in self._records if row[0] > after]
        if limit is not None:
            records = records[max(0, len(records) - limit) :]
        return {
            "sandbox": True,
            "since": self._since,
            "requests": self._reached,
            "in_flight": self._in_flight,
            "aborted_by_client": self._aborted,
            "totals": self._all.public(),
            "completed": self._completed.public(),
            "by_provider": {name: totals.public() for name, totals in self._by_provider.items()},
            "by_status": {str(status): count for status, count in sorted(self._by_status.items())},
            "records_dropped": self._all.requests - len(self._records),
            "records": records,
        }


class _Totals:
    """Sums over calls that are over."""

    __slots__ = ("requests", *_SUMS)

    def __init__(self) -> None:
        self.requests = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached = 0
        self.cache_write = 0
        self.reasoning = 0

    def add(self, call: Call) -> None:
        self.requests += 1
        self.input_tokens += call.input_tokens
        self.output_tokens += call.output_tokens
        self.cached += call.cached
        self.cache_write += call.cache_write
        self.reasoning += call.reasoning

    def public(self) -> dict[str, int]:
        return {"requests": self.requests} | {name: getattr(self, name) for name in _SUMS}
