"""Owns the AWS event stream framing (`application/vnd.amazon.eventstream`) in which Bedrock streams.

One message on the wire, all numbers big-endian:

    total length (4) | length of headers (4) | CRC-32 of those 8 bytes (4) | headers | payload | CRC-32 of it all (4)

A header is: length of name (1) | name | type (1) | value; only type 7, a string with its length (2) before it, is used.
Source: the Smithy specification, "Amazon Event Stream".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from zlib import crc32

CONTENT_TYPE: Final = "application/vnd.amazon.eventstream"

_PRELUDE: Final = struct.Struct(">III")
_CRC: Final = struct.Struct(">I")
_STRING: Final = 7
_STRING_HEAD: Final = struct.Struct(">BH")


class FramingError(ValueError):
    """Bytes that are no event stream: a checksum that does not hold, an impossible length, an unknown header type."""


@dataclass(frozen=True, slots=True)
class Message:
    """One decoded message: its headers and its payload."""

    headers: dict[str, str]
    payload: bytes


def encode(headers: dict[str, str], payload: bytes) -> bytes:
    """One message in its frame."""
    block = b"".join(
        bytes([len(name.encode())]) + name.encode() + _STRING_HEAD.pack(_STRING, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    total = _PRELUDE.size + len(block) + len(payload) + _CRC.size
    lengths = struct.pack(">II", total, len(block))
    framed = lengths + _CRC.pack(crc32(lengths)) + block + payload
    return framed + _CRC.pack(crc32(framed))


def event(event_type: str, payload: bytes) -> bytes:
    """An event of the stream, its payload JSON."""
    headers = {":event-type": event_type, ":content-type": "application/json", ":message-type": "event"}
    return encode(headers, payload)


def exception(exception_type: str, payload: bytes) -> bytes:
    """A modelled exception inside the stream, its payload JSON."""
    headers = {":exception-type": exception_type, ":content-type": "application/json", ":message-type": "exception"}
    return encode(headers, payload)


def decode(stream: bytes) -> Iterator[Message]:
    """Take a whole stream apart, checking every checksum.

    Raises:
        FramingError: the bytes are not whole messages, or were changed on their way.
    """
    start = 0
    while start < len(stream):
        if len(stream) - start < _PRELUDE.size:
            raise FramingError("the stream ends inside a prelude")
        total, headers_length, prelude_crc = _PRELUDE.unpack_from(stream, start)
        if crc32(stream[start : start + 8]) != prelude_crc:
            raise FramingError("the prelude's checksum does not hold")
        end = start + total
        if end > len(stream):
            raise FramingError("the stream ends inside a message")
        if crc32(stream[start : end - _CRC.size]) != _CRC.unpack_from(stream, end - _CRC.size)[0]:
            raise FramingError("the message's checksum does not hold")
        body = start + _PRELUDE.size
        yield Message(
            headers=_decode_headers(stream[body : body + headers_length]),
            payload=stream[body + headers_length : end - _CRC.size],
        )
        start = end


def _decode_headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    at = 0
    while at < len(block):
        value_at = at + 1 + block[at]
        name = block[at + 1 : value_at].decode()
        kind, length = _STRING_HEAD.unpack_from(block, value_at)
        if kind != _STRING:
            raise FramingError(f"header {name} is of type {kind}, not a string")
        at = value_at + _STRING_HEAD.size + length
        headers[name] = block[value_at + _STRING_HEAD.size : at].decode()
    return headers
