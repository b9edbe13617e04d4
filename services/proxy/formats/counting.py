"""Owns the counts of tokens before a call, in each provider's form: what is read of a request, and what is sent on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from services.kit.validation import Violations
from services.proxy.formats import reading
from services.proxy.formats.anthropic_messages import MessagesRequest
from services.proxy.formats.gemini import GeminiRequest
from services.proxy.formats.openai_responses import ResponsesRequest
from services.proxy.formats.request import Request
from services.proxy.upstream import Outgoing, Provider, path_segment

# The field of Gemini's that holds a whole call, the model's name included, where not its contents alone are counted.
_WHOLE_CALL = ("generateContentRequest", "generate_content_request")


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRequest:
    """What is to be counted: the body of a call of the form `of`, but for its output cap.

    What else is wrong with it its provider says.
    """

    of: type[Request]
    body: dict[str, Any]
    model: str

    def outgoing(self, provider: Provider, headers: tuple[tuple[str, str], ...]) -> Outgoing:
        """The request for the provider.

        Providers limit counts apart from calls (Anthropic's documentation, "Token counting"): where no more are taken
        the model may be called all the same, so they go by a name of their own.
        """
        model = provider.id_of(self.model)
        if self.of is GeminiRequest:
            path, body = f"models/{path_segment(model)}:countTokens", self._of_googles(model)
        else:
            path = "messages/count_tokens" if self.of is MessagesRequest else "responses/input_tokens"
            body = self.body | {"model": model}
        sent = orjson.dumps(body)
        return Outgoing(self.of.form, path, sent, stream=False, headers=headers, model=f"{model} (counts)")

    def _of_googles(self, model: str) -> dict[str, Any]:
        """The body, which names the model of a whole call a second time."""
        whole = {name: self.body[name] | {"model": f"models/{model}"} for name in _WHOLE_CALL if name in self.body}
        return self.body | whole


def of_message(raw: bytes) -> CountRequest:
    """Read what Anthropic's SDK asks. Raises InvalidArgument."""
    return _naming_its_model(MessagesRequest, raw)


def of_response(raw: bytes) -> CountRequest:
    """Read what OpenAI's SDK asks. Raises InvalidArgument."""
    return _naming_its_model(ResponsesRequest, raw)


def of_contents(raw: bytes, model: str) -> CountRequest:
    """Read what Google's SDK asks, whose path names the model. Raises InvalidArgument."""
    violations = Violations()
    body = reading.json_object(violations, raw)
    for name in _WHOLE_CALL:
        if not isinstance(body.get(name, {}), dict):
            violations.add(name, "must be a JSON object")
    model = reading.model_name(violations, model)
    violations.raise_if_any()
    return CountRequest(of=GeminiRequest, body=body, model=model)


def _naming_its_model(of: type[Request], raw: bytes) -> CountRequest:
    violations = Violations()
    body, model = reading.body_and_model(violations, raw, "")
    violations.raise_if_any()
    return CountRequest(of=of, body=body, model=model)
