"""Owns the search for what Stripe has and we were not told, or were told and did not take in.

Two ways, since either alone leaves a gap: events that we do not know are taken in late; and each customer's objects are
read as they are now, whatever events there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import grpc
from prometheus_client import Counter
from sqlalchemy import Engine

from services.kit.errors import ServiceError
from services.kit.logs import get_logger
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.stripe import events_store, mirror_store
from services.subscriptions.stripe.application import Application
from services.subscriptions.stripe.events import NotAnEventError, ReadEvent, read_event
from services.subscriptions.stripe.gathering import LASTING_FAULTS
from services.subscriptions.stripe.intake import Intake
from services.subscriptions.stripe.reading import StripeReader

_log = get_logger(__name__)

DEFAULT_SINCE = timedelta(days=3)
LONGEST_SINCE = timedelta(days=30)
# What is younger may still be delivered: it is not missed.
_ON_ITS_WAY = timedelta(minutes=10)
_CHUNK = 100
_ACCOUNTS_AT_ONCE = 200

_RECOVERED = Counter("tollkeeper_subscriptions_stripe_events_recovered", "Events that only a search has found")


@dataclass(frozen=True, slots=True)
class Found:
    """Events looked at, and those not known before, which now wait to be applied."""

    seen: int
    recovered: int


@dataclass(frozen=True, slots=True)
class Compared:
    """Customers whose objects were read, and those of which that failed."""

    done: int
    failed: int


class Reconciliation:
    """Searches."""

    def __init__(
        self, engine: Engine, reader: StripeReader, intake: Intake, application: Application, *, clock: Clock = utc_now
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._intake = intake
        self._application = application
        self._clock = clock

    def events(self, since: datetime, until: datetime | None = None) -> Found:
        """Take in the events of that time that we do not know. Raises what `StripeReader` says."""
        seen = recovered = 0
        for chunk in _chunks(self._reader.events_between(since, until)):
            events = list(_read(chunk))
            seen += len(events)
            with self._engine.connect() as connection:
                known = events_store.known_events(connection, [event.event_id for event, _ in events])
            for event, body in events:
                if event.event_id not in known and self._intake.keep(event, body):
                    _log.warning("event was missed", event_id=event.event_id, type=event.type)
                    _RECOVERED.inc()
                    recovered += 1
        return Found(seen, recovered)

    def objects(self, since: datetime) -> Compared:
        """Read every customer's subscription, and what was paid and returned since then, and apply what is new."""
        done = failed = 0
        after = ""
        while True:
            with self._engine.connect() as connection:
                accounts = mirror_store.accounts_with_customers(connection, after=after, limit=_ACCOUNTS_AT_ONCE)
            for account_id in accounts:
                if self._compare(account_id, since):
                    done += 1
                else:
                    failed += 1
            if len(accounts) < _ACCOUNTS_AT_ONCE:
                return Compared(done, failed)
            after = accounts[-1]

    def _compare(self, account_id: str, since: datetime) -> bool:
        with self._engine.connect() as connection:
            customer_id = mirror_store.customer_of(connection, account_id)
        try:
            return self._application.refresh(account_id, self._reader.recent(customer_id, since), within_seconds=5)
        except (ServiceError, grpc.RpcError, *LASTING_FAULTS) as error:
            _log.warning("customer not compared", account_id=account_id, error=f"{type(error).__name__}: {error}")
            return False

    def __call__(self) -> bool:
        """Both, as a background job."""
        now = self._clock()
        since = now - DEFAULT_SINCE
        try:
            found, compared = self.events(since, now - _ON_ITS_WAY), self.objects(since)
        except ServiceError as error:
            _log.warning("not reconciled", error=error.message)
            return False
        _log.info(
            "reconciled", events=found.seen, recovered=found.recovered, customers=compared.done, failed=compared.failed
        )
        return False


def _chunks(bodies: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(bodies, _CHUNK)):
        yield chunk


def _read(bodies: Iterable[str]) -> Iterator[tuple[ReadEvent, str]]:
    for body in bodies:
        try:
            yield read_event(body), body
        except NotAnEventError as error:
            _log.error("an event of Stripe's cannot be read", why=str(error))
