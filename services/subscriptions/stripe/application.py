"""Owns the applying of what Stripe tells: whose an event is, and what follows for that account.

Events of an account are applied together, under its lease: they say only which objects to read. What was read is
written in one transaction with the account's new state, the deliveries that follow and the events' own status, and only
if the lease still holds. No transaction is open while Stripe or pricing is asked.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import grpc
from prometheus_client import Histogram
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from services.kit.errors import RemoteError, ServiceError
from services.kit.logs import get_logger
from services.subscriptions import store
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.stripe import events_store, mirror_store
from services.subscriptions.stripe.effects import Effects
from services.subscriptions.stripe.events import CHARGE, CUSTOMER_DELETED, ReadEvent, Reference, read_event
from services.subscriptions.stripe.events_store import Lease, WaitingEvent
from services.subscriptions.stripe.gathering import LASTING_FAULTS, Gathering, Seen
from services.subscriptions.stripe.intake import count_event
from services.subscriptions.stripe.reading import StripeReader
from services.subscriptions.stripe.renewals import Outcome, Renewals

_log = get_logger(__name__)

_AT_ONCE = 100
# Longer than what is read and written under it may take while Stripe is well; who is slower writes nothing.
_LEASE_SECONDS = 60.0
_RECHECK_SECONDS = 0.05
_FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS = 1.0, 300.0
_MAX_DOUBLINGS = 10
_FAILED_DELAY_SECONDS = 600.0
_MAX_FAILURES = 20
_JITTER = 0.2
# What may well happen; anything else is a fault of ours.
_FORESEEN = (ServiceError, grpc.RpcError, *LASTING_FAULTS)
_PUT_OFF = timedelta(minutes=5)
# After which a renewal is tried again that could not be collected: within the hour in which Stripe leaves it to others.
_COLLECT_AGAIN = timedelta(minutes=1)

_APPLIED_AFTER = Histogram(
    "tollkeeper_subscriptions_stripe_event_seconds",
    "From an event's coming in to its being applied",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
)


class UnknownAccountError(Exception):
    """A customer at Stripe names an account that is not here, or that has another customer."""


class UnreadableEventError(Exception):
    """What an event is about cannot be read."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """An account's events that are applied together."""

    waiting: Sequence[WaitingEvent]
    events: Sequence[ReadEvent]

    @property
    def references(self) -> set[Reference]:
        return {event.reference for event in self.events if event.reference is not None}

    @property
    def deleted_customers(self) -> set[str]:
        return {event.customer_id for event in self.events if event.type == CUSTOMER_DELETED}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The events that are applied, and those that cannot be, with why. For the rest there was no time: they wait."""

    applied: list[tuple[WaitingEvent, ReadEvent]]
    faulty: list[tuple[WaitingEvent, ReadEvent, str]]


class Application:
    """Applies events and, without any, what Stripe says now. Any number of them are safe side by side."""

    def __init__(
        self,
        engine: Engine,
        reader: StripeReader,
        gathering: Gathering,
        effects: Effects,
        *,
        renewals: Renewals,
        clock: Clock = utc_now,
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._gathering = gathering
        self._effects = effects
        self._renewals = renewals
        self._clock = clock

    def require_stripe(self) -> None:
        """Raise StripeNotConfigured where there is no Stripe to read from."""
        self._reader.require()

    def advance(self) -> bool:
        """Take one step with what waits; False where nothing does."""
        routed = self.route_next()
        return self.apply_next() or routed

    # Whose an event is

    def route_next(self) -> bool:
        """Find out whose the next event is of which that is not known; False where there is none."""
        with self._engine.begin() as connection:
            waiting = events_store.claim_unrouted(connection, lease_seconds=_LEASE_SECONDS)
        if waiting is None:
            return False
        event = read_event(waiting.body)
        try:
            account_id = self._account_of(event)
        except (*LASTING_FAULTS, UnknownAccountError) as error:
            self._failed([(waiting, event)], error, lasting=True)
        except (ServiceError, grpc.RpcError) as error:
            self._failed([(waiting, event)], error, lasting=False)
        else:
            with self._engine.begin() as connection:
                if account_id:
                    events_store.route(connection, event.event_id, account_id)
                else:
                    events_store.mark_applied(connection, [event.event_id], ignored=True)
            if not account_id:
                count_event(event.type, "not_ours")
        return True

    def _account_of(self, event: ReadEvent) -> str:
        """Whose it is; empty where it is of nobody that we made a customer. Raises UnknownAccountError."""
        customer_id = event.customer_id
        if not customer_id and event.reference is not None and event.reference.kind == CHARGE:
            customer_id = self._reader.customer_of_charge(event.reference.object_id)
        if not customer_id:
            return ""
        with self._engine.connect() as connection:
            account_id = mirror_store.account_of(connection, customer_id)
        if account_id:
            return account_id
        account_id = self._reader.account_named_by(customer_id)
        if not account_id:
            return ""
        with self._engine.begin() as connection:
            if store.find_account(connection, account_id) is None:
                raise UnknownAccountError(f"customer {customer_id} names account {account_id}, which is not here")
            mirror_store.insert_customer(connection, customer_id, account_id)
            if mirror_store.account_of(connection, customer_id) != account_id:
                raise UnknownAccountError(f"account {account_id} has another customer than {customer_id}")
        return account_id

    # What follows

    def apply_next(self) -> bool:
        """Apply the events of the account that has waited longest; False where none waits."""
        with self._engine.begin() as connection:
            lease = events_store.lease_due(connection, lease_seconds=_LEASE_SECONDS)
            if lease is None:
                return False
            waiting = events_store.waiting_events(connection, lease.account_id, limit=_AT_ONCE)
        batch = _Batch(waiting, [read_event(one.body) for one in waiting])
        try:
            self._apply(lease, batch, batch.references)
        except OperationalError:
            raise  # nothing can be noted now: the lease lapses, and the events are applied then
        except Exception as error:  # noqa: BLE001 (a fault of ours in one account must not hold up the others)
            is_foreseen = isinstance(error, _FORESEEN)
            if not is_foreseen:
                _log.exception("events not applied, and not foreseen why", account_id=lease.account_id)
            self._release(lease)
            lasting = isinstance(error, LASTING_FAULTS) or not is_foreseen
            self._failed(list(zip(batch.waiting, batch.events, strict=True)), error, lasting=lasting)
        return True

    def refresh(self, account_id: str, references: Collection[Reference] = (), *, within_seconds: float = 0) -> bool:
        """Apply what Stripe says now of an account and of these objects, without waiting for an event to tell of it.

        False where another one applies something to the account for longer than `within_seconds`. Raises what
        `Gathering.gather` says.
        """
        ends = time.monotonic() + within_seconds
        while True:
            with self._engine.begin() as connection:
                lease = events_store.lease_account(connection, account_id, lease_seconds=_LEASE_SECONDS)
            if lease is not None:
                break
            if time.monotonic() >= ends:
                return False
            time.sleep(_RECHECK_SECONDS)
        try:
            return self._apply(lease, _Batch((), ()), references)
        except BaseException:
            self._release(lease)
            raise

    def refresh_due(self, *, limit: int) -> bool:
        """Look again at subscriptions that the clock may have changed, at most `limit`; whether there may be more."""
        if not self._reader.configured:
            return False
        now = self._clock()
        with self._engine.connect() as connection:
            due = mirror_store.accounts_to_look_at(connection, now, limit=limit)
        for account_id in due:
            self.refresh_quietly(account_id, now)
        return len(due) == limit

    def refresh_quietly(
        self, account_id: str, now: datetime, references: Collection[Reference] = (), *, within_seconds: float = 0
    ) -> bool:
        """Apply what Stripe says now, of these objects too; where that cannot be done now, log it and put it off.

        Whether it was done.
        """
        try:
            if self.refresh(account_id, references, within_seconds=within_seconds):
                return True
        except (ServiceError, grpc.RpcError, *LASTING_FAULTS) as error:
            _log.warning("subscription not looked at", account_id=account_id, error=_said(error))
        with self._engine.begin() as connection:
            mirror_store.put_off(connection, account_id, now + _PUT_OFF)
        return False

    def _apply(self, lease: Lease, batch: _Batch, references: Collection[Reference]) -> bool:
        """Read, have a renewal collected, then write; False where the lease did not hold so long."""
        with self._engine.connect() as connection:
            account = store.find_account(connection, lease.account_id)
            customer_id = mirror_store.customer_of(connection, lease.account_id)
            known = mirror_store.known_payments(connection, lease.account_id)
        assert account is not None
        if customer_id in batch.deleted_customers:
            customer_id = ""
        seen = self._gathering.gather(account, customer_id, references, known)
        renewal = self._renewals.collect_waiting(account, seen)
        if renewal is not None and renewal.is_news:
            seen = self._gathering.gather(account, customer_id, references, known)
        now = self._clock()
        outcome = _sorted_out(batch, seen)
        with self._engine.begin() as connection:
            if not events_store.end_lease(connection, lease):
                _log.warning("applied too slowly, another one goes on", account_id=lease.account_id)
                return False
            for deleted in batch.deleted_customers:
                mirror_store.end_customer(connection, deleted)
            self._effects.write(connection, lease.account_id, seen, now)
            if renewal is Outcome.LATER:
                mirror_store.look_by(connection, lease.account_id, now + _COLLECT_AGAIN)
            events_store.mark_applied(connection, [event.event_id for _, event in outcome.applied])
        for one, event in outcome.applied:
            count_event(event.type, "applied")
            _APPLIED_AFTER.observe(max(0.0, (now - one.received_at).total_seconds()))
        for one, event, why in outcome.faulty:
            self._failed([(one, event)], UnreadableEventError(why), lasting=True)
        return True

    def _release(self, lease: Lease) -> None:
        with self._engine.begin() as connection:
            events_store.end_lease(connection, lease)

    def _failed(self, events: Sequence[tuple[WaitingEvent, ReadEvent]], error: Exception, *, lasting: bool) -> None:
        said = _said(error)
        with self._engine.begin() as connection:
            for waiting, _ in events:
                delay: float | None
                if lasting:
                    delay = _FAILED_DELAY_SECONDS if waiting.attempts < _MAX_FAILURES else None
                else:
                    doublings = min(max(waiting.attempts - 1, 0), _MAX_DOUBLINGS)
                    delay = min(_MAX_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0**doublings)
                    delay *= 1 + random.uniform(-_JITTER, _JITTER)  # noqa: S311 (spreads retries, guards nothing)
                events_store.mark_failed(
                    connection,
                    waiting.event_id,
                    attempts=waiting.attempts,
                    error=said,
                    delay_seconds=delay,
                    gives_up=lasting,
                )
        for waiting, event in events:
            count_event(event.type, "failed" if lasting else "put_off")
            log = _log.error if lasting else _log.warning
            log("event not applied", event_id=event.event_id, type=event.type, attempts=waiting.attempts, error=said)


def _sorted_out(batch: _Batch, seen: Seen) -> _Outcome:
    outcome = _Outcome([], [])
    for waiting, event in zip(batch.waiting, batch.events, strict=True):
        reference = event.reference
        if reference is not None and reference in seen.faults:
            outcome.faulty.append((waiting, event, seen.faults[reference]))
        elif reference is None or reference not in seen.left:
            outcome.applied.append((waiting, event))
    return outcome


def _said(error: Exception) -> str:
    if isinstance(error, grpc.RpcError):
        remote = RemoteError.from_rpc(error)
        return f"{remote.code.name} {remote.reason} {remote.message}"
    if isinstance(error, ServiceError):
        return f"{error.reason} {error.message}"
    if isinstance(error, UnreadableEventError):
        return str(error)
    return f"{type(error).__name__}: {error}"
