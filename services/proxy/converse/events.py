"""Owns the AWS event stream framing (`application/vnd.amazon.eventstream`): bytes, split anywhere, become messages.

One message on the wire, all numbers big-endian:

    total length (4) | length of headers (4) | CRC-32 of those 8 bytes (4) | headers | payload | CRC-32 of it all (4)

A header is: length of name (1) | name | type (1) | value. Source: the Smithy specification, "Amazon Event Stream".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from zlib import crc32

MAX_FRAME_BYTES = 16 * 1024 * 1024
MAX_HEADERS_BYTES = 128 * 1024

_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_LENGTH = struct.Struct(">H")
_LEAST_FRAME_BYTES = _PRELUDE.size + _CRC.size

_BYTES, _STRING = 6, 7
# The types of which the length is known: true, false, byte, short, integer, long, timestamp, uuid.
_FIXED_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


class EventStreamError(ValueError):
    """Bytes that are no event stream, or one that is not taken: a wrong checksum, an impossible or too great length."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its headers that are strings, which are all that are read here, and its payload."""

    headers: Mapping[str, str]
    payload: bytes


class EventStreamDecoder:
    """Puts messages together from pieces. Once it has raised EventStreamError it takes nothing more."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._total = 0  # of the message under way, once its prelude has come
        self._headers_length = 0
        self._broken: EventStreamError | None = None

    @property
    def pending(self) -> bool:
        """Whether a message has begun and not come to its end."""
        return bool(self._held)

    def feed(self, piece: bytes) -> Iterator[Message]:
        """The messages that this piece completes, to be iterated to the end. Raises EventStreamError."""
        if self._broken is not None:
            raise self._broken
        self._held += piece
        try:
            while (message := self._next()) is not None:
                yield message
        except EventStreamError as error:
            self._broken = error
            self._held.clear()
            raise

    def _next(self) -> Message | None:
        if not self._total:
            if len(self._held) < _PRELUDE.size:
                return None
            self._read_prelude()
        if len(self._held) < self._total:
            return None
        frame = bytes(self._held[: self._total])
        if crc32(memoryview(frame)[: -_CRC.size]) != _CRC.unpack_from(frame, self._total - _CRC.size)[0]:
            raise EventStreamError("the message's checksum does not hold")
        del self._held[: self._total]
        payload_at = _PRELUDE.size + self._headers_length
        self._total = 0
        return Message(_headers(frame[_PRELUDE.size : payload_at]), frame[payload_at : -_CRC.size])

    def _read_prelude(self) -> None:
        total, headers_length, checksum = _PRELUDE.unpack_from(self._held)
        # First of all, since a length that is wrong would be waited for.
        if crc32(self._held[: _PRELUDE.size - _CRC.size]) != checksum:
            raise EventStreamError("the prelude's checksum does not hold")
        if total > MAX_FRAME_BYTES:
            raise EventStreamError(f"a message of {total} bytes; at most {MAX_FRAME_BYTES} are taken")
        if headers_length > MAX_HEADERS_BYTES:
            raise EventStreamError(f"headers of {headers_length} bytes; at most {MAX_HEADERS_BYTES} are taken")
        if total < _LEAST_FRAME_BYTES + headers_length:
            raise EventStreamError(f"a message of {total} bytes cannot hold headers of {headers_length}")
        self._total, self._headers_length = total, headers_length


def _headers(block: bytes) -> dict[str, str]:
    """The headers that are strings. Raises EventStreamError for what is none, and for a name that comes twice."""
    headers: dict[str, str] = {}
    names: set[bytes] = set()
    at = 0
    try:
        while at < len(block):
            name_end = at + 1 + block[at]
            name, kind = block[at + 1 : name_end], block[name_end]
            if not name or name in names:
                raise EventStreamError("a header without a name, or named as another")
            names.add(name)
            value_at = name_end + 1
            if kind in _FIXED_SIZES:
                at = value_at + _FIXED_SIZES[kind]
            elif kind in {_BYTES, _STRING}:
                start = value_at + _LENGTH.size
                at = start + _LENGTH.unpack_from(block, value_at)[0]
                if kind == _STRING:
                    headers[name.decode()] = block[start:at].decode()
            else:
                raise EventStreamError(f"a header of type {kind}, which there is not")
            if at > len(block):
                raise EventStreamError("a header is longer than the headers")
    except (IndexError, struct.error) as error:
        raise EventStreamError("a header ends outside the headers") from error
    except UnicodeDecodeError as error:
        raise EventStreamError("a header is not UTF-8") from error
    return headers
