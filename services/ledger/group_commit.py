"""Owns group commit: concurrent operations wait in a queue, and a writer commits all that wait in one transaction.

A batch that the database refuses is halved, and each half done again, so that one bad call fails alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import psycopg
from prometheus_client import Histogram

from services.kit.logs import get_logger
from services.kit.refusals import Overloaded, StorageUnavailable
from services.ledger.model.operations import Operation, Result
from services.ledger.presence import Presence
from services.ledger.settings import LedgerSettings
from services.ledger.store.remembered import Remembered
from services.ledger.writer import BLOCKED, Group, Writer

_log = get_logger(__name__)

_QUEUE_WAIT = Histogram("tollkeeper_ledger_queue_wait_seconds", "How long a unit waited for its batch to begin.")

# How long few operations wait for the batch under way to end before they go as a batch of their own.
_PATIENCE_SECONDS = 0.05
# Turns of the loop in which the answers of a batch leave: each caller's task makes its own, and its connection sends
# what came together.
_TURNS_TO_ANSWER = 2

_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class _Call:
    """What one call asked for: its groups, which of them wait still, and the results of those that are done.

    `make` makes the answer of all results; `made` is one that was made before they were committed, alone in a tuple.
    """

    groups: Sequence[Group]
    make: Callable[[list[Result]], Any]
    answer: asyncio.Future[Any]
    queued_at: float
    # All accounts, where a group spans several: then the whole call is one, since all its order matters.
    linked: frozenset[str]
    waiting: list[int]
    left: int
    results: list[list[Result]]
    made: tuple[Any] | None = None

    def fail(self, error: BaseException) -> None:
        """Answer with why not; what waits still is not done."""
        self.waiting = []
        if not self.answer.done():
            self.answer.set_exception(error)

    def computed(self, places: Sequence[int], results: Sequence[list[Result]]) -> None:
        """Groups are computed, not yet committed: where they are the last ones, the answer is made already."""
        self.made = None
        if len(places) < self.left:
            return
        for at, found in zip(places, results, strict=True):
            self.results[at] = found
        # Whatever cannot be made is told when it is due. Raised here, it would end what others wait for, too.
        with contextlib.suppress(Exception):
            self.made = (self._whole(),)

    def done(self, at: int, results: list[Result]) -> None:
        """One group is committed; the last one answers the call."""
        self.results[at] = results
        self.left -= 1
        if self.left or self.answer.done():
            return
        try:
            self.answer.set_result(self._whole() if self.made is None else self.made[0])
        except Exception as error:  # noqa: BLE001 (the fault of this call's `make`, and its alone)
            self.answer.set_exception(error)

    def _whole(self) -> Any:
        return self.make([result for group in self.results for result in group])


# Some groups of a call, for one batch.
_Part = tuple[_Call, list[int]]


def _operations(call: _Call, places: Sequence[int]) -> list[Operation]:
    return [operation for at in places for operation in call.groups[at]]


class GroupCommit:
    """The only way to write to the ledger's database.

    Several batches may be under way, never two with the same account: so writers do not wait for each other's locks,
    and what is asked for an account is done in the order in which it came. While one is under way, another begins only
    when enough waits for it: few large batches cost less than many small ones. `presence` is a server's.
    """

    def __init__(self, settings: LedgerSettings, presence: Presence | None = None) -> None:
        self._settings = settings
        self._presence = presence
        self._remembered = Remembered(settings.remembered_rows)
        self._waiting: deque[_Call] = deque()
        self._waiting_operations = 0
        self._busy: set[str] = set()
        self._under_way = 0
        self._last_begun = 0.0
        self._idle: list[asyncio.Future[None]] = []
        self._patience: asyncio.TimerHandle | None = None
        self._closing = False
        self._writers: list[Writer] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the writers, in the running loop. They connect when there is something to write."""
        self._writers = [
            Writer(self._settings, self._remembered, self._presence) for _ in range(self._settings.writers)
        ]
        self._tasks = [asyncio.create_task(self._write_forever(writer)) for writer in self._writers]

    async def stop(self) -> None:
        """Commit what waits, then end the writers."""
        self._closing = True
        for writer in self._writers:
            writer.ending = True
        while self._idle:
            self._wake()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def submit(self, groups: Sequence[Group]) -> list[Result]:
        """Do linked groups of operations, in order within each account; the results of all operations, once committed.

        See `answer`.
        """
        return await self.answer(groups, list)

    async def answer(self, groups: Sequence[Group], make: Callable[[list[Result]], _Answer]) -> _Answer:
        """Do linked groups of operations, in order within each account; what `make` makes of all results, committed.

        It is made while Postgres commits, which takes as long, and again where a batch has to be done again. Raises
        what `make` raises, where too many wait, StorageUnavailable where the database does not answer: then they may or
        may not have been done, and doing them again is safe. A caller that is cancelled does not take back what a batch
        has begun.
        """
        if self._closing:
            raise _stopping()
        if not groups:
            return make([])
        size = sum(map(len, groups))
        if self._waiting_operations + size > self._settings.max_queued:
            raise Overloaded("too many operations wait for the database", retry_after_seconds=1)
        spans = any(operation.account_id != group[0].account_id for group in groups for operation in group)
        call = _Call(
            groups=groups,
            make=make,
            answer=asyncio.get_running_loop().create_future(),
            queued_at=time.perf_counter(),
            linked=frozenset(operation.account_id for group in groups for operation in group) if spans else frozenset(),
            waiting=list(range(len(groups))),
            left=len(groups),
            results=[[] for _ in groups],
        )
        self._waiting.append(call)
        self._waiting_operations += size
        self._call_writer()
        made: _Answer = await call.answer
        return made

    @property
    def _few(self) -> bool:
        """Whether what waits is too little for a batch beside the one under way."""
        return self._waiting_operations < self._settings.max_batch // 4

    def _call_writer(self) -> None:
        """Something waits: wake one writer, or do so later where it is few and a batch is under way."""
        if self._few and self._under_way:
            self._wake_later()
        else:
            self._wake()

    def _wake_later(self) -> None:
        if self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        self._wake()

    def _wake(self) -> None:
        """Wake one writer, if one is idle: the one that was busy last, so that its backend finds its caches warm."""
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                return

    async def _write_forever(self, writer: Writer) -> None:
        try:
            while True:
                parts = self._take()
                if parts:
                    await self._write(writer, parts)
                elif self._closing and not self._waiting:
                    self._wake()  # the next one ends, too
                    return
                else:
                    if self._waiting:
                        self._wake_later()
                    self._idle.append(asyncio.get_running_loop().create_future())
                    await self._idle[-1]
        finally:
            await writer.close()

    async def _write(self, writer: Writer, parts: list[_Part]) -> None:
        accounts = {operation.account_id for call, places in parts for operation in _operations(call, places)}
        self._busy |= accounts
        self._under_way += 1
        begun = self._last_begun = time.perf_counter()
        if self._waiting:
            self._call_writer()  # one batch had no room for all
        try:
            await self._answer(writer, parts)
        except BaseException:
            for call, _ in parts:
                call.fail(_stopping())  # this task was cancelled
            raise
        finally:
            self._busy -= accounts
            self._under_way -= 1
            for call, _ in parts:  # here, where nobody waits for it
                _QUEUE_WAIT.observe(begun - call.queued_at)

    def _take(self) -> list[_Part]:
        """What waits and touches no account of a batch under way, up to a batch; in order within each account."""
        if self._few and self._under_way and time.perf_counter() - self._last_begun < _PATIENCE_SECONDS:
            return []
        parts: list[_Part] = []
        kept: list[_Call] = []
        blocked = set(self._busy)
        room = self._settings.max_batch
        looks = 4 * room  # however many wait for one busy account
        while self._waiting and room > 0 and looks > 0:
            call = self._waiting.popleft()
            places = [] if self._given_up(call) else _takable(call, blocked, room, first=not parts)
            taken = len(_operations(call, places))
            looks -= len(call.waiting)
            if places:
                parts.append((call, places))
                chosen = set(places)
                call.waiting = [at for at in call.waiting if at not in chosen]
                room -= taken
                self._waiting_operations -= taken
            if call.waiting:
                kept.append(call)
        self._waiting.extendleft(reversed(kept))
        return parts

    def _given_up(self, call: _Call) -> bool:
        """Whether its caller has gone before anything of it was begun, or it has failed: then nothing of it waits."""
        if call.waiting and not (call.answer.cancelled() and call.left == len(call.waiting) == len(call.groups)):
            return False
        self._waiting_operations -= len(_operations(call, call.waiting))
        call.waiting = []
        return True

    async def _answer(self, writer: Writer, parts: list[_Part], *, hurried: bool = False) -> None:
        """Commit a batch and answer each call, with its results or with why not."""
        try:
            groups = [call.groups[at] for call, places in parts for at in places]
            results, note = await writer.commit(groups, partial(_computed, parts), hurried=hurried)
        except Exception as error:  # noqa: BLE001 (whatever one call did wrong, its neighbours go on)
            away = isinstance(error, psycopg.OperationalError)
            if len(parts) > 1 and (isinstance(error, BLOCKED) or not away):
                _log.warning("a batch failed; its halves are done apart", calls=len(parts), error=str(error))
                middle = len(parts) // 2
                hurried = hurried or isinstance(error, BLOCKED)
                await self._answer(writer, parts[:middle], hurried=hurried)
                await self._answer(writer, parts[middle:], hurried=hurried)
                return
            _log.error("a batch failed", calls=len(parts), exc_info=error)
            refusal: BaseException = error
            if away:
                refusal = StorageUnavailable("the ledger's database does not answer", retry_after_seconds=1)
                refusal.__cause__ = error
            for call, _ in parts:
                self._waiting_operations -= len(_operations(call, call.waiting))
                call.fail(refusal)
            return
        found = iter(results)
        for call, places in parts:
            for at in places:
                call.done(at, next(found))
        await self._noted(note)

    async def _noted(self, note: Callable[[], None]) -> None:
        """Note a batch that is committed: after its answers have left, or, where others wait, before they begin."""
        for _ in range(_TURNS_TO_ANSWER):
            if self._waiting:
                break
            await asyncio.sleep(0)
        try:
            note()
        except Exception as error:  # noqa: BLE001 (it is committed, and its callers know)
            _log.error("a batch is committed, and could not be noted", exc_info=error)
            self._remembered.clear()


def _computed(parts: list[_Part], results: list[list[Result]]) -> None:
    found = iter(results)
    for call, places in parts:
        call.computed(places, [next(found) for _ in places])


def _takable(call: _Call, blocked: set[str], room: int, *, first: bool) -> list[int]:
    """Which of a call's groups a batch with so much room takes; accounts of those it leaves are blocked from then on.

    The first of a batch is taken however large it is.
    """
    if call.linked:
        if call.linked & blocked or (len(_operations(call, call.waiting)) > room and not first):
            blocked |= call.linked
            return []
        return call.waiting
    places: list[int] = []
    for at in call.waiting:
        group = call.groups[at]
        account_id = group[0].account_id
        if account_id in blocked or (len(group) > room and (places or not first)):
            blocked.add(account_id)
        else:
            places.append(at)
            room -= len(group)
    return places


def _stopping() -> StorageUnavailable:
    return StorageUnavailable("the ledger is stopping", retry_after_seconds=1)
