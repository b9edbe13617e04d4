"""Owns streamed answers: ConverseStream's events, from bytes split anywhere, as chunks of a chat completion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.proxy.converse.answer import SERVER_TOOL_USE, beside_choices, error_object, finish_reason
from services.proxy.converse.events import EventStreamDecoder, EventStreamError, Message

Chunk = dict[str, Any]

MAX_BLOCKS = 10_000
# What is kept of thoughts, to be given whole with their signature.
MAX_REASONING_CHARS = 16 * 1024 * 1024


@dataclass(slots=True)
class _Block:
    """One content block under way. `call`: the index of the tool call that it is, None where it is none of ours."""

    call: int | None = None
    has_arguments: bool = False
    thought: list[str] = field(default_factory=list)
    signature: list[str] = field(default_factory=list)
    redacted: list[str] = field(default_factory=list)


class ConverseStream:
    """Turns one streamed answer into chunks with this id and model, created at this Unix time in seconds.

    `usage` is Bedrock's own, once it has come. `finished`: the answer came to its end, its usage with it. `failed`:
    Bedrock said in the midst of it that it failed, or what it said was not understood.
    """

    def __init__(self, *, model: str, identifier: str, created: int) -> None:
        self.usage: Mapping[str, Any] | None = None
        self.failed = False
        self._head = {"id": identifier, "object": "chat.completion.chunk", "created": created, "model": model}
        self._decoder = EventStreamDecoder()
        self._blocks: dict[int, _Block] = {}
        self._begun_blocks = 0
        self._calls = 0
        self._thoughts = 0
        self._reasoning_chars = 0
        self._stopped = False
        self._ended = False

    @property
    def finished(self) -> bool:
        """Whether the answer has come to its end: Bedrock ends it with `messageStop` and then `metadata`."""
        return self._stopped and self._ended and not self.failed and not self._decoder.pending

    def feed(self, piece: bytes) -> Iterator[Chunk]:
        """The chunks that this piece completes, to be iterated to the end.

        The last has the usage and no choices. What Bedrock reports as an exception is `{"error": {…}}`, after which
        nothing comes. Raises EventStreamError for bytes that were changed or are above a limit, and for events out of
        their order.
        """
        try:
            for message in self._decoder.feed(piece):
                if not self.failed:
                    yield from self._take(message)
        except EventStreamError:
            self.failed = True
            raise

    def _take(self, message: Message) -> Iterator[Chunk]:
        match message.headers.get(":message-type"):
            case "event":
                event = _payload(message)
                try:
                    yield from self._event(message.headers.get(":event-type", ""), event)
                except (KeyError, TypeError, AttributeError) as error:
                    raise EventStreamError(f"an event that is not as documented: {error!r}"[:200]) from error
            case "exception":
                self.failed = True
                yield {"error": _exception(message)}
            case "error":
                self.failed = True
                code, text = message.headers.get(":error-code", ""), message.headers.get(":error-message", "")
                yield {"error": error_object(code or "InternalServerException", text)}
            case _:
                raise EventStreamError("a message that is neither event, exception nor error")

    def _event(self, kind: str, event: Mapping[str, Any]) -> Iterator[Chunk]:
        match kind:
            case "messageStart":
                yield self._delta(role="assistant", content="")
            case "contentBlockStart":
                yield from self._start(event)
            case "contentBlockDelta":
                yield from self._block_delta(event)
            case "contentBlockStop":
                yield from self._stop(event)
            case "messageStop":
                self._stopped = True
                reason = event.get("stopReason")
                ending = {"finish_reason": finish_reason(reason), "stop_reason": reason}
                yield {**self._head, "choices": [{"index": 0, "delta": {}, **ending}]}
            case "metadata":
                self._ended = True
                usage = event.get("usage")
                self.usage = usage if isinstance(usage, dict) else None
                beside = beside_choices(event)
                if beside:
                    yield {**self._head, "choices": [], **beside}
            case _:
                pass  # a kind of event that has been added since

    def _start(self, event: Mapping[str, Any]) -> Iterator[Chunk]:
        block = self._open(event["contentBlockIndex"])
        use = event["start"].get("toolUse")
        if use is None or use.get("type") == SERVER_TOOL_USE:
            return
        block.call = self._calls
        self._calls += 1
        function = {"name": use["name"], "arguments": ""}
        yield self._tool_call({"index": block.call, "id": use["toolUseId"], "type": "function", "function": function})

    def _block_delta(self, event: Mapping[str, Any]) -> Iterator[Chunk]:
        index, delta = event["contentBlockIndex"], event["delta"]
        block = self._blocks.get(index)
        if block is None:
            if "toolUse" in delta:
                raise EventStreamError("the input of a tool that nobody named")
            block = self._open(index)  # of text or thoughts, which Bedrock opens with the first delta
        if "text" in delta:
            yield self._delta(content=delta["text"])
        elif "toolUse" in delta:
            text = delta["toolUse"].get("input") or ""
            if block.call is not None and text:
                block.has_arguments = True
                yield self._tool_call({"index": block.call, "function": {"arguments": text}})
        elif "reasoningContent" in delta:
            yield from self._reasoning(block, delta["reasoningContent"])

    def _reasoning(self, block: _Block, delta: Mapping[str, Any]) -> Iterator[Chunk]:
        for name, kept in (
            ("text", block.thought),
            ("signature", block.signature),
            ("redactedContent", block.redacted),
        ):
            piece = delta.get(name)
            if not piece:
                continue
            self._reasoning_chars += len(piece)
            if self._reasoning_chars > MAX_REASONING_CHARS:
                raise EventStreamError(f"thoughts of more than {MAX_REASONING_CHARS} characters")
            kept.append(piece)
            if name == "text":
                yield self._delta(reasoning_content=piece)

    def _stop(self, event: Mapping[str, Any]) -> Iterator[Chunk]:
        block = self._blocks.pop(event["contentBlockIndex"], None)
        if block is None:
            return
        if block.call is not None and not block.has_arguments:
            # Of a tool without parameters; clients read its arguments as JSON, which nothing is not.
            yield self._tool_call({"index": block.call, "function": {"arguments": "{}"}})
        whole: dict[str, Any] | None = None
        if block.redacted:
            whole = {"redactedContent": "".join(block.redacted)}
        elif block.thought or block.signature:
            signature = {"signature": "".join(block.signature)} if block.signature else {}
            whole = {"reasoningText": {"text": "".join(block.thought), **signature}}
        if whole is not None:
            yield self._delta(reasoning_blocks=[{"index": self._thoughts, **whole}])
            self._thoughts += 1

    def _open(self, index: int) -> _Block:
        if not isinstance(index, int) or index in self._blocks:
            raise EventStreamError("a content block without a number of its own")
        self._begun_blocks += 1
        if self._begun_blocks > MAX_BLOCKS:
            raise EventStreamError(f"more than {MAX_BLOCKS} content blocks")
        self._blocks[index] = _Block()
        return self._blocks[index]

    def _tool_call(self, call: dict[str, Any]) -> Chunk:
        return self._delta(tool_calls=[call])

    def _delta(self, **delta: Any) -> Chunk:
        return {**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def _payload(message: Message) -> Mapping[str, Any]:
    try:
        payload = orjson.loads(message.payload)
    except orjson.JSONDecodeError as error:
        raise EventStreamError(f"an event that is not JSON: {error.msg}") from error
    if not isinstance(payload, dict):
        raise EventStreamError("an event that is not an object")
    return payload


def _exception(message: Message) -> dict[str, Any]:
    """OpenAI's error object; in a stream an exception's name begins with a small letter."""
    name = message.headers.get(":exception-type", "internalServerException")
    try:
        payload = _payload(message)
    except EventStreamError:
        payload = {}
    text = payload.get("originalMessage") or payload.get("message")
    return error_object(name[:1].upper() + name[1:], text if isinstance(text, str) else "")
