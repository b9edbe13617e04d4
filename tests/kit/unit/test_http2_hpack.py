"""Owns the tests of header blocks (RFC 7541): its examples, the table both sides share, and blocks meant to harm."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.kit.http2.hpack import BadBlockError, HeaderReader, block_of

_FIRST = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")]
_SECOND = [*_FIRST, ("cache-control", "no-cache")]
_THIRD = [
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
]
# RFC 7541, C.3 and C.4.
_PLAIN = (
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
)
_HUFFMAN = (
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
)


def reader(max_bytes=100_000):
    return HeaderReader(max_bytes)


@pytest.mark.parametrize("blocks", [_PLAIN, _HUFFMAN], ids=["plain", "huffman"])
def test_requests_of_the_rfc_are_read(blocks):
    one = reader()
    assert [one.read(bytes.fromhex(block)) for block in blocks] == [_FIRST, _SECOND, _THIRD]


def _outcome(reader, block):
    try:
        return reader.read(block)
    except BadBlockError as error:
        return str(error)


# A header of the fixed table, the table's newest, and others that take a place in the table or do not.
_FIELDS = st.one_of(
    st.sampled_from([b"\x83", b"\xbe"]),
    st.builds(
        lambda kind, name, value: kind + block_of([(name, value)])[1:],
        st.sampled_from([b"\x40", b"\x00"]),
        st.sampled_from("abc"),
        st.sampled_from(["1", "22" * 40]),
    ),
)


# A few, which come again and again.
_BLOCKS = st.lists(st.lists(_FIELDS, min_size=1, max_size=3), min_size=1, max_size=3).flatmap(
    lambda few: st.lists(st.sampled_from(few), max_size=12)
)


@given(_BLOCKS, st.sampled_from([64, 250, 4096]))
@example([[b"\x40\1a\x011"], [b"\xbe", b"\x83"], [b"\x40\1b\x011"], [b"\xbe", b"\x83"]], 4096)
@example([[b"\x83", b"\x83"], [b"\x83"], [b"\x83", b"\x83"]], 4096)
def test_block_that_begins_as_the_one_before_reads_as_any_other(blocks, table_bytes):
    resized = b"\x3f" + bytes([(table_bytes - 31) % 128 | 128, (table_bytes - 31) // 128])
    one, other = reader(), reader()
    for both in (one, other):
        both.read(resized)
    for fields in blocks:
        other.read(block_of([("z", ""), ("z", "")]))  # so what came before that is of no help to it
        found = _outcome(one, b"".join(fields))
        assert found == _outcome(other, b"".join(fields))
        if isinstance(found, str):
            break


def test_start_of_a_block_counts_towards_its_largest_size():
    one = reader(100)
    start = block_of([("a", "x" * 30)])
    assert len(one.read(start + block_of([("b", "")]))) == 2
    with pytest.raises(BadBlockError):
        one.read(start + block_of([("b", "x" * 10)]))


def test_responses_of_the_rfc_are_read_with_eviction():
    """RFC 7541, C.6, whose table of 256 bytes lets entries go."""
    one = reader()
    one.read(bytes.fromhex("3fe101"))  # a table of 256 bytes
    date, location = ("date", "Mon, 21 Oct 2013 20:13:21 GMT"), ("location", "https://www.example.com")
    first = one.read(
        bytes.fromhex(
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3"
        )
    )
    assert first == [(":status", "302"), ("cache-control", "private"), date, location]
    assert one.read(bytes.fromhex("4883640effc1c0bf")) == [(":status", "307"), *first[1:]]
    third = one.read(
        bytes.fromhex(
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087"
            "f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
        )
    )
    assert third == [
        (":status", "200"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
        location,
        ("content-encoding", "gzip"),
        ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ]


def test_what_we_write_is_read():
    pairs = [("a" * size, "é" * size) for size in (1, 126, 127, 128, 254, 255, 300, 20_000)]
    assert reader().read(block_of(pairs)) == pairs


@pytest.mark.parametrize("block", _HUFFMAN[::2])
def test_a_block_cut_off_anywhere_is_refused_or_shorter(block):
    raw = bytes.fromhex(block)
    whole = reader().read(raw) if raw[3] != 0xBF else None
    for end in range(len(raw)):
        try:
            found = reader().read(raw[:end])
        except BadBlockError:
            continue
        assert whole is None or found == whole[: len(found)]
        assert len(found) < 5


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "c0",  # an index that is not there
        "ff8080808080808080808001",  # an integer without an end
        "ffffffffffff01",  # an integer of more bytes than any may have
        "7fffffffff7f",  # a name's index beyond every table
        "3fe21f",  # a table of more than we allow
        "8220",  # a table's size after a header
        "0081",  # a string longer than the block
        "00",  # no name
        "000161",  # no value
        "0001618100",  # Huffman: padding that is not of ones
        "000161821fff",  # Huffman: a whole byte of padding
        "00016184ffffffff",  # Huffman: the end of string
        "0001617f80808080808001",  # a length without an end
    ],
)
def test_malformed_blocks_are_refused(block):
    with pytest.raises(BadBlockError):
        reader().read(bytes.fromhex(block))


def test_headers_above_the_limit_are_refused_however_small_they_came():
    one = reader(10_000)
    one.read(b"\x40\x01a\x7f\x81\x17" + b"x" * 3072)  # 1 + 3,072 + 32 bytes in the table
    assert len(one.read(b"\xbe" * 3)) == 3
    with pytest.raises(BadBlockError, match="more than 10,000"):
        one.read(b"\xbe" * 4)


def test_table_evicts_by_the_sizes_that_were_sent():
    """Values that are no UTF-8 read as more bytes than they came as: the tables of both sides must stay alike."""
    one = reader()
    one.read(b"\x40\x01a\x01b")
    # 4,096 - 34 bytes are left: name 1, value 4,029, 32 for the entry.
    size = 4096 - 34 - 32 - 1
    one.read(b"\x40\x01c" + b"\x7f" + bytes([(size - 127) & 0x7F | 0x80, (size - 127) >> 7]) + b"\xff" * size)
    assert one.read(b"\xbf") == [("a", "b")]
    one.read(b"\x40\x01d\x00")
    with pytest.raises(BadBlockError):
        one.read(b"\xc0")


def test_an_entry_larger_than_the_table_empties_it():
    one = reader()
    one.read(b"\x40\x01a\x01b")
    one.read(b"\x40\x01c\x7f\x81\x1f" + b"x" * 4096)
    with pytest.raises(BadBlockError):
        one.read(b"\xbe")


def test_a_smaller_table_evicts_and_a_larger_one_again_holds_more():
    one = reader()
    one.read(b"\x40\x01a\x01b\x40\x01c\x01d")
    assert one.read(b"\x3f\x03\xbe") == [("c", "d")]  # 34 bytes
    with pytest.raises(BadBlockError):
        one.read(b"\xbf")
    one = reader()
    one.read(b"\x40\x01a\x01b")
    assert one.read(b"\x20\x3f\xe1\x1f") == []
    with pytest.raises(BadBlockError):
        one.read(b"\xbe")
