"""Owns what was asked: a request of any wire format, read into the few things the answer depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call, with the JSON schema of its arguments."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request for generated text.

    Attributes:
        model: the model's name as the client wrote it.
        input_tokens: everything that was sent, counted by `tokens`.
        last_user_text: the text of the last user message, where directives stand.
        stream: whether the answer is streamed.
        cap: the most output tokens one choice may have, None without a cap.
        choices: how many answers are wanted.
        stops: texts at which the answer ends.
        tools: functions that may be called.
        required_tool: the tool that has to be called, None where text is a fair answer.
        json_schema: the schema the answer has to follow, `{}` for any JSON object, None for plain text.
        stream_usage: whether a stream ends with its usage.
        shows_reasoning: whether the client asked to see the reasoning.
        body: the request's JSON, for what the answer repeats of it.
    """

    model: str
    input_tokens: int
    last_user_text: str
    stream: bool = False
    cap: int | None = None
    choices: int = 1
    stops: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    required_tool: str | None = None
    json_schema: Mapping[str, Any] | None = None
    stream_usage: bool = True
    shows_reasoning: bool = False
    body: Mapping[str, Any] = field(default_factory=dict)
