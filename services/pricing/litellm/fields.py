"""Owns what each field of a price map means: which rate it gives, or that it has nothing to do with prices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from services.rating import STANDARD

# Dollars for one unit of a component, by the field's name without its tier and threshold. `_above_1hr` is no threshold
# but the name of the cache that is kept an hour; DeepSeek's cache hits are cache reads by another name.
_COMPONENTS = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "input_cost_per_token_cache_hit": "cache_read",
    "cache_creation_input_token_cost": "cache_write_5m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_audio_token": "audio_input",
    "output_cost_per_audio_token": "audio_output",
    "input_cost_per_image_token": "image_input",
    "output_cost_per_image_token": "image_output",
    "output_cost_per_image": "image",
    "input_cost_per_character": "character",
    "cost_per_second": "second",
    "input_cost_per_second": "second",
    "output_cost_per_second": "second",
    "output_cost_per_video_per_second": "second",
    "input_cost_per_query": "request",
    "input_cost_per_request": "request",
}
_TIERS = {"": STANDARD, "batches": "batch", "flex": "flex", "priority": "priority"}
_NAME = re.compile(
    r"(?P<base>.+?)(?:_above_(?P<above>[1-9]\d{0,8})(?P<kilo>k?)_tokens)?(?:_(?P<tier>batches|flex|priority))?"
)

# An image's price in the entries of image models that have no `output_cost_per_image`; elsewhere what an image costs
# that is put in, for which there is no component.
IMAGE_MADE_OR_PUT_IN = "input_cost_per_image"
TIERED = "tiered_pricing"

# What says nothing of prices. The two of Databricks are the same prices in that company's own unit.
_NO_PRICE = frozenset(
    {
        "audio_transcription_config",
        "bedrock_output_config_effort_ceiling",
        "comment",
        "default_reasoning_effort",
        "deprecation_date",
        "gemini_audio_only_live",
        "gemini_native_audio",
        "input_dbu_cost_per_token",
        "litellm_provider",
        "max_input_tokens",
        "max_output_tokens",
        "max_tokens",
        "metadata",
        "mode",
        "output_dbu_cost_per_token",
        "output_vector_size",
        "prompt_cache_min_tokens",
        "reasoning_effort_levels",
        "rpm",
        "rules",
        "source",
        "thinking_always_on",
        "token_count_framing",
        "token_count_model",
        "token_count_tokenizer",
        "tpm",
        "use_openai_responses_path",
        "uses_embed_content",
        "vertex_ai_audio_api",
    }
)
_NO_PRICE_PREFIXES = ("supports_", "supported_", "bedrock_converse_supports_")


@dataclass(frozen=True, slots=True)
class Meaning:
    """Which rate a field gives."""

    component: str
    service_tier: str = STANDARD
    above_tokens: int = 0


@lru_cache(maxsize=4096)
def meaning(field: str) -> Meaning | None:
    """Which rate a field gives, in dollars for one unit; None where it gives none, or is not known."""
    match = _NAME.fullmatch(field)
    component = _COMPONENTS.get(match["base"]) if match else None
    if match is None or component is None:
        return None
    above = int(match["above"] or 0) * (1000 if match["kilo"] else 1)
    return Meaning(component, _TIERS[match["tier"] or ""], above)


def has_no_price(field: str) -> bool:
    """Whether a field is known to say nothing of prices."""
    return field in _NO_PRICE or field.startswith(_NO_PRICE_PREFIXES)
