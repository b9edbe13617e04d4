"""The AWS event stream: any split gives the same messages, and no changed or cut message is taken."""

import contextlib
import itertools
import struct
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.sandbox.provider import eventstream
from services.proxy.converse import events
from services.proxy.converse.events import EventStreamDecoder, EventStreamError

messages = st.lists(
    st.builds(
        eventstream.encode,
        st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=50), max_size=4),
        st.binary(max_size=200),
    ),
    min_size=1,
    max_size=4,
).map(b"".join)


def frame(headers, payload=b"", *, total=None, headers_length=None):
    length = len(headers) if headers_length is None else headers_length
    whole = struct.pack(">II", 16 + len(headers) + len(payload) if total is None else total, length)
    whole += struct.pack(">I", crc32(whole)) + headers + payload
    return whole + struct.pack(">I", crc32(whole))


def decoded(raw, edges=()):
    decoder = EventStreamDecoder()
    places = sorted({0, len(raw), *(edge for edge in edges if edge < len(raw))})
    found = [m for start, end in itertools.pairwise(places) for m in decoder.feed(raw[start:end])]
    return [(dict(m.headers), m.payload) for m in found], decoder


@given(messages, st.lists(st.integers(0, 600)))
def test_any_split_gives_the_same_messages(raw, edges):
    found, decoder = decoded(raw, edges)
    assert found == [(m.headers, m.payload) for m in eventstream.decode(raw)]
    assert not decoder.pending


@given(messages, st.data())
def test_one_flipped_bit_is_refused_and_nothing_after_it_is_taken(raw, data):
    at, bit = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(raw)
    changed[at] ^= 1 << bit
    decoder = EventStreamDecoder()
    good = list(eventstream.decode(raw))
    found = []
    with pytest.raises(EventStreamError):
        found.extend(decoder.feed(bytes(changed)))
    assert [(m.headers, m.payload) for m in found] == [(m.headers, m.payload) for m in good[: len(found)]]
    assert len(found) < len(good)
    with pytest.raises(EventStreamError):
        list(decoder.feed(raw))


@given(messages, st.data())
def test_a_cut_message_is_pending(raw, data):
    cut = data.draw(st.integers(0, len(raw) - 1))
    found, decoder = decoded(raw[:cut])
    assert len(found) < len(list(eventstream.decode(raw)))
    taken = sum(len(eventstream.encode(headers, payload)) for headers, payload in found)
    assert decoder.pending == (taken < cut)


def test_published_empty_message_is_taken():
    # The smallest message there is, as published with the AWS event stream test vectors.
    assert decoded(bytes.fromhex("000000100000000005c248eb7d98c8ff"))[0] == [({}, b"")]


def test_headers_of_every_type_are_passed_over_and_strings_are_read():
    sizes = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
    block = b"".join(b"\x02%c%c" % (97 + kind, 97) + bytes([kind]) + bytes(size) for kind, size in sizes.items())
    block += b"\x01b\x06\x00\x03abc" + b"\x01s\x07\x00\x02ok"
    assert decoded(frame(block, b"{}"))[0] == [({"s": "ok"}, b"{}")]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(frame(b"", total=events.MAX_FRAME_BYTES + 1), id="frame-too-long"),
        pytest.param(frame(b"", total=2**32 - 1), id="frame-far-too-long"),
        pytest.param(frame(b"", total=15), id="frame-shorter-than-its-frame"),
        pytest.param(frame(b"", total=1000, headers_length=985), id="headers-beyond-the-frame"),
        pytest.param(frame(b"", total=2**20, headers_length=events.MAX_HEADERS_BYTES + 1), id="headers-too-long"),
    ],
)
def test_impossible_length_is_refused_with_the_prelude_alone(raw):
    with pytest.raises(EventStreamError):
        list(EventStreamDecoder().feed(raw[:12]))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(b"\x05a", id="name-cut"),
        pytest.param(b"\x01a", id="no-type"),
        pytest.param(b"\x01a\x07", id="no-length"),
        pytest.param(b"\x01a\x07\x00\x05abc", id="value-cut"),
        pytest.param(b"\x01a\x05abc", id="number-cut"),
        pytest.param(b"\x00\x07\x00\x00", id="no-name"),
        pytest.param(b"\x01a\x0a", id="unknown-type"),
        pytest.param(b"\x01a\x00\x01a\x00", id="twice"),
        pytest.param(b"\x01a\x07\x00\x01\xff", id="not-utf-8"),
        pytest.param(b"\x01\xff\x07\x00\x01a", id="name-not-utf-8"),
    ],
)
def test_headers_that_are_none_are_refused(headers):
    with pytest.raises(EventStreamError):
        list(EventStreamDecoder().feed(frame(headers)))


@given(st.binary(max_size=300))
def test_any_headers_are_read_or_refused(headers):
    with contextlib.suppress(EventStreamError):
        assert len(list(EventStreamDecoder().feed(frame(headers)))) == 1
