"""Owns HTTP/2's frames (RFC 9113, sections 6 and 7): their numbers, and how one is written."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Kinds.
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)

# Flags. ACK is of settings and pings, END_STREAM of data and headers.
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITISED = 0x20

# Settings.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = range(1, 7)

# Errors.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11

HEAD_BYTES = 9
FIRST_WINDOW = 65_535
LARGEST_WINDOW = 2**31 - 1
LARGEST_STREAM = 2**31 - 1
LEAST_MAX_FRAME = 16_384
MOST_MAX_FRAME = 2**24 - 1

# Length and kind in the first four bytes, then flags, then the stream.
_HEAD = struct.Struct(">IBI")
pack_head = _HEAD.pack
unpack_head = _HEAD.unpack_from


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return pack_head(len(payload) << 8 | kind, flags, stream) + payload


def headers(stream: int, block: bytes, *, ends_stream: bool = False) -> bytes:
    """A header block in as many frames as every peer takes: HEADERS, then CONTINUATION."""
    flags = END_STREAM if ends_stream else 0
    if len(block) <= LEAST_MAX_FRAME:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    parts = [block[at : at + LEAST_MAX_FRAME] for at in range(0, len(block), LEAST_MAX_FRAME)]
    first, *middle, last = parts
    return b"".join(
        (
            frame(HEADERS, flags, stream, first),
            *(frame(CONTINUATION, 0, stream, part) for part in middle),
            frame(CONTINUATION, END_HEADERS, stream, last),
        )
    )


def settings(pairs: dict[int, int]) -> bytes:
    """A SETTINGS frame of one's own settings."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", name, value) for name, value in pairs.items()))


def window(stream: int, more_bytes: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW, 0, stream, more_bytes.to_bytes(4))


def reset(stream: int, error: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RESET, 0, stream, error.to_bytes(4))


def goaway(last_stream: int, error: int) -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, last_stream.to_bytes(4) + error.to_bytes(4))
