"""Owns the addresses: which provider and which of its endpoints a method and path mean.

The providers' own paths are all served at the root. OpenAI, Anthropic and Hugging Face share `/v1/chat/completions`;
there the model's name decides (see `provider_of_model`), unless the path begins with the provider's name, as in
`/anthropic/v1/…`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from deploy.local.sandbox.provider.refusal import Dialect, Provider


class Endpoint(StrEnum):
    """What is asked for, by the name the request log gives it."""

    CHAT = "chat.completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    MESSAGES = "messages"
    COUNT = "countTokens"
    GENERATE = "generateContent"
    STREAM_GENERATE = "streamGenerateContent"
    CONVERSE = "converse"
    CONVERSE_STREAM = "converse-stream"
    MODELS = "models"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes; `provider` is None where the model's name has yet to tell, `model` is the path's."""

    provider: Provider | None
    endpoint: Endpoint
    dialect: Dialect
    model: str = ""

    @property
    def calls_a_model(self) -> bool:
        """Whether this is a call that costs money, and so belongs into the request log."""
        return self.endpoint not in (Endpoint.MODELS, Endpoint.MODEL, Endpoint.COUNT)

    def of(self, provider: Provider) -> Route:
        """This route once the provider is known: OpenAI's form of a call, the provider's own form of a listing."""
        dialects = _COMPATIBLE if self.calls_a_model else _OWN
        return replace(self, provider=provider, dialect=dialects[provider])


_OWN: Final = {
    Provider.OPENAI: Dialect.OPENAI,
    Provider.ANTHROPIC: Dialect.ANTHROPIC,
    Provider.GOOGLE: Dialect.GOOGLE,
    Provider.HUGGINGFACE: Dialect.HUGGINGFACE,
    Provider.BEDROCK: Dialect.BEDROCK,
}
_COMPATIBLE: Final = _OWN | {
    Provider.ANTHROPIC: Dialect.ANTHROPIC_COMPATIBLE,
    Provider.GOOGLE: Dialect.GOOGLE_COMPATIBLE,
}

_PROVIDERS: Final = frozenset(Provider)

# Provider None: several share the path.
_FIXED_PATHS: Final = {
    ("POST", "/v1/chat/completions"): Route(None, Endpoint.CHAT, Dialect.OPENAI),
    ("POST", "/v1/responses"): Route(Provider.OPENAI, Endpoint.RESPONSES, Dialect.OPENAI),
    ("POST", "/v1/responses/input_tokens"): Route(Provider.OPENAI, Endpoint.COUNT, Dialect.OPENAI),
    ("POST", "/v1/embeddings"): Route(Provider.OPENAI, Endpoint.EMBEDDINGS, Dialect.OPENAI),
    ("GET", "/v1/models"): Route(None, Endpoint.MODELS, Dialect.OPENAI),
    ("POST", "/v1/messages"): Route(Provider.ANTHROPIC, Endpoint.MESSAGES, Dialect.ANTHROPIC),
    ("POST", "/v1/messages/count_tokens"): Route(Provider.ANTHROPIC, Endpoint.COUNT, Dialect.ANTHROPIC),
    ("POST", "/v1beta/openai/chat/completions"): Route(Provider.GOOGLE, Endpoint.CHAT, Dialect.GOOGLE_COMPATIBLE),
    ("POST", "/v1beta/openai/embeddings"): Route(Provider.GOOGLE, Endpoint.EMBEDDINGS, Dialect.GOOGLE_COMPATIBLE),
    ("GET", "/v1beta/openai/models"): Route(Provider.GOOGLE, Endpoint.MODELS, Dialect.GOOGLE_COMPATIBLE),
    ("GET", "/v1beta/models"): Route(Provider.GOOGLE, Endpoint.MODELS, Dialect.GOOGLE),
}
_GEMINI: Final = re.compile(r"/v1(?:beta)?/models/([^/:]+):(generateContent|streamGenerateContent|countTokens)")
_CONVERSE: Final = re.compile(r"/model/([^/]+)/(converse|converse-stream)")
_ONE_GEMINI_MODEL: Final = re.compile(r"/v1beta/models/([^/:]+)")
_ONE_MODEL: Final = re.compile(r"/v1/models/(.+)")


@lru_cache(maxsize=4096)
def resolve(method: str, raw_path: str) -> Route | None:
    """The route of a request, None where no provider has such an address.

    Args:
        method: the HTTP method.
        raw_path: the path as it came, without query (a Bedrock model id in it may hold `%3A` and `%2F`).
    """
    named, path = _split_provider(raw_path)
    route = _FIXED_PATHS.get((method, path)) or _with_model_in_path(method, path)
    if route is None or named is None:
        return route
    if route.provider is None:
        return route.of(named)
    return route if route.provider is named else None


def provider_of_model(model: str) -> Provider:
    """Whose model this is on a shared path: Claude is Anthropic's, `owner/name` is on Hugging Face."""
    if "/" in model:
        return Provider.HUGGINGFACE
    return Provider.ANTHROPIC if model.startswith("claude") else Provider.OPENAI


def _split_provider(raw_path: str) -> tuple[Provider | None, str]:
    first, slash, rest = raw_path[1:].partition("/")
    if slash and first in _PROVIDERS:
        return Provider(first), f"/{rest}"
    return None, raw_path


def _with_model_in_path(method: str, path: str) -> Route | None:
    if method == "POST":
        if match := _GEMINI.fullmatch(path):
            return Route(Provider.GOOGLE, Endpoint(match[2]), Dialect.GOOGLE, unquote(match[1]))
        if match := _CONVERSE.fullmatch(path):
            return Route(Provider.BEDROCK, Endpoint(match[2]), Dialect.BEDROCK, unquote(match[1]))
    elif method == "GET":
        if match := _ONE_GEMINI_MODEL.fullmatch(path):
            return Route(Provider.GOOGLE, Endpoint.MODEL, Dialect.GOOGLE, unquote(match[1]))
        if match := _ONE_MODEL.fullmatch(path):
            return Route(None, Endpoint.MODEL, Dialect.OPENAI, unquote(match[1]))
    return None
