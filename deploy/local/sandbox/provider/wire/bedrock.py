"""Owns AWS Bedrock's Converse and ConverseStream, the latter in AWS's binary event stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson

from deploy.local.sandbox.provider import eventstream, tokens
from deploy.local.sandbox.provider.answer import Answer, Finish, Usage, groups
from deploy.local.sandbox.provider.prompt import Prompt, Tool
from deploy.local.sandbox.provider.refusal import Dialect, Refusal, bedrock_exception, stream_error
from deploy.local.sandbox.provider.routes import Endpoint, Route
from deploy.local.sandbox.provider.wire.base import Body, Chunk
from deploy.local.sandbox.provider.wire.bedrock_rules import check, invalid

_STOP_REASONS: Final = {
    Finish.STOP: "end_turn",
    Finish.STOP_SEQUENCE: "stop_sequence",
    Finish.LENGTH: "max_tokens",
    Finish.TOOL: "tool_use",
}
_LATENCY_MS: Final = 1
_SIGNATURE: Final = "c2FuZGJveA=="
_FILES: Final = ("document", "video", "audio")
# Those that ConverseStream has inside a stream; every other failure of a model is `modelStreamErrorException` there.
_STREAM_EXCEPTIONS: Final = frozenset(
    {"InternalServerException", "ValidationException", "ThrottlingException", "ServiceUnavailableException"}
)


class Converse:
    """The wire format of `POST /model/{modelId}/converse` and `/converse-stream`."""

    stream_content_type = eventstream.CONTENT_TYPE

    def read(self, body: Body, route: Route) -> Prompt:
        """Read a request. Raises Refusal where Bedrock would refuse it."""
        messages = _field(body, "messages", list) or []
        if not messages:
            raise invalid("The messages field is required and must hold at least one message.")
        counts = [_message_tokens(row, index) for index, row in enumerate(messages)]
        system = sum(_block_tokens(block) for block in _field(body, "system", list) or ())
        if system:
            counts.append(system)
        config = _field(body, "inferenceConfig", Mapping) or {}
        tool_config = _field(body, "toolConfig", Mapping) or {}
        tools = _tools(tool_config)
        check(body)
        extra = _field(body, "additionalModelRequestFields", Mapping) or {}
        thinking = extra.get("thinking")
        return Prompt(
            model=route.model,
            input_tokens=tokens.count_call(counts)
            + sum(tokens.count_json(tool) for tool in tool_config.get("tools") or ()),
            last_user_text=_last_user_text(messages),
            stream=route.endpoint is Endpoint.CONVERSE_STREAM,
            cap=_cap(config),
            stops=tuple(str(stop) for stop in _field(config, "stopSequences", list) or ()),
            tools=tools,
            required_tool=_required_tool(tool_config, tools),
            json_schema=_json_schema(body),
            shows_reasoning=isinstance(thinking, Mapping) and thinking.get("type") == "enabled",
            body=body,
        )

    def unary(self, answer: Answer) -> bytes:
        """A Converse response."""
        content: list[dict[str, Any]] = []
        if answer.reasoning and answer.prompt.shows_reasoning:
            thoughts = {"text": "".join(answer.reasoning), "signature": _SIGNATURE}
            content.append({"reasoningContent": {"reasoningText": thoughts}})
        if answer.call is not None:
            content.append({"toolUse": {**_tool_use(answer), "input": answer.parsed_arguments}})
        elif answer.text:
            content.append({"text": "".join(answer.text)})
        response: dict[str, Any] = {
            "output": {"message": {"role": "assistant", "content": content}},
            "stopReason": _STOP_REASONS[answer.finish],
            "metrics": {"latencyMs": _LATENCY_MS},
            **_echoed(answer),
        }
        if answer.usage_shown:
            response["usage"] = _usage(answer.usage)
        return orjson.dumps(response)

    def stream(self, answer: Answer) -> Iterator[Chunk]:
        """`messageStart`, the content blocks, `messageStop`, and `metadata` with the usage."""
        shown = answer.prompt.shows_reasoning
        yield Chunk(_event("messageStart", role="assistant"), 0 if shown else len(answer.reasoning))
        index = 0
        if answer.reasoning and shown:
            for text, length in groups(answer.reasoning, answer.chunk_tokens):
                yield Chunk(_delta(index, reasoningContent={"text": text}), length, content=True)
            yield Chunk(_delta(index, reasoningContent={"signature": _SIGNATURE}))
            yield Chunk(_event("contentBlockStop", contentBlockIndex=index))
            index += 1
        if answer.call is not None:
            start = _event("contentBlockStart", contentBlockIndex=index, start={"toolUse": _tool_use(answer)})
            yield Chunk(start, tokens.count(answer.call.name))
            for text, length in groups(answer.call.arguments, answer.chunk_tokens):
                yield Chunk(_delta(index, toolUse={"input": text}), length, content=True)
        # Bedrock opens a block of text with its first delta.
        for text, length in groups(answer.text, answer.chunk_tokens):
            yield Chunk(_delta(index, text=text), length, content=True)
        if answer.call is not None or answer.text:
            yield Chunk(_event("contentBlockStop", contentBlockIndex=index))
        yield Chunk(_event("messageStop", stopReason=_STOP_REASONS[answer.finish]))
        end: dict[str, Any] = {"metrics": {"latencyMs": _LATENCY_MS}, **_echoed(answer)}
        if answer.usage_shown:
            end["usage"] = _usage(answer.usage)
        yield Chunk(_event("metadata", **end))

    def stream_error(self, dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
        """An exception message; its name begins with a small letter inside a stream."""
        name = bedrock_exception(refusal)
        payload = stream_error(dialect, refusal, request_id)
        if name not in _STREAM_EXCEPTIONS:
            name = "ModelStreamErrorException"
            payload |= {"originalStatusCode": refusal.status, "originalMessage": payload["message"]}
        return eventstream.exception(name[0].lower() + name[1:], orjson.dumps(payload))


def _event(kind: str, **members: Any) -> bytes:
    return eventstream.event(kind, orjson.dumps(members))


def _delta(index: int, **delta: Any) -> bytes:
    return _event("contentBlockDelta", contentBlockIndex=index, delta=delta)


def _tool_use(answer: Answer) -> dict[str, Any]:
    assert answer.call is not None
    return {"toolUseId": f"tooluse_sandbox_{answer.number}", "name": answer.call.name}


def _echoed(answer: Answer) -> dict[str, Any]:
    """What of the request Bedrock says again, with which tier and latency it was served."""
    return {
        name: answer.prompt.body[name] for name in ("serviceTier", "performanceConfig") if answer.prompt.body.get(name)
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """Bedrock's `inputTokens` leave out the cached tokens, its `totalTokens` do not."""
    written = usage.cache_write + usage.cache_write_1h
    by_age = (("1h", usage.cache_write_1h), ("5m", usage.cache_write))
    details = [{"ttl": ttl, "inputTokens": count} for ttl, count in by_age if count]
    return {
        "inputTokens": usage.input - usage.cached - written,
        "outputTokens": usage.output,
        "totalTokens": usage.input + usage.output,
        "cacheReadInputTokens": usage.cached,
        "cacheWriteInputTokens": written,
    } | ({"cacheDetails": details} if details else {})


def _field(body: Body, name: str, kind: type) -> Any:
    value = body.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise Refusal(HTTPStatus.BAD_REQUEST, f"Unexpected type for field {name}.", code="SerializationException")


def _cap(config: Body) -> int | None:
    value = config.get("maxTokens")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refusal(HTTPStatus.BAD_REQUEST, "Unexpected type for field maxTokens.", code="SerializationException")
    if value < 1:
        message = (
            f"1 validation error detected: Value '{value}' at 'inferenceConfig.maxTokens' failed to satisfy constraint:"
            " Member must have value greater than or equal to 1"
        )
        raise invalid(message)
    return value


def _json_schema(body: Body) -> Mapping[str, Any] | None:
    """The schema that the text of the answer has to follow; Converse takes it as a string."""
    text_format = (_field(body, "outputConfig", Mapping) or {}).get("textFormat")
    if text_format is None:
        return None
    try:
        schema = orjson.loads(text_format["structure"]["jsonSchema"]["schema"])
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise invalid(
            "The value at outputConfig.textFormat.structure.jsonSchema.schema is not a JSON schema."
        ) from error
    if text_format.get("type") != "json_schema" or not isinstance(schema, Mapping):
        raise invalid("The value at outputConfig.textFormat.type failed to satisfy enum value set: [json_schema]")
    return schema


def _tools(tool_config: Body) -> tuple[Tool, ...]:
    found = []
    for row in _field(tool_config, "tools", list) or ():
        spec = row.get("toolSpec") if isinstance(row, Mapping) else None
        if not isinstance(spec, Mapping):
            continue  # a cache point or a tool of Bedrock's own: counted, and never called
        name = spec.get("name")
        if not isinstance(name, str) or not name:
            raise invalid("The value at toolConfig.tools.0.toolSpec.name is empty.")
        schema = spec.get("inputSchema")
        found.append(Tool(name, (schema.get("json") or {}) if isinstance(schema, Mapping) else {}))
    return tuple(found)


def _required_tool(tool_config: Body, tools: tuple[Tool, ...]) -> str | None:
    choice = _field(tool_config, "toolChoice", Mapping) or {}
    if "any" in choice and tools:
        return tools[0].name
    if "tool" not in choice:
        return None
    name = (_field(choice, "tool", Mapping) or {}).get("name")
    if any(tool.name == name for tool in tools):
        return str(name)
    raise invalid(f"The tool {name} named in toolConfig.toolChoice is not defined in toolConfig.tools.")


def _message_tokens(row: Any, index: int) -> int:
    if not isinstance(row, Mapping) or row.get("role") not in ("user", "assistant"):
        message = (
            f"1 validation error detected: Value at 'messages.{index + 1}.member.role' failed to satisfy constraint:"
            " Member must satisfy enum value set: [user, assistant]"
        )
        raise invalid(message)
    content = _field(row, "content", list)
    if not content:
        raise invalid(f"The content field in the Message object at messages.{index} is empty.")
    return sum(_block_tokens(block) for block in content)


def _block_tokens(block: Any) -> int:  # noqa: PLR0911  (one return a kind of block)
    if not isinstance(block, Mapping):
        raise Refusal(HTTPStatus.BAD_REQUEST, "Unexpected type for field content.", code="SerializationException")
    if "text" in block:
        return tokens.count(_field(block, "text", str) or "")
    if "image" in block:
        return tokens.IMAGE
    for kind in _FILES:
        if kind in block:
            source = (_field(block, kind, Mapping) or {}).get("source")
            return tokens.count_base64(str(source.get("bytes", "")) if isinstance(source, Mapping) else "")
    if "toolUse" in block:
        use = _field(block, "toolUse", Mapping) or {}
        return tokens.count(str(use.get("name", ""))) + tokens.count_json(use.get("input") or {})
    if "toolResult" in block:
        result = _field(block, "toolResult", Mapping) or {}
        return sum(_block_tokens(part) for part in _field(result, "content", list) or ())
    if "cachePoint" in block:
        return 0
    return tokens.count_json(block)


def _last_user_text(messages: list[Body]) -> str:
    for row in reversed(messages):
        if row["role"] == "user":
            return "\n".join(str(block.get("text", "")) for block in row["content"])
    return ""
