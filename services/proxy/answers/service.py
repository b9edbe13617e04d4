"""Owns the use of kept answers: begun once, kept with their settlement, given again; leases, and the end of their day.

A request with an idempotency key is taken by one call. While that runs, repeats are refused; when it has an answer, the
answer and its settlement are stored in one transaction, before the client hears of it; a call without an answer lets
the request go. A proxy that was killed in between has stored both or neither: its lease lapses, its hold too, and a
repeat is made anew.
"""

from __future__ import annotations

import asyncio
import hmac

from prometheus_client import Counter
from sqlalchemy.exc import SQLAlchemyError
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.logs import get_logger
from services.proxy.answers.model import RUNNING, Cipher, KeptAnswer, Sealed, Slot, UnreadableError, slot_of
from services.proxy.answers.store import AnswerStore, Row
from services.proxy.errors import AnswerNotKept, AnswersUnavailable, IdempotencyConflict, IdempotencyInProgress

_log = get_logger(__name__)

_BEGIN_ATTEMPTS = 3
_BEGIN_SECONDS = 5
_KEEP_SECONDS = 10
_KEEP_BACKOFF_SECONDS = 0.2
_ABANDON_SECONDS = 5
_RENEWED_AT_ONCE = 500
_SWEEPS_AT_ONCE = 20
_FAILURES = (SQLAlchemyError, OSError, TimeoutError)

_ANSWERS = Counter("tollkeeper_answers_total", "Calls with an idempotency key, by what became of them", ["outcome"])
_KEPT, _TOO_LARGE, _ABANDONED = _ANSWERS.labels("kept"), _ANSWERS.labels("too_large"), _ANSWERS.labels("abandoned")
_REPLAYED, _LOST = _ANSWERS.labels("replayed"), _ANSWERS.labels("lost")


class Begun:
    """The first call of a request, which has it until it is kept or abandoned. Made by `Answers.begin`."""

    def __init__(self, answers: Answers, slot: Slot, cipher: Cipher, call_id: str) -> None:
        self._answers = answers
        self._cipher = cipher
        self.slot = slot
        self.call_id = call_id

    async def keep(self, answer: KeptAnswer, settlement: pb.Operation | None) -> None:
        """Store the answer, and put its settlement into the outbox: both or neither. Then it may be settled and given.

        Goes on where the caller is cancelled. Raises AnswersUnavailable where there is no telling whether it is stored,
        and IdempotencyInProgress where it is not: the lease had lapsed and another call has the request. After either
        the hold is to be left alone, not settled and not released: it lapses by itself, unless the outbox has its
        settlement, and the client is to repeat the request.
        """
        await asyncio.shield(self._answers.keeping(self, answer, self._cipher, settlement))

    async def abandon(self) -> None:
        """Let the request go: no answer is kept, a repeat is made anew. Never raises: at worst the lease lapses."""
        await self._answers.abandon(self)


class Answers:
    """Answers by API key and idempotency key. Bodies above `max_bytes` are not kept, and their repeats refused."""

    def __init__(self, store: AnswerStore, *, lease_seconds: float, sweep_seconds: float, max_bytes: int) -> None:
        self._store = store
        self._lease_seconds = lease_seconds
        self._sweep_seconds = sweep_seconds
        self._max_bytes = max_bytes
        self._running: dict[str, Begun] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._jobs: list[asyncio.Task[None]] = []

    async def begin(
        self, key_id: str, idempotency_key: str, request_sha256: bytes, secret: str, call_id: str
    ) -> KeptAnswer | Begun:
        """The kept answer of a request, or the right to make its call.

        `request_sha256` is of path and body as they came, `secret` is the client's API key. Raises InvalidArgument
        (the idempotency key), IdempotencyConflict (it was used for another request), IdempotencyInProgress (the first
        call runs), AnswerNotKept (answered, and not kept), AnswersUnavailable (nothing was begun).
        """
        slot = slot_of(key_id, idempotency_key)
        cipher = Cipher(slot, secret)
        try:
            async with asyncio.timeout(_BEGIN_SECONDS):
                found = await self._found_or_begun(slot, cipher.request_mac(request_sha256), call_id)
        except _FAILURES as error:
            _log.warning("a request with an idempotency key was not begun", error=repr(error))
            raise AnswersUnavailable("the store of answers did not answer", retry_after_seconds=1) from error
        if found is None:
            begun = self._running[call_id] = Begun(self, slot, cipher, call_id)
            return begun
        return _given_again(found, cipher)

    async def _found_or_begun(self, slot: Slot, request_mac: bytes, call_id: str) -> Row | None:
        """The row of a request that was answered; None where the call has the request now."""
        for _ in range(_BEGIN_ATTEMPTS):
            if await self._store.begin(slot, request_mac, call_id):
                return None
            found = await self._store.find(slot)
            if found is None:
                continue  # abandoned just now
            same = hmac.compare_digest(found.request_mac, request_mac)
            if not same and (found.held or not found.expired):
                raise IdempotencyConflict("this idempotency key was used for another request")
            if found.held:
                break
            if found.expired or found.state == RUNNING:  # past its day, or its proxy was killed
                if await self._store.take_over(slot, found, request_mac, call_id):
                    return None
                continue  # another was quicker
            return found
        raise IdempotencyInProgress("the first call with this idempotency key still runs", retry_after_seconds=1)

    def keeping(
        self, begun: Begun, answer: KeptAnswer, cipher: Cipher, settlement: pb.Operation | None
    ) -> asyncio.Task[None]:
        """A task that keeps an answer; see Begun.keep."""
        task = asyncio.create_task(self._kept(begun, answer, cipher, settlement))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        return task

    async def _kept(self, begun: Begun, answer: KeptAnswer, cipher: Cipher, settlement: pb.Operation | None) -> None:
        sealed = cipher.seal(begun.call_id, answer) if len(answer.body) <= self._max_bytes else None
        try:
            async with asyncio.timeout(_KEEP_SECONDS):
                mine = await self._stored(begun, sealed, settlement)
        except _FAILURES as error:
            _LOST.inc()
            _log.error("an answer may not have been kept", call_id=begun.call_id, error=repr(error))
            raise AnswersUnavailable("the answer could not be kept", retry_after_seconds=1) from error
        finally:
            self._running.pop(begun.call_id, None)
        if not mine:
            _LOST.inc()
            _log.warning("a call lost its request to a repeat: its lease had lapsed", call_id=begun.call_id)
            raise IdempotencyInProgress("another call has this request now", retry_after_seconds=1)
        (_KEPT if sealed is not None else _TOO_LARGE).inc()
        if sealed is None:
            _log.warning("an answer is too large to be kept", call_id=begun.call_id, size_bytes=len(answer.body))

    async def _stored(self, begun: Begun, sealed: Sealed | None, settlement: pb.Operation | None) -> bool:
        """Try until it is stored, or known to be another's; the caller's timeout ends it."""
        backoff = _KEEP_BACKOFF_SECONDS
        while True:
            try:
                return await self._store.keep(begun.slot, begun.call_id, sealed, settlement)
            except (SQLAlchemyError, OSError) as error:
                _log.warning("an answer is not kept yet", call_id=begun.call_id, error=repr(error))
            await asyncio.sleep(backoff)
            backoff *= 2

    async def abandon(self, begun: Begun) -> None:
        """See Begun.abandon."""
        self._running.pop(begun.call_id, None)
        _ABANDONED.inc()
        try:
            async with asyncio.timeout(_ABANDON_SECONDS):
                await self._store.abandon(begun.slot, begun.call_id)
        except _FAILURES as error:
            _log.warning("a request was not let go; its lease lapses", call_id=begun.call_id, error=repr(error))

    # --------------------------------------------------------------------------------------------------- in background

    async def start(self) -> None:
        """Begin to renew leases and to delete what is past its day."""
        self._jobs = [
            asyncio.create_task(self._renew_for_ever()),
            asyncio.create_task(self._sweep_for_ever()),
        ]

    async def stop(self) -> None:
        """Let what is being kept be stored, then stop. To be called when no call runs any more."""
        if self._keeping:
            await asyncio.wait(self._keeping)
        for job in self._jobs:
            job.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs)

    async def renew(self) -> None:
        """Let the calls that run have their requests for longer. Raises what the database raises."""
        running = list(self._running.values())
        for start in range(0, len(running), _RENEWED_AT_ONCE):
            some = running[start : start + _RENEWED_AT_ONCE]
            still = await self._store.renew([(begun.slot, begun.call_id) for begun in some])
            for begun in some:
                if begun.call_id not in still and self._running.pop(begun.call_id, None) is not None:
                    _log.warning("a running call's request is another's now", call_id=begun.call_id)

    async def sweep(self) -> int:
        """Delete what is past its day, at most 10 000 answers; how many. Raises what the database raises."""
        deleted = 0
        for _ in range(_SWEEPS_AT_ONCE):
            some = await self._store.sweep()
            deleted += some
            if not some:
                break
        return deleted

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                async with asyncio.timeout(self._lease_seconds / 3):
                    await self.renew()
            except Exception as error:  # noqa: BLE001 (a job that ends at one error is worse)
                _log.warning("leases of requests not renewed", error=repr(error))

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_seconds)
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 (a job that ends at one error is worse)
                _log.warning("answers past their day not deleted", error=repr(error))


def _given_again(found: Row, cipher: Cipher) -> KeptAnswer:
    if found.sealed is None:
        raise AnswerNotKept("this request was answered and charged; its answer was too large to be kept")
    try:
        kept = cipher.open(found.call_id, found.sealed)
    except UnreadableError as error:
        _log.error("a kept answer cannot be read", call_id=found.call_id)
        raise AnswerNotKept("this request was answered and charged; its answer cannot be read") from error
    _REPLAYED.inc()
    return kept
