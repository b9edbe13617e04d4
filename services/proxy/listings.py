"""Owns how models are listed to each provider's SDK, and which of them it can ask."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

from services import rating
from services.proxy.formats.anthropic_messages import MessagesRequest
from services.proxy.formats.gemini import GeminiRequest
from services.proxy.formats.openai_chat import ChatRequest

Json: TypeAlias = dict[str, Any]


class Listing(NamedTuple):
    """A listing of models: whose form it has, the form that its models are asked in (empty where in any), and its JSON.

    `one` writes a model by its price and its title, `all` the list of them.
    """

    owner: str
    form: str
    one: Callable[[rating.PriceCard, str], Json]
    all: Callable[[list[Json]], Json]


def _openai_model(card: rating.PriceCard, _name: str) -> Json:
    return {"id": card.model, "object": "model", "created": int(_since(card).timestamp()), "owned_by": card.provider}


def _anthropic_model(card: rating.PriceCard, display_name: str) -> Json:
    return {
        "type": "model",
        "id": card.model,
        "display_name": display_name,
        "created_at": f"{_since(card):%Y-%m-%dT%H:%M:%SZ}",
        "max_input_tokens": card.max_input_tokens or None,
        "max_tokens": card.max_output_tokens or None,
    }


def _anthropic_list(models: list[Json]) -> Json:
    first, last = (models[0]["id"], models[-1]["id"]) if models else (None, None)
    return {"data": models, "has_more": False, "first_id": first, "last_id": last}


def _google_model(card: rating.PriceCard, display_name: str) -> Json:
    limits = {"inputTokenLimit": card.max_input_tokens, "outputTokenLimit": card.max_output_tokens}
    return {
        "name": f"models/{card.model}",
        "displayName": display_name,
        **{name: limit for name, limit in limits.items() if limit},
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
    }


def _since(card: rating.PriceCard) -> datetime:
    """When the price began, which is all that is known of the model's age; 1970 where that is not said."""
    return card.effective_from.astimezone(UTC) if card.effective_from is not None else datetime.fromtimestamp(0, UTC)


OPENAI = Listing(ChatRequest.owner, "", _openai_model, lambda models: {"object": "list", "data": models})
ANTHROPIC = Listing(MessagesRequest.owner, MessagesRequest.form, _anthropic_model, _anthropic_list)
GOOGLE = Listing(GeminiRequest.owner, GeminiRequest.form, _google_model, lambda models: {"models": models})
