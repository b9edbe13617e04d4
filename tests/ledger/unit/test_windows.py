"""Windows: UTC days and months, and cycles that come back to their anchor's day after a short month."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger.model.windows import WINDOWS, cycle_containing, window_containing

moments = st.datetimes(datetime(1970, 1, 2), datetime(9990, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def at(*words):
    return datetime(*words, tzinfo=UTC)


@pytest.mark.parametrize(
    ("anchor", "now", "start", "end"),
    [
        (at(2026, 1, 31), at(2026, 2, 27), at(2026, 1, 31), at(2026, 2, 28)),
        (at(2026, 1, 31), at(2026, 2, 28), at(2026, 2, 28), at(2026, 3, 31)),
        (at(2026, 1, 31), at(2026, 3, 30), at(2026, 2, 28), at(2026, 3, 31)),
        (at(2024, 2, 29, 12), at(2025, 2, 28, 11), at(2025, 1, 29, 12), at(2025, 2, 28, 12)),
        (at(2026, 1, 15), at(2025, 12, 15), at(2025, 12, 15), at(2026, 1, 15)),
        (at(2026, 12, 31), at(2026, 11, 30), at(2026, 11, 30), at(2026, 12, 31)),
    ],
)
def test_cycle_comes_back_to_its_anchors_day(anchor, now, start, end):
    assert cycle_containing(anchor, now) == (start, end)


@given(window=st.sampled_from(WINDOWS), anchor=moments, now=moments)
def test_every_moment_is_in_its_window_and_the_next_begins_where_it_ends(window, anchor, now):
    start, end = cycle_containing(anchor, now) if window == "cycle" else window_containing(window, now)
    assert start <= now < end
    if window in {"day", "month"}:
        assert window_containing(window, end)[0] == end
        assert window_containing(window, end - timedelta(microseconds=1)) == (start, end)
