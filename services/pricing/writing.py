"""Owns how the catalogue is written: one writer at a time, each request id once, each write a revision of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine

from services.kit.errors import Violation
from services.kit.refusals import InvalidArgument
from services.pricing import store
from services.pricing.errors import IdempotencyConflict
from services.pricing.model import CatalogueVersion
from services.pricing.store import State, WrittenRequest
from services.rating import Fault


@dataclass(frozen=True, slots=True)
class Asked:
    """A write as it was asked for: the RPC, its idempotency key ("": none) and its body's digest; by whom, and why."""

    operation: str
    request_id: str
    body_sha256: bytes
    author: str
    reason: str = ""


class Turn:
    """A writer's turn: it holds the lock of the catalogue's state until its transaction ends.

    `replayed` is the version that the same request made before, and then nothing is to be written; None for a new one.
    """

    def __init__(self, connection: Connection, asked: Asked, state: State, replayed: int | None) -> None:
        self.connection = connection
        self.asked = asked
        self.replayed = replayed
        self.now = store.database_now(connection)
        self._state = state

    @property
    def latest_version(self) -> int:
        """The newest catalogue version, this turn's own included."""
        return self._state.latest_version

    @property
    def revision(self) -> int:
        """The revision that this turn writes."""
        return self._state.revision + 1

    def new_version(
        self, *, effective_from: datetime, prices_changed: int = 0, account_id: str = ""
    ) -> CatalogueVersion:
        """Write the next catalogue version, for what is about to be written under it."""
        version = CatalogueVersion(
            version=self._state.latest_version + 1,
            effective_from=effective_from,
            created_at=self.now,
            author=self.asked.author,
            reason=self.asked.reason,
            prices_changed=prices_changed,
            account_id=account_id,
        )
        store.insert_version(self.connection, version)
        self._state = State(self._state.revision, version.version)
        return version

    def done(self, version: int, *, changed: bool = True) -> None:
        """Remember the request with the version that it made, and tell readers, unless nothing was `changed`."""
        if self.asked.request_id:
            written = WrittenRequest(self.asked.operation, self.asked.body_sha256, version)
            store.insert_request(self.connection, self.asked.request_id, written, created_at=self.now)
        if changed:
            store.write_state(self.connection, State(self.revision, self._state.latest_version))


@contextmanager
def turn(engine: Engine, asked: Asked) -> Iterator[Turn]:
    """Wait for the writer's turn; it is committed at the end, or undone where that raises. Raises IdempotencyConflict.

    Of the transaction's locks this is the first, so that no two requests race for a request id.
    """
    with engine.begin() as connection:
        state = store.lock_state(connection)
        written = store.read_request(connection, asked.request_id) if asked.request_id else None
        if written is not None and (written.operation, written.body_sha256) != (asked.operation, asked.body_sha256):
            raise IdempotencyConflict(f"request_id {asked.request_id} was used with another body")
        yield Turn(connection, asked, state, None if written is None else written.version)


def refuse(within: str, faults: Sequence[Fault]) -> None:
    """Raise InvalidArgument naming all faults, each in the message that the request has as its field `within`."""
    if faults:
        raise InvalidArgument.naming([Violation(f"{within}.{fault.field}", fault.description) for fault in faults])


def not_past(field: str, asked: datetime | None, now: datetime) -> datetime:
    """The moment from which something is to be in force; now where none is asked for. Raises InvalidArgument."""
    moment = asked or now
    if moment < now:
        raise InvalidArgument.naming([Violation(field, "must not be in the past")])
    return moment
