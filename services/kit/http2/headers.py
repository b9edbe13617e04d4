"""Owns what gRPC says in headers (PROTOCOL-HTTP2.md): metadata, timeouts, statuses."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar
from urllib.parse import unquote

import grpc

from services.kit.http2.hpack import HeaderReader, Pairs, block_of

Metadata = tuple[tuple[str, str | bytes], ...]
Read = TypeVar("Read")

# As many blocks as are read alike again and again: a method's requests, or the ends of its answers.
_REMEMBERED_BLOCKS = 64
_REMEMBERED_BYTES = 2048
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MOST_MILLISECONDS = 99_999_999
_BINARY = "-bin"
# What a gRPC message of a status may hold as it is; all else is percent-encoded.
_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}
# The wire's own headers, which are no metadata.
_RESERVED = frozenset({"te", "content-type", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "content-length"})

_CODES = {str(code.value[0]): code for code in grpc.StatusCode}


class Decoder(Generic[Read]):
    """Reads the header blocks of one connection, in their order, and makes of each what `read` makes of its headers.

    A block means the same as long as the connection's table is the same. It is read once.
    """

    def __init__(self, read: Callable[[Pairs], Read], max_bytes: int) -> None:
        self._read = read
        self._reader = HeaderReader(max_bytes)
        self._known: dict[bytes, Read] = {}

    def decode(self, block: bytes) -> Read:
        """What a block says. Raises BadBlockError."""
        known = self._known.get(block)
        if known is not None:
            return known
        before = self._reader.version
        found = self._read(self._reader.read(block))
        unchanged = self._reader.version == before
        if not unchanged or len(self._known) >= _REMEMBERED_BLOCKS:
            self._known.clear()
        if unchanged and len(block) <= _REMEMBERED_BYTES:
            self._known[block] = found
        return found


def metadata_of(pairs: Iterable[tuple[str, str]]) -> Metadata:
    """The metadata among headers. A binary value that is not in base64 is left out."""
    found: list[tuple[str, str | bytes]] = []
    for name, value in pairs:
        if name[:1] == ":" or name in _RESERVED:
            continue
        if not name.endswith(_BINARY):
            found.append((name, value))
            continue
        try:
            found.extend((name, base64.b64decode(part + "=" * (-len(part) % 4))) for part in value.split(","))
        except (binascii.Error, ValueError):
            continue
    return tuple(found)


def encode(pairs: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Headers and metadata as a block."""
    return block_of((name, value if isinstance(value, str) else _as_text(name, value)) for name, value in pairs)


def _as_text(name: str, value: bytes) -> str:
    return base64.b64encode(value).rstrip(b"=").decode() if name.endswith(_BINARY) else value.decode()


def timeout_of(text: str) -> float:
    """A `grpc-timeout` in seconds. Raises ValueError where it is none."""
    found = _TIMEOUT.fullmatch(text)
    if found is None:
        raise ValueError(f"not a timeout: {text[:20]!r}")
    return int(found[1]) * _UNIT_SECONDS[found[2]]


def timeout_text(seconds: float) -> str:
    """A `grpc-timeout`: milliseconds, rounded up so that it does not end before ours."""
    return f"{min(max(int(seconds * 1000) + 1, 1), _MOST_MILLISECONDS)}m"


def status_block(code: int, message: str, metadata: Metadata = ()) -> bytes:
    """The trailers that end a call."""
    start: tuple[tuple[str, str], ...] = (("grpc-status", str(code)),)
    if message:
        start = (*start, ("grpc-message", percent_encoded(message)))
    return encode((*start, *metadata))


def percent_encoded(message: str) -> str:
    """A status message as its header has it."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in message.encode(errors="replace"))


def status_of(pairs: Iterable[tuple[str, str]]) -> tuple[grpc.StatusCode, str] | None:
    """Code and message in trailers; None where they name no status."""
    code, message = None, ""
    for name, value in pairs:
        if name == "grpc-status":
            code = _CODES.get(value, grpc.StatusCode.UNKNOWN)
        elif name == "grpc-message":
            message = unquote(value, errors="replace")
    return None if code is None else (code, message)
