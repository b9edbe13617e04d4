"""Owns Anthropic's count of tokens before a message: what is read of a request, and what is sent on of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import orjson

from services.kit.validation import Violations
from services.proxy.formats import reading
from services.proxy.formats.anthropic_messages import MessagesRequest
from services.proxy.upstream import Outgoing, Provider

FORM = MessagesRequest.form
OWNER = MessagesRequest.owner


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRequest:
    """What is to be counted: a message's request, but for its output cap. What else is wrong with it Anthropic says."""

    body: dict[str, Any]
    model: str

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Read a body. Raises InvalidArgument."""
        violations = Violations()
        body, model = reading.body_and_model(violations, raw, "")
        violations.raise_if_any()
        return cls(body=body, model=model)

    def outgoing(self, provider: Provider, headers: tuple[tuple[str, str], ...]) -> Outgoing:
        """The request for the provider.

        Anthropic limits counts apart from messages (its documentation, "Token counting"): where no more are taken the
        model may be called all the same, so they go by a name of their own.
        """
        model = provider.id_of(self.model)
        body = orjson.dumps({**self.body, "model": model})
        return Outgoing(FORM, "messages/count_tokens", body, stream=False, headers=headers, model=f"{model} (counts)")
