"""Owns Anthropic's messages: what is read of a request, what is changed in it, what its answer used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import orjson

from services import rating
from services.kit.validation import Violations
from services.proxy.formats import reading, tokens
from services.proxy.formats.answer import BROKEN, AnswerReader, Event, believed
from services.proxy.formats.request import IMAGE_COMPONENTS, TEXT_COMPONENTS, Request
from services.proxy.sse import event_of
from services.proxy.upstream import Outgoing, Provider
from services.rating import accounting

# Tools that the client runs, or that cost no more than the model's tokens. Others are billed by the call or the hour.
_PLAIN_TOOLS = frozenset(
    {
        "custom",
        "bash",
        "text_editor",
        "computer",
        "computer_toolset",
        "browser_toolset",
        "memory",
        "tool_search_tool_bm25",
        "tool_search_tool_regex",
    }
)
# What multiplies the price of the tokens, with the value that does not: fast inference, and where it is done.
_DEARER = {"speed": "standard", "inference_geo": "global"}
_DELTAS = ("text", "partial_json", "thinking", "content")  # the last of a compaction
_SAID = ("text", "thinking", "content")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesRequest(Request):
    """A message to answer."""

    form: ClassVar[str] = "messages"
    owner: ClassVar[str] = "anthropic"

    @classmethod
    def read(cls, raw: bytes, *, model: str = "", stream: bool = False) -> Self:
        """See Request."""
        violations = Violations()
        body, model = reading.body_and_model(violations, raw, model)
        stream = reading.boolean(violations, body, "stream")
        cap = reading.integer(violations, body, "max_tokens", reading.MAX_CAP, least=0)  # 0: into the cache, no answer
        tier = reading.service_tier(violations, body)
        count = tokens.InputCount(raw, model, claude=True)
        _count_messages(count, violations, body.get("messages"))
        _count_content(count, body.get("system"))
        tools = body.get("tools")
        if isinstance(tools, list):
            violations.count("tools", tools, at_most=reading.MAX_TOOLS)
        brought_along = list(_tools_brought_along(body))
        for value in (tools, brought_along, body.get("output_format"), _format(body)):
            if value:
                count.definitions(value)
        if body.get("thread"):
            count.file(None)  # what Anthropic remembers of the conversation is not seen here
        if _is_read_twice(body.get("context_management")):
            count.twice()
        violations.raise_if_any()
        reading.refuse_billed_tools(tools, _PLAIN_TOOLS)
        reading.refuse_billed_tools(brought_along, _PLAIN_TOOLS)
        if body.get("mcp_servers"):
            raise reading.not_priced("mcp_servers")  # any number of rounds, each of the whole context
        if body.get("fallbacks"):
            raise reading.not_priced("fallbacks")  # other models, each at a price of its own
        for name, plain in _DEARER.items():
            if body.get(name) not in (None, plain):
                raise reading.not_priced(name)
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
            components=TEXT_COMPONENTS | IMAGE_COMPONENTS if count.has_images else TEXT_COMPONENTS,
        )

    @property
    def least_cap(self) -> int:
        """See Request. Anthropic wants room for an answer beside a budget for thoughts."""
        thinking = self.body.get("thinking")
        budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
        least = budget + 1 if isinstance(budget, int) and 0 < budget < reading.MAX_CAP else 1
        return least if self.cap is None else min(least, self.cap)

    def outgoing(self, cap: int, provider: Provider, headers: tuple[tuple[str, str], ...] = ()) -> Outgoing:
        """See Request."""
        model = provider.id_of(self.model)
        changed = cap if self.cap is None else min(cap, self.cap)
        body = orjson.dumps({**self.body, "model": model, "max_tokens": changed})
        return Outgoing(self.form, "messages", body, self.stream, headers, model=model)

    def reader(self) -> AnswerReader:
        """See Request."""
        return MessagesReader()

    def texts(self) -> Iterator[str]:
        """See Request."""
        yield from _texts(self.body.get("system"))
        for message in self.body.get("messages", ()):
            yield from _texts(message.get("content"))
        if tools := self.body.get("tools"):
            yield orjson.dumps(tools).decode()


class MessagesReader(AnswerReader):
    """Reads a message, or the events of a streamed one.

    A stream counts its input at the start and its output at the end: between them there is no count of what was said.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, Any] = {}
        self._output_counted = False
        self._open_blocks: list[object] = []
        self._has_content = False
        self._refused = False

    @property
    def owed(self) -> bool:
        """See AnswerReader. A refusal before any output is counted and not billed: Anthropic, "Streaming refusals"."""
        return super().owed and (self._has_content or not self._refused)

    def broken(self, credits_object: Mapping[str, Any] | None) -> bytes:
        """See AnswerReader."""
        told: dict[str, Any] = {"type": "error", "error": {"type": "api_error", "message": BROKEN}}
        if credits_object is not None:
            told["credits"] = credits_object
        return event_of(orjson.dumps(told), b"error")

    def cut_short(self, credits_object: Mapping[str, Any] | None, counted: rating.Usage) -> bytes:
        """See AnswerReader."""
        stopped = (orjson.dumps({"type": "content_block_stop", "index": index}) for index in self._open_blocks)
        blocks = b"".join(event_of(block, b"content_block_stop") for block in stopped)
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": {"output_tokens": counted.output_tokens},
        }
        stop = {"type": "message_stop", "credits": credits_object}
        return blocks + event_of(orjson.dumps(delta), b"message_delta") + event_of(orjson.dumps(stop), b"message_stop")

    def _whole(self, answer: dict[str, Any]) -> None:
        usage = answer.get("usage")
        self.note(answer.get("id"), usage.get("service_tier") if isinstance(usage, dict) else None)
        content = answer.get("content")
        self._has_content, self._refused = bool(content), answer.get("stop_reason") == "refusal"
        for block in content if isinstance(content, list) else ():
            if isinstance(block, dict):
                for name in _SAID:
                    self.say(block.get(name))
                if block.get("input"):
                    self.say(orjson.dumps(block["input"]).decode())
        if _counts_output(usage):
            self.count(_accounted, usage)

    def _is_failure(self, chunk: dict[str, Any]) -> bool:
        return chunk.get("type") == "error"

    def _chunk(self, raw: bytes, chunk: dict[str, Any]) -> Event:
        match chunk.get("type"):
            case "message_start":
                message = chunk.get("message")
                if isinstance(message, dict):
                    self.note(message.get("id"), None)
                    self._counted(message.get("usage"))
                    self.partial = believed(_accounted, self._counts)
            case "content_block_start":
                self._has_content = True
                self._open_blocks.append(chunk.get("index"))
            case "content_block_stop":
                self._open_blocks = [index for index in self._open_blocks if index != chunk.get("index")]
            case "content_block_delta":
                delta = chunk.get("delta")
                if isinstance(delta, dict):
                    self.pieces += sum(self.say(delta.get(name)) for name in _DELTAS)
            case "message_delta":
                delta, usage = chunk.get("delta"), chunk.get("usage")
                self._counted(usage)
                self._output_counted |= _counts_output(usage)
                self.partial = believed(_accounted, self._counts) or self.partial
                if not isinstance(delta, dict) or delta.get("stop_reason") is None:
                    return Event(raw)
                self._refused = delta["stop_reason"] == "refusal"
                self._finish()
                return Event(raw, chunk=chunk)  # the last one of those that leave out message_stop
            case "message_stop":
                self._finish()
                return Event(raw, chunk=chunk, done=True)
        return Event(raw)

    def _finish(self) -> None:
        self.finished = True
        if self._output_counted:  # else what the start counted would pass for all of the output
            self.count(_accounted, self._counts)

    def _counted(self, usage: object) -> None:
        """Put what an event counts over what those before it counted."""
        if isinstance(usage, dict):
            self._counts |= {name: value for name, value in usage.items() if value is not None}
            self.note(None, usage.get("service_tier"))


def _accounted(usage: Mapping[str, Any]) -> rating.Usage:
    """What a message used: its own counts, and those of the compactions before it, which Anthropic counts beside them.

    Source: Anthropic's documentation, "Compaction", on `usage.iterations`. Raises InvalidUsage.
    """
    iterations = usage.get("iterations")
    apart = [
        one
        for one in (iterations if isinstance(iterations, list) else ())
        if isinstance(one, dict) and one.get("type") == "compaction"
    ]
    found = accounting.anthropic_messages(usage)
    for one in apart:
        found = rating.Usage(*map(sum, zip(found, accounting.anthropic_messages(one), strict=True)))
    return found._replace(requests=1)


def _counts_output(usage: object) -> bool:
    """Whether it counts the whole of a call, not its input alone."""
    return isinstance(usage, dict) and usage.get("output_tokens") is not None


def _tools_brought_along(body: Mapping[str, Any]) -> Iterator[object]:
    """The tools that are defined within the conversation: added in its midst, or in what a compaction stands for."""
    messages = body.get("messages")
    messages = messages if isinstance(messages, list) else ()
    said = (message.get("content") for message in messages if isinstance(message, dict))
    for content in (body.get("system"), *said):
        for block in content if isinstance(content, list) else ():
            changes = block.get("tool_changes") if isinstance(block, dict) else None
            for change in (block, *(changes if isinstance(changes, list) else ())):
                tool = change.get("tool") if isinstance(change, dict) else None
                if isinstance(tool, dict) and tool.get("definition"):
                    yield tool["definition"]


def _format(body: Mapping[str, Any]) -> Any:
    """The schema of the answer, where there is one; `output_format` is its older name."""
    config = body.get("output_config")
    return config.get("format") if isinstance(config, dict) else None


def _is_read_twice(management: object) -> bool:
    """Whether the context may be read once more, by a compaction. What only clears a part of it has it read once.

    Source: Anthropic's documentation, "Context editing" and "Compaction".
    """
    edits = management.get("edits") if isinstance(management, dict) else management
    if not isinstance(edits, list):
        return bool(management)
    return any(not isinstance(edit, dict) or not str(edit.get("type")).startswith("clear_") for edit in edits)


def _count_messages(count: tokens.InputCount, violations: Violations, messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        violations.add("messages", "is required: a list of at least one message")
        return
    violations.count("messages", messages, at_most=reading.MAX_MESSAGES)
    violations.raise_if_any()
    parts = 0
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str | list):
            violations.add(f"messages[{number}].content", "must be a string or a list of blocks")
            continue
        count.message()
        parts += len(content) if isinstance(content, list) else 0
        if parts > reading.MAX_PARTS:
            violations.add("messages", f"must have at most {reading.MAX_PARTS} blocks in all")
            violations.raise_if_any()
        _count_content(count, content)


def _count_content(count: tokens.InputCount, content: object) -> None:
    """Count a content, or the blocks of one; what a tool gave is a content again."""
    if isinstance(content, str):
        count.text(content)
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        source = block.get("source")
        source = source if isinstance(source, dict) else {}
        match block.get("type"):
            case "image":
                count.image(source.get("data") or source.get("url"))
            case "document" if source.get("type") in ("text", "content"):
                _count_content(count, source.get("data") or source.get("content"))
            case "document" | "container_upload":
                count.file(source.get("data"))
            case "tool_result":
                count.message()
                _count_content(count, block.get("content"))
            case _:
                count.json(block)


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        if isinstance(block.get("text"), str):
            yield block["text"]
        elif block.get("type") == "tool_result":
            yield from _texts(block.get("content"))
        elif block.get("type") == "tool_use":
            yield orjson.dumps(block.get("input")).decode()
