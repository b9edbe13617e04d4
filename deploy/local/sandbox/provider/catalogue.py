"""Owns the models listings: the names the sandbox knows, in each provider's form. Calls may name other models too."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from deploy.local.sandbox.provider.refusal import Dialect, Provider, Refusal

_CREATED: Final = 1_767_225_600  # 2026-01-01, as the shipped price catalogue
_CREATED_TEXT: Final = "2026-01-01T00:00:00Z"
_INPUT_LIMIT: Final = 1_000_000
_OUTPUT_LIMIT: Final = 200_000

MODELS: Final = {
    Provider.OPENAI: (
        "gpt-3.5-turbo",
        "gpt-4-turbo",
        "gpt-4o",
        "gpt-4o-mini",
        "text-embedding-3-small",
        "text-embedding-3-large",
    ),
    Provider.ANTHROPIC: ("claude-3-opus", "claude-3-sonnet", "claude-3-haiku"),
    Provider.GOOGLE: ("gemini-2.0-flash", "gemini-1.5-pro", "gemini-1.5-flash"),
    Provider.HUGGINGFACE: ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    Provider.BEDROCK: (),
}


def listing(provider: Provider, dialect: Dialect) -> Any:
    """All models of one provider, in the form of `dialect`."""
    rows = [_row(provider, dialect, name) for name in MODELS[provider]]
    match dialect:
        case Dialect.ANTHROPIC:
            names = MODELS[provider]
            return {"data": rows, "has_more": False, "first_id": names[0], "last_id": names[-1]}
        case Dialect.GOOGLE:
            return {"models": rows}
        case _:
            return {"object": "list", "data": rows}


def model(provider: Provider, dialect: Dialect, name: str) -> Any:
    """One model.

    Raises:
        Refusal: 404, the provider has no model of this name.
    """
    if name not in MODELS[provider]:
        if dialect is Dialect.OPENAI:
            message = f"The model '{name}' does not exist"
            raise Refusal(HTTPStatus.NOT_FOUND, message, param="model", code="model_not_found")
        raise Refusal(HTTPStatus.NOT_FOUND, f"model: {name}")
    return _row(provider, dialect, name)


def _row(provider: Provider, dialect: Dialect, name: str) -> dict[str, Any]:
    match dialect:
        case Dialect.ANTHROPIC:
            return {"type": "model", "id": name, "display_name": name, "created_at": _CREATED_TEXT}
        case Dialect.GOOGLE:
            return {
                "name": f"models/{name}",
                "version": "sandbox",
                "displayName": name,
                "inputTokenLimit": _INPUT_LIMIT,
                "outputTokenLimit": _OUTPUT_LIMIT,
                "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
            }
        case _:
            return {"id": name, "object": "model", "created": _CREATED, "owned_by": f"sandbox-{provider.value}"}
