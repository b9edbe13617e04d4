"""Owns the counts of one call, in the one form that all providers' counts are brought into."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter

from services.rating.errors import InvalidUsage


@dataclass(frozen=True, slots=True)
class Usage:
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


USAGE_FIELDS = tuple(field.name for field in fields(Usage))
_COUNTS = attrgetter(*USAGE_FIELDS)


def plain_tokens(usage: Usage) -> tuple[int, int]:
    """The input and output tokens that are no part of their own kind.

    Raises InvalidUsage for a negative count, and where the parts are more than the whole.
    """
    if min(_COUNTS(usage)) < 0:
        raise InvalidUsage(next(name for name in USAGE_FIELDS if getattr(usage, name) < 0), "must not be negative")
    plain_input = (
        usage.input_tokens
        - usage.cache_read_tokens
        - usage.cache_write_5m_tokens
        - usage.cache_write_1h_tokens
        - usage.audio_input_tokens
        - usage.image_input_tokens
    )
    plain_output = usage.output_tokens - usage.reasoning_tokens - usage.audio_output_tokens - usage.image_output_tokens
    if plain_input < 0:
        raise InvalidUsage("input_tokens", "must include all cached, cache-written, audio and image input tokens")
    if plain_output < 0:
        raise InvalidUsage("output_tokens", "must include all reasoning, audio and image output tokens")
    return plain_input, plain_output
