"""Events come out whole and the same, whatever pieces their bytes come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.sse import EventSplitter, EventTooLargeError, data_of, event_of

ENDS = [b"\n\n", b"\r\n\r\n", b"\r\r"]

lines = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n\r"), min_size=1, max_size=30)
events = st.lists(
    st.builds(
        lambda texts, end: end[: len(end) // 2].join(b"data: " + t.encode() for t in texts) + end,
        st.lists(lines, min_size=1, max_size=3),
        st.sampled_from(ENDS[:2]),
    ),
    max_size=8,
)


@given(events, st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_events_are_the_same_however_they_are_cut(whole, sizes):
    stream, splitter, found, at = b"".join(whole), EventSplitter(10_000), [], 0
    for number in range(len(stream) + 1):
        piece = stream[at : at + sizes[number % len(sizes)]]
        if not piece:
            break
        at += len(piece)
        found += splitter.feed(piece)
    assert b"".join(found) + splitter.rest() == stream
    assert found == EventSplitter(10_000).feed(stream)
    assert len(found) == len(whole)


@pytest.mark.parametrize("end", ENDS)
def test_all_line_ends_are_known(end):
    splitter = EventSplitter(100)
    assert splitter.feed(b"data: a" + end + b"data: b") == [b"data: a" + end]
    assert splitter.rest() == b"data: b"


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\r\n\r\n", b"{}"),
        (b"event: x\ndata: a\ndata: b\n\n", b"a\nb"),
        (b": keep-alive\n\n", b""),
        (b"id: 7\n\n", b""),
    ],
)
def test_data_of_an_event(event, data):
    assert data_of(event) == data


@pytest.mark.parametrize(
    ("piece", "found", "rest"),
    [
        (b"data: a\n\n", [b"data: a\n\n"], b""),
        (b"data: a\n\n\n", [b"data: a\n\n"], b"\n"),
        (b"a\n\nb\n\n", [b"a\n\n", b"b\n\n"], b""),
        (b"a\r\rb\n\n", [b"a\r\r", b"b\n\n"], b""),
        (b"\n\n", [b"\n\n"], b""),
        (b"\n", [], b"\n"),
    ],
    ids=["one", "one and a line", "two", "two, with other line ends", "an empty one", "a line"],
)
def test_piece_of_whole_events_is_cut_as_any(piece, found, rest):
    splitter = EventSplitter(100)
    assert splitter.feed(piece) == found
    assert splitter.rest() == rest


def test_made_event_is_read_back():
    assert EventSplitter(100).feed(event_of(b'{"a":1}')) == [b'data: {"a":1}\n\n']


def test_event_without_an_end_is_bounded():
    splitter = EventSplitter(100)
    splitter.feed(b"x" * 100)
    with pytest.raises(EventTooLargeError):
        splitter.feed(b"x")
