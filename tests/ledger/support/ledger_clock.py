"""Owns a clock that only the test moves, for a server that runs in the test's own process."""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from services.ledger import service, writer
from services.ledger.servicer import filters


class Clock:
    """What time it is for the ledger: `now`, until `wait` or `set` moves it. `step`: later by so much at each look."""

    def __init__(self, monkeypatch, now=None, *, step=timedelta(0)):
        self.now = now or datetime.now(UTC)
        clock = self

        class Frozen(datetime):
            @classmethod
            def now(cls, tz=None):
                clock.now += step
                return clock.now.astimezone(tz)

        for module in (writer, service, filters):  # those that ask what time it is
            monkeypatch.setattr(module, "datetime", Frozen)

    def wait(self, **words):
        self.now += timedelta(**words)
        return self.now

    def stamp(self, **words):
        """The time in so long, as the contract has it."""
        found = Timestamp()
        found.FromDatetime(self.now + timedelta(**words))
        return found


def stamp(moment):
    found = Timestamp()
    found.FromDatetime(moment)
    return found
