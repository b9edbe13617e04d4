"""Owns OpenAI's responses: what is read of a request, what is changed in it, what its answer used.

What a request leaves to OpenAI's memory (`previous_response_id`, `conversation`, `prompt`) is input that is not seen
here: it is held for as if it filled the model's window. A response made in the background has no usage when it is
answered, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import orjson

from services import rating
from services.kit.validation import Violations
from services.proxy.formats import reading, tokens
from services.proxy.formats.answer import BROKEN, AnswerReader, Event
from services.proxy.formats.request import AUDIO_COMPONENTS, IMAGE_COMPONENTS, TEXT_COMPONENTS, Request
from services.proxy.sse import event_of
from services.proxy.upstream import Outgoing, Provider
from services.rating import accounting

_REMEMBERED = ("previous_response_id", "conversation", "prompt")
# Tools that the client runs, or that cost no more than the model's tokens. Others are billed by the call (a search, a
# shell), or the whole context is read and billed again after each of any number of calls (`mcp`).
_PLAIN_TOOLS = frozenset(
    {
        "function",
        "custom",
        "computer",
        "computer_use",
        "computer_use_preview",
        "local_shell",
        "apply_patch",
        "namespace",
        "tool_search",
        "programmatic_tool_calling",
    }
)
# Source: OpenAI's API reference, `max_output_tokens`: a lower one is refused.
_LEAST_CAP = 16
_ENDS = {"response.completed", "response.incomplete", "response.failed"}
_DELTAS = frozenset(
    {
        "response.output_text.delta",
        "response.refusal.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.mcp_call_arguments.delta",
        "response.code_interpreter_call_code.delta",
        "response.audio.transcript.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesRequest(Request):
    """A response to make."""

    form: ClassVar[str] = "responses"
    owner: ClassVar[str] = "openai"

    @classmethod
    def read(cls, raw: bytes, *, model: str = "", stream: bool = False) -> Self:
        """See Request."""
        violations = Violations()
        body, model = reading.body_and_model(violations, raw, model)
        stream = reading.boolean(violations, body, "stream")
        if reading.boolean(violations, body, "background"):
            violations.add("background", "is not served: what is made in the background cannot be billed")
        cap = reading.integer(violations, body, "max_output_tokens", reading.MAX_CAP)
        tier = reading.service_tier(violations, body)
        count = tokens.InputCount(raw, model)
        _count_input(count, violations, body)
        tools = body.get("tools")
        if isinstance(tools, list):
            violations.count("tools", tools, at_most=reading.MAX_TOOLS)
        brought_along = list(_tools_brought_along(body.get("input")))
        for value in (tools, body.get("text"), *brought_along):
            if value:
                count.definitions(value)
        if body.get("context_management"):
            count.twice()  # by a compaction
        violations.raise_if_any()
        for some in (tools, *brought_along):
            reading.refuse_billed_tools(some, _PLAIN_TOOLS)
        _refuse_unbounded(body)
        components = TEXT_COMPONENTS
        if count.has_audio:
            components |= AUDIO_COMPONENTS
        if count.has_images:
            components |= IMAGE_COMPONENTS
        return cls(
            body=body,
            model=model,
            stream=stream,
            choices=1,
            cap=cap,
            input_bound=count.bound,
            input_guess=count.guess,
            media_guess=count.media_guess,
            unseen=count.unseen,
            service_tier=tier,
            components=components,
        )

    @property
    def least_cap(self) -> int:
        """See Request. A lower one of the client's own is for OpenAI to refuse."""
        return min(_LEAST_CAP, self.cap or _LEAST_CAP)

    def outgoing(self, cap: int, provider: Provider, headers: tuple[tuple[str, str], ...] = ()) -> Outgoing:
        """See Request."""
        model = provider.id_of(self.model)
        changed = cap if self.cap is None else min(cap, self.cap)
        body = orjson.dumps({**self.body, "model": model, "max_output_tokens": changed})
        return Outgoing(self.form, "responses", body, self.stream, headers, model=model)

    def reader(self) -> AnswerReader:
        """See Request."""
        return ResponsesReader()

    def texts(self) -> Iterator[str]:
        """See Request."""
        for name in ("instructions", "input"):
            if isinstance(self.body.get(name), str):
                yield self.body[name]
        items = self.body.get("input")
        for item in items if isinstance(items, list) else ():
            content = item.get("content") if isinstance(item, dict) else None
            if isinstance(content, str):
                yield content
            for part in content if isinstance(content, list) else ():
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    yield part["text"]
        if tools := self.body.get("tools"):
            yield orjson.dumps(tools).decode()


class ResponsesReader(AnswerReader):
    """Reads a response, or the events of a streamed one."""

    def __init__(self) -> None:
        super().__init__()
        self._sequence = 0
        self._response: dict[str, Any] = {}

    def broken(self, credits_object: Mapping[str, Any] | None) -> bytes:
        """See AnswerReader."""
        told: dict[str, Any] = {
            "type": "error",
            "code": "provider_stream_broken",
            "message": BROKEN,
            "param": None,
            "sequence_number": self._sequence + 1,
        }
        if credits_object is not None:
            told["credits"] = credits_object
        return event_of(orjson.dumps(told), b"error")

    def cut_short(self, credits_object: Mapping[str, Any] | None, counted: rating.Usage) -> bytes:
        """See AnswerReader."""
        response = {
            **self._response,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "usage": {
                "input_tokens": counted.input_tokens,
                "input_tokens_details": {"cached_tokens": counted.cache_read_tokens},
                "output_tokens": counted.output_tokens,
                "output_tokens_details": {"reasoning_tokens": counted.reasoning_tokens},
                "total_tokens": counted.input_tokens + counted.output_tokens,
            },
        }
        told = {
            "type": "response.incomplete",
            "response": response,
            "sequence_number": self._sequence + 1,
            "credits": credits_object,
        }
        return event_of(orjson.dumps(told), b"response.incomplete")

    def _whole(self, answer: dict[str, Any]) -> None:
        output = answer.get("output")
        for item in output if isinstance(output, list) else ():
            if not isinstance(item, dict):
                continue
            self.say(item.get("arguments"))
            self.say(item.get("input"))
            for name in ("summary", "content"):
                parts = item.get(name)
                for part in parts if isinstance(parts, list) else ():
                    if isinstance(part, dict):
                        self.say(part.get("text"))
                        self.say(part.get("refusal"))
        self._note(answer)

    def _is_failure(self, chunk: dict[str, Any]) -> bool:
        return chunk.get("type") == "error" or super()._is_failure(chunk)

    def _chunk(self, raw: bytes, chunk: dict[str, Any]) -> Event:
        kind = str(chunk.get("type"))
        if isinstance(chunk.get("sequence_number"), int):
            self._sequence = chunk["sequence_number"]
        if kind in _DELTAS:
            self.pieces += self.say(chunk.get("delta"))
            return Event(raw)
        response = chunk.get("response")
        if isinstance(response, dict):
            self._note(response)
        if kind not in _ENDS:
            return Event(raw)
        self.finished = kind != "response.failed"
        self.failed = self.failed or not self.finished
        return Event(raw, chunk=chunk, done=True)

    def _note(self, response: dict[str, Any]) -> None:
        self._response = self._response or response
        usage = response.get("usage")
        if isinstance(usage, dict) and usage.get("output_tokens") is not None:  # else it counts half of the call
            self.count(accounting.openai_responses, usage)
        self.note(response.get("id"), response.get("service_tier"))


def _tools_brought_along(given: object) -> Iterator[object]:
    """The lists of tools that a conversation brings along: those added in its midst, those that a search has found."""
    for item in given if isinstance(given, list) else ():
        if isinstance(item, dict) and item.get("tools"):
            yield item["tools"]


def _refuse_unbounded(body: Mapping[str, Any]) -> None:
    """Raise ToolNotPriced for what may be billed by more than the input and the output cap."""
    if body.get("multi_agent"):
        raise reading.not_priced("multi_agent")  # any number of agents, each with a context of its own
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("mode") not in (None, "standard"):
        raise reading.not_priced("reasoning.mode")  # OpenAI does not say that the cap bounds what pro thinks


def _count_input(count: tokens.InputCount, violations: Violations, body: Mapping[str, Any]) -> None:
    remembered = [name for name in _REMEMBERED if body.get(name)]
    if remembered:
        count.file(None)
    given = body.get("input")
    instructions = body.get("instructions")
    if isinstance(instructions, str):
        count.text(instructions)
    if isinstance(given, str):
        count.message()
        count.text(given)
    elif isinstance(given, list):
        violations.count("input", given, at_most=reading.MAX_MESSAGES)
        violations.raise_if_any()
        for number, item in enumerate(given):
            if isinstance(item, dict):
                _count_item(count, item)
            else:
                violations.add(f"input[{number}]", "must be an object")
    elif given is not None:
        violations.add("input", "must be a string or a list of items")
    elif not remembered:
        violations.add("input", "is required")


def _count_item(count: tokens.InputCount, item: Mapping[str, Any]) -> None:
    count.message()
    if item.get("type") == "item_reference":
        count.file(None)
    content = item.get("content", item.get("output"))
    if isinstance(content, dict):  # what a computer's screen shows
        content = [content]
    if isinstance(content, str):
        count.text(content)
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        match part.get("type"):
            case "input_image" | "computer_screenshot":
                reading.count_image(count, part.get("image_url"))
            case "input_audio":
                audio = part.get("input_audio")
                count.audio(audio.get("data") if isinstance(audio, dict) else None)
            case "input_file" | "file":
                count.file(part.get("file_data"))
            case _:
                count.json(part)
    if content is None:
        count.json(item)
