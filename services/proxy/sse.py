"""Owns server-sent events as bytes: a stream cut into events, and the data within one."""

from __future__ import annotations

import re

# A blank line ends an event; lines end in LF or CRLF, or all in CR.
_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
_LONGEST_END = 3
DONE = b"[DONE]"  # the data of the event that ends OpenAI's streams
# May stand before all else, and is no part of the first line.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLargeError(Exception):
    """An event above the size that is taken."""


class EventSplitter:
    """Puts a stream together again into whole events, whatever pieces its bytes come in."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._held = bytearray()
        self._searched = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that this piece completes, each with the blank line that ends it. Raises EventTooLargeError."""
        if not self._held and piece.endswith(b"\n\n") and b"\r" not in piece and piece.find(b"\n\n") == len(piece) - 2:
            return [piece]  # nearly always: one event, whole, in lines that end in LF
        self._held += piece
        events = []
        start = 0
        while (end := _BLANK_LINE.search(self._held, max(self._searched, start))) is not None:
            events.append(bytes(self._held[start : end.end()]))
            start = end.end()
        del self._held[:start]
        self._searched = max(0, len(self._held) - _LONGEST_END)
        if len(self._held) > self._max_event_bytes:
            raise EventTooLargeError(f"an event of more than {self._max_event_bytes} bytes")
        return events

    def rest(self) -> bytes:
        """What is left when the stream has ended: an event without its end, or nothing."""
        rest = bytes(self._held)
        self._held.clear()
        self._searched = 0
        return rest


def data_of(event: bytes) -> bytes:
    """The data of one event: its `data` lines, joined; empty for a comment or another kind of line."""
    if event.startswith(b"data: "):
        line = event[6:].strip()
        if b"\n" not in line and b"\r" not in line:
            return line  # nearly always: one line
    lines = []
    for line in event.removeprefix(BYTE_ORDER_MARK).splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines).strip()


def name_of(event: bytes) -> bytes:
    """The name of one event: its `event` line; empty where it has none."""
    for line in event.removeprefix(BYTE_ORDER_MARK).splitlines():
        name, _, value = line.partition(b":")
        if name == b"event":
            return value.strip()
    return b""


def event_of(data: bytes, name: bytes = b"") -> bytes:
    """An event with this data (one line), and a name where one is given."""
    return (b"event: " + name + b"\n" if name else b"") + b"data: " + data + b"\n\n"
