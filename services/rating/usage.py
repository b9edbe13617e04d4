"""Owns the counts of one call, in the one form that all providers' counts are brought into."""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

from services.rating.errors import InvalidUsage


class Usage(NamedTuple):
    """Counts of one call. What is part of a whole is counted inside it.

    `input_tokens` includes what was read from or written to caches and audio and image input; `output_tokens` includes
    reasoning, audio and image output. The parts of a whole do not overlap: a cached audio token is one or the other.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    images: int = 0
    characters: int = 0
    milliseconds: int = 0
    requests: int = 1


# The parts of input and output, in the order of their components.
INPUT_PARTS = (
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "audio_input_tokens",
    "image_input_tokens",
)
OUTPUT_PARTS = ("reasoning_tokens", "audio_output_tokens", "image_output_tokens")
USAGE_FIELDS = Usage._fields
_INPUT_COUNTS = attrgetter(*INPUT_PARTS)
_OUTPUT_COUNTS = attrgetter(*OUTPUT_PARTS)


def plain_tokens(usage: Usage) -> tuple[int, int]:
    """The input and output tokens that are no part of their own kind.

    Raises InvalidUsage for a negative count, and where the parts are more than the whole.
    """
    if min(usage) < 0:
        raise InvalidUsage(next(name for name in USAGE_FIELDS if getattr(usage, name) < 0), "must not be negative")
    plain_input = usage.input_tokens - sum(_INPUT_COUNTS(usage))
    plain_output = usage.output_tokens - sum(_OUTPUT_COUNTS(usage))
    if plain_input < 0:
        raise InvalidUsage("input_tokens", "must include all cached, cache-written, audio and image input tokens")
    if plain_output < 0:
        raise InvalidUsage("output_tokens", "must include all reasoning, audio and image output tokens")
    return plain_input, plain_output
