"""Owns the use cases of operators who look at events: list them, have one applied again."""

from __future__ import annotations

import time
from datetime import datetime

from sqlalchemy import Engine

from services.subscriptions.errors import StripeEventNotFound
from services.subscriptions.stripe import events_store
from services.subscriptions.stripe.application import Application
from services.subscriptions.stripe.events import PENDING, StoredEvent

_RECHECK_SECONDS = 0.05


class EventLog:
    """Events as they are kept."""

    def __init__(self, engine: Engine, application: Application, *, wait_seconds: float) -> None:
        self._engine = engine
        self._application = application
        self._wait_seconds = wait_seconds

    def list(
        self, *, status: str, event_type: str, before: tuple[datetime, str] | None, page_size: int
    ) -> tuple[list[StoredEvent], bool]:
        """A page of events, newest first, from before a position on, and whether there are more."""
        with self._engine.connect() as connection:
            found = events_store.list_events(
                connection, status=status, event_type=event_type, before=before, limit=page_size + 1
            )
        return found[:page_size], len(found) > page_size

    def find(self, event_id: str) -> StoredEvent:
        """One event. Raises StripeEventNotFound."""
        with self._engine.connect() as connection:
            event = events_store.find_event(connection, event_id)
        if event is None:
            raise StripeEventNotFound(f"no event {event_id} was taken in", event_id=event_id)
        return event

    def replay(self, event_id: str) -> StoredEvent:
        """Have an event applied again, and wait a little for that: what it did before is not done twice.

        Raises StripeNotConfigured, StripeEventNotFound.
        """
        self._application.require_stripe()
        with self._engine.begin() as connection:
            if not events_store.wait_again(connection, event_id):
                raise StripeEventNotFound(f"no event {event_id} was taken in", event_id=event_id)
        ends = time.monotonic() + self._wait_seconds
        while (event := self.find(event_id)).status == PENDING and time.monotonic() < ends:
            if not self._application.advance():
                time.sleep(_RECHECK_SECONDS)
        return event
