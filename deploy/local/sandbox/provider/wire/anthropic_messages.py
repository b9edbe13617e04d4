"""Owns Anthropic's messages: content blocks, and the events that open, fill and close them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson

from deploy.local.sandbox.provider import tokens
from deploy.local.sandbox.provider.answer import Answer, Finish, Usage, groups
from deploy.local.sandbox.provider.prompt import Prompt, Tool
from deploy.local.sandbox.provider.refusal import Dialect, Refusal, stream_error
from deploy.local.sandbox.provider.routes import Route
from deploy.local.sandbox.provider.wire.base import SSE, Body, Chunk, sse

_STOP_REASONS: Final = {
    Finish.STOP: "end_turn",
    Finish.STOP_SEQUENCE: "stop_sequence",
    Finish.LENGTH: "max_tokens",
    Finish.TOOL: "tool_use",
}
_SIGNATURE: Final = "c2FuZGJveA=="
_INLINE_FILES: Final = ("document", "container_upload", "search_result")


class Messages:
    """The wire format of `POST /v1/messages`."""

    stream_content_type = SSE

    def read(self, body: Body, route: Route) -> Prompt:  # noqa: ARG002  (the format does not depend on the address)
        """Read a request. Raises Refusal where Anthropic would refuse it."""
        model = _required(body, "model", str, "string")
        messages = _required(body, "messages", list, "list")
        if not messages:
            raise _invalid("messages: at least one message is required")
        cap = _required(body, "max_tokens", int, "integer")
        if cap < 0:
            raise _invalid("max_tokens: Input should be greater than or equal to 0")
        counts = [_message_tokens(row, f"messages.{index}") for index, row in enumerate(messages)]
        system = _content_tokens(body.get("system"), "system")
        if system:
            counts.append(system)
        tools = _tools(body)
        schema = _schema(body)
        thinking = _optional(body, "thinking", Mapping, "dictionary") or {}
        return Prompt(
            model=model,
            input_tokens=tokens.count_call(counts)
            + sum(tokens.count_json(row) for row in body.get("tools") or ())
            + (tokens.count_json(schema) if schema else 0),
            last_user_text=_last_user_text(messages),
            stream=bool(_optional(body, "stream", bool, "boolean")),
            cap=cap,
            stops=_stops(body),
            tools=tools,
            required_tool=_required_tool(body, tools),
            json_schema=schema,
            shows_reasoning=thinking.get("type") in ("enabled", "adaptive"),
            body=body,
        )

    def count(self, body: Body, route: Route) -> Prompt:
        """Read what `POST /v1/messages/count_tokens` asks, which has no output cap. Raises Refusal."""
        return self.read({**body, "max_tokens": 0, "stream": False}, route)

    def counted(self, input_tokens: int) -> dict[str, Any]:
        """A `message_tokens_count`."""
        return {"input_tokens": input_tokens}

    def unary(self, answer: Answer) -> bytes:
        """A `message`."""
        content: list[dict[str, Any]] = []
        if answer.reasoning and answer.prompt.shows_reasoning:
            content.append({"type": "thinking", "thinking": "".join(answer.reasoning), "signature": _SIGNATURE})
        if answer.call is not None:
            content.append(_tool_use(answer, answer.parsed_arguments))
        elif answer.text:
            content.append({"type": "text", "text": "".join(answer.text)})
        message = _message(answer, content, _STOP_REASONS[answer.finish], answer.stop)
        if answer.usage_shown:
            message["usage"] = _usage(answer.usage)
        return orjson.dumps(message)

    def stream(self, answer: Answer) -> Iterator[Chunk]:
        """`message_start`, content blocks with a `ping` in the first, `message_delta` with usage, `message_stop`."""
        opening = _message(answer, [], None, None)
        if answer.usage_shown:
            # The input is final here; the output is known only at the end, so this is a first guess.
            opening["usage"] = _usage(answer.usage) | {"output_tokens": min(1, answer.usage.output)}
        hidden = 0 if answer.prompt.shows_reasoning else len(answer.reasoning)
        yield Chunk(_event("message_start", message=opening), hidden)
        for index, (start, said_at_start, deltas, closing) in enumerate(_blocks(answer)):
            yield Chunk(_event("content_block_start", index=index, content_block=start), said_at_start)
            if index == 0:
                yield Chunk(_event("ping"))
            for delta, length in deltas:
                yield Chunk(_event("content_block_delta", index=index, delta=delta), length, content=True)
            if closing is not None:
                yield Chunk(_event("content_block_delta", index=index, delta=closing))
            yield Chunk(_event("content_block_stop", index=index))
        end: dict[str, Any] = {
            "delta": {"stop_reason": _STOP_REASONS[answer.finish], "stop_sequence": answer.stop},
        }
        if answer.usage_shown:
            usage = _usage(answer.usage)
            cumulative = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
            end["usage"] = {name: usage[name] for name in cumulative}
        yield Chunk(_event("message_delta", **end))
        yield Chunk(_event("message_stop"))

    def stream_error(self, dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
        """An `error` event."""
        return sse(stream_error(dialect, refusal, request_id), "error")


def _event(kind: str, **members: Any) -> bytes:
    return sse({"type": kind, **members}, kind)


# What opens a block, its tokens, the deltas with theirs, and a delta without tokens that ends it.
_Block = tuple[dict[str, Any], int, Iterator[tuple[dict[str, Any], int]], dict[str, Any] | None]


def _blocks(answer: Answer) -> Iterator[_Block]:
    size = answer.chunk_tokens
    if answer.reasoning and answer.prompt.shows_reasoning:
        thoughts = (
            ({"type": "thinking_delta", "thinking": text}, length) for text, length in groups(answer.reasoning, size)
        )
        yield (
            {"type": "thinking", "thinking": "", "signature": ""},
            0,
            thoughts,
            {"type": "signature_delta", "signature": _SIGNATURE},
        )
    if answer.call is not None:
        parts = groups(answer.call.arguments, size)
        deltas = (({"type": "input_json_delta", "partial_json": text}, length) for text, length in parts)
        yield _tool_use(answer, {}), tokens.count(answer.call.name), deltas, None
    elif answer.text:
        words = (({"type": "text_delta", "text": text}, length) for text, length in groups(answer.text, size))
        yield {"type": "text", "text": ""}, 0, words, None


def _tool_use(answer: Answer, arguments: Any) -> dict[str, Any]:
    assert answer.call is not None
    return {
        "type": "tool_use",
        "id": f"toolu_sandbox_{answer.number}",
        "name": answer.call.name,
        "input": arguments,
    }


def _message(
    answer: Answer, content: list[dict[str, Any]], stop_reason: str | None, stop: str | None
) -> dict[str, Any]:
    return {
        "id": f"msg_sandbox_{answer.number}",
        "type": "message",
        "role": "assistant",
        "model": answer.prompt.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": stop,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's `input_tokens` are those neither read from the cache nor written to it."""
    written = usage.cache_write + usage.cache_write_1h
    return {
        "input_tokens": usage.input - usage.cached - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": usage.output,
        "service_tier": "standard",
    }


def _invalid(message: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, message)


def _required(body: Body, name: str, kind: type, called: str) -> Any:
    if name not in body:
        raise _invalid(f"{name}: Field required")
    return _typed(body[name], name, kind, called)


def _optional(body: Body, name: str, kind: type, called: str) -> Any:
    value = body.get(name)
    return None if value is None else _typed(value, name, kind, called)


def _typed(value: Any, name: str, kind: type, called: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _invalid(f"{name}: Input should be a valid {called}")
    return value


def _stops(body: Body) -> tuple[str, ...]:
    stops = _optional(body, "stop_sequences", list, "list") or []
    for index, stop in enumerate(stops):
        _typed(stop, f"stop_sequences.{index}", str, "string")
        if not stop.strip():
            raise _invalid("stop_sequences: each stop sequence must contain non-whitespace")
    return tuple(stops)


def _tools(body: Body) -> tuple[Tool, ...]:
    found = []
    for index, row in enumerate(_optional(body, "tools", list, "list") or ()):
        _typed(row, f"tools.{index}", Mapping, "dictionary")
        if "input_schema" not in row:
            if "type" not in row:
                raise _invalid(f"tools.{index}.custom.input_schema: Field required")
            continue  # the provider's own tools are counted, and never called
        found.append(Tool(_required(row, "name", str, "string"), row["input_schema"] or {}))
    return tuple(found)


def _required_tool(body: Body, tools: tuple[Tool, ...]) -> str | None:
    choice = _optional(body, "tool_choice", Mapping, "dictionary") or {}
    match choice.get("type"):
        case None | "auto" | "none":
            return None
        case "any" if tools:
            return tools[0].name
        case "tool" if any(tool.name == choice.get("name") for tool in tools):
            return str(choice["name"])
        case "tool" | "any":
            raise _invalid(f"Tool '{choice.get('name')}' not found in provided tools")
        case other:
            expected = "'auto', 'any', 'tool', 'none'"
            problem = f"Input tag '{other}' found using 'type' does not match any of the expected tags: {expected}"
            raise _invalid(f"tool_choice: {problem}")


def _schema(body: Body) -> Body | None:
    """The schema of the answer, None where it is text; `output_format` is the older name of its place."""
    config = _optional(body, "output_config", Mapping, "dictionary") or {}
    asked = _optional(config, "format", Mapping, "dictionary") or _optional(
        body, "output_format", Mapping, "dictionary"
    )
    if asked is None:
        return None
    if asked.get("type") != "json_schema":
        raise _invalid("output_config.format.type: Input should be 'json_schema'")
    schema: Body = _required(asked, "schema", Mapping, "dictionary")
    return schema


def _message_tokens(row: Any, where: str) -> int:
    _typed(row, where, Mapping, "dictionary")
    begins_with_it = row.get("role") == "system" and where == "messages.0"  # what begins it has a field of its own
    if begins_with_it or row.get("role") not in ("user", "assistant", "system"):
        raise _invalid(f"{where}.role: Input should be 'user' or 'assistant'")
    if row.get("content") is None:
        raise _invalid(f"{where}.content: Field required")
    return _content_tokens(row["content"], f"{where}.content")


def _content_tokens(content: Any, where: str) -> int:
    if content is None:
        return 0
    if isinstance(content, str):
        return tokens.count(content)
    if not isinstance(content, list):
        raise _invalid(f"{where}: Input should be a valid list")
    return sum(_block_tokens(block, f"{where}.{index}") for index, block in enumerate(content))


def _block_tokens(block: Any, where: str) -> int:  # noqa: PLR0911  (one return a case)
    _typed(block, where, Mapping, "dictionary")
    match block.get("type"):
        case "text":
            text = _typed(block.get("text"), f"{where}.text.text", str, "string")
            if not text:
                raise _invalid("messages: text content blocks must be non-empty")
            return tokens.count(text)
        case "image":
            return tokens.IMAGE
        case "thinking":
            return tokens.count(str(block.get("thinking", "")))
        case "tool_use":
            return tokens.count(str(block.get("name", ""))) + tokens.count_json(block.get("input"))
        case "tool_result":
            return _content_tokens(block.get("content"), f"{where}.tool_result.content")
        case kind if kind in _INLINE_FILES:
            source = block.get("source")
            inline = str(source.get("data", "")) if isinstance(source, Mapping) else ""
            return tokens.count_base64(inline)
        case str():
            return tokens.count_json(block)
        case _:
            raise _invalid(f"{where}: Unable to extract tag using discriminator 'type'")


def _last_user_text(messages: list[Body]) -> str:
    for row in reversed(messages):
        if row["role"] == "user":
            content = row["content"]
            if isinstance(content, str):
                return content
            return "\n".join(str(block.get("text", "")) for block in content)
    return ""
