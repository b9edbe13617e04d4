"""Owns how long a recording can last, by its first bytes: its size alone says nothing where silence compresses."""

from __future__ import annotations

import base64
import binascii
import struct

# What is looked at: a recording whose format is not told there is of unknown length.
_HEAD_BYTES = 16 * 1024
_RIFF = 12  # bytes before the first chunk: RIFF, a size, WAVE
_CHUNK = 8  # bytes before what is in a chunk: its name and size
_ID3 = 10  # bytes before what is in an ID3 tag
# Formats of WAV in which each sample takes its place, said or not: PCM, floating, A-law, µ-law, and those by an id.
_PLAIN_WAV = {1, 3, 6, 7, 0xFFFE}
# The least that MPEG audio has: 8 kbit/s (ISO 13818-3, layer III).
_LEAST_MP3_BYTES = 1_000


def most_seconds(data: str) -> int | None:
    """The most seconds that a recording in base64 can last; None where there is no telling.

    WAV says how many bytes a second has, MP3 has at least a thousand. FLAC, Opus and their like write hours of silence
    in a few bytes, and providers look at what a recording is, whatever it is called.
    """
    size = len(data) * 3 // 4
    head = _decoded(data, 0, _HEAD_BYTES)
    if head.startswith(b"RIFF") and head[8:_RIFF] == b"WAVE":
        a_second = _wav_bytes_a_second(head)
    else:
        a_second = _LEAST_MP3_BYTES if _is_mp3(data, head) else 0
    return size // a_second + 1 if a_second else None


def _decoded(data: str, start: int, count: int) -> bytes:
    """Some of the bytes that base64 stands for, from `start`; none where it is none."""
    skipped = start % 3
    chars = data[(start - skipped) // 3 * 4 :][: -(-(count + skipped) // 3) * 4]
    try:
        return base64.b64decode(chars[: len(chars) // 4 * 4], validate=True)[skipped : skipped + count]
    except (binascii.Error, ValueError):
        return b""


def _wav_bytes_a_second(head: bytes) -> int:
    """By the first chunk that says the format, as decoders read it; 0 where it does not, or is of another kind."""
    at = _RIFF
    while at + _CHUNK + 16 <= len(head):
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"fmt ":
            kind, channels, rate, told, block, bits = struct.unpack_from("<HHIIHH", head, at + _CHUNK)
            counted = rate * max(channels * bits // 8, 1)
            return min(told, rate * block, counted) if kind in _PLAIN_WAV else 0
        at += _CHUNK + size + size % 2
    return 0


def _is_mp3(data: str, head: bytes) -> bool:
    """Whether it begins with a frame of MPEG audio, after a tag or not, that says its rate of bits."""
    frame = head[:4]
    if head.startswith(b"ID3") and len(head) >= _ID3:
        of_tag = (head[6] & 127) << 21 | (head[7] & 127) << 14 | (head[8] & 127) << 7 | head[9] & 127
        frame = _decoded(data, _ID3 + of_tag, 4)
    if len(frame) < 4:  # noqa: PLR2004 (of a frame's head)
        return False
    synchronized = frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0  # noqa: PLR2004 (eleven ones)
    layer_three = frame[1] & 0x06 == 0x02  # noqa: PLR2004
    return synchronized and layer_three and frame[2] >> 4 not in {0, 15}
