"""Owns the two jobs that add usage up: emitted events, and calls through the proxy from the ledger's feed.

Each batch is one transaction: the mark on the events, or the feed's cursor, is committed with what it adds, so that a
process killed at any moment counts nothing twice and loses nothing. Several processes may run at once: events that one
takes are skipped by the others; a batch of the feed is added by whoever finds the cursor where the batch begins.
"""

from __future__ import annotations

import time

import grpc
from prometheus_client import Counter
from sqlalchemy import Engine

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.subscriptions.metering import store
from services.subscriptions.metering.counters import UseCounters
from services.subscriptions.metering.feed import UsageFeed
from services.subscriptions.metering.model import tally_calls, tally_events

_log = get_logger(__name__)

_EVENTS_AT_ONCE = 5000
_LATELY_SECONDS = 60.0

_AGGREGATED = Counter("tollkeeper_metering_aggregated", "Events and proxied calls added to the aggregates", ["source"])


class EventAggregator:
    """Adds emitted events to the aggregates."""

    def __init__(self, engine: Engine, *, events_at_once: int = _EVENTS_AT_ONCE) -> None:
        self._engine = engine
        self._events_at_once = events_at_once

    def __call__(self) -> bool:
        """Add the events longest waiting; whether there may be more. Use is what it was: they counted while waiting."""
        with self._engine.begin() as connection:
            events = store.claim_events(connection, limit=self._events_at_once)
            store.add_tallies(connection, tally_events(events))
        _AGGREGATED.labels("emitted").inc(len(events))
        return len(events) == self._events_at_once


class FeedAggregator:
    """Adds the calls of the ledger's usage feed to the aggregates."""

    def __init__(self, engine: Engine, feed: UsageFeed, counters: UseCounters) -> None:
        self._engine = engine
        self._feed = feed
        self._counters = counters
        self._begun = time.monotonic()
        self._caught_up_at: float | None = None

    @property
    def lag_seconds(self) -> float:
        """How long ago the feed had been read to its end, or since this process tries to."""
        return time.monotonic() - (self._begun if self._caught_up_at is None else self._caught_up_at)

    @property
    def is_caught_up(self) -> bool:
        """Whether it has been, lately."""
        return self._caught_up_at is not None and self.lag_seconds < _LATELY_SECONDS

    def __call__(self) -> bool:
        """Add what the feed has now. Never more right away: a feed that could not be read is tried after a pause.

        A cursor that the ledger does not know (it was restored, or what follows is archived) is logged as an error and
        kept: beginning anew would count everything twice, so somebody has to decide.
        """
        begun = time.monotonic()
        with self._engine.connect() as connection:
            cursor = store.feed_cursor(connection)
        try:
            for calls, after in self._feed.after(cursor):
                with self._engine.begin() as connection:
                    if store.feed_cursor(connection, lock=True) != cursor:
                        return False  # another process is ahead
                    store.add_tallies(connection, tally_calls(calls))
                    store.move_feed_cursor(connection, after)
                cursor = after
                self._counters.changed(call.account_id for call in calls)
                _AGGREGATED.labels("proxied").inc(len(calls))
        except RemoteError as error:
            log = _log.error if error.code is grpc.StatusCode.INVALID_ARGUMENT else _log.warning
            log("the ledger's usage feed was not read", code=error.code.name, reason=error.reason, error=error.message)
            return False
        self._caught_up_at = begun
        return False
