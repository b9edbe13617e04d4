"""Owns the contract's times: `google.protobuf.Timestamp` from and to datetimes, to the microsecond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.validation import Violations

_YEARS = range(1970, 9999)
_NANOS_A_SECOND = 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A time with a zone as the contract's; None, a field left unset, stays None."""
    if moment is None:
        return None
    stamp = Timestamp()
    set_timestamp(stamp, moment)
    return stamp


def set_timestamp(stamp: Timestamp, moment: datetime) -> None:
    """The same, into a message's own field: `set_timestamp(hold.created_at, moment)`."""
    # As Timestamp.FromDatetime, in a third of its time.
    since = moment - _EPOCH
    stamp.seconds = since.days * 86_400 + since.seconds
    stamp.nanos = since.microseconds * 1000


def moment_of(v: Violations, field: str, stamp: Timestamp) -> datetime:
    """A request's time, in UTC; one that is no time between 1970 and 9998 is added to `v`."""
    try:
        # As Timestamp.ToDatetime, in a third of its time.
        found = _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)
    except OverflowError:
        found = None
    if found is None or found.year not in _YEARS or not 0 <= stamp.nanos < _NANOS_A_SECOND:
        v.add(field, "must be a time between the years 1970 and 9998")
        return _EPOCH
    return found
