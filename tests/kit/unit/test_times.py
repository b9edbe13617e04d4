"""The contract's times: to the microsecond and back, and what is none."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.context.attribute_context_pb2 import AttributeContext
from hypothesis import given
from hypothesis import strategies as st

from services.kit.times import moment_of, set_timestamp, timestamp
from services.kit.validation import Violations

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-7)), timezone(timedelta(hours=5, minutes=30))])


@given(st.datetimes(datetime(1970, 1, 2), datetime(9998, 12, 30), timezones=ZONES))  # noqa: DTZ001 (hypothesis adds the zone)
def test_times_go_there_and_back_as_protobuf_itself_takes_them(moment):
    theirs = Timestamp()
    theirs.FromDatetime(moment)
    v = Violations()
    assert timestamp(moment) == theirs
    assert moment_of(v, "at", theirs) == moment == theirs.ToDatetime(tzinfo=UTC)
    assert v.found == []


def test_a_time_of_all_zeros_is_still_given():
    message = AttributeContext.Request()
    set_timestamp(message.time, EPOCH)
    assert message.HasField("time")
    assert timestamp(None) is None


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(-1, 0), (0, -1), (0, 10**9), (253_402_214_400 + 86_400, 0), (2**62, 0), (-(2**62), 0)],
)
def test_what_is_no_time_is_named(seconds, nanos):
    v = Violations()
    assert moment_of(v, "at", Timestamp(seconds=seconds, nanos=nanos)) == EPOCH
    assert [violation.field for violation in v.found] == ["at"]
