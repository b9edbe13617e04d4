"""Owns HPACK (RFC 7541): header blocks read, with the table a connection builds up, and written without one.

What we send depends on nothing that was sent before: a few bytes more cost less than to remember.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Pairs = list[tuple[str, str]]
# Name, value, the name's octets on the wire, and the size of the entry. Sizes are of what was sent, not of what it
# reads as: the peer's table, which ours follows, evicts by them.
_Entry = tuple[str, str, int, int]

_ENTRY_BYTES = 32  # what an entry counts beside its strings (RFC 7541, section 4.1)
_TABLE_BYTES = 4096  # we never tell a peer of another limit
_MOST_INTEGER_BYTES = 5

# RFC 7541, appendix A; an empty value is one that is always given.
_STATIC: Final[tuple[_Entry, ...]] = tuple(
    (name, value, len(name), len(name) + len(value) + _ENTRY_BYTES)
    for name, _, value in (
        line.partition(" ")
        for line in (
            ":authority", ":method GET", ":method POST", ":path /", ":path /index.html", ":scheme http",
            ":scheme https", ":status 200", ":status 204", ":status 206", ":status 304", ":status 400", ":status 404",
            ":status 500", "accept-charset", "accept-encoding gzip, deflate", "accept-language", "accept-ranges",
            "accept", "access-control-allow-origin", "age", "allow", "authorization", "cache-control",
            "content-disposition", "content-encoding", "content-language", "content-length", "content-location",
            "content-range", "content-type", "cookie", "date", "etag", "expect", "expires", "from", "host", "if-match",
            "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified", "link",
            "location", "max-forwards", "proxy-authenticate", "proxy-authorization", "range", "referer", "refresh",
            "retry-after", "server", "set-cookie", "strict-transport-security", "transfer-encoding", "user-agent",
            "vary", "via", "www-authenticate",
        )
    )
)  # fmt: skip

# RFC 7541, appendix B. The code is canonical, so the symbols by the length of their codes say all of it.
_END_OF_STRING = 256
_SYMBOLS: Final[dict[int, Iterable[int]]] = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: bytes.fromhex("808283a2b8c2e0e2"),
    21: bytes.fromhex("99a1a7acb0b1b3d1d8d9e3e5e6"),
    22: bytes.fromhex("8184858688929a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9"),
    23: bytes.fromhex("0187898a8b8c8d8f93959697989b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef"),
    24: bytes.fromhex("098e9091949fabced7e1eced"),
    25: bytes.fromhex("c7cfeaeb"),
    26: bytes.fromhex("c0c1c8c9cacdd2d5dadbeef0f2f3ff"),
    27: bytes.fromhex("cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe"),
    28: bytes.fromhex("020304050607080b0c0e0f1011121314151718191a1b1c1d1e1f7fdcf9"),
    30: (10, 13, 22, _END_OF_STRING),
}


class BadBlockError(Exception):
    """A header block that cannot be read, or is too large: the connection's table is lost with it."""


class HeaderReader:
    """Reads the header blocks of one connection, in their order. `max_bytes`: of one block's headers, as HPACK counts.

    `version` changes with the table: as long as it is the same, so is what a block means. So the start of a block that
    begins as the one before it is not read again: a peer's requests differ in their last header, which is their id.
    """

    __slots__ = ("_entries", "_limit", "_max_bytes", "_size", "_start", "_start_found", "_start_size", "version")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: list[_Entry] = []  # the newest last
        self._size = 0
        self._limit = _TABLE_BYTES
        self.version = 0
        # All but the last header of the block before: its bytes, what they say, and how large that is.
        self._start, self._start_size = b"", 0
        self._start_found: Pairs = []

    def read(self, block: bytes) -> Pairs:
        """Names and values. Raises BadBlockError."""
        found: Pairs = []
        at, end, size, before = 0, len(block), 0, self.version
        if block.startswith(self._start):
            found += self._start_found
            at, size = len(self._start), self._start_size
        last, all_but_last = at, size
        while at < end:
            last, all_but_last = at, size
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 0x7F)
                name, value, _, octets = self._entry(index)
            elif first & 0x60 == 0x20:  # noqa: PLR2004
                limit, at = _integer(block, at, 0x1F)
                if found or limit > _TABLE_BYTES:
                    raise BadBlockError("a size of the table that may not be")
                self._limit = limit
                self._evict(0)
                continue
            else:
                index, at = _integer(block, at, 0x3F if first & 0x40 else 0x0F)
                if index:
                    name, _, name_octets, _ = self._entry(index)
                else:
                    name, name_octets, at = _string(block, at)
                value, octets, at = _string(block, at)
                octets += name_octets + _ENTRY_BYTES
                if first & 0x40:
                    self._add((name, value, name_octets, octets))
            size += octets
            if size > self._max_bytes:
                raise BadBlockError(f"headers of more than {self._max_bytes:,} bytes")
            found.append((name, value))
        if self.version == before and 0 < last < end:
            self._start, self._start_found, self._start_size = block[:last], found[:-1], all_but_last
        return found

    def _entry(self, index: int) -> _Entry:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        back = index - len(_STATIC)
        if not 0 < back <= len(self._entries):
            raise BadBlockError(f"no entry {index} in the table")
        return self._entries[-back]

    def _add(self, entry: _Entry) -> None:
        size = entry[3]
        self._evict(size)
        if size <= self._limit:
            self._entries.append(entry)
            self._size += size

    def _evict(self, room_bytes: int) -> None:
        """Let the oldest entries go until there is room for so much."""
        self.version += 1
        self._start, self._start_found, self._start_size = b"", [], 0
        gone = 0
        while gone < len(self._entries) and self._size + room_bytes > self._limit:
            self._size -= self._entries[gone][3]
            gone += 1
        del self._entries[:gone]


def _integer(block: bytes, at: int, most: int) -> tuple[int, int]:
    """An integer in the low bits (`most` is all of them) of the byte there, and where it ends (section 5.1)."""
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in range(0, 7 * _MOST_INTEGER_BYTES, 7):
        if at >= len(block):
            break
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004
            return value, at
    raise BadBlockError("an integer without an end")


def _string(block: bytes, at: int) -> tuple[str, int, int]:
    """A string, its octets, and where it ends (section 5.2)."""
    if at >= len(block):
        raise BadBlockError("the block is cut off")
    compressed = block[at] & 0x80
    size, at = _integer(block, at, 0x7F)
    end = at + size
    if end > len(block):
        raise BadBlockError("the block is cut off")
    raw = block[at:end]
    if compressed:
        raw = _expanded(raw)
    try:
        return str(raw, "utf-8"), len(raw), end
    except UnicodeDecodeError:  # it should be ASCII, but what one client sends must not end the calls of others
        return str(raw, "latin-1"), len(raw), end


# ------------------------------------------------------------------------------------------------------ Huffman's code


class _Node:
    """A place in the tree of codes: what each next byte leads to. Found when it first comes, then looked up."""

    __slots__ = ("ends", "next", "steps", "symbol")

    def __init__(self) -> None:
        self.next: list[_Node] = []
        self.symbol = -1
        self.steps: dict[int, tuple[_Node, bytes]] = {}
        self.ends = False  # whether a string may end here: after less than a byte of ones

    def step(self, byte: int) -> tuple[_Node, bytes]:
        """The place after a byte, and the symbols passed on the way. Raises BadBlockError."""
        node, passed = self, bytearray()
        for bit in range(7, -1, -1):
            node = node.next[byte >> bit & 1]
            if node.symbol == _END_OF_STRING:
                raise BadBlockError("the end of a string within it")
            if node.symbol >= 0:
                passed.append(node.symbol)
                node = _ROOT
        self.steps[byte] = node, bytes(passed)
        return self.steps[byte]


def _tree() -> _Node:
    root = _Node()
    code = length = 0
    for longer, symbols in _SYMBOLS.items():
        for symbol in symbols:
            code <<= longer - length
            length = longer
            node = root
            for bit in range(length - 1, -1, -1):
                if not node.next:
                    node.next = [_Node(), _Node()]
                node = node.next[code >> bit & 1]
            node.symbol = symbol
            code += 1
    node = root
    for _ in range(8):
        node.ends = True
        node = node.next[1]
    return root


_ROOT = _tree()


def _expanded(raw: bytes) -> bytes:
    """What a compressed string stands for. Raises BadBlockError."""
    node, found = _ROOT, []
    for byte in raw:
        step = node.steps.get(byte) or node.step(byte)
        node = step[0]
        found.append(step[1])
    if not node.ends:
        raise BadBlockError("a string that ends within a symbol")
    return b"".join(found)


# ------------------------------------------------------------------------------------------------------------- writing


def block_of(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Headers as a block of literals that no table remembers, not compressed."""
    out = bytearray()
    for name, value in pairs:
        out.append(0)
        _add_string(out, name.encode())
        _add_string(out, value.encode())
    return bytes(out)


def _add_string(out: bytearray, raw: bytes) -> None:
    size = len(raw)
    if size < 0x7F:  # noqa: PLR2004
        out.append(size)
    else:
        out.append(0x7F)
        size -= 0x7F
        while size > 0x7F:  # noqa: PLR2004
            out.append(size & 0x7F | 0x80)
            size >>= 7
        out.append(size)
    out += raw
