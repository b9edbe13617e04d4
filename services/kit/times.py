"""Owns the contract's times: `google.protobuf.Timestamp` from and to datetimes, to the microsecond."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.validation import Violations

_YEARS = range(1970, 9999)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A time with a zone as the contract's; None, a field left unset, stays None."""
    if moment is None:
        return None
    # As Timestamp.FromDatetime, in a third of its time.
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


def moment_of(v: Violations, field: str, stamp: Timestamp) -> datetime:
    """A request's time, in UTC; one that is no time between 1970 and 9998 is added to `v`."""
    try:
        found = stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        found = None
    if found is None or found.year not in _YEARS:
        v.add(field, "must be a time between the years 1970 and 9998")
        return _EPOCH
    return found
