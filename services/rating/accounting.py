"""Owns how each provider counts: its own usage object, as its JSON says it, becomes a `Usage`.

| form | input tokens | cached tokens | reasoning |
| --- | --- | --- | --- |
| OpenAI | all | inside the input | inside the output; beside it, or unnamed, where the total says so |
| Anthropic messages | those of no cache | read and written are beside the input | inside the output |
| Gemini | the prompt; what tools add is beside it | inside the prompt | beside the candidates |
| Bedrock Converse | those of no cache | read and written are beside the input | inside the output |

Fields that are missing or null count nothing, since providers leave out what does not apply. A count that is negative
or no whole number (10.0 is one) is refused with InvalidUsage, naming the field as the provider does. Where parts
contradict their whole, the whole is what is billed: a part larger than it is not believed, and parts that are so only
together, since they overlap (cached audio), are believed as far as there is room: cache, then audio, then images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from services.rating.errors import InvalidUsage
from services.rating.usage import INPUT_PARTS, OUTPUT_PARTS, Usage

_MAX_COUNT = 2**63 - 1

_parts_of_input = attrgetter(*INPUT_PARTS)
_parts_of_output = attrgetter(*OUTPUT_PARTS)


def openai_chat(usage: Mapping[str, Any]) -> Usage:
    """`usage` of a chat completion, from OpenAI or whoever speaks its form."""
    return _openai(usage, "prompt_tokens", "completion_tokens")


def openai_responses(usage: Mapping[str, Any]) -> Usage:
    """`usage` of a response."""
    return _openai(usage, "input_tokens", "output_tokens")


def openai_embeddings(usage: Mapping[str, Any]) -> Usage:
    """`usage` of an embedding: input alone, which some servers give as the total only."""
    return Usage(input_tokens=_count(usage, "prompt_tokens") or _count(usage, "total_tokens"))


def anthropic_messages(usage: Mapping[str, Any]) -> Usage:
    """`usage` of a message; of a stream, that of `message_start` with what `message_delta` gave put over it.

    Writes to the cache are told apart by how long it is kept; those of which nothing is said are kept five minutes.
    """
    by_age = _object(usage, "cache_creation")
    hour = _count(by_age, "ephemeral_1h_input_tokens", "cache_creation.")
    five_minutes = _count(by_age, "ephemeral_5m_input_tokens", "cache_creation.")
    written = max(_count(usage, "cache_creation_input_tokens"), hour + five_minutes)
    read = _count(usage, "cache_read_input_tokens")
    return _within(
        Usage(
            input_tokens=_count(usage, "input_tokens") + read + written,
            output_tokens=_count(usage, "output_tokens"),
            cache_read_tokens=read,
            cache_write_5m_tokens=written - hour,
            cache_write_1h_tokens=hour,
            reasoning_tokens=_count(
                _object(usage, "output_tokens_details"), "thinking_tokens", "output_tokens_details."
            ),
        )
    )


def bedrock_converse(usage: Mapping[str, Any]) -> Usage:
    """`usage` of a Converse answer, or of the metadata event that ends its stream."""
    hour = sum(
        _count(detail, "inputTokens", f"cacheDetails[{number}].")
        for number, detail in enumerate(_objects(usage, "cacheDetails"))
        if detail.get("ttl") == "1h"
    )
    read, written = _count(usage, "cacheReadInputTokens"), _count(usage, "cacheWriteInputTokens")
    written = max(written, hour)
    return _within(
        Usage(
            input_tokens=_count(usage, "inputTokens") + read + written,
            output_tokens=_count(usage, "outputTokens"),
            cache_read_tokens=read,
            cache_write_5m_tokens=written - hour,
            cache_write_1h_tokens=hour,
        )
    )


def gemini(usage: Mapping[str, Any]) -> Usage:
    """`usageMetadata` of generateContent, or of the last chunk of its stream.

    Audio and images that came from the cache are counted as cached. Video and documents are plain input.
    """
    prompt = _modalities(usage, "promptTokensDetails")
    tools = _modalities(usage, "toolUsePromptTokensDetails")
    cached = _modalities(usage, "cacheTokensDetails")
    answer = _modalities(usage, "candidatesTokensDetails")
    thoughts = _count(usage, "thoughtsTokenCount")

    def fresh(modality: str) -> int:
        return max(prompt.get(modality, 0) - cached.get(modality, 0), 0) + tools.get(modality, 0)

    return _within(
        Usage(
            input_tokens=_count(usage, "promptTokenCount") + _count(usage, "toolUsePromptTokenCount"),
            output_tokens=_count(usage, "candidatesTokenCount") + thoughts,
            cache_read_tokens=_count(usage, "cachedContentTokenCount"),
            reasoning_tokens=thoughts,
            audio_input_tokens=fresh("AUDIO"),
            audio_output_tokens=answer.get("AUDIO", 0),
            image_input_tokens=fresh("IMAGE"),
            image_output_tokens=answer.get("IMAGE", 0),
        )
    )


def _openai(usage: Mapping[str, Any], input_name: str, output_name: str) -> Usage:
    of_input, of_output = _object(usage, f"{input_name}_details"), _object(usage, f"{output_name}_details")
    at_input, at_output = f"{input_name}_details.", f"{output_name}_details."
    of_cached = _object(of_input, "cached_tokens_details", at_input)
    of_written = _object(of_input, "cache_write_tokens_details", at_input)
    cached_audio = _count(of_cached, "audio_tokens", f"{at_input}cached_tokens_details.")
    cached_image = _count(of_cached, "image_tokens", f"{at_input}cached_tokens_details.")
    # Kept for half a day, or for the hour of Bedrock: the longer of the two ages that a model has prices for.
    at_written = f"{at_input}cache_write_tokens_details."
    long_kept = sum(_count(of_written, name, at_written) for name in ("ttl_12h_tokens", "ttl_1h_tokens"))
    written = max(_count(of_input, "cache_write_tokens", at_input), long_kept)
    reasoning = _count(of_output, "reasoning_tokens", at_output)
    # DeepSeek says it beside the details.
    read = _count(of_input, "cached_tokens", at_input) or _count(usage, "prompt_cache_hit_tokens")
    given, answered = _count(usage, input_name), _count(usage, output_name)
    total = _count(usage, "total_tokens")
    if reasoning > answered or (reasoning and total == given + answered + reasoning):
        answered += reasoning  # beside the answer, as xAI counts
    elif total > given + answered and read + written <= given:
        # Thoughts that only the total counts, as Google does; where caches are beside the input, it counts these.
        reasoning += total - given - answered
        answered = total - given
    return _within(
        Usage(
            input_tokens=given,
            output_tokens=answered,
            cache_read_tokens=read,
            cache_write_5m_tokens=written - long_kept,
            cache_write_1h_tokens=long_kept,
            reasoning_tokens=reasoning,
            audio_input_tokens=max(_count(of_input, "audio_tokens", at_input) - cached_audio, 0),
            audio_output_tokens=_count(of_output, "audio_tokens", at_output),
            image_input_tokens=max(_count(of_input, "image_tokens", at_input) - cached_image, 0),
            image_output_tokens=_count(of_output, "image_tokens", at_output),
        )
    )


def _within(usage: Usage) -> Usage:
    """The same with parts, in the order in which they are believed, that fit into wholes, and these into 64 bits."""
    for name in ("input_tokens", "output_tokens"):
        if getattr(usage, name) > _MAX_COUNT:
            raise InvalidUsage(name, "must not be above 2^63 - 1")
    if sum(_parts_of_input(usage)) <= usage.input_tokens and sum(_parts_of_output(usage)) <= usage.output_tokens:
        return usage  # nearly always: all of them fit
    parts: dict[str, int] = {}
    for whole, names in (("input_tokens", INPUT_PARTS), ("output_tokens", OUTPUT_PARTS)):
        left = getattr(usage, whole)
        for name in names:
            believed = getattr(usage, name) <= getattr(usage, whole)
            parts[name] = min(getattr(usage, name), left) if believed else 0
            left -= parts[name]
    return Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, **parts)


def _count(counts: Mapping[str, Any], name: str, at: str = "") -> int:
    return _whole(at + name, counts.get(name))


def _whole(field: str, value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # some servers write 10.0; from here on there is no float
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidUsage(field, "must be a whole number")
    if not 0 <= value <= _MAX_COUNT:
        raise InvalidUsage(field, "must not be negative, nor above 2^63 - 1")
    return value


def _object(counts: Mapping[str, Any], name: str, at: str = "") -> Mapping[str, Any]:
    value = counts.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidUsage(at + name, "must be an object")
    return value


def _objects(counts: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    values = counts.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        raise InvalidUsage(name, "must be a list of objects")
    return values


def _modalities(usage: Mapping[str, Any], name: str) -> dict[str, int]:
    """Tokens by modality; one that is named twice is added up."""
    found: dict[str, int] = {}
    for number, detail in enumerate(_objects(usage, name)):
        modality = str(detail.get("modality"))
        found[modality] = found.get(modality, 0) + _count(detail, "tokenCount", f"{name}[{number}].")
    return found
