from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.subscriptions.model.cycle import cycle_at, months_after

moments = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)).map(lambda d: d.replace(tzinfo=UTC))  # noqa: DTZ001


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_cycle_keeps_the_anchors_day_and_falls_back_to_the_months_last():
    anchor = at("2026-01-31T10:30:00")
    starts = [months_after(anchor, n).isoformat()[:16] for n in range(4)]
    assert starts == ["2026-01-31T10:30", "2026-02-28T10:30", "2026-03-31T10:30", "2026-04-30T10:30"]
    assert months_after(at("2028-01-31T00:00:00"), 1).day == 29


def test_cycle_begins_at_its_start_and_ends_just_before_its_end():
    anchor = at("2026-11-21T12:00:00")
    boundary = at("2026-12-21T12:00:00")
    assert cycle_at(anchor, boundary - timedelta(microseconds=1)).end == boundary
    assert cycle_at(anchor, boundary).start == boundary


def test_moment_before_the_anchor_counts_as_the_first_cycle():
    anchor = at("2026-11-21T12:00:00")
    assert cycle_at(anchor, anchor - timedelta(days=90)).start == anchor


@given(moments, st.integers(0, 5000), st.integers(0, 86_399))
def test_every_moment_is_in_exactly_one_cycle(anchor, days, seconds):
    moment = anchor + timedelta(days=days, seconds=seconds)
    cycle = cycle_at(anchor, moment)
    assert cycle.start <= moment < cycle.end
    assert cycle_at(anchor, cycle.end).start == cycle.end
    assert cycle_at(anchor, cycle.start) == cycle
