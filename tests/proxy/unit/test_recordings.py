"""How long a recording can last: never less than it does, and of what compresses silence there is no telling."""

import base64
import io
import struct
import wave

import pytest

from services.proxy.formats import recordings, tokens

FRAME = b"\xff\xf3\x18\xc4"  # MPEG 2, layer III, 8 kbit/s


def base64_of(raw):
    return base64.b64encode(raw).decode()


def wav(seconds, *, rate=16_000, width=2, channels=1):
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(bytes(seconds * rate * width * channels))
    return written.getvalue()


def riff(*chunks):
    body = b"".join(name + struct.pack("<I", len(inner)) + inner + b"\0" * (len(inner) % 2) for name, inner in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def wav_format(*, kind=1, channels=1, rate=8_000, told=8_000, block=1, bits=8):
    return b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, told, block, bits)


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (wav(30), 30),
        (wav(30, rate=100, width=1), 30),
        (wav(3, rate=48_000, channels=2), 3),
        (riff((b"LIST", b"odd"), wav_format(), (b"data", bytes(80_000))), 10),
        (riff(wav_format(told=10**9), (b"data", bytes(80_000))), 10),
        (riff(wav_format(rate=1, told=1), (b"data", bytes(5_000))), 5_000),
        (FRAME + bytes(50_000), 50),
        (b"ID3\x04\0\0" + bytes([0, 0, 1, 5]) + bytes(133) + FRAME + bytes(50_000), 50),
    ],
    ids=["plain", "slow", "stereo", "list-first", "boasting", "slowest", "mp3", "tagged-mp3"],
)
def test_recording_lasts_at_most_what_its_first_bytes_say(raw, seconds):
    assert seconds <= recordings.most_seconds(base64_of(raw)) <= 1.1 * seconds + 2


@pytest.mark.parametrize(
    "raw",
    [
        b"fLaC" + bytes(1000),
        b"OggS" + bytes(1000),
        b"ID3\x04\0\0\0\0\0\0fLaC" + bytes(1000),
        b"\xff\xf3\x08\xc4" + bytes(1000),
        riff(wav_format(kind=0x55), (b"data", bytes(1000))),
        riff(wav_format(rate=0, told=0, block=0), (b"data", bytes(1000))),
        riff((b"data", bytes(1000))),
        b"",
    ],
    ids=["flac", "ogg", "tagged-flac", "free-format-mp3", "mp3-in-wav", "no-rate", "no-format", "nothing"],
)
def test_recording_that_may_be_of_hours_of_silence_may_fill_the_window(raw):
    assert recordings.most_seconds(base64_of(raw)) is None
    count = tokens.InputCount(b"", "m")
    count.audio(base64_of(raw))
    assert count.bound >= tokens.WINDOW_TOKENS - len(base64_of(raw))


@pytest.mark.parametrize("data", ["!", "A", "AAA=BBBB", "RIFF"])
def test_what_is_no_base64_is_of_unknown_length(data):
    assert recordings.most_seconds(data) is None


def test_speech_is_not_held_for_as_if_it_were_hours():
    given = base64_of(wav(60))
    count = tokens.InputCount(given.encode(), "m")
    count.audio(given)
    assert 60 * 32 <= count.bound < 60 * 50
